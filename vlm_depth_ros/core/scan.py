"""A level laser scan out of depth: the nearest thing in a band of heights, all around the robot.

Angles and ranges are about the z axis of the base frame (REP-103: x forward, y left, z up), so
the message belongs to that frame, not to the camera's. Values follow REP-117:

* a number: the nearest point of the bin whose height is in the band;
* +Inf: free. Nav2 (``inf_is_valid``) clears all the way to `range_max_m` on it, so it must be
  known: at every distance from `range_min_m` to `range_max_m`, more of the heights in the band
  are *seen through*, by a ray that ends behind that place, than are unknown; and nothing in the
  band is nearer than `range_min_m`;
* NaN: anything else. A bin that sees the floor up to 1 m only, one whose view ends at a table top
  above the band, or one full of missing depth, is not known to be free.

So a camera that looks down, whose highest ray leaves the band at 3 m, never answers +Inf with a
`range_max_m` of more than 3 m; nor does one whose depth ends at 3 m: beyond, +Inf knows nothing. A
frame of +Inf depth shows which bins it can clear at all.
"""

from dataclasses import dataclass
from functools import lru_cache
import math

import numpy as np
import torch
from vlm_depth_ros.core.cloud_options import ScanOptions
from vlm_depth_ros.core.clouds import depths_in_box
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size
from vlm_depth_ros.core.mounting import inverse_of, require_rigid

HEIGHTS = 5
"""Free space is looked for at so many heights, from the bottom to the top of the band."""


@dataclass(frozen=True, eq=False)
class PackedScan:
    """The content of a sensor_msgs/LaserScan, without its header, intensities and times."""

    angle_min: float
    angle_max: float
    angle_increment: float
    range_min: float
    range_max: float
    ranges: np.ndarray
    """(bins,) float32, from angle_min on to the left; bin i is about angle_min + i increments."""


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a scan needs of one camera at one place; read only."""

    angle_min_rad: float
    bins: int
    near: np.ndarray
    """(h, w) least depth in the band, at the stride."""
    far: np.ndarray
    x: np.ndarray
    """(h, w) change of x in the base frame with depth."""
    y: np.ndarray
    start: tuple[float, float]
    """x and y of the camera in the base frame."""
    pixel: np.ndarray
    """(heights, distances, bins) flat index of the pixel that looks at that place."""
    depth: np.ndarray
    """Depth of that place; NaN where it is out of the picture."""


@torch.no_grad()
def scan_of(
    depth: torch.Tensor,
    intrinsics: CameraIntrinsics,
    base_from_optical: np.ndarray,
    options: ScanOptions,
    max_depth_m: float = math.inf,
) -> PackedScan:
    """Turn depth into a scan about the base frame; on the host, which a tensor is copied to.

    Args:
        depth: (H, W) gated depth in metres: NaN unknown, +Inf beyond range, -Inf too near.
        intrinsics: Camera of exactly this depth image, before the stride.
        base_from_optical: (4, 4). Tables are kept for the last few poses; one that changes with
            each frame costs ten times as much as the rest.
        options: Band, ranges and bins.
        max_depth_m: What +Inf lies beyond, along the optical axis.

    Raises:
        InputError: If sizes do not match, the transform is not rigid, or the camera sees nothing
            of the band.
    """
    require_size(depth.shape, intrinsics)
    pose = require_rigid(base_from_optical, 'base_from_optical')
    layout = _layout(intrinsics, pose.tobytes(), options)
    strided = depth[:: options.stride, :: options.stride]
    z = strided.to('cpu', torch.float32).contiguous().numpy()
    free = _is_free(np.minimum(z, np.float32(max_depth_m)), layout)
    at, range_m = _hits(z, layout, options)
    too_near = range_m < options.range_min_m
    free[at[too_near]] = False
    ranges = np.full(layout.bins, np.inf, np.float32)
    np.minimum.at(ranges, at[~too_near], range_m[~too_near])
    ranges[np.isinf(ranges) & ~free] = np.nan
    increment = float(options.angle_increment_rad)
    return PackedScan(
        layout.angle_min_rad,
        layout.angle_min_rad + (layout.bins - 1) * increment,
        increment,
        float(options.range_min_m),
        float(options.range_max_m),
        ranges,
    )


def _hits(z: np.ndarray, layout: _Layout, options: ScanOptions) -> tuple[np.ndarray, np.ndarray]:
    """Bin and range of every point in the band that is not beyond the last range."""
    inside = np.flatnonzero((z >= layout.near) & (z <= layout.far))
    found = z.reshape(-1).take(inside)
    x = found * layout.x.reshape(-1).take(inside) + np.float32(layout.start[0])
    y = found * layout.y.reshape(-1).take(inside) + np.float32(layout.start[1])
    range_m = np.sqrt(x * x + y * y)
    # From the right edge of the first bin, which is half an increment before its middle.
    edge_rad = layout.angle_min_rad - options.angle_increment_rad / 2
    angle = np.arctan2(y, x) - np.float32(math.remainder(edge_rad, 2 * math.pi))
    angle[angle < 0] += np.float32(2 * math.pi)
    at = (angle / np.float32(options.angle_increment_rad)).astype(np.intp)
    kept = (range_m <= options.range_max_m) & (at < layout.bins)
    return at[kept], range_m[kept]


def _is_free(z: np.ndarray, layout: _Layout) -> np.ndarray:
    """Which bins are seen through, at more heights than are unknown, at every distance."""
    seen = z.reshape(-1).take(layout.pixel)
    through = (seen > layout.depth).sum(axis=0, dtype=np.int8)
    unknown = (np.isnan(seen) & ~np.isnan(layout.depth)).sum(axis=0, dtype=np.int8)
    return (through > unknown).all(axis=0)


@lru_cache(maxsize=8)
def _layout(intrinsics: CameraIntrinsics, matrix: bytes, options: ScanOptions) -> _Layout:
    pose = np.frombuffer(matrix).reshape(4, 4)
    camera = intrinsics.strided(options.stride)
    optical_from_base = inverse_of(pose)
    if options.derives_angles:
        # A whole turn, cut behind the camera's back, so that one to the rear has no gap.
        forward = round(math.atan2(pose[1, 2], pose[0, 2]) / options.angle_increment_rad)
        first = forward - options.bins // 2
        angles = np.arange(first, first + options.bins) * options.angle_increment_rad
    else:
        angles = options.angle_min_rad + np.arange(options.bins) * options.angle_increment_rad
    pixel, depth = _looks(camera, optical_from_base, angles, options)
    in_sight = np.flatnonzero((~np.isnan(depth)).any(axis=(0, 1)))
    if not in_sight.size:
        raise InputError(
            f'the camera sees nothing between {options.min_height_m:g} and '
            f'{options.max_height_m:g} m of height, {options.range_min_m:g} to '
            f'{options.range_max_m:g} m away, at the angles of the scan: expected a band in sight.'
            ' Check camera_in_base, or the heights.'
        )
    bins = slice(None)
    if options.derives_angles:  # and the bin of the last pixels, whose middle is out of sight
        bins = slice(max(in_sight[0] - 1, 0), in_sight[-1] + 2)
    rays_x, rays_y = (axis.astype(float) for axis in camera.axis_rays())
    x, y = (by_x * rays_x + (by_y * rays_y + by_z)[:, None] for by_x, by_y, by_z in pose[:2, :3])
    bottom = (-math.inf, -math.inf, options.min_height_m)
    top = (math.inf, math.inf, options.max_height_m)
    near, far = depths_in_box(camera, pose, bottom, top)
    return _Layout(
        float(angles[bins][0]),
        len(angles[bins]),
        near,
        far,
        x.astype(np.float32),
        y.astype(np.float32),
        (pose[0, 3], pose[1, 3]),
        np.ascontiguousarray(pixel[..., bins]),
        np.ascontiguousarray(depth[..., bins]),
    )


def _looks(
    camera: CameraIntrinsics,
    optical_from_base: np.ndarray,
    angles: np.ndarray,
    options: ScanOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel looks at each place of the band, and its depth; NaN: none does."""
    range_m = np.linspace(options.range_min_m, options.range_max_m, options.steps)[:, None]
    forward_m, left_m = range_m * np.cos(angles), range_m * np.sin(angles)
    pixel = np.empty((HEIGHTS, *forward_m.shape), np.intp)
    depth = np.empty(pixel.shape, np.float32)
    # One height after the other: each needs a dozen tables of its size on the way.
    heights_m = np.linspace(options.min_height_m, options.max_height_m, HEIGHTS)
    for height, height_m in enumerate(heights_m):
        x, y, z = (
            (by_x * forward_m + by_y * left_m) + (by_z * height_m + offset)
            for by_x, by_y, by_z, offset in optical_from_base[:3]
        )
        ahead = z > 0
        safe = np.where(ahead, z, 1.0)
        column = np.rint(camera.fx_px * x / safe + camera.cx_px)
        row = np.rint(camera.fy_px * y / safe + camera.cy_px)
        seen = ahead & (column >= 0) & (column < camera.width_px)
        seen &= (row >= 0) & (row < camera.height_px)
        pixel[height] = np.where(seen, row * camera.width_px + column, 0)
        depth[height] = np.where(seen, z, np.nan)
    return pixel, depth
