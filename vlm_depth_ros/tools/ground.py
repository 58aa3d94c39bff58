"""Is a flat floor flat in the prediction? What a robot drives on, judged as a plane."""

import numpy as np
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.tools.metrics import Compared

LOWER_SHARE = 0.4
"""Part of the crop, from below, in which the ground is looked for."""
TOLERANCE = 0.02
"""A true point belongs to the plane within this share of its distance from the camera."""
PLANAR_SHARE = 0.5
"""At least this part of the region has to lie on one plane, else the image shows no ground."""
LEAST_PIXELS = 200
LEVEL_DEG = 45.0
"""A ground's normal is no farther from the image's vertical; a wall's is."""
TRIALS = 200
SAMPLE = 2000
"""Planes through three random points that are tried, on so many of the points."""


def fit_plane(points: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Fit a plane to (N, 3) points: least squares of the distances to it.

    Returns:
        The unit normal with a negative y (up, in the optical frame), the offset d of
        ``normal . x = d``, and the RMS distance in the points' unit.
    """
    middle = points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(np.cov((points - middle).T, bias=True))
    normal = -axes[2] if axes[2, 1] > 0 else axes[2]
    return normal, float(normal @ middle), float(np.sqrt(sizes[2]))


def find_ground(compared: Compared, intrinsics: CameraIntrinsics) -> np.ndarray | None:
    """Find the pixels of the lower image that lie on one level plane by the truth.

    RANSAC (Fischler and Bolles 1981) over planes through three points, then two fits to what lies
    on the best; the same image gives the same answer.

    Returns:
        (H, W) bool, or None where the truth shows no such plane.
    """
    region = compared.valid.copy()
    rows = np.flatnonzero(region.any(axis=1))
    region[: rows[-1] + 1 - round(LOWER_SHARE * (rows[-1] + 1 - rows[0]))] = False
    count = int(region.sum())
    if count < LEAST_PIXELS:
        return None
    points = depth_to_points(compared.truth_m, intrinsics)[region].astype(np.float64)
    random = np.random.default_rng(0)
    some = points[random.choice(count, min(count, SAMPLE), replace=False)]
    a, b, c = (some[random.integers(0, len(some), TRIALS)] for _ in range(3))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    steep = np.abs(normals[:, 1]) < np.cos(np.radians(LEVEL_DEG)) * lengths
    normals, a = normals[~steep & (lengths > 0)], a[~steep & (lengths > 0)]
    if not len(normals):
        return None
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    offsets = (normals * a).sum(axis=1)
    close = np.abs(some @ normals.T - offsets) < TOLERANCE * np.linalg.norm(some, axis=1)[:, None]
    best = close.sum(axis=0).argmax()
    normal, offset, distance_m = normals[best], offsets[best], np.linalg.norm(points, axis=1)
    for _ in range(2):
        on_plane = np.abs(points @ normal - offset) < TOLERANCE * distance_m
        if on_plane.sum() < max(LEAST_PIXELS, PLANAR_SHARE * count):
            return None
        normal, offset, _ = fit_plane(points[on_plane])
    if -normal[1] < np.cos(np.radians(LEVEL_DEG)):
        return None
    ground = np.zeros(region.shape, bool)
    ground[region] = np.abs(points @ normal - offset) < TOLERANCE * distance_m
    return ground


def flatness(compared: Compared, intrinsics: CameraIntrinsics) -> dict[str, float] | None:
    """How flat and how level the ground of an image is predicted.

    As planarity and orientation error of Koch et al. (2018, arXiv 1805.01328), on the ground that
    the truth shows: the predicted points get a plane of their own, so that a wrong scale alone is
    no error here.

    Returns:
        ``rms_m``, the RMS distance of the predicted points from their plane, ``rms_share``, the
        same over their median depth, ``tilt_deg`` between that plane and the true one, and
        ``true_rms_m``, the unevenness of the truth itself. None without ground.
    """
    ground = find_ground(compared, intrinsics)
    if ground is None:
        return None
    found, true = (
        fit_plane(depth_to_points(depth_m, intrinsics)[ground].astype(np.float64))
        for depth_m in (compared.depth_m, compared.truth_m)
    )
    cosine = float(np.clip(found[0] @ true[0], -1, 1))
    return {
        'rms_m': found[2],
        'rms_share': found[2] / float(np.median(compared.depth_m[ground])),
        'tilt_deg': float(np.degrees(np.arccos(cosine))),
        'true_rms_m': true[2],
    }
