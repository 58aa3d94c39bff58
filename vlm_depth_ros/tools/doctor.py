"""``vlm-depth doctor``: what a weights file is, and whether it is sound.

The file is loaded as the node loads it. What the loader promises (the tower that the head was
trained on, no text) is looked at again here, in the tensors and in the process.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
import gc
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import VlmDepthError
from vlm_depth_ros.core.estimator import DepthEstimator, DepthPrediction
from vlm_depth_ros.core.model import (
    Card,
    DepthModel,
    find_weights,
    HUGGING_FACE,
    load_model,
    read_card,
)
from vlm_depth_ros.core.tower_naming import hugging_face_clip_sha256
from vlm_depth_ros.files.atomic import atomic_file

IMAGE_HW = (480, 640)
"""Of the pictures that are tried."""
VOCABULARY = 10_000
"""An embedding table with as many rows is one of words; one of positions has a few thousand."""
WHOLE_MODELS = ('CLIP', 'CustomTextCLIP', 'CoCa')
REPEATED = ('name', 'model', 'licence', 'notice')
"""What a training record has besides, and the file says anyway."""


def text_readers() -> list[str]:
    """Classes of all live modules in this process that read text; empty is as it should be.

    Known by name in the libraries that have such (open_clip, transformers, OpenAI's clip), and
    anywhere by their table of words.
    """
    found = set()
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance would wake up lazy proxies
        if not issubclass(kind, nn.Module):
            continue
        library = kind.__module__.partition('.')[0]
        is_known = library in ('open_clip', 'transformers', 'clip') and (
            'Text' in kind.__name__ or kind.__name__ in WHOLE_MODELS
        )
        is_table = issubclass(kind, nn.Embedding) and thing.num_embeddings >= VOCABULARY
        if is_known or is_table:
            found.add(f'{kind.__module__}.{kind.__qualname__}')
    return sorted(found)


def broken_tensors(module: nn.Module) -> list[str]:
    """Names of parameters and buffers that hold NaN or infinity."""
    return [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]


def field_of_view_deg(camera: TrainingCamera) -> tuple[float, float]:
    """Horizontal and vertical opening angle of a pinhole: 2 atan(1 / (2 f)), f per image side."""
    focals = camera.fx_per_width, camera.fy_per_height
    return tuple(math.degrees(2 * math.atan(0.5 / f)) for f in focals)


def examine(name_or_path: str, tower_weights: str = '') -> dict:
    """Everything that can be told of a weights file, as plain values.

    Args:
        name_or_path: Shipped name or file.
        tower_weights: File with its tower, as in `load_model`.

    Returns:
        What the file says and, where it can be loaded, what was found; ``wrong`` is a list of
        sentences, empty for a sound file.

    Raises:
        VlmDepthError: If it is no weights file, or its record cannot be read.
    """
    path = find_weights(name_or_path)
    card = read_card(path)
    config = ModelConfig.from_dict(card.model, str(path))
    found = _said(path, card, config)
    try:
        model = load_model(path, tower_weights=tower_weights)
    except VlmDepthError as err:
        return found | {'wrong': [str(err)]}
    broken, readers = broken_tensors(model), text_readers()
    found |= {
        'tower_sha256': _compared(model, card),
        'parameters': _parameters(model),
        'broken_tensors': broken,
        'text_readers': readers,
    }
    wrong = []
    if found['tower_sha256']['same'] is False:
        wrong.append('the tower is not the one that the head was trained on: SHA-256 differs.')
    if broken:
        wrong.append(f'NaN or infinity in {len(broken)} tensors: {", ".join(broken[:5])}.')
    if readers:
        wrong.append(f'modules that read text are in the process: {", ".join(readers)}.')
    found['answers'], complaints = _tried(DepthEstimator(model, RuntimeConfig(), path.name))
    return found | {'wrong': wrong + complaints}


def _said(path: Path, card: Card, config: ModelConfig) -> dict:
    camera = config.camera and asdict(config.camera)
    if camera:
        camera['field_of_view_deg'] = field_of_view_deg(config.camera)
    return {
        'file': str(path),
        'size_mb': round(path.stat().st_size / 1e6, 1),
        'name': card.name,
        'tower': config.tower,
        'tower_tag': config.pretrained,
        'tower_activation': config.tower_activation,
        'tower_embedded': card.tower_embedded,
        'head': dict(config.head),
        'input_hw': config.input_hw,
        'depth_range_m': config.depth_range_m,
        'camera': camera,
        'preprocess': config.preprocess,
        'licence': card.licence,
        'notice': card.notice,
        'training': card.training,
    }


def _compared(model: DepthModel, card: Card) -> dict:
    """Hash of the tower in the file's record, of the one at hand, and whether they agree."""
    recorded, here = card.tower_sha256, {model.backbone.frozen_sha256()}
    if recorded.startswith(HUGGING_FACE):
        here = hugging_face_clip_sha256(model.backbone.tower.state_dict())
    same = recorded.removeprefix(HUGGING_FACE) in here if recorded else None
    return {'recorded': recorded, 'here': sorted(here), 'same': same}


def _parameters(model: DepthModel) -> dict:
    tower = dict(model.backbone.named_parameters())
    return {
        'head': sum(p.numel() for p in model.head.parameters()),
        'tower': sum(p.numel() for p in tower.values()),
        'tower_unfrozen': sum(p.numel() for p in tower.values() if p.requires_grad),
    }


def _tried(estimator: DepthEstimator) -> tuple[dict, list[str]]:
    """What it answers to a plain grey and to noise, and what is wrong with that."""
    pictures = {
        'grey': np.full((*IMAGE_HW, 3), 127, np.uint8),
        'noise': np.random.default_rng(0).integers(0, 256, (*IMAGE_HW, 3), np.uint8),
    }
    estimator(pictures['grey'])  # the first pass pays for setting up
    found = {name: estimator(rgb) for name, rgb in pictures.items()}
    wrong = [
        f'no pixel of the answer to {name} is a depth.'
        for name, answer in found.items()
        if not np.isfinite(answer.depth_m).any()
    ]
    if not wrong and np.array_equal(*(answer.depth_m for answer in found.values())):
        wrong.append('grey and noise get the same depth: the network does not see its input.')
    answers = {name: _summary(answer) for name, answer in found.items()}
    return {'device': str(estimator.device), 'precision': estimator.precision} | answers, wrong


def _summary(answer: DepthPrediction) -> dict:
    depths = answer.depth_m[np.isfinite(answer.depth_m)]
    return {
        'median_m': float(np.median(depths)) if depths.size else None,
        'valid_share': depths.size / answer.depth_m.size,
        'latency_ms': answer.latency_ms,
    }


def run(args: argparse.Namespace) -> int:
    """Print the findings, then ``ok`` or what is wrong; 1 if anything is."""
    found = examine(args.weights, args.tower_weights)
    console = Console(highlight=False, markup=False)
    console.print(found['file'], soft_wrap=True)
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow='fold')
    for row in _rows(found):
        rows.add_row(*row)
    console.print(rows)
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(found, indent=2) + '\n')
    if not found['wrong']:
        console.print('ok')
        return 0
    for sentence in found['wrong']:
        console.print(f'wrong: {sentence}', soft_wrap=True)
    return 1


def _rows(found: dict) -> Iterator[tuple[str, str]]:
    """Findings for people: what it is about, and the rest."""
    yield 'name', f'{found["name"]}, {found["size_mb"]} MB'
    yield 'licence', found['licence']
    if found['notice']:
        yield 'notice', found['notice']
    where = 'inside the file' if found['tower_embedded'] else f'weights {found["tower_tag"]!r}'
    yield 'tower', ', '.join(filter(None, (found['tower'], where, found['tower_activation'])))
    if 'tower_sha256' in found:
        yield '', _hash_text(found['tower_sha256'])
    yield 'head', plain(found['head'])
    if 'parameters' in found:
        counts = found['parameters']
        unfrozen = counts['tower_unfrozen']
        state = f'{unfrozen:,} of them not frozen' if unfrozen else 'frozen'
        yield '', f'{counts["head"]:,} parameters, trained'
        yield '', f'the tower has {counts["tower"]:,}, {state}'
    yield 'input', '{}x{}, {}'.format(*found['input_hw'], found['preprocess'])
    yield 'range', '{:g} to {:g} m'.format(*found['depth_range_m'])
    yield 'camera', _camera_text(found['camera'])
    record = {k: v for k, v in found['training'].items() if k not in REPEATED}
    yield 'training', 'as the file records it:' if record else 'no record'
    for key, value in record.items():
        yield f'  {key}', plain(value)
    if 'answers' not in found:
        return
    yield 'tensors', 'all finite, all of the shapes of this network' if not found[
        'broken_tensors'
    ] else 'not all finite'
    yield 'text', '; '.join(found['text_readers']) or 'no module in this process reads text'
    for name in ('grey', 'noise'):
        yield f'sees {name}', _answer_text(found['answers'], name)


def _hash_text(hashes: dict) -> str:
    if hashes['same'] is None:
        return 'the file does not say which weights it had: not compared'
    verdict = 'as recorded' if hashes['same'] else f'recorded was {hashes["recorded"]}'
    return f'SHA-256 {hashes["here"][0][:16]}…, {verdict}'


def _camera_text(camera: dict | None) -> str:
    if camera is None:
        return 'not known: depth is not corrected for the focal length at hand'
    return (
        'focal length {fx_per_width:.4f} of the width, {fy_per_height:.4f} of the height: sees '
        '{0:.1f} degrees across, {1:.1f} down'
    ).format(*camera['field_of_view_deg'], **camera)


def _answer_text(answers: dict, name: str) -> str:
    answer = answers[name]
    median = 'nothing' if answer['median_m'] is None else f'{answer["median_m"]:.3f} m (median)'
    return (
        f'{median}, {answer["valid_share"]:.1%} valid, {answer["latency_ms"]:.0f} ms for '
        f'{IMAGE_HW[0]}x{IMAGE_HW[1]} on {answers["device"]}, {answers["precision"]}'
    )


def plain(value: object) -> str:
    """A value out of JSON for people: mappings and sentences a line each, rows as ``0:159``."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {plain(v)}' for key, v in value.items())
    if isinstance(value, list | tuple):
        if any(isinstance(v, dict | str) for v in value):
            return '\n'.join(map(plain, value))
        pairs = any(isinstance(v, list | tuple) for v in value)
        return ' '.join(plain(v).replace(' ', ':') if pairs else plain(v) for v in value)
    return f'{value:.4g}' if isinstance(value, float) else str(value)
