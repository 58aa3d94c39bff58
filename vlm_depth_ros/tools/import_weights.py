"""``vlm-depth import-weights``: checkpoints that other people's code wrote, as weights files.

Foreign files are read as data: a pickle that holds more than tensors and plain values is refused.
"""

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
import torch
from vlm_depth_ros.core.config import require, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, reason_of, WeightsError
from vlm_depth_ros.tools.import_dinov2 import DATA_SETS, import_dinov2
from vlm_depth_ros.tools.import_space_clip import import_space_clip

log = logging.getLogger(__name__)

CAMERAS = {
    'nyu': DATA_SETS['nyu'].camera((480, 640)),
    # SPACE-CLIP's code trains on crops of 704x352.
    'kitti': DATA_SETS['kitti'].camera((352, 704)),
}
METHODS = {
    'space-clip': (import_space_clip, CAMERAS),
    # A head of theirs has the camera of its data set, at the size of its input.
    'dinov2': (import_dinov2, {}),
}
"""What reads a checkpoint, and the cameras that it may have been trained for, by name."""


def run(args: argparse.Namespace) -> int:
    """Do what ``vlm-depth import-weights`` was asked for; the exit code."""
    if args.out.is_dir():
        raise ConfigError(f'{args.out}: is a folder; name the weights file to write.')
    importer, cameras = METHODS[args.method]
    options = {
        'max_depth_m': args.max_depth,
        'camera': training_camera(args.camera, cameras),
        'dataset': args.dataset,
        'size': args.size,
        'taps': args.taps,
        'tower': args.tower,
        'tower_weights': args.tower_weights,
        'embed_tower': args.embed_tower or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    foreign = sorted(given.keys() - inspect.signature(importer).parameters.keys())
    require(not foreign, f'{args.method} takes no --{", --".join(foreign)}. Leave it out.')
    checkpoint = read_checkpoint(args.checkpoint)
    card = importer(checkpoint, args.out, source=args.checkpoint.name, **given)
    log.info('%s: %s on %s, %s', args.out, card.model['head']['name'], card.model['tower'],
             'its tower inside' if card.tower_embedded else
             f"whose weights ({card.model['pretrained'] or 'a file'}) are not inside",
    )  # fmt: skip
    for line in card.training['notes']:
        log.warning('%s', line)
    return 0


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a ``.pt``, ``.bin`` or ``.safetensors`` file holds, without running any of it.

    Raises:
        WeightsError: If the file is missing, damaged, no mapping, or a pickle with code in it.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Expected a checkpoint of the authors' code.")
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with _numpy_scalars():
            found = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as err:  # torch.load fails in many ways
        raise WeightsError(
            f'{path}: not read. It is damaged, or holds more than tensors and plain values, which '
            f'could run code ({reason_of(err)[:120]}). Save its state_dict alone.'
        ) from err
    if not isinstance(found, Mapping):
        raise WeightsError(
            f'{path}: holds a {type(found).__name__}, expected a mapping of tensors (state_dict).'
        )
    return dict(found)


def _numpy_scalars():
    """Let numbers of NumPy's types pass, as training logs inside checkpoints have them."""
    allow = getattr(torch.serialization, 'safe_globals', None)  # torch 2.5 and newer
    if allow is None:
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    return allow([scalar, np.dtype, *(type(np.dtype(k)) for k in ('f8', 'f4', 'i8', 'i4', '?'))])


def training_camera(
    text: str | None, known: Mapping[str, TrainingCamera] = CAMERAS
) -> TrainingCamera | None:
    """The camera of ``--camera``: a name of `known`, or FX,FY,W,H in pixels.

    Raises:
        ConfigError: If it is neither.
    """
    if text is None or text in known:
        return known.get(text)
    try:
        fx_px, fy_px, width_px, height_px = (float(v) for v in text.split(','))
        return TrainingCamera(fx_px / width_px, fy_px / height_px)
    except (ValueError, ZeroDivisionError) as err:
        names = f'{", ".join(known)} or ' if known else ''
        raise ConfigError(
            f'--camera {text!r}: expected {names}FX,FY,W,H in pixels, such as '
            '518.9,519.5,640,480.'
        ) from err
