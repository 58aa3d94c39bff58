"""Training sets in memory: small 8-bit images, depth, and the camera of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.pairs import Pair, read_pairs


@dataclass(frozen=True)
class SetConfig:
    """One folder with ``pairs.csv``, and which part of it is used how."""

    folder: str
    """Relative to the data root."""
    rows: tuple[tuple[int, int], ...] = ()
    """Half-open row ranges; empty takes all."""
    weight: float = 1.0
    """Share of the samples of a step, relative to the other sets."""
    border_px: int = 0
    """Frame of the image without truth (NYU has a white one of 8 px)."""
    max_depth_m: float = 10.0
    """Farther truth is ignored."""

    def __post_init__(self):
        """Check ranges."""
        where = f'set {self.folder}'
        require(self.weight > 0, f'{where}: weight = {self.weight}, expected a positive number.')
        require(self.border_px >= 0, f'{where}: border_px = {self.border_px}, expected 0 or more.')
        for row in self.rows:
            is_range = isinstance(row, tuple) and len(row) == 2 and 0 <= row[0] < row[1]
            require(
                is_range, f'{where}: rows {row}, expected [[first, end], ...], 0 <= first < end.'
            )


def select_rows(pairs: Sequence[Pair], rows: Sequence[tuple[int, int]]) -> list[Pair]:
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


@dataclass
class CachedSet:
    """A whole set at working size."""

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


def load_set(config: SetConfig, root: Path, hw: tuple[int, int], tick=lambda: None) -> CachedSet:
    """Read a set into memory at one working size.

    Args:
        config: Which set and rows.
        root: Data root.
        hw: Working size, height first; colour is area-averaged, depth takes the nearest pixel.
        tick: Called after each image, for progress.

    Raises:
        InputError: If a file is missing or damaged; the message names it.
    """
    pairs = select_rows(read_pairs(root / config.folder), config.rows)
    rgb = torch.empty((len(pairs), 3, *hw), dtype=torch.uint8)
    depth = torch.empty((len(pairs), 1, *hw), dtype=torch.float32)
    focal = torch.empty(len(pairs))
    for i, pair in enumerate(pairs):
        frame = pair.load()
        truth, b = frame.depth_m.copy(), config.border_px
        if b:
            truth[:b] = truth[-b:] = np.nan
            truth[:, :b] = truth[:, -b:] = np.nan
        truth[truth > config.max_depth_m] = np.nan
        small = cv2.resize(frame.rgb, hw[::-1], interpolation=cv2.INTER_AREA)
        rgb[i] = torch.from_numpy(small).permute(2, 0, 1)
        depth[i, 0] = torch.from_numpy(
            cv2.resize(truth, hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        )
        focal[i] = frame.intrinsics.normalised_focal
        tick()
    return CachedSet(rgb, depth, focal, config.weight)
