"""nav2_collision_monitor: points of a cloud inside a polygon stop the robot.

ros-navigation/navigation2 a3a9704.
"""

import numpy as np

from consumers.rules import float_fields, Live, rule, stamp_s, xyz_of

MONITOR = 'navigation2 a3a9704 nav2_collision_monitor/src'
SOURCE_TIMEOUT_S = 1.0
"""``source_timeout`` of config/nav2/collision_monitor.yaml."""


def points_in_base(
    points: np.ndarray,
    base_from_sensor: np.ndarray,
    min_height_m: float,
    max_height_m: float,
    min_range_m: float,
) -> np.ndarray:
    """(N, 3) points in the base frame that count: a comparison with NaN is false."""
    points = points[np.linalg.norm(points, axis=1) >= min_range_m]
    points = points @ base_from_sensor[:3, :3].T + base_from_sensor[:3, 3]
    return points[(points[:, 2] >= min_height_m) & (points[:, 2] <= max_height_m)]


@rule(f'{MONITOR}/pointcloud.cpp:126-128 PointCloud::getSourceData')
def cloud_has_x_y_z(live: Live) -> str | None:
    if not set('xyz') <= float_fields(live.points):
        return 'throws: the cloud has no x, y and z of type FLOAT32'
    return None


@rule(f'{MONITOR}/source.cpp:179-196 Source::sourceValid')
def stamp_is_the_time_of_the_image(live: Live) -> str | None:
    age_s = live.received_s - stamp_s(live.points)
    if not 0 <= age_s <= SOURCE_TIMEOUT_S:
        return f'ignores the source, and the robot stands: the cloud is {age_s:.1f} s old'
    return None


@rule(f'{MONITOR}/pointcloud.cpp:160-176 PointCloud::getSourceData')
def no_point_sits_in_the_sensor(live: Live) -> str | None:
    for cloud in (live.points, live.organized):
        if (np.linalg.norm(xyz_of(cloud), axis=1) < 1e-3).any():
            return 'counts points in the camera itself: min_range is 0 by default'
    return None
