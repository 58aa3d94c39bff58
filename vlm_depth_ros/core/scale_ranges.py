"""The scale of depth from sparse true ranges: a laser scan, a cloud, a range sensor.

Each range becomes a point of the optical frame and is compared with the predicted depth where it
falls in the image. One factor has to explain most of them; a scan that reflects, or is mounted
otherwise than said, does not find one.
"""

from dataclasses import dataclass
import math
from typing import ClassVar

import numpy as np
from vlm_depth_ros.core.config import require_within
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size
from vlm_depth_ros.core.mounting import require_rigid
from vlm_depth_ros.core.scale import Measurement, SENSIBLE_M

NEAREST_M = 0.05
"""A point nearer to the lens than this has no pixel worth comparing."""
CELL_PX = 8
"""Of the ranges that fall into one square of this size, only the nearest can be seen."""
EDGE_PX = 2
"""Depth has to be smooth this far around a range: the sensors see past edges differently."""
CONE_RINGS = 4


@dataclass(frozen=True)
class RangeOptions:
    """Which ranges count, and when they are believed."""

    max_points: int = 2000
    """More are thinned to every n-th."""
    min_points: int = 20
    """Fewer that fall on predicted depth, away from its edges, are not believed."""
    occlusion_margin: float = 0.2
    """Depths that differ by more than this share belong to different things."""
    tolerance: float = 0.2
    """A range agrees with the factor if it differs by no more than this, in ln(depth)."""
    min_agreeing: float = 0.6
    """At least this share agrees."""
    max_spread: float = 0.15
    """Largest standard deviation of ln(range over depth), from the median absolute deviation."""

    BOUNDS: ClassVar = {
        'max_points': (20, 100_000),
        'min_points': (3, 10_000),
        'occlusion_margin': (0.01, 1.0),
        'tolerance': (0.01, 1.0),
        'min_agreeing': (0.1, 1.0),
        'max_spread': (0.01, 1.0),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)


def measure_ranges(
    depth_m: np.ndarray,
    intrinsics: CameraIntrinsics,
    points: np.ndarray,
    options: RangeOptions,
) -> Measurement:
    """Compare true ranges with the predicted depth at their pixels.

    Args:
        depth_m: (H, W) predicted depth, before any factor of ours; not finite or not positive is
            missing. A thinned image will do, with the camera of `CameraIntrinsics.strided`.
        intrinsics: Camera of exactly this image.
        points: (N, 3) measured points in the optical frame, metres.
        options: Which ranges count.

    Returns:
        The factor, or the reason why these ranges cannot be trusted.

    Raises:
        InputError: If sizes differ or the points are not (N, 3).
    """
    require_size(depth_m.shape, intrinsics)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f'ranges have shape {points.shape}: expected (N, 3) points, x y z.')
    points = points[:: max(1, math.ceil(len(points) / options.max_points))]
    ratios = _log_ratios(depth_m, intrinsics, points, options.occlusion_margin)
    if len(ratios) < options.min_points:
        return Measurement(
            reason=f'{len(ratios)} of {len(points)} ranges fall on smooth predicted depth, '
            f'under {options.min_points}'
        )
    middle = np.median(ratios)
    spread = 1.4826 * float(np.median(np.abs(ratios - middle)))
    agreeing = ratios[np.abs(ratios - middle) < options.tolerance]
    support = agreeing.size / len(ratios)
    if spread > options.max_spread or support < options.min_agreeing:
        return Measurement(
            support=support,
            reason=f'ranges and depth do not agree on one factor: {support:.0%} within '
            f'{options.tolerance:g} of it, spread {spread:.2f}',
        )
    # Outliers on one side pull a median: once more without them. The standard error of a median is
    # 1.25 times that of a mean.
    error = 1.2533 * float(np.std(agreeing)) / math.sqrt(agreeing.size)
    return Measurement(math.exp(np.median(agreeing)), error, support)


def points_of_cloud(xyz: np.ndarray, optical_from_cloud: np.ndarray) -> np.ndarray:
    """Finite points (N, 3) of a cloud, moved into the optical frame.

    Raises:
        InputError: If the points are not (N, 3) or the transform is not rigid.
    """
    matrix = require_rigid(optical_from_cloud, 'transform into the optical frame')
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise InputError(f'cloud has shape {xyz.shape}: expected (N, 3) points, x y z.')
    kept = xyz[np.isfinite(xyz).all(axis=1)]
    return kept @ matrix[:3, :3].T + matrix[:3, 3]


def points_of_scan(
    ranges: np.ndarray,
    angle_min: float,
    angle_increment: float,
    range_min: float,
    range_max: float,
    optical_from_scan: np.ndarray,
) -> np.ndarray:
    """Points of a sensor_msgs/LaserScan in the optical frame.

    Args:
        ranges: (N,) metres; NaN, infinite or outside the bounds is no return (REP-117).
        angle_min: Of the first range, radians about z from the x axis of the scan.
        angle_increment: Radians from one range to the next; may be negative.
        range_min: Metres, included.
        range_max: Likewise.
        optical_from_scan: (4, 4) rigid transform.

    Returns:
        (M, 3) points, M returns.

    Raises:
        InputError: If the transform is not rigid or an angle is not finite.
    """
    if not (math.isfinite(angle_min) and math.isfinite(angle_increment)):
        raise InputError(
            f'scan starts at {angle_min} and steps by {angle_increment}: expected finite angles '
            'in radians. Check the driver of the scanner.'
        )
    distance_m = np.asarray(ranges, float).reshape(-1)
    angle = angle_min + angle_increment * np.arange(len(distance_m))
    returned = (distance_m >= range_min) & (distance_m <= range_max) & np.isfinite(distance_m)
    distance_m, angle = distance_m[returned], angle[returned]
    flat = np.zeros_like(angle)
    xyz = np.stack((distance_m * np.cos(angle), distance_m * np.sin(angle), flat), axis=1)
    return points_of_cloud(xyz, optical_from_scan)


def points_of_range(
    range_m: float,
    field_of_view_rad: float,
    range_min: float,
    range_max: float,
    optical_from_sensor: np.ndarray,
) -> np.ndarray:
    """Points of a sensor_msgs/Range in the optical frame: a disc across its cone.

    The sensor answers with the nearest thing in the cone. The disc stands for a surface that faces
    the sensor and fills the cone; anything else in the cone shows as spread and is refused. On a
    surface turned by up to half the field of view the factor is small by up to 1 - cos of that.

    Args:
        range_m: Metres; NaN, infinite or outside the bounds is no return (REP-117).
        field_of_view_rad: Of the cone, from side to side, about the x axis of the sensor.
        range_min: Metres, included.
        range_max: Likewise.
        optical_from_sensor: (4, 4) rigid transform.

    Returns:
        (M, 3) points, 0 of them without a return.

    Raises:
        InputError: If the transform is not rigid or the cone has no angle below 180 degrees.
    """
    if not 0 < field_of_view_rad < math.pi:
        raise InputError(
            f'range sensor has a field of view of {field_of_view_rad} rad: expected above 0 and '
            'below pi. Check the driver of the sensor.'
        )
    if not (math.isfinite(range_m) and range_min <= range_m <= range_max):
        return np.empty((0, 3))
    radius = range_m * math.tan(field_of_view_rad / 2)
    # Six more on each ring: the same area for each point.
    ring = np.repeat(np.arange(1, CONE_RINGS + 1), 6 * np.arange(1, CONE_RINGS + 1))
    turn = np.concatenate([np.linspace(0, 2 * math.pi, n, False) for n in 6 * np.unique(ring)])
    aside = radius * ring / CONE_RINGS
    disc = np.column_stack(
        (np.full(len(ring), range_m), aside * np.cos(turn), aside * np.sin(turn))
    )
    return points_of_cloud(np.vstack(((range_m, 0.0, 0.0), disc)), optical_from_sensor)


def _log_ratios(depth_m, intrinsics, points, margin: float) -> np.ndarray:
    """Ln of true over predicted depth for each range that the camera can be expected to see."""
    near_enough = (np.abs(points) < SENSIBLE_M[1]).all(axis=1)
    x, y, z = points[near_enough & (points[:, 2] > NEAREST_M)].T
    u = np.rint(x / z * intrinsics.fx_px + intrinsics.cx_px)
    v = np.rint(y / z * intrinsics.fy_px + intrinsics.cy_px)
    height, width = depth_m.shape
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v, z = u[inside].astype(int), v[inside].astype(int), z[inside]

    cell = v // CELL_PX * (width // CELL_PX + 1) + u // CELL_PX
    nearest = np.full((height // CELL_PX + 1) * (width // CELL_PX + 1), np.inf)
    np.minimum.at(nearest, cell, z)
    in_front = z <= nearest[cell] * (1 + margin)
    u, v, z = u[in_front], v[in_front], z[in_front]

    aside = ((0, 0), (-EDGE_PX, 0), (EDGE_PX, 0), (0, -EDGE_PX), (0, EDGE_PX))
    around = np.stack(
        [depth_m[(v + dv).clip(0, height - 1), (u + du).clip(0, width - 1)] for du, dv in aside]
    ).astype(float)
    smooth = ((around > SENSIBLE_M[0]) & (around < SENSIBLE_M[1])).all(axis=0)
    smooth &= around.max(axis=0) <= around.min(axis=0) * (1 + margin)
    return np.log(z[smooth] / around[0, smooth])
