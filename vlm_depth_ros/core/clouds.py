"""Which points leave for a costmap: those in a box, one for each voxel, those seen to be free.

The box is tested on depth, before a point exists; the voxels on points. Both work where their
tensors are. The bytes are `packing`'s.
"""

from collections.abc import Sequence
from functools import lru_cache
import math

import numpy as np
import torch
from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions, UNBOUNDED_M
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.mounting import require_rigid

REACH = 2**20
"""Voxels to either side of the camera: 10 km of 1 cm. Points beyond share the outermost."""
HASH = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplicative hashing (Knuth, The Art of Computer Programming,
volume 3, 6.4)."""


def crop_depth(
    depth: torch.Tensor,
    intrinsics: CameraIntrinsics,
    options: CloudOptions,
    base_from_optical: np.ndarray | None,
) -> torch.Tensor:
    """Forget the depth whose point lies outside the box.

    Args:
        depth: (H, W) float32 metres, NaN where missing; unchanged.
        intrinsics: Camera of exactly this image.
        options: The box.
        base_from_optical: (4, 4); needed where the box is in the base frame.

    Returns:
        A new tensor, NaN outside; the very same one if there is no box.

    Raises:
        InputError: If the transform is needed and missing, or not rigid.
    """
    if not options.crops:
        return depth
    frame_from_optical = np.eye(4)
    if options.crop_in == 'base':
        if base_from_optical is None:
            raise InputError(
                "the crop box is in the base frame (crop_in = 'base') and no base_from_optical "
                'came: expected the pose of the camera. Set camera_in_base, or crop_in = '
                "'optical'."
            )
        frame_from_optical = require_rigid(base_from_optical, 'base_from_optical')
    near, far = _box_limits(intrinsics, frame_from_optical.tobytes(), options, depth.device)
    return torch.where((depth >= near) & (depth <= far), depth, math.nan)


@lru_cache(maxsize=8)
def _box_limits(
    intrinsics: CameraIntrinsics, matrix: bytes, options: CloudOptions, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = (
        [side if abs(side) < UNBOUNDED_M else math.copysign(math.inf, side) for side in corner]
        for corner in (options.crop_min_m, options.crop_max_m)
    )
    frame_from_optical = np.frombuffer(matrix).reshape(4, 4)
    limits = depths_in_box(intrinsics, frame_from_optical, low, high)
    return tuple(torch.from_numpy(limit).to(device) for limit in limits)


def depths_in_box(
    intrinsics: CameraIntrinsics,
    frame_from_optical: np.ndarray,
    low: Sequence[float],
    high: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest depth at which the ray of each pixel is in a box: Kay and Kajiya's slabs.

    Args:
        intrinsics: Camera.
        frame_from_optical: (4, 4) from its optical frame to that of the box.
        low: Least x, y, z of the box in metres; -inf is no bound.
        high: Greatest; +inf is no bound.

    Returns:
        Two (H, W) float32, finite, the first above 0; the second is below the first where the ray
        misses the box.
    """
    x, y = (axis.astype(float) for axis in intrinsics.axis_rays())
    near = np.full(intrinsics.image_hw, np.finfo(np.float32).tiny, float)
    far = np.full(intrinsics.image_hw, np.finfo(np.float32).max, float)
    for (by_x, by_y, by_z, offset), bottom, top in zip(frame_from_optical[:3], low, high):
        slope = by_x * x + (by_y * y + by_z)[:, None]
        along = np.abs(slope) < 1e-12
        slope[along] = 1.0
        one, other = (bottom - offset) / slope, (top - offset) / slope
        enters, leaves = np.minimum(one, other), np.maximum(one, other)
        # Along the slab: in it for ever, or never.
        forever = bottom <= offset <= top
        enters[along], leaves[along] = (-math.inf, math.inf) if forever else (math.inf, -math.inf)
        np.maximum(near, enters, out=near)
        np.minimum(far, leaves, out=far)
    np.minimum(near, np.finfo(np.float32).max, out=near)
    np.maximum(far, 0.0, out=far)
    return near.astype(np.float32), far.astype(np.float32)


def voxel_means(points: torch.Tensor, voxel_m: float) -> torch.Tensor:
    """Replace the points in each voxel by one: their mean, in their mean colour.

    Args:
        points: (N, 4) float32, contiguous and finite: x y z, then colour as bits 0x00RRGGBB.
        voxel_m: Side of a voxel; the corner of one lies in the origin.

    Returns:
        (M, 4) float32, in no promised order.
    """
    if points.device.type != 'cpu':
        return _voxel_means_torch(points, voxel_m)
    # Four times faster than to sort the keys, which torch.unique and np.unique do.
    table = points.numpy()
    columns = np.ascontiguousarray(table[:, :3].T)
    steps = np.floor(columns * np.float32(1 / voxel_m)).clip(-REACH, REACH - 1)
    x, y, z = (steps + np.float32(REACH)).astype(np.int64)
    first = _first_of_each((x << 42 | y << 21 | z).view(np.uint64))
    kept = np.flatnonzero(first == np.arange(len(first)))
    group = np.empty(len(first), np.intp)
    group[kept] = np.arange(len(kept))
    group = group[first]
    count = np.bincount(group, minlength=len(kept))
    means = np.empty((len(kept), 4), np.float32)
    for axis, column in enumerate(columns):
        means[:, axis] = np.bincount(group, column, len(kept)) / count
    colour, mean_colour = table.view(np.uint8), means.view(np.uint8)
    mean_colour[:, 12:] = 0
    if table.view(np.uint32)[:, 3].any():
        for byte in (12, 13, 14):
            mean_colour[:, byte] = np.bincount(group, colour[:, byte], len(kept)) / count + 0.5
    return torch.from_numpy(means)


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """For each of N keys the place of one that is equal: the same place for all that are."""
    bits = max(len(keys).bit_length(), 1)
    slots = ((keys * HASH) >> np.uint64(64 - bits)).astype(np.intp)
    table = np.empty(1 << bits, np.int32)
    table[slots] = np.arange(len(keys), dtype=np.int32)  # whoever writes last holds the slot
    first = table.take(slots)
    left = np.flatnonzero(keys.take(first) != keys)
    while len(left):  # Those of another key than the holder's try again among themselves.
        slot = slots.take(left)
        table[slot] = left
        first[left] = holder = table.take(slot)
        left = left[keys.take(holder) != keys.take(left)]
    return first


def _voxel_means_torch(points: torch.Tensor, voxel_m: float) -> torch.Tensor:
    steps = torch.floor(points[:, :3] * (1 / voxel_m)).clamp(-REACH, REACH - 1)
    x, y, z = (steps + REACH).to(torch.int64).unbind(1)
    keys, group, count = torch.unique(
        x << 42 | y << 21 | z, return_inverse=True, return_counts=True
    )
    values = torch.cat([points[:, :3], points.view(torch.uint8)[:, 12:15]], 1).double()
    sums = values.new_zeros(len(keys), 6).index_add_(0, group, values)
    sums /= count[:, None]
    means = points.new_zeros(len(keys), 4)
    means[:, :3] = sums[:, :3]
    means.view(torch.uint8)[:, 12:15] = (sums[:, 3:] + 0.5).to(torch.uint8)
    return means


@lru_cache(maxsize=8)
def ray_ends(
    intrinsics: CameraIntrinsics, device: torch.device, options: ClearingOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the ray of each strided pixel is `range_m` away from the camera.

    Returns:
        Depth (h, w) of these places, and the points (h * w, 4) float32, in the layout of a cloud,
        never nearer than `range_m`. Read only: they are kept.
    """
    x, y = (axis.astype(float) for axis in intrinsics.strided(options.stride).axis_rays())
    rays = np.zeros((len(y), len(x), 4))
    rays[..., 0], rays[..., 1], rays[..., 2] = x, y[:, None], 1.0
    outwards = options.range_m * (1 + 2**-22)  # more than the rounding to float32 takes away
    rays *= outwards / np.linalg.norm(rays, axis=-1, keepdims=True)
    points = torch.from_numpy(rays.astype(np.float32)).to(device)
    return points[..., 2].contiguous(), points.view(-1, 4)
