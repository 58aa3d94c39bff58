"""depthimage_to_laserscan: a band of rows of the depth image as a scan.

ros-perception/depthimage_to_laserscan, branch ros2, 79b60bf.
"""

import cv2
import numpy as np

from consumers.rules import depth_of, Live, pinhole, rule

SCAN = 'depthimage_to_laserscan 79b60bf'
SCAN_HEIGHT = 20
"""``scan_height`` of config/depthimage_to_laserscan.yaml."""
RANGE_M = (0.3, 4.0)
"""``range_min`` and ``range_max`` of that file."""


def rows_of(info: object, scan_height: int) -> slice:
    """The rows that become the scan: around the principal point."""
    first = int(info.p[6] - scan_height / 2)
    return slice(first, first + scan_height)


def bearings(info: object, width: int) -> np.ndarray:
    """(W,) angle of each column, left positive."""
    fx, cx, _, _ = pinhole(info)
    return -np.arctan2((np.arange(width) - cx) / fx, 1.0)


def ends(info: object, width: int) -> tuple[float, float]:
    """``angle_min`` and ``angle_max``, from corner rays that pass through K, D, R and P."""
    k, p = np.reshape(info.k, (3, 3)), np.reshape(info.p, (3, 4))
    cx, cy = info.p[2], info.p[6]
    raw = np.array([[[0.0, cy]], [[width - 1.0, cy]], [[cx, cy]]])
    d = np.array(info.d)
    undistorted = cv2.undistortPoints(raw, k, d, R=np.reshape(info.r, (3, 3)), P=p[:, :3])
    columns = (undistorted if d.any() else raw)[:, 0]
    rays = np.stack([(columns[:, 0] - cx) / p[0, 0], (columns[:, 1] - cy) / p[1, 1]], -1)
    rays = np.concatenate([rays, np.ones((3, 1))], -1)
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    left, right = np.arccos(np.clip(rays[:2] @ rays[2], -1, 1))
    return -right, left


def scan_of(depth: object, info: object, scan_height: int, range_m: tuple) -> np.ndarray:
    """(W,) ranges: the nearest in range, else +-Inf where there is one, else NaN.

    The rays go from right to left, as `bearings` of the columns do backwards.
    """
    band = depth_of(depth)[rows_of(info, scan_height)].astype(float)
    fx, cx, _, _ = pinhole(info)
    r = np.hypot(band, band * (np.arange(band.shape[1]) - cx) / fx)
    r = np.where(np.isfinite(band), r, band)
    angle_min, angle_max = ends(info, depth.width)
    increment = (angle_max - angle_min) / (depth.width - 1)
    ranges = np.full(depth.width, np.nan)
    index = np.trunc((bearings(info, depth.width) - angle_min) / increment).astype(int)
    for row in r:
        for i, new in zip(index, row):
            old = ranges[i]
            if not np.isfinite(new) and not np.isfinite(old):
                use = not np.isnan(new)
            else:
                use = range_m[0] <= new <= range_m[1] and (not np.isfinite(old) or new < old)
            ranges[i] = new if use else old
    return ranges


@rule(f'{SCAN} src/DepthImageToLaserScan.cpp:158-166 convert_msg')
def encoding_is_known(live: Live) -> str | None:
    if live.depth.encoding not in ('32FC1', '16UC1'):
        return f'throws: unsupported encoding {live.depth.encoding}'
    return None


@rule(f'{SCAN} src/DepthImageToLaserScan.cpp:114-129 convert_msg')
def corner_rays_are_those_of_the_depth_image(live: Live) -> str | None:
    angles = bearings(live.depth_info, live.depth.width)
    if not np.allclose(
        ends(live.depth_info, live.depth.width), (angles[-1], angles[0]), atol=1e-6
    ):
        return 'undoes a distortion that the depth image has no more: all angles are wrong'
    return None


@rule(f'{SCAN} include/depthimage_to_laserscan/DepthImageToLaserScan.hpp:178-192 convert')
def every_column_has_its_ray(live: Live) -> str | None:
    angle_min, angle_max = ends(live.depth_info, live.depth.width)
    increment = (angle_max - angle_min) / (live.depth.width - 1)
    index = np.trunc((bearings(live.depth_info, live.depth.width) - angle_min) / increment)
    if index.min() < 0 or index.max() >= live.depth.width:
        return 'writes outside of its array: the angles of camera_info are not those of the image'
    return None


@rule(f'{SCAN} src/DepthImageToLaserScan.cpp:146-152 convert_msg')
def band_of_rows_lies_in_the_image(live: Live) -> str | None:
    cy = live.depth_info.p[6]
    if SCAN_HEIGHT / 2 > cy or SCAN_HEIGHT / 2 > live.depth.height - cy:
        return f'throws: {SCAN_HEIGHT} rows around row {cy} are not in the image'
    return None


@rule(f'{SCAN} src/DepthImageToLaserScan.cpp:77-103 use_point')
def free_space_is_infinity_in_the_scan(live: Live) -> str | None:
    depth_m = depth_of(live.depth)[rows_of(live.depth_info, SCAN_HEIGHT)]
    free = np.isposinf(depth_m).all(axis=0)
    ranges = scan_of(live.depth, live.depth_info, SCAN_HEIGHT, RANGE_M)
    if not free.any() or np.isposinf(ranges).sum() < 0.9 * free.sum():
        return 'free space is a wall, or unknown: nothing is ever cleared by this scan'
    return None


@rule(f'{SCAN} src/DepthImageToLaserScan.cpp:77-103 use_point')
def unknown_is_no_range(live: Live) -> str | None:
    depth_m = depth_of(live.depth)[rows_of(live.depth_info, SCAN_HEIGHT)]
    if np.isneginf(depth_m).any():
        return 'passes -Inf on, which laser_geometry and Nav2 do not expect'
    ranges = scan_of(live.depth, live.depth_info, SCAN_HEIGHT, RANGE_M)
    unknown = np.isnan(depth_m).all(axis=0)
    if not unknown.any() or np.isnan(ranges).sum() < 0.9 * unknown.sum():
        return 'columns without depth have a range'
    return None
