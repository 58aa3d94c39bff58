"""``vlm-depth train --check``: every image and depth map of a recipe is read before it trains.

What is damaged, missing, empty, in the wrong unit or in two places at once is listed by file name:
better now than as a slightly worse network, or in the middle of the night.
"""

from collections import Counter
from collections.abc import Iterator
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.sample import Sample
from vlm_depth_ros.tools.datasets import open_set, SetConfig, usable_depth_m
from vlm_depth_ros.tools.progress import steps
from vlm_depth_ros.tools.recipe import TrainConfig

KINDS = {
    'set': 'the list is missing, empty or damaged, or lacks the rows',
    'image': 'missing, cut off or damaged',
    'depth': 'missing, cut off or damaged',
    'size': 'image and depth differ in size',
    'camera': 'is for images of another size',
    'unit': 'depth is not in metres',
    'empty': 'no depth that can be learned from',
    'shared': 'trains and also judges',
    'held out': 'trains or chooses, and is held out',
}
"""What can be wrong; the columns of the table."""
FARTHEST_MEDIAN_M = 100.0
NEAREST_MEDIAN_M = 0.05
"""A camera that sees half of its picture farther, or nearer, most likely has another unit."""
OFF_CENTRE = 0.2
"""Principal points farther from the centre, in widths and heights, belong to another size."""

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One thing to put right."""

    kind: str
    """A key of `KINDS`."""
    text: str
    """Begins with the file's name."""


class SetReport(NamedTuple):
    """What was found in one set."""

    folder: str
    images: int
    problems: list[Problem]


def is_clean(config: TrainConfig, root: Path) -> bool:
    """Read all sets of a recipe, print what is wrong, and tell whether nothing is.

    Of the processes that torchrun starts the first alone reads; one that finds something ends all.
    """
    if os.environ.get('RANK', '0') != '0':
        return True
    reports = check_recipe(config, root)
    for report in reports:
        for problem in report.problems:
            print(f'{problem.kind}: {problem.text}')
    _print_table(reports)
    return not any(report.problems for report in reports)


def check_recipe(config: TrainConfig, root: Path) -> list[SetReport]:
    """Read every image and depth map of every used row; the last report is of the selection.

    Raises:
        InputError: If the list of a held-out set is damaged or lacks the rows.
    """
    held_out = _held_out(config, root)
    entries, opened, reports = _used(config), [], []
    for entry in entries:
        try:
            opened.append(open_set(entry, root))
            problems = []
        except InputError as err:
            opened.append([])
            problems = [Problem('set', str(err))]
        for sample in steps(opened[-1], f'checking {entry.folder}'):
            problems += check_sample(sample, entry)
        reports.append(SetReport(entry.folder, len(opened[-1]), problems))
    judging = _files(opened[-1])
    for samples, report in zip(opened[:-1], reports):
        report.problems.extend(
            Problem('shared', f'{sample.rgb}: trains, and also chooses the checkpoint.')
            for sample in _overlap(samples, judging)
        )
    for entry, samples, report in zip(entries, opened, reports):
        overlap = _overlap(samples, held_out)
        if overlap:
            report.problems.append(Problem('held out', _said(root / entry.folder, overlap)))
    return reports


def require_held_out(config: TrainConfig, root: Path) -> None:
    """Refuse a recipe in which an image of the held-out rows trains, or chooses the checkpoint.

    Files are compared: the same picture under another name is not found.

    Raises:
        InputError: If one does, or a list cannot be read.
    """
    held_out = _held_out(config, root)
    if not held_out:
        return
    for entry in _used(config):
        overlap = _overlap(open_set(entry, root), held_out)
        if overlap:
            raise InputError(_said(root / entry.folder, overlap))


def _used(config: TrainConfig) -> list[SetConfig]:
    entries = (*config.sets, config.select)
    return [from_mapping(SetConfig, entry, f'{config.name}.sets') for entry in entries]


def _held_out(config: TrainConfig, root: Path) -> set[Path]:
    """Images of the held-out rows; a set that does not lie here has none, which is logged."""
    found = set()
    for options in config.held_out:
        entry = from_mapping(SetConfig, options, f'{config.name}.held_out')
        if (root / entry.folder).exists():
            found |= _files(open_set(entry, root))
        else:
            log.warning('%s: is held out, but does not lie here.', root / entry.folder)
    return found


def _files(samples: list[Sample]) -> set[Path]:
    return {sample.rgb.resolve() for sample in samples}


def _overlap(samples: list[Sample], files: set[Path]) -> list[Sample]:
    return [sample for sample in samples if sample.rgb.resolve() in files]


def _said(path: Path, overlap: list[Sample]) -> str:
    return (
        f'{path}: {len(overlap)} of its rows train or choose the checkpoint and are held out, the '
        f'first is {overlap[0].rgb}. Take them out of sets and select, or out of held_out.'
    )


def check_sample(sample: Sample, config: SetConfig) -> Iterator[Problem]:
    """Read one image and its depth and yield what is wrong with them."""
    rgb, depth_m = None, None
    try:
        rgb = sample.load_rgb()
        yield from _check_camera(sample, rgb.shape[:2])
    except InputError as err:
        yield Problem('image', str(err))
    try:
        depth_m = sample.load_depth_m()
        yield from _check_depth(sample, depth_m, config)
    except InputError as err:
        yield Problem('depth', str(err))
    if rgb is not None and depth_m is not None and rgb.shape[:2] != depth_m.shape:
        yield Problem('size', f'{sample.depth}: {_size(depth_m)}, but the image is {_size(rgb)}.')


def _check_camera(sample: Sample, image_hw: tuple[int, int]) -> Iterator[Problem]:
    try:
        camera = sample.intrinsics(image_hw)
    except InputError as err:
        yield Problem('camera', str(err))
        return
    height, width = image_hw
    offset = camera.cx_px / width - 0.5, camera.cy_px / height - 0.5
    if max(map(abs, offset)) > OFF_CENTRE:
        yield Problem(
            'camera',
            f'{sample.rgb}: is {width} x {height} pixels, but its principal point is '
            f'({camera.cx_px:g}, {camera.cy_px:g}): the camera of another size.',
        )


def _check_depth(sample: Sample, depth_m: np.ndarray, config: SetConfig) -> Iterator[Problem]:
    measured = depth_m[np.isfinite(depth_m)]
    if not measured.size:
        yield Problem('empty', f'{sample.depth}: nothing was measured.')
        return
    median_m = float(np.median(measured))
    if median_m > FARTHEST_MEDIAN_M:
        yield Problem('unit', f'{sample.depth}: median {median_m:.0f} m: millimetres as metres?')
    elif median_m < NEAREST_MEDIAN_M:
        yield Problem('unit', f'{sample.depth}: median {median_m:.4f} m: metres as millimetres?')
    elif not np.isfinite(usable_depth_m(depth_m, config)).any():
        yield Problem(
            'empty',
            f'{sample.depth}: no depth up to max_depth_m = {config.max_depth_m:g} inside the '
            f'border of {config.border_px} px.',
        )


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]} x {image.shape[0]} pixels'


def _print_table(reports: list[SetReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = [Counter(problem.kind for problem in report.problems) for report in reports]
    found = [kind for kind in KINDS if any(count[kind] for count in counts)]
    table = Table('set', 'images', *(f'{kind}: {KINDS[kind]}' for kind in found))
    for report, count in zip(reports, counts):
        table.add_row(report.folder, str(report.images), *(str(count[kind]) for kind in found))
    if not found:
        table.title = 'nothing is wrong'
    Console().print(table)
