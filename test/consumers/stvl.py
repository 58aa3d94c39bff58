"""spatio_temporal_voxel_layer: voxels that decay, faster inside the camera's frustum.

SteveMacenski/spatio_temporal_voxel_layer, branch ros2, 403d9ed.
"""

from typing import NamedTuple

import numpy as np

from consumers.rules import float_fields, Live, pinhole, rule, xyz_of

STVL = 'spatio_temporal_voxel_layer 403d9ed src'


class Frustum(NamedTuple):
    """What a clearing source of STVL is told about the camera."""

    vertical_fov_angle: float
    horizontal_fov_angle: float
    min_z: float
    max_z: float


def frustum_of(info: object, obstacle_range_m: float, min_z_m: float = 0.1) -> Frustum:
    """The largest frustum of STVL that lies inside the camera's view and reaches the marks.

    STVL turns the optical axis about y by half the horizontal angle, and then about x by half the
    vertical one. So its corners lie at |x| / z = tan(h / 2) / cos(v / 2) and |y| / z = tan(v / 2):
    with the plain angles of the image it would clear beside the view. It goes `max_z` along these
    corner rays, so its far plane stands at ``max_z cos(v / 2) cos(h / 2)``.

    Args:
        info: camera_info of the depth image.
        obstacle_range_m: The marks to be reached, ``obstacle_range`` of the marking source.
        min_z_m: As `max_z`, near.
    """
    fx, cx, fy, cy = pinhole(info)
    # The frustum is symmetric, the image need not be: the narrower side counts.
    half_x = min(cx + 0.5, info.width - cx - 0.5) / fx
    half_y = min(cy + 0.5, info.height - cy - 0.5) / fy
    v = 2 * np.arctan(half_y)
    h = 2 * np.arctan(half_x * np.cos(v / 2))
    return Frustum(v, h, min_z_m, obstacle_range_m / (np.cos(v / 2) * np.cos(h / 2)))


def is_inside(points: np.ndarray, frustum: Frustum) -> np.ndarray:
    """(N,) whether STVL clears these points (N, 3) of the optical frame."""
    v, h = frustum.vertical_fov_angle / 2, frustum.horizontal_fov_angle / 2
    x, y, z = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    corner = np.cos(v) * np.cos(h)
    deep = (z > frustum.min_z * corner) & (z < frustum.max_z * corner)
    return deep & (x <= z * np.tan(h) / np.cos(v)) & (y <= z * np.tan(v))


def seconds_to_clear(voxel_decay_s: float, acceleration: float, rate_hz: float) -> float:
    """How long a mark inside a frustum stays, with the linear decay model.

    Every update moves the stamp of a mark back by a / 6 t^3, so the age t grows faster and faster.
    """
    age_s, passed_s = 0.0, 0.0
    while passed_s < 10 * voxel_decay_s:
        passed_s += 1 / rate_hz
        age_s += 1 / rate_hz
        moved_s = acceleration / 6 * age_s**3
        if voxel_decay_s - age_s - moved_s < 0:
            return passed_s
        age_s += moved_s
    return passed_s


class Stvl:
    """A layer before a camera that stands still, with marks in its optical frame.

    spatio_temporal_voxel_layer.cpp updateBounds: read the buffers, empty those that say so, clear,
    then mark. Without persistence a buffer keeps the newest reading until it is emptied
    (measurement_buffer.cpp RemoveStaleObservations).
    """

    def __init__(self, costmap: dict):
        """Take the parameters of a costmap with an ``stvl_layer``."""
        layer = costmap['stvl_layer']
        self.sources = [layer[name] for name in layer['observation_sources'].split()]
        self.decay_s, self.voxel_m = layer['voxel_decay'], layer['voxel_size']
        self.period_s, self.now_s = 1 / costmap['update_frequency'], 0.0
        self.buffers: list[list[np.ndarray]] = [[] for _ in self.sources]
        self.marks: dict[tuple[int, ...], float] = {}
        """Stamp of each marked voxel."""

    def receive(self, points: np.ndarray) -> None:
        """Put a cloud (N, 3) into every buffer; one that only clears looks at its header alone."""
        self.buffers = [[points] for _ in self.sources]

    def update(self) -> None:
        """Let one period pass."""
        self.now_s += self.period_s
        readings = list(zip(self.sources, self.buffers))
        self.buffers = [[] if s.get('clear_after_reading') else b for s, b in readings]
        self._clear([source for source, buffer in readings if source['clearing'] and buffer])
        for source, buffer in readings:
            for points in buffer if source['marking'] else ():
                near = points[np.linalg.norm(points, axis=1) <= source['obstacle_range']]
                voxels = np.floor(near / self.voxel_m).astype(int).tolist()
                self.marks |= dict.fromkeys(map(tuple, voxels), self.now_s)

    def _clear(self, sources: list[dict]) -> None:
        """spatio_temporal_voxel_grid.cpp TemporalClearAndGenerateCostmap, with linear decay."""
        centres = (np.array(list(self.marks)).reshape(-1, 3) + 0.5) * self.voxel_m
        moved = np.zeros(len(centres))
        stamps = np.array(list(self.marks.values()))
        for source in sources:
            frustum = Frustum(*(source[name] for name in Frustum._fields))
            faster = source['decay_acceleration'] / 6 * (self.now_s - stamps) ** 3
            moved = np.maximum(moved, np.where(is_inside(centres, frustum), faster, 0.0))
        stamps -= moved
        kept = self.now_s - stamps <= self.decay_s
        voxels = list(self.marks)
        self.marks = {voxels[i]: stamps[i] for i in np.flatnonzero(kept)}


@rule(f'{STVL}/spatio_temporal_voxel_grid.cpp:278-280 operator()')
def cloud_has_x_y_z(live: Live) -> str | None:
    if not set('xyz') <= float_fields(live.points):
        return 'throws: the cloud has no x, y and z of type FLOAT32'
    return None


@rule(f'{STVL}/measurement_buffer.cpp:153-163 BufferROSCloud, with pcl::VoxelGrid')
def is_dense_is_true(live: Live) -> str | None:
    for cloud in (live.points, live.organized):
        if cloud.is_dense and not np.isfinite(xyz_of(cloud)).all():
            return 'the voxel filter does not look for NaN, and its index runs wild'
    return None


@rule(f'{STVL}/frustum_models/depth_camera_frustum.cpp:79-104 ComputePlaneNormals')
def camera_looks_along_z_of_its_frame(live: Live) -> str | None:
    points = xyz_of(live.points)
    frustum = frustum_of(live.depth_info, np.linalg.norm(points, axis=1).max() + 0.1)
    inside = is_inside(points, frustum).mean()
    if inside < 0.8:
        return f'clears elsewhere: {inside:.0%} of the points lie in the frustum of camera_info'
    return None
