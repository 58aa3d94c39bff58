"""nav2_costmap_2d: clouds mark and clear cells, in 2-D (obstacle layer) or in columns of voxels.

ros-navigation/navigation2 a3a9704: nav2_costmap_2d/src/observation_buffer.cpp,
plugins/obstacle_layer.cpp, plugins/voxel_layer.cpp; nav2_util/raytrace_line_2d.hpp;
nav2_voxel_grid/voxel_grid.hpp. Scans become clouds by ros-perception/laser_geometry, branch ros2,
7688a58.
"""

from dataclasses import dataclass, fields
import math

import numpy as np

from consumers.rules import depth_of, float_fields, Live, pinhole, rule, stamp_s, xyz_of

COSTMAP = 'navigation2 a3a9704 nav2_costmap_2d'
GEOMETRY = 'laser_geometry 7688a58 src/laser_geometry.cpp'
OBSTACLE_MAX_RANGE_M, RAYTRACE_MAX_RANGE_M = 3.5, 4.5
"""Those of config/nav2/costmap_voxel.yaml."""
MAX_DEPTH_M = 8.0
"""What +Inf lies beyond, in that file."""
FREE, LETHAL, UNKNOWN = 0, 254, 255
VOXEL_BITS = 16


@dataclass(frozen=True)
class Source:
    """Parameters of one observation source, with Nav2's defaults (obstacle_layer.cpp:135-176)."""

    topic: str
    data_type: str = 'LaserScan'
    marking: bool = True
    clearing: bool = False
    min_obstacle_height: float = 0.0
    max_obstacle_height: float = 0.0
    obstacle_max_range: float = 2.5
    raytrace_max_range: float = 3.0

    @classmethod
    def all_of(cls, layer: dict) -> 'list[Source]':
        """The sources of a layer's parameters, in order."""
        known = {field.name for field in fields(cls)}
        return [
            cls(**{k: v for k, v in layer[name].items() if k in known})
            for name in layer['observation_sources'].split()
        ]


@dataclass(frozen=True)
class Observation:
    """What the buffer keeps of a cloud."""

    source: Source
    origin: np.ndarray
    points: np.ndarray
    """(N, 3) in the global frame, inside the height band of the source."""


def buffered(points: np.ndarray, global_from_sensor: np.ndarray, source: Source) -> Observation:
    """observation_buffer.cpp:96-134: to the global frame, then the height band.

    A comparison with NaN is false: such points are gone, for marking *and* for clearing.
    """
    rotation = global_from_sensor[:3, :3].astype(np.float32)
    origin = global_from_sensor[:3, 3]
    points = points @ rotation.T + origin.astype(np.float32)
    z = points[:, 2]
    band = (z <= source.max_obstacle_height) & (z >= source.min_obstacle_height)
    return Observation(source, origin, points[band].astype(float))


def cells_on_lines(
    start: np.ndarray, ends: np.ndarray, length: np.ndarray, most: int
) -> np.ndarray:
    """Bresenham's lines (raytrace_line_2d.hpp:58-142, voxel_grid.hpp:225-328), many at once.

    Args:
        start: (D,) cell that all begin in.
        ends: (N, D) cells.
        length: (N,) length of each line, in cells.
        most: Longer lines stop after so many cells.

    Returns:
        (M, D) cells, some more than once.
    """
    main = np.abs(ends - start).max(axis=1)
    scale = np.minimum(1.0, most / np.maximum(length, 1e-9))
    last = np.minimum(np.floor(scale * main), main).astype(int)
    # Many rays end in one cell: the same line.
    lines = np.column_stack([ends, last])
    key = np.ravel_multi_index(lines.T, lines.max(axis=0, initial=0) + 1)
    one_each = np.unique(key, return_index=True)[1]
    ends, last = ends[one_each], last[one_each]
    steps = np.abs(ends - start)
    main = steps.max(axis=1)
    # Along the main axis the error comes to a whole cell at each step; the first one wins a tie.
    is_main = np.arange(len(start)) == steps.argmax(axis=1)[:, None]
    error = np.where(is_main, 0, main[:, None] // 2)
    cell, sign = np.tile(start, (len(ends), 1)), np.where(ends > start, 1, -1)
    order = np.argsort(-last)
    cell, sign, error, steps, main = (a[order] for a in (cell, sign, error, steps, main))
    visited = []
    for count in np.searchsorted(-last[order], -np.arange(last.max(initial=-1) + 1), 'right'):
        cell, sign, error, steps, main = (a[:count] for a in (cell, sign, error, steps, main))
        visited.append(cell.copy())
        error += steps
        over = error >= main[:, None]
        cell += sign * over
        error -= main[:, None] * over
    return np.concatenate(visited) if visited else np.empty((0, len(start)), int)


class ObstacleLayer:
    """One layer of marks in 2-D, of a robot that stands at the origin."""

    def __init__(self, costmap: dict, layer: dict):
        """Take the parameters of the costmap and those of its layer."""
        self.resolution = costmap['resolution']
        size_m = np.array([costmap['width'], costmap['height']], float)
        self.origin, self.size = -size_m / 2, np.round(size_m / self.resolution).astype(int)
        self.min_height = layer.get('min_obstacle_height', 0.0)
        self.max_height = layer.get('max_obstacle_height', 2.0)
        self.cost = np.zeros(self.size, np.uint8)
        """[x, y]"""

    def update(self, observations: list[Observation]) -> None:
        """First clear, then mark (updateBounds)."""
        for observation in observations:
            if observation.source.clearing:
                self.clear(observation)
        for observation in observations:
            if observation.source.marking:
                self.mark(observation)

    def cell_distance(self, metres: float) -> int:
        """costmap_2d.cpp:254 cellDistance."""
        return max(0, math.ceil(metres / self.resolution))

    def clear(self, observation: Observation) -> None:
        """obstacle_layer.cpp:704-794 raytraceFreespace."""
        origin = observation.origin[:2]
        ends = self._scaled_into(origin, observation.points[:, :2], self.origin, self._far_corner)
        start = self._cells(origin[None])[0]
        ends = self._cells(ends)
        length = np.linalg.norm(ends - start, axis=1)
        most = self.cell_distance(observation.source.raytrace_max_range)
        x, y = cells_on_lines(start, ends, length, most).T
        self.cost[x, y] = FREE

    def mark(self, observation: Observation) -> None:
        """obstacle_layer.cpp:507-583."""
        points, limit_m = observation.points, observation.source.obstacle_max_range
        band = (points[:, 2] >= self.min_height) & (points[:, 2] <= self.max_height)
        near = np.linalg.norm(points[:, :2] - observation.origin[:2], axis=1) <= limit_m
        cells = self._cells(points[band & near & self._is_on_map(points), :2])
        start = self._cells(observation.origin[None, :2])[0]
        distance = np.floor(np.linalg.norm(cells - start, axis=1))
        x, y = cells[distance <= self.cell_distance(limit_m)].T
        self.cost[x, y] = LETHAL

    def marked(self) -> np.ndarray:
        """(N, 2) centres of the lethal cells in metres."""
        return (np.argwhere(self.cost == LETHAL) + 0.5) * self.resolution + self.origin

    @property
    def _far_corner(self) -> np.ndarray:
        return self.origin + self.size * self.resolution

    def _cells(self, xy: np.ndarray) -> np.ndarray:
        return np.floor((xy - self.origin) / self.resolution).astype(int)

    def _is_on_map(self, points: np.ndarray) -> np.ndarray:
        cells = self._cells(points[:, :2])
        return ((cells >= 0) & (cells < self.size)).all(axis=1)

    @staticmethod
    def _scaled_into(
        origin: np.ndarray, points: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """Draw points (N, D) towards `origin` until they are inside the map."""
        way = points - origin
        with np.errstate(divide='ignore', invalid='ignore'):
            room = np.where(way < 0, (low - origin) / way, (high - origin) / way)
        share = np.fmin(room.min(axis=1, initial=np.inf, where=way != 0), 1.0 + 1e-5) - 1e-5
        return origin + way * share[:, None]


class VoxelLayer(ObstacleLayer):
    """Marks in columns of voxels; a cell is free when its column is."""

    def __init__(self, costmap: dict, layer: dict):
        """Take the parameters of the costmap and those of its layer (voxel_layer.cpp:70-99)."""
        super().__init__(costmap, layer)
        self.origin_z, self.z_resolution = layer['origin_z'], layer['z_resolution']
        self.z_voxels, self.mark_threshold = layer['z_voxels'], layer['mark_threshold']
        self.unknown_threshold = layer['unknown_threshold'] + VOXEL_BITS - self.z_voxels
        self.is_marked = np.zeros((*self.size, VOXEL_BITS), bool)
        self.is_unknown = np.ones((*self.size, VOXEL_BITS), bool)

    def clear(self, observation: Observation) -> None:
        """voxel_layer.cpp:278-436 raytraceFreespace, voxel_grid.hpp:389-405 ClearVoxelInMap."""
        origin, points = observation.origin, observation.points
        way = points - origin
        distance = np.linalg.norm(way, axis=1)
        share = np.maximum(np.minimum(1.0, (distance - 2 * self.resolution) / distance), 0.0)
        low = np.append(self.origin, self.origin_z)
        high = np.append(self._far_corner, self.origin_z + self.z_voxels * self.z_resolution)
        ends = self._scaled_into(origin, origin + way * share[:, None], low, high - 1e-6)
        scale = np.array([self.resolution, self.resolution, self.z_resolution])
        start, ends = (origin - low) / scale, (ends - low) / scale
        length = np.linalg.norm(ends - start, axis=1)
        most = self.cell_distance(observation.source.raytrace_max_range)
        x, y, z = cells_on_lines(start.astype(int), ends.astype(int), length, most).T
        self.is_marked[x, y, z] = self.is_unknown[x, y, z] = False
        touched = np.zeros(self.size, bool)
        touched[x, y] = True
        x, y = np.nonzero(touched)
        few_marks = self.is_marked[x, y].sum(axis=1) <= self.mark_threshold
        few_unknown = self.is_unknown[x, y].sum(axis=1) <= self.unknown_threshold
        x, y = x[few_marks], y[few_marks]
        self.cost[x, y] = np.where(few_unknown[few_marks], FREE, UNKNOWN)

    def mark(self, observation: Observation) -> None:
        """voxel_layer.cpp:193-251."""
        points, limit_m = observation.points, observation.source.obstacle_max_range
        band = (points[:, 2] >= self.min_height) & (points[:, 2] <= self.max_height)
        near = np.linalg.norm(points - observation.origin, axis=1) < limit_m
        points = points[band & near & self._is_on_map(points)]
        x, y = self._cells(points[:, :2]).T
        z = np.floor((np.maximum(points[:, 2], self.origin_z) - self.origin_z) / self.z_resolution)
        inside = z < self.z_voxels
        x, y, z = x[inside], y[inside], z[inside].astype(int)
        self.is_marked[x, y, z] = True
        self.is_unknown[x, y, z] = False
        many = self.is_marked[x, y].sum(axis=1) > self.mark_threshold
        self.cost[x[many], y[many]] = LETHAL


@rule(f'{COSTMAP}/src/observation_buffer.cpp:122 and plugins/obstacle_layer.cpp:521-523')
def cloud_has_x_y_z(live: Live) -> str | None:
    for cloud in (live.points, live.organized):
        if not set('xyz') <= float_fields(cloud):
            return 'throws: the cloud has no x, y and z of type FLOAT32'
    return None


@rule(f'{COSTMAP}/src/observation_buffer.cpp:119,123-127 ObservationBuffer::bufferCloud')
def points_lie_back_to_back(live: Live) -> str | None:
    for cloud in (live.points, live.organized):
        if cloud.row_step != cloud.width * cloud.point_step:
            return 'takes the padding of the rows for points'
        if len(cloud.data) != cloud.height * cloud.row_step:
            return 'copies more points than it has room for'
        if cloud.is_bigendian:
            return 'reads the bytes of every number in the wrong order'
    return None


@rule(f'{COSTMAP}/src/observation_buffer.cpp:128-134 ObservationBuffer::bufferCloud')
def every_point_is_worth_its_transport(live: Live) -> str | None:
    xyz = xyz_of(live.points)
    if not len(xyz) or not np.isfinite(xyz).all():
        return 'walks over points that mark nothing and clear nothing'
    return None


@rule(f'{COSTMAP}/src/observation_buffer.cpp:85-107 and tf2::BufferCore::lookupTransform')
def frame_is_in_the_transform_tree(live: Live) -> str | None:
    frame = live.points.header.frame_id
    if not frame or frame.startswith('/') or frame != live.image.header.frame_id:
        return f'drops the cloud: no transform from {frame!r}'
    return None


@rule(f'{COSTMAP}/plugins/obstacle_layer.cpp:317-327 message filter at the stamp of the cloud')
def stamp_is_that_of_the_image(live: Live) -> str | None:
    if stamp_s(live.points) != stamp_s(live.image):
        return 'puts the points where the robot was at another time'
    return None


@rule(f'{COSTMAP}/plugins/obstacle_layer.cpp:541-583 and plugins/voxel_layer.cpp:216-245')
def no_point_marks_the_robot_itself(live: Live) -> str | None:
    for cloud in (live.points, live.organized):
        if (np.linalg.norm(xyz_of(cloud), axis=1) < 1e-3).any():
            return 'marks the cell of the camera: obstacle_min_range is 0 by default'
    return None


@rule(f'{COSTMAP}/plugins/obstacle_layer.cpp:547-583 ObstacleLayer::updateBounds')
def nothing_is_marked_where_depth_is_out_of_range(live: Live) -> str | None:
    free = np.isposinf(depth_of(live.depth)).ravel()
    if not free.any() or np.isfinite(xyz_of(live.organized)[free]).any():
        return 'marks a wall at the maximum range, where nothing was seen'
    return None


@rule(f'{COSTMAP}/src/observation_buffer.cpp:128-134 and plugins/voxel_layer.cpp:344-418')
def clearing_points_end_between_marks_and_rays(live: Live) -> str | None:
    distance_m = np.linalg.norm(xyz_of(live.clearing), axis=1)
    if not len(distance_m) or not np.isfinite(distance_m).all():
        return 'clears nothing: no finite point where the view is free'
    if distance_m.min() <= OBSTACLE_MAX_RANGE_M or distance_m.max() > RAYTRACE_MAX_RANGE_M:
        return 'leaves marks beyond the ends of the rays'
    return None


@rule(f'{COSTMAP}/plugins/voxel_layer.cpp:344-418 raytraceFreespace')
def what_is_cleared_was_looked_through(live: Live) -> str | None:
    x, y, z = xyz_of(live.clearing).T
    fx, cx, fy, cy = pinhole(live.depth_info)
    row, column = (np.rint(v).astype(int) for v in (fy * y / z + cy, fx * x / z + cx))
    seen_m = np.minimum(depth_of(live.depth)[row, column], MAX_DEPTH_M)
    if not (z <= seen_m).all():
        return 'frees space that was not looked through: unknown, behind a thing, or out of range'
    return None


@rule(f'{COSTMAP}/plugins/obstacle_layer.cpp:317-327 message filter; observation_buffer.cpp:85')
def clearing_points_start_in_the_camera(live: Live) -> str | None:
    if live.clearing.header != live.points.header:
        return 'clears from another place, or at another time, than it marks'
    return None


@rule(f'{COSTMAP}/plugins/obstacle_layer.cpp:421-434 laserScanValidInfCallback')
def free_rays_of_the_scan_end_beyond_the_marks(live: Live) -> str | None:
    if live.scan.range_max <= OBSTACLE_MAX_RANGE_M:
        return 'every free ray, set to range_max, ends in a mark'
    if np.isneginf(live.scan.ranges).any():
        return 'projects -Inf'
    return None


@rule(f'{GEOMETRY}:68-75 projectLaser_, 425-429 transformLaserScanToPointCloud_')
def scan_is_one_moment_of_even_angles(live: Live) -> str | None:
    scan = live.scan
    last = scan.angle_min + (len(scan.ranges) - 1) * scan.angle_increment
    if not scan.ranges or abs(last - scan.angle_max) > scan.angle_increment:
        return 'turns the scan: its bins are counted from angle_min by angle_increment alone'
    if scan.time_increment != 0:
        return 'waits for transforms of a time to come'
    return None


@rule(f'{GEOMETRY}:181-189 projectLaser_')
def ranges_of_the_scan_are_within_its_limits(live: Live) -> str | None:
    ranges = np.array(live.scan.ranges)
    ranges = ranges[np.isfinite(ranges)]
    if (
        not len(ranges)
        or ranges.min() < live.scan.range_min
        or ranges.max() >= live.scan.range_max
    ):
        return 'drops what the scan says it has seen'
    return None
