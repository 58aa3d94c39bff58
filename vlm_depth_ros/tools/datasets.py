"""Training sets at working size: small 8-bit images, depth, and the camera of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import re
from typing import TypeVar

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.pairs import Pair
from vlm_depth_ros.files.sample import Sample
from vlm_depth_ros.files.samples import FORMATS, open_samples

AnyPair = TypeVar('AnyPair', bound=Pair)

BYTES_PER_PIXEL = 3 + 4
"""Of a set in memory: 8-bit colour and float32 depth."""
MEMORY_SHARE = 0.8
"""Of the free memory that a set may take; the rest is for the network."""


@dataclass(frozen=True)
class SetConfig:
    """One set, and which part of it is used how."""

    folder: str
    """Folder or file that `files.samples.open_samples` opens, relative to the data root."""
    rows: tuple[tuple[int, int], ...] = ()
    """Half-open row ranges; empty takes all."""
    weight: float = 1.0
    """Share of the samples of a step, relative to the other sets."""
    border_px: int = 0
    """Frame of the image without truth (NYU has a white one of 8 px)."""
    max_depth_m: float = 10.0
    """Farther truth is ignored."""
    format: str | None = None
    """A key of `files.samples.FORMATS`; None looks at what lies there."""
    in_memory: bool = True
    """False reads each image when it is drawn: slower, for sets larger than the memory."""

    def __post_init__(self):
        """Check ranges."""
        where = f'set {self.folder}'
        require(self.weight > 0, f'{where}: weight = {self.weight}, expected a positive number.')
        require(self.border_px >= 0, f'{where}: border_px = {self.border_px}, expected 0 or more.')
        require(
            self.format is None or self.format in FORMATS,
            f'{where}: format = {self.format!r}, expected one of {", ".join(FORMATS)}.',
        )
        for row in self.rows:
            is_range = isinstance(row, tuple) and len(row) == 2 and 0 <= row[0] < row[1]
            require(
                is_range, f'{where}: rows {row}, expected [[first, end], ...], 0 <= first < end.'
            )


def select_rows(pairs: Sequence[AnyPair], rows: Sequence[tuple[int, int]]) -> list[AnyPair]:
    """The pairs of half-open row ranges; all of them for an empty list.

    Raises:
        InputError: If a range lies outside the list or nothing is left.
    """
    for first, end in rows:
        if end > len(pairs):
            raise InputError(f'rows {first}:{end} do not exist: the set has {len(pairs)} rows.')
    chosen = [p for a, b in rows for p in pairs[a:b]] if rows else list(pairs)
    if not chosen:
        raise InputError('the set has no rows.')
    return chosen


def parse_rows(text: str) -> list[tuple[int, int]]:
    """Read ``A:B`` or ``A:B,C:D`` as half-open ranges.

    Raises:
        InputError: If the text has another form.
    """
    try:
        ranges = [tuple(int(n) for n in part.split(':')) for part in text.split(',')]
    except ValueError:
        ranges = [()]
    if any(len(r) != 2 or not 0 <= r[0] < r[1] for r in ranges):
        raise InputError(f'rows {text!r}: expected A:B or A:B,C:D with 0 <= A < B.')
    return ranges


def open_set(config: SetConfig, root: Path) -> list[Sample]:
    """List the chosen rows of a set; no image is read.

    Raises:
        InputError: If there is no such set or row; the message names it.
    """
    path = root / config.folder
    samples = open_samples(path, config.format)
    try:
        return select_rows(samples, config.rows)
    except InputError as err:
        raise InputError(f'{path}: {err}') from err


def usable_depth_m(depth_m: np.ndarray, config: SetConfig) -> np.ndarray:
    """Copy (H, W) metres; NaN also in the set's border and beyond its largest depth."""
    truth, b = depth_m.copy(), config.border_px
    if b:
        truth[:b] = truth[-b:] = np.nan
        truth[:, :b] = truth[:, -b:] = np.nan
    truth[truth > config.max_depth_m] = np.nan
    return truth


@dataclass
class CachedSet:
    """A whole set at working size."""

    samples: list[Sample]
    """Where each comes from: name, scene, time."""
    cameras: list[CameraIntrinsics]
    """Of each image at working size."""
    rgb: torch.Tensor
    """(N, 3, H, W) uint8."""
    depth_m: torch.Tensor
    """(N, 1, H, W) float32, NaN = no truth."""
    focal: torch.Tensor
    """(N,) normalised focal lengths."""
    weight: float

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rgb)


@dataclass
class _WhenAsked:
    """Items that are read when they are indexed."""

    samples: list[Sample]
    read: Callable[[Sample], torch.Tensor]

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.samples[index])


class StreamedSet:
    """A set that stays on disk: indexed as a `CachedSet`, with the same values, one at a time."""

    def __init__(self, samples: list[Sample], config: SetConfig, hw: tuple[int, int]):
        """Keep the list; `hw` is the working size, height first."""
        self.samples, self.weight = samples, config.weight
        self.rgb = _WhenAsked(samples, lambda s: _small_rgb(s.load_rgb(), hw))
        self.depth_m = _WhenAsked(samples, lambda s: _small_depth(s.load_depth_m(), config, hw))
        self.focal = _WhenAsked(samples, _focal)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)


def load_set(
    config: SetConfig, root: Path, hw: tuple[int, int], tick: Callable[[], object] = lambda: None
) -> CachedSet | StreamedSet:
    """Read a set into memory at one working size, or prepare to read it image by image.

    Args:
        config: Which set and rows.
        root: Data root.
        hw: Working size, height first; colour is area-averaged, depth takes the nearest pixel.
        tick: Called after each image, for progress.

    Raises:
        InputError: If a file is missing or damaged, or the set does not fit into memory; the
            message names it.
    """
    samples = open_set(config, root)
    if not config.in_memory:
        return StreamedSet(samples, config, hw)
    _require_memory(str(root / config.folder), len(samples), hw)
    cameras = []
    rgb = torch.empty((len(samples), 3, *hw), dtype=torch.uint8)
    depth = torch.empty((len(samples), 1, *hw), dtype=torch.float32)
    focal = torch.empty(len(samples))
    for i, sample in enumerate(samples):
        frame = sample.load()
        rgb[i] = _small_rgb(frame.rgb, hw)
        depth[i] = _small_depth(frame.depth_m, config, hw)
        focal[i] = frame.intrinsics.normalised_focal
        cameras.append(frame.intrinsics.resized(hw))
        tick()
    return CachedSet(samples, cameras, rgb, depth, focal, config.weight)


def _small_rgb(rgb: np.ndarray, hw: tuple[int, int]) -> torch.Tensor:
    small = cv2.resize(rgb, hw[::-1], interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1)


def _small_depth(depth_m: np.ndarray, config: SetConfig, hw: tuple[int, int]) -> torch.Tensor:
    truth = usable_depth_m(depth_m, config)
    small = cv2.resize(truth, hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(small)[None]


def _focal(sample: Sample) -> torch.Tensor:
    hw = sample.camera_hw or sample.load_rgb().shape[:2]
    return torch.tensor(sample.intrinsics(hw).normalised_focal)


def _require_memory(where: str, count: int, hw: tuple[int, int]) -> None:
    """Refuse a set before the machine runs out of memory in the midst of reading it."""
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # each of torchrun's reads its own
    needed, free = count * hw[0] * hw[1] * BYTES_PER_PIXEL * processes, _free_memory_bytes()
    if needed > MEMORY_SHARE * free:
        raise InputError(
            f'{where}: {count} images of {hw[0]} x {hw[1]} need {needed / 1e9:.1f} GB of memory '
            f'in {processes} process(es), and {free / 1e9:.1f} GB are free. Take fewer rows or a '
            'smaller cache_hw, or set in_memory: false for this set (slower).'
        )


def _free_memory_bytes() -> float:
    """Memory that can be had without swapping, as Linux estimates it; infinite elsewhere."""
    try:
        found = re.search(r'MemAvailable:\s*(\d+) kB', Path('/proc/meminfo').read_text())
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else float('inf')
