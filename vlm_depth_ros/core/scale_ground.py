"""The scale of depth from the known height of the camera above the ground.

The points of a frame below the horizon are searched for a level plane (RANSAC, Fischler and Bolles
1981). The true height of the camera over the one above its predicted points is the factor. A plane
is kept as the vector m with ``m . p = 1`` for its points: for any pixel, ``m . p`` is predicted
depth over the depth of the plane along the same ray, so that tolerances are shares of depth, which
is how depth networks err.
"""

from dataclasses import dataclass
from functools import lru_cache
import math
from typing import ClassVar

import numpy as np
from vlm_depth_ros.core.config import require_within
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size
from vlm_depth_ros.core.mounting import require_rigid
from vlm_depth_ros.core.scale import Measurement, SENSIBLE_M

POINTS = 2000
"""About so many points of a frame are looked at; a larger image is thinned."""
LEAST_POINTS = 100
TRIALS = 80
"""Planes through three points that are tried: with half of the points on the ground, all fail once
in 40,000 frames; with a third, once in 20."""
SAMPLE = 700
"""Judged on about so many of the points."""
FITS = 4
"""Least squares over what lies on the plane, each time anew."""

# The same shares of the list of points for every frame: the same frame gives the same answer.
_DRAWS = np.random.default_rng(0).random((3, TRIALS))


@dataclass(frozen=True)
class GroundOptions:
    """What counts as the ground."""

    z_m: float = 0.0
    """Height of the ground in the base frame: 0 for base_footprint, below it for a base_link at
    the axles."""
    horizon_margin_deg: float = 5.0
    """Rays at least so far below the horizon are looked at."""
    tolerance: float = 0.1
    """A point lies on the plane if its depth differs by no more than this share."""
    max_tilt_deg: float = 15.0
    """The plane's normal is no farther from the base's vertical: a wall's or a ramp's is."""
    min_support: float = 0.25
    """The plane holds at least this share of the looked-at pixels."""
    max_below: float = 0.2
    """No more than this share of the points lies clearly below the plane: a table top has a floor
    below it."""

    BOUNDS: ClassVar = {
        'z_m': (-100.0, 100.0),
        'horizon_margin_deg': (0.5, 60.0),
        'tolerance': (0.01, 0.5),
        'max_tilt_deg': (1.0, 45.0),
        'min_support': (0.05, 0.95),
        'max_below': (0.01, 0.9),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)


def measure_ground(
    depth_m: np.ndarray,
    intrinsics: CameraIntrinsics,
    base_from_optical: np.ndarray,
    options: GroundOptions,
) -> Measurement:
    """Compare the height of the camera over the predicted ground with the true one.

    Args:
        depth_m: (H, W) predicted depth, before any factor of ours; not finite or not positive is
            missing. A thinned image will do, with the camera of `CameraIntrinsics.strided`.
        intrinsics: Camera of exactly this image.
        base_from_optical: (4, 4) rigid transform; it gives the vertical, and the height above
            z = `z_m` of the base frame.
        options: What counts as the ground.

    Returns:
        The factor, or the reason why this frame shows no ground that can be trusted.

    Raises:
        InputError: If sizes differ, the transform is not rigid, or the camera is not above ground.
    """
    require_size(depth_m.shape, intrinsics)
    pose = require_rigid(base_from_optical, 'base_from_optical')
    height_m = pose[2, 3] - options.z_m
    if height_m <= 0:
        raise InputError(
            f'the camera is {height_m:.3f} m above the ground by base_from_optical: expected a '
            'positive height. Set the z of camera_in_base, or ground_z_m for a raised base.'
        )
    up = pose[2, :3]
    stride = max(1, round(math.sqrt(depth_m.size / POINTS)))
    pixels, rays = _rays_below(intrinsics, stride, tuple(up), options.horizon_margin_deg)
    z = np.asarray(depth_m[::stride, ::stride], np.float32).reshape(-1)[pixels]
    seen = (z > SENSIBLE_M[0]) & (z < SENSIBLE_M[1])
    points = rays[seen] * z[seen, None]
    if len(points) < LEAST_POINTS:
        return Measurement(reason=f'only {len(points)} points below the horizon have a depth')
    return _measured(points, len(pixels), up, height_m, options)


def _measured(points, looked_at: int, up, height_m: float, options) -> Measurement:
    plane = _best_level_plane(points, up, options)
    if plane is None:
        return Measurement(reason='no level plane below the horizon')
    share = points @ plane
    for _ in range(FITS):
        near = np.abs(share - 1) < options.tolerance
        support = float(np.count_nonzero(near)) / looked_at
        if support < options.min_support:
            return Measurement(
                support=support,
                reason=f'the best level plane holds {support:.0%} of the pixels below the '
                f'horizon, under {options.min_support:.0%}',
            )
        ground = points[near].astype(np.float64)
        plane = np.linalg.solve(ground.T @ ground, ground.sum(axis=0))
        share = points @ plane
    length = float(np.linalg.norm(plane))
    tilt_deg = math.degrees(math.acos(min(1.0, max(-1.0, float(-plane @ up) / length))))
    if tilt_deg > options.max_tilt_deg:
        return Measurement(
            support=support, reason=f'the plane below the horizon leans by {tilt_deg:.0f} degrees'
        )
    below = np.count_nonzero(share > 1 + 2 * options.tolerance) / len(points)
    if below > options.max_below:
        return Measurement(
            support=support, reason=f'{below:.0%} of the points lie below the plane: no ground'
        )
    # True depth over predicted depth of a pixel of the ground is the true height of the camera
    # over the predicted one of that pixel. A lean of the plane is the network's or the robot's:
    # at the distance of the ground that is seen it does little, extrapolated to the foot of the
    # camera much, and half of the difference is how little is known.
    predicted_m = float(np.median(-(ground @ up)))
    lean = abs(math.log(predicted_m * length)) / 2
    noise = float(np.std(share[near])) / math.sqrt(len(ground))
    return Measurement(float(height_m) / predicted_m, math.hypot(noise, lean), support)


def _best_level_plane(points, up, options) -> np.ndarray | None:
    """The plane (3,) through three of the points that fits best; None if none is level.

    The squared error counts up to the tolerance (MSAC, Torr and Zisserman 2000): a plane that
    leans on the foot of a wall holds as many points as the floor, but not as closely.
    """
    a, b, c = points[(_DRAWS * len(points)).astype(int)]
    normals = np.cross(b - a, c - a)
    with np.errstate(divide='ignore', invalid='ignore'):
        planes = normals / (normals * a).sum(axis=1)[:, None]
        rise = planes @ up.astype(np.float32) / np.linalg.norm(planes, axis=1)
    planes = planes[rise < -math.cos(math.radians(options.max_tilt_deg))]
    if not len(planes):
        return None
    error = planes @ points[:: max(1, len(points) // SAMPLE)].T - 1
    np.minimum(np.square(error, out=error), options.tolerance**2, out=error)
    return planes[error.sum(axis=1).argmin()]


@lru_cache(maxsize=16)
def _rays_below(
    intrinsics: CameraIntrinsics, stride: int, up: tuple[float, ...], margin_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices into the thinned image of the rays below the horizon, and those rays (N, 3)."""
    x, y = intrinsics.strided(stride).axis_rays()
    rays = np.ones((len(y), len(x), 3), np.float32)
    rays[..., 0], rays[..., 1] = x, y[:, None]
    rays = rays.reshape(-1, 3)
    limit = -math.sin(math.radians(margin_deg))
    pixels = np.flatnonzero(rays @ np.array(up) < limit * np.linalg.norm(rays, axis=1))
    return pixels, rays[pixels]
