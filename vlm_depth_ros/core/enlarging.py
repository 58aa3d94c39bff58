"""Depth enlarged to the camera's grid, without depth between foreground and background."""

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.filters import Array, array_of, paste
from vlm_depth_ros.core.preprocess import to_camera_grid

SLACK_PX = 1e-3
"""More than float32 errs in the source coordinate of an image of thousands of pixels."""


@torch.no_grad()
def upsample_keeping_edges(
    depth: torch.Tensor, hw: tuple[int, int], edge_ratio: float
) -> torch.Tensor:
    """Resize to the camera's grid without inventing depth between foreground and background.

    Bilinear where the four values around a pixel lie within `edge_ratio` of each other; the
    nearest one elsewhere, so that a missing neighbour (NaN) does not spread either.

    Args:
        depth: (1, 1, h, w) head output.
        hw: Size of the camera's image, height first.
        edge_ratio: Farthest over nearest of four; 0: bilinear always.

    Returns:
        (1, 1, H, W).
    """
    if tuple(depth.shape[-2:]) == tuple(hw):
        return depth
    bilinear = _bilinear(depth, hw)
    if not edge_ratio:
        return bilinear
    padded = F.pad(depth, (1, 1, 1, 1), mode='replicate')[0, 0]
    low, high = padded, padded
    for axis in (0, 1):
        n = padded.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, n), low.narrow(axis, 1, n))
        high = torch.maximum(high.narrow(axis, 0, n), high.narrow(axis, 1, n))
    smooth = array_of(high <= edge_ratio * low)  # NaN is in neither.
    for axis in (1, 0):
        before, after = _cells(depth.shape[2 + axis], hw[axis], depth.device)
        smooth = _taken(smooth, before, axis) & _taken(smooth, after, axis)
    nearest = nearest_of(array_of(depth[0, 0]), hw)
    return paste(bilinear[0, 0], torch.as_tensor(smooth), torch.as_tensor(nearest))[None, None]


def _bilinear(depth: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """As `to_camera_grid`, but for rounding."""
    plane = array_of(depth[0, 0].contiguous())
    # Rounding decides which neighbours have no weight, and so how far a missing one spreads.
    if isinstance(plane, np.ndarray) and np.isfinite(plane).all():
        return torch.from_numpy(cv2.resize(plane, hw[::-1]))[None, None]  # 8 times faster
    return to_camera_grid(depth, hw)


def nearest_of(values: Array, hw: tuple[int, int]) -> Array:
    """(h, w) of any type to (H, W): torch's 'nearest-exact', in a quarter of its time."""
    device = values.device if isinstance(values, torch.Tensor) else torch.device('cpu')
    for axis in (1, 0):
        values = _taken(values, _nearest(values.shape[axis], hw[axis], device), axis)
    return values


def _taken(values: Array, places: torch.Tensor, axis: int) -> Array:
    """These rows (axis 0) or columns (1)."""
    if isinstance(values, torch.Tensor):
        return values.index_select(axis, places)
    return values.take(places.numpy(), axis)


@lru_cache(maxsize=32)
def _cells(size: int, to_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cell of the rim-padded input each output pixel reads: just before, and just after it.

    Cell i lies between input pixels i - 1 and i. Where a coordinate falls on a pixel, rounding
    decides which of two cells the resize takes, so both have to be looked at.
    """
    source = (torch.arange(to_size, dtype=torch.float64) + 0.5) * (size / to_size) - 0.5
    source = source.clamp(0, size - 1)  # as the resize does
    return tuple(
        (torch.floor(source + slack).to(torch.int64) + 1).to(device)
        for slack in (-SLACK_PX, SLACK_PX)
    )


@lru_cache(maxsize=32)
def _nearest(size: int, to_size: int, device: torch.device) -> torch.Tensor:
    """Which of `size` pixels each output pixel lies in."""
    places = torch.arange(size, dtype=torch.float32)[None, None]
    return F.interpolate(places, size=to_size, mode='nearest-exact')[0, 0].to(device, torch.int64)
