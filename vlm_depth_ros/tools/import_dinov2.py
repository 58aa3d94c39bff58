"""Depth heads that DINOv2's authors published (``facebookresearch/dinov2``), linear and DPT.

A file holds the head alone. How far it reaches is in no tensor, and their own hub code, which
writes 80 m (once 10 m) into every linear head, is wrong by a factor of 8 for half of them: here
it follows from the data set.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
import re
from typing import Any, NamedTuple

import torch
from vlm_depth_ros.core.config import ModelConfig, require, TrainingCamera
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.model import Card, DepthModel, load_head, save_model

TOWERS = {
    384: 'dinov2-vit-s14',
    768: 'dinov2-vit-b14',
    1024: 'dinov2-vit-l14',
    1536: 'dinov2-vit-g14',
}
"""By width."""
PATCH_PX = 14
NEAREST_M = 0.001
LICENCE = 'Apache-2.0, as its authors state for the code and the weights of DINOv2'


class DataSet(NamedTuple):
    """What a head was trained on."""

    far_m: float
    image_hw: tuple[int, int]
    """As the network saw it, before it was padded to whole patches."""
    fx_px: float
    fy_px: float

    def camera(self, hw: tuple[int, int]) -> TrainingCamera:
        """The camera for which things are as large in a picture of size `hw` as in training."""
        return TrainingCamera(self.fx_px / hw[1], self.fy_px / hw[0])


DATA_SETS = {
    # NYU Depth V2's colour camera, whole frame (Silberman's toolbox).
    'nyu': DataSet(10.0, (480, 640), 518.8579, 519.4696),
    # KITTI's P_rect_02, on the usual crop.
    'kitti': DataSet(80.0, (352, 1216), 721.5377, 721.5377),
}

_PREFIX = 'decode_head.'
_LINEAR, _LINEAR_BIAS = 'conv_depth.weight', 'conv_depth.bias'
_READOUT = 'reassemble_blocks.readout_projects.{}.0.weight'
_PROJECT = 'project.conv.weight'
_DPT = {
    r'reassemble_blocks\.readout_projects\.(\d)\.0\.bias': r'readouts.\1.local.bias',
    r'reassemble_blocks\.projects\.(\d)\.conv\.(\w+)': r'reassemble.\1.0.\2',
    r'reassemble_blocks\.resize_layers\.(\d)\.(\w+)': r'reassemble.\1.1.\2',
    r'convs\.(\d)\.conv\.(\w+)': r'convs.\1.\2',
    r'fusion_blocks\.(\d)\.project\.conv\.(\w+)': r'fusions.\1.project.\2',
    r'fusion_blocks\.(\d)\.res_conv_unit1\.conv(\d)\.conv\.(\w+)': r'fusions.\1.skip.conv\2.\3',
    r'fusion_blocks\.(\d)\.res_conv_unit2\.conv(\d)\.conv\.(\w+)': r'fusions.\1.refine.conv\2.\3',
    r'project\.conv\.(\w+)': r'project.0.\1',
    r'conv_depth\.head\.0\.(\w+)': r'narrow.\1',
    r'conv_depth\.head\.2\.(\w+)': r'output.0.\1',
    r'conv_depth\.head\.4\.(\w+)': r'output.2.\1',
}
"""Their names (theirs follow mmcv) to those of `core.heads.dpt`."""


def import_dinov2(
    checkpoint: Mapping[str, Any],
    out: Path,
    *,
    source: str,
    dataset: str | None = None,
    size: tuple[int, int] | None = None,
    max_depth_m: float | None = None,
    camera: TrainingCamera | None = None,
    tower: str | None = None,
    tower_weights: Path | None = None,
    embed_tower: bool = False,
) -> Card:
    """Write a weights file that answers as the authors' network does.

    Args:
        checkpoint: What their file holds.
        out: Weights file to write.
        source: Name of their file: for the record, and it tells data set and tower.
        dataset: Key of `DATA_SETS`, where that name does not say it.
        size: Input height and width, multiples of 14; None: the data set's images, padded to that.
        max_depth_m: Far end of the range; None: the data set's.
        camera: The camera it was trained for; None: the data set's, at `size`.
        tower: One of `TOWERS`, where neither the name nor the tensors tell it.
        tower_weights: File with the tower, in the authors' or timm's naming.
        embed_tower: Put the tower into the file.

    Returns:
        The record of the new file; ``training['notes']`` says what could not be checked.

    Raises:
        WeightsError: If the checkpoint is no such head, incomplete, or the tower does not fit;
            nothing is written then.
        ConfigError: If an argument does not fit the checkpoint.
    """
    state = _state(checkpoint)
    options, fits = _described(state, source)
    dataset = _data_set(dataset, source)
    data_set = DATA_SETS[dataset]
    name = _tower(tower, fits, source)
    require(
        tower_weights is not None or not embed_tower,
        f'--embed-tower: {source} holds the head alone. Name the file with the tower by '
        '--tower-weights, such as dinov2_vits14_pretrain.pth.',
    )
    input_hw = tuple(size or (PATCH_PX * ceil(n / PATCH_PX) for n in data_set.image_hw))
    require(
        all(n > 0 and n % PATCH_PX == 0 for n in input_hw),
        f'--size {" ".join(map(str, input_hw))}: expected multiples of {PATCH_PX} pixels.',
    )
    config = ModelConfig(
        tower=name,
        head=options | ({'layers': fits[name]} if options['name'] == 'linear_bins' else {}),
        input_hw=input_hw,
        depth_range_m=(NEAREST_M, data_set.far_m if max_depth_m is None else max_depth_m),
        camera=camera or data_set.camera(input_hw),
    )
    model = DepthModel(config)
    named = _linear(state, fits[name]) if options['name'] == 'linear_bins' else _dpt(state)
    load_head(model.head, named, f'{source}: head')
    notes, tower_sha256 = [], None
    if tower_weights is None:
        notes.append('No --tower-weights: the file does not say which tower it belongs to, so '
                     'that will not be checked.')  # fmt: skip
        tower_sha256 = ''
    else:
        model.backbone.load_published(None, tower_weights)
    return save_model(
        out, model.eval(), name=out.stem, embed_tower=embed_tower, licence=LICENCE,
        training={'imported': 'dinov2', 'file': source, 'dataset': dataset, 'notes': notes},
        tower_sha256=tower_sha256,
    )  # fmt: skip


def _state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors, by names within the head; an optimiser beside them is left out."""
    inside = checkpoint.get('state_dict')
    state = inside if isinstance(inside, Mapping) else checkpoint
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _described(state: Mapping, source: str) -> tuple[dict, dict[str, int]]:
    """Options of the head, and how many layers it reads on each tower that its tensors fit."""
    linear, readout, project = (state.get(k) for k in (_LINEAR, _READOUT.format(0), _PROJECT))
    own = {'class_token': 'own'}
    if linear is not None and linear.ndim == 4:
        bins, channels = linear.shape[:2]
        fits = {TOWERS[w]: n for w in TOWERS for n in (1, 4) if channels == 2 * w * n}
        expected = 'twice the width of the tower, or eight times'
        options = {'name': 'linear_bins', 'num_bins': bins, **own}
    elif readout is not None and project is not None:
        channels, fits = len(readout), {name: 4 for w, name in TOWERS.items() if w == len(readout)}
        expected = 'the width of the tower'
        options = {'name': 'dpt', 'output': 'regression', 'channels': len(project), **own}
    else:
        hint = ''
        if sorted(state) == ['bias', 'weight']:
            hint = (' It looks like the ImageNet classifier, which is linked beside the depth '
                    'heads: those are called as dinov2_vitb14_nyu_linear_head.pth.')  # fmt: skip
        raise WeightsError(
            f'{source}: no depth head of DINOv2: among its {len(state)} tensors is neither '
            f'{_PREFIX}{_LINEAR} nor {_PREFIX}{_READOUT.format(0)}.{hint}'
        )
    if not fits:
        raise WeightsError(
            f'{source}: a head of {channels} channels, expected {expected}, whose widths are '
            f'{", ".join(map(str, TOWERS))}.'
        )
    return options, fits


def _data_set(given: str | None, source: str) -> str:
    found = [n for n in DATA_SETS if re.search(f'(?<![a-z]){n}(?![a-z])', source.lower())]
    require(
        given is not None or len(found) == 1,
        f'{source}: its name does not tell whether it was trained on NYU Depth V2 or on KITTI, '
        'and no tensor does; its depths depend on it. Give --dataset nyu or --dataset kitti.',
    )
    require(
        given is None or found in ([], [given]),
        f'--dataset {given}: {source} is a {" and ".join(found)} head by its name. Leave the '
        'flag out, or rename the file.',
    )
    return given or found[0]


def _tower(given: str | None, fits: Mapping[str, int], source: str) -> str:
    letter = re.search(r'vit([sblg])14', source.lower())
    name = given or (f'dinov2-vit-{letter[1]}14' if letter else None)
    known = ', '.join(fits)
    if name is None:
        # Four layers of ViT-S have as many channels as one of ViT-g.
        require(
            len(fits) == 1, f'{source}: its tensors fit {known} alike. Give --tower, one of them.'
        )
        return next(iter(fits))
    require(name in fits, f'{source}: its tensors fit {known}, not {name!r}. Leave --tower out, '
            'or give the file its published name.')  # fmt: skip
    return name


def _linear(state: dict, layers: int) -> dict[str, torch.Tensor]:
    """One matrix over all layers, patch before class token in each, in the shares of our head."""
    state = dict(state)
    weight = state.pop(_LINEAR)
    patch, token = weight.unflatten(1, (layers, 2, -1)).unbind(2)
    if _LINEAR_BIAS in state:
        state['globally.bias'] = state.pop(_LINEAR_BIAS)
    state |= {f'local.{i}.weight': patch[:, i] for i in range(layers)}
    return state | {'globally.weight': token.flatten(1)}


def _dpt(state: dict) -> dict[str, torch.Tensor]:
    """The same under our names; each readout in two parts, patch before class token."""
    found = {}
    for key, value in state.items():
        for theirs, ours in _DPT.items():
            if re.fullmatch(theirs, key):
                key = re.sub(theirs, ours, key)
                break
        found[key] = value
    for i in range(4):
        weight = found.pop(_READOUT.format(i), None)
        if weight is not None:
            local, token = weight.tensor_split(2, dim=1)
            found[f'readouts.{i}.local.weight'] = local[:, :, None, None]
            found[f'readouts.{i}.globally.weight'] = token
    return found
