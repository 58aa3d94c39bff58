"""Checkpoints of the authors' SPACE-CLIP code (``taewan2002/SPACE-CLIP``), all formats.

``train.py`` writes ``{model, optimizer, epoch}`` with the whole network, its layer study
``{model, config, backbone_sha256, ...}`` with the decoder alone; either may carry ``module.``
prefixes. Towers are Hugging Face's, whose names changed with transformers 5.3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vlm_depth_ros.core.config import ModelConfig, require, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.heads.space_clip import SEMANTIC_OF_12, STRUCTURAL_OF_12
from vlm_depth_ros.core.model import Card, DepthModel, HUGGING_FACE, load_head, save_model
from vlm_depth_ros.core.tower_naming import (
    hugging_face_clip_sha256,
    image_tower_keys,
    to_open_clip,
)

TOWER_PREFIX = 'clip_vision_model.'  # also of SigLIP towers
NEAREST_M = 0.001


class KnownTower(NamedTuple):
    """A tower that the authors' configs can name, and the same one in open_clip."""

    tower: str
    tag: str
    width: int
    patch_px: int
    positions: int
    activation: str | None = None


TOWERS = {
    'openai/clip-vit-base-patch16': KnownTower('ViT-B-16-quickgelu', 'openai', 768, 16, 197),
    'openai/clip-vit-base-patch32': KnownTower('ViT-B-32-quickgelu', 'openai', 768, 32, 50),
    'openai/clip-vit-large-patch14': KnownTower('ViT-L-14-quickgelu', 'openai', 1024, 14, 257),
    # Hugging Face computes SigLIP's GELU by its tanh form, open_clip exactly.
    'google/siglip-base-patch16-224': KnownTower(
        'ViT-B-16-SigLIP', 'webli', 768, 16, 196, 'gelu_tanh'
    ),
}
"""By the name on Hugging Face's hub."""
DEFAULT_TOWER = 'openai/clip-vit-base-patch16'


def import_space_clip(
    checkpoint: Mapping[str, Any],
    out: Path,
    *,
    source: str,
    max_depth_m: float | None = None,
    camera: TrainingCamera | None = None,
    taps: str | None = None,
    tower: str | None = None,
    tower_weights: Path | None = None,
    embed_tower: bool = False,
) -> Card:
    """Write a weights file that answers as the authors' network does.

    Args:
        checkpoint: What their file holds.
        out: Weights file to write.
        source: Name of their file, for the record.
        max_depth_m: Far end of the range; None: the checkpoint's config, else 10.
        camera: The camera it was trained for; None: no focal correction.
        taps: Structural taps ``early``, ``middle`` or ``late``, which only a config in the
            checkpoint tells apart; None: that config's, else ``early``, the authors' default.
        tower: Name on Hugging Face's hub of a tower that the checkpoint does not reveal.
        tower_weights: File with the tower, for a checkpoint without it.
        embed_tower: Put the tower into the file.

    Returns:
        The record of the new file; ``training['notes']`` says what had to be assumed.

    Raises:
        WeightsError: If the checkpoint is no SPACE-CLIP network, incomplete, or its tower does
            not fit; nothing is written then.
        ConfigError: If an argument does not fit the checkpoint.
    """
    decoder, tower_state = _split(_state(checkpoint), source)
    config = checkpoint.get('config')
    config = config if isinstance(config, Mapping) else {}
    known = _known_tower(tower, config, tower_state, source)
    notes: list[str] = []
    model_config = ModelConfig(
        tower=known.tower,
        head=_head_options(decoder, config, taps, notes),
        pretrained=None if embed_tower else known.tag,
        tower_activation=known.activation,
        input_hw=_input_hw(config),
        depth_range_m=(NEAREST_M, _max_depth_m(max_depth_m, config)),
        camera=camera,
    )
    if camera is None:
        notes.append('No --camera: depth will not be corrected for the focal length at hand.')
    model = DepthModel(model_config)
    load_head(model.head, _without_aux(decoder), f'{source}: decoder')
    tower_sha256 = _load_tower(
        model, tower_state, checkpoint, known.tag, tower_weights, embed_tower, source, notes
    )
    record = {
        'imported': 'space-clip',
        'file': source,
        'epoch': checkpoint.get('epoch'),
        'source': checkpoint.get('source'),
        'notes': notes,
    }
    return save_model(
        out, model.eval(), name=out.stem, embed_tower=embed_tower, training=record,
        tower_sha256=tower_sha256, licence='not stated by the checkpoint',
    )  # fmt: skip


def _state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors, by names without the prefixes that wrappers add."""
    while isinstance(checkpoint.get('model', checkpoint.get('state_dict')), Mapping):
        checkpoint = checkpoint.get('model', checkpoint.get('state_dict'))
    state = {k: v for k, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    while state and all(k.startswith('module.') for k in state):
        state = {k.removeprefix('module.'): v for k, v in state.items()}
    return state


def _split(state, source: str) -> tuple[dict, dict]:
    """Decoder and tower, the latter by open_clip's names; empty where there is none."""
    decoder = {k: v for k, v in state.items() if not k.startswith(TOWER_PREFIX)}
    for what, key in (
        ('semantic projections', 'main_path_projections.0.weight'),
        ('FiLM generators', 'film_param_generators.0.0.weight'),
        ('gates (its first, ungated variant is another network)',
         'main_decoder_blocks.0.skip_clip_gate.0.weight'),
    ):  # fmt: skip
        if key not in decoder:
            raise WeightsError(
                f'{source}: no SPACE-CLIP decoder that can be imported: it has no {what} '
                f'({key}) among its {len(state)} tensors.'
            )
    theirs = {k: v for k, v in state.items() if k.startswith(TOWER_PREFIX)}
    try:
        named = {name: theirs[key] for key, name in image_tower_keys(theirs).items()}
        return decoder, to_open_clip(named)
    except (KeyError, ValueError) as err:
        raise WeightsError(f'{source}: its tower is incomplete: {err} is missing.') from err


def _known_tower(name, config: Mapping, state: Mapping, source: str) -> KnownTower:
    if name is not None:
        require(name in TOWERS, f'--tower {name!r}: expected one of {", ".join(TOWERS)}.')
    named = name or config.get('clip_model_name')
    if not state:
        require(
            named is None or named in TOWERS,
            f'{source}: trained on {named!r}, which is not known here. Known towers: '
            f'{", ".join(TOWERS)}.',
        )
        return TOWERS[named or DEFAULT_TOWER]
    stem = state.get('conv1.weight', state.get('trunk.patch_embed.proj.weight'))
    places = state.get('positional_embedding', state.get('trunk.pos_embed'))
    if stem is None or places is None:
        raise WeightsError(f'{source}: its tower is neither a CLIP nor a SigLIP image tower.')
    shape = (stem.shape[0], stem.shape[-1], places.shape[-2])
    for theirs, known in TOWERS.items():
        is_siglip = known.activation is not None
        if shape == known[2:5] and is_siglip == ('trunk.pos_embed' in state):
            if name not in (None, theirs):
                raise ConfigError(f'{source}: carries the tower {theirs}, not {name!r}.')
            return known
    raise WeightsError(
        f'{source}: its tower (width, patch, positions = {shape}) is none of '
        f'{", ".join(TOWERS)}.'
    )


def _head_options(decoder, config: Mapping, taps: str | None, notes: list[str]) -> dict:
    structural = ()
    if 'structural_path_projections.0.weight' in decoder:
        recorded = config.get('structural_path_indices')
        if recorded is None and taps is None:
            notes.append('The checkpoint does not say which structural taps it has: taken for '
                         'early, the default of its code. If not, give --taps.')  # fmt: skip
        structural = tuple(recorded or STRUCTURAL_OF_12[taps or 'early'])
        require(
            taps is None or structural == STRUCTURAL_OF_12[taps],
            f'--taps {taps}: the checkpoint says that it was trained with layers {structural}.',
        )
    return {
        'name': 'space_clip',
        # As numbers: the authors count them from the input whatever the depth of the tower.
        'structural': structural,
        'semantic': tuple(config.get('main_path_indices') or SEMANTIC_OF_12),
        'output_activation': 'relu',
        'widths': tuple(
            len(decoder[f'main_path_projections.{i}.bias'])
            for i in range(4)
            if f'main_path_projections.{i}.bias' in decoder
        ),
        'film_width': len(decoder['film_param_generators.0.0.weight']),
        'output_width': len(decoder.get('depth_prediction_head.0.weight', (0,))),
        'aux_heads': False,
    }


def _input_hw(config: Mapping) -> tuple[int, int]:
    size = config.get('clip_input_size', 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def _max_depth_m(given: float | None, config: Mapping) -> float:
    return float(given if given is not None else config.get('max_depth', 10.0))


def _without_aux(decoder: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in decoder.items() if not k.startswith('aux_')}


def _load_tower(model, state, checkpoint, tag, file, embed, source, notes) -> str | None:
    """Fill the tower as far as it is to be had; what the record says of it (None: its hash)."""
    backbone, theirs = model.backbone, checkpoint.get('backbone_sha256')
    if state:
        backbone.load_native_state(state, f'{source}: tower')
        return None
    if embed or file:
        backbone.load_published(tag, file or '')
        if theirs and theirs not in hugging_face_clip_sha256(backbone.tower.state_dict()):
            raise WeightsError(
                f'{source}: its decoder was trained on another tower than {file or tag!r} '
                f'(SHA-256 {str(theirs)[:12]}… as transformers names it).'
            )
        return None
    if theirs:
        return f'{HUGGING_FACE}{theirs}'
    notes.append('The checkpoint holds no tower and no hash of one: it will not be checked.')
    return ''
