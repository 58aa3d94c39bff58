"""Nav2's marking and clearing on a small grid, with the shipped numbers and our clouds.

The layers are written anew from Nav2's source (`consumers.costmap`), the scenes are exact: a floor
and boxes before a camera 0.4 m above it, 6 degrees down. Nav2 itself does not run here.
"""

from types import SimpleNamespace

from consumers.collision_monitor import points_in_base
from consumers.costmap import cells_on_lines, ObstacleLayer, VoxelLayer
from consumers.scene import Box, depth_of_scene, Robot
from consumers.stvl import frustum_of, Stvl
from nav2_sample import CHAIR, COSTMAP, DEPTH_NODE, FAR_WALL, NAV2, Nav2, ROBOT, WALL
import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='clouds are packed by torch')
from vlm_depth_ros.core.cloud_options import ClearingOptions  # noqa: E402
from vlm_depth_ros.core.frustum import stvl_frustum  # noqa: E402
from vlm_depth_ros.core.geometry import CameraIntrinsics  # noqa: E402
from vlm_depth_ros.core.packing import gate_depth, pack_clearing, pack_cloud  # noqa: E402

LAYERS = [ObstacleLayer, VoxelLayer]
NOISE = 0.03
"""Standard deviation of each pixel's depth, as a share of it."""
CLEARING = ClearingOptions(DEPTH_NODE['clearing_range_m'], DEPTH_NODE['clearing_stride'] // 2)
"""As dense as the sample's stride is in an image of twice the size, 640x480."""
CLOSET = Box((3.0, -4.0, 0.0), (3.2, 4.0, 2.5))
"""A wall within the marking range."""
FAR_CHAIR = Box((3.1, -0.25, 0.0), (3.5, 0.25, 0.8))


def clouds_of(depth_m, noise=0.0, seed=0, scale=1.0, clearing=CLEARING):
    """Topic: (N, 3) points of the optical frame, as the node packs them."""
    random = np.random.default_rng(seed)
    measured = depth_m * np.float32(scale) * (1 + noise * random.standard_normal(depth_m.shape))
    measured = torch.from_numpy(measured.astype(np.float32))
    depth = gate_depth(measured, 0.1, DEPTH_NODE['max_depth_m'], False)
    packed = {
        '/points': pack_cloud(depth, ROBOT.intrinsics, stride=DEPTH_NODE['cloud_stride']),
        '/points_clearing': pack_clearing(depth, ROBOT.intrinsics, clearing),
    }
    return {t: cloud.data.view('<f4').reshape(-1, 4)[:, :3] for t, cloud in packed.items()}


@pytest.fixture(params=LAYERS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.parametrize('noise', [0.0, NOISE])
def test_the_chair_is_marked_and_the_floor_is_not(kind, noise):
    nav2 = Nav2(kind)
    for i in range(2):
        nav2.see(clouds_of(depth_of_scene(ROBOT, (CHAIR,)), noise, i))
    assert nav2.chair >= 10  # its front alone is ten cells wide
    assert nav2.chair == len(nav2.layer.marked())


@pytest.mark.parametrize(
    'behind', [(), (WALL,), (FAR_WALL,), (CLOSET,)],
    ids=['the open', 'a wall', 'a far wall', 'a near wall'],
)  # fmt: skip
def test_a_chair_that_is_taken_away_is_cleared_within_2_s(kind, behind):
    nav2 = Nav2(kind)
    for i in range(2):
        nav2.see(clouds_of(depth_of_scene(ROBOT, (CHAIR, *behind)), NOISE, i))
    assert nav2.chair
    taken_away_s = nav2.passed_s
    while nav2.chair:
        assert nav2.passed_s - taken_away_s < 2
        i += 1
        nav2.see(clouds_of(depth_of_scene(ROBOT, behind), NOISE, i))


def test_a_chair_at_the_end_of_the_marking_range_is_cleared_too(kind):
    nav2 = Nav2(kind).see(clouds_of(depth_of_scene(ROBOT, (FAR_CHAIR,))))
    assert nav2.marked_in((3.0, -0.4), (3.6, 0.4)) >= 10
    assert len(nav2.see(clouds_of(depth_of_scene(ROBOT))).layer.marked()) == 0


@pytest.mark.parametrize(
    'scene', [(), (WALL,), (FAR_WALL,)], ids=['the open', 'a wall', 'a far wall']
)
def test_there_is_no_phantom_wall(kind, scene):
    nav2 = Nav2(kind)
    for i in range(2):
        nav2.see(clouds_of(depth_of_scene(ROBOT, scene), NOISE, i))
    assert len(nav2.layer.marked()) == 0


def test_a_wall_within_the_marking_range_is_a_wall(kind):
    nav2 = Nav2(kind).see(clouds_of(depth_of_scene(ROBOT, (CLOSET,))))
    assert nav2.marked_in((2.9, -1.5), (3.3, 1.5)) >= 40


def test_the_robot_does_not_see_itself(kind):
    blind = depth_of_scene(ROBOT, (CHAIR,)).copy()
    blind[:, :40] = np.nan
    nav2 = Nav2(kind).see(clouds_of(blind))
    assert nav2.marked_in((-0.5, -0.5), (0.8, 0.5)) == 0
    assert nav2.chair


@pytest.mark.parametrize('scale', [0.8, 1.2])
def test_a_scale_that_is_wrong_by_a_fifth_moves_the_chair_and_marks_no_floor(kind, scale):
    """Along its ray a point of the floor rises by h (1 - s), the same everywhere."""
    nav2 = Nav2(kind).see(clouds_of(depth_of_scene(ROBOT, (CHAIR,)), scale=scale))
    cells = nav2.layer.marked()
    assert len(cells)
    np.testing.assert_allclose(cells[:, 0].min(), 0.15 + scale * 1.35, atol=0.06)


@pytest.mark.parametrize(('error_deg', 'is_marked'), [(0.0, False), (1.5, False), (2.5, True)])
def test_the_height_band_forgives_a_degree_and_a_half_of_pitch(kind, error_deg, is_marked):
    """A floor at d metres rises by d tan(error): 3.5 m and 1.6 degrees are 0.1 m."""
    x, y, z, roll, pitch, yaw = ROBOT.camera_in_base
    told = Robot((x, y, z, roll, pitch - np.radians(error_deg), yaw)).base_from_optical
    nav2 = Nav2(kind).see(clouds_of(depth_of_scene(ROBOT)), told)
    assert bool(len(nav2.layer.marked())) == is_marked


# What the shipped numbers and the node's own rules keep away: each one planted.


def test_without_points_clearing_a_chair_in_the_open_stays():
    """Rays that end on the floor clear what is below the camera only."""
    nav2 = Nav2(VoxelLayer, sources=('/points',))
    nav2.see(clouds_of(depth_of_scene(ROBOT, (CHAIR,))))
    nav2.see_for_2_s(clouds_of(depth_of_scene(ROBOT)))
    assert nav2.chair


def test_a_clearing_source_with_the_height_band_of_the_marks_leaves_the_lower_voxels():
    band = {'min_obstacle_height': 0.1, 'max_obstacle_height': 1.5}
    nav2 = Nav2(VoxelLayer, **band)
    nav2.see(clouds_of(depth_of_scene(ROBOT, (CHAIR, WALL))))
    nav2.see_for_2_s(clouds_of(depth_of_scene(ROBOT, (WALL,))))
    assert nav2.chair


def test_what_is_unknown_is_not_cleared():
    nav2 = Nav2(VoxelLayer).see(clouds_of(depth_of_scene(ROBOT, (CHAIR,))))
    depth_m = depth_of_scene(ROBOT).copy()
    depth_m[depth_m > DEPTH_NODE['max_depth_m']] = np.nan
    nav2.see_for_2_s(clouds_of(depth_m))
    assert nav2.chair


def test_rays_further_apart_than_cells_leave_stripes():
    """So `stride` times the distance over the focal length stays below the resolution."""
    coarse = ClearingOptions(CLEARING.range_m, stride=12)
    nav2 = Nav2(VoxelLayer).see(clouds_of(depth_of_scene(ROBOT, (CHAIR,))))
    nav2.see_for_2_s(clouds_of(depth_of_scene(ROBOT), clearing=coarse))
    assert nav2.chair
    assert coarse.stride * CHAIR.low[0] / ROBOT.intrinsics.fx_px > COSTMAP['resolution']


def test_rays_that_end_before_the_marks_leave_them(kind):
    nav2 = Nav2(kind, raytrace_max_range=1.0)
    nav2.see(clouds_of(depth_of_scene(ROBOT, (CHAIR,))))
    nav2.see_for_2_s(clouds_of(depth_of_scene(ROBOT)))
    assert nav2.chair


def test_clearing_points_that_mark_are_a_phantom_wall(kind):
    nav2 = Nav2(kind, marking=True, obstacle_max_range=6.0, min_obstacle_height=0.1)
    assert len(nav2.see(clouds_of(depth_of_scene(ROBOT))).layer.marked())


def test_depth_that_is_clamped_is_a_phantom_wall(kind):
    clamped = np.minimum(depth_of_scene(ROBOT), np.float32(3.0))
    assert len(Nav2(kind).see(clouds_of(clamped)).layer.marked()) > 20


def test_zeros_for_unknown_are_an_obstacle_in_the_camera(kind):
    clouds = clouds_of(depth_of_scene(ROBOT))
    clouds['/points'] = np.concatenate([clouds['/points'], np.zeros((5, 3), np.float32)])
    assert Nav2(kind).see(clouds).marked_in((0.0, -0.2), (0.3, 0.2)) == 1


def test_zero_and_nan_in_the_depth_are_no_points(kind):
    depth_m = depth_of_scene(ROBOT).copy()
    depth_m[::2], depth_m[1::4] = 0.0, np.nan
    assert len(Nav2(kind).see(clouds_of(depth_m)).layer.marked()) == 0


# The layers of this file are fast because they trace all lines at once: the same cells as one by
# one.


def cells_on_a_line(start, end, length, most):
    """Bresenham's line from cell to cell, as Nav2 walks it."""
    steps = [abs(b - a) for a, b in zip(start, end)]
    main = max(range(len(steps)), key=lambda axis: (steps[axis], -axis))
    error, cell, cells = [steps[main] // 2] * len(steps), list(start), []
    last = min(int(min(1.0, most / max(length, 1e-9)) * steps[main]), steps[main])
    while len(cells) <= last:
        cells.append(tuple(cell))
        for axis, (a, b) in enumerate(zip(start, end)):
            error[axis] += steps[axis]
            if axis == main or error[axis] >= steps[main]:
                error[axis] -= steps[main]
                cell[axis] += 1 if b > a else -1
    return cells


@pytest.mark.parametrize('axes', [2, 3])
@pytest.mark.parametrize('most', [15, 1000])
def test_lines_cross_the_cells_that_nav2_walks_through(axes, most):
    start = np.full(axes, 20)
    ends = np.random.default_rng(axes).integers(0, 41, (300, axes))
    ends = np.concatenate([ends, start[None]])
    length = np.linalg.norm(ends - start, axis=1)
    expected = {
        cell
        for end, far in zip(ends.tolist(), length)
        for cell in cells_on_a_line(start.tolist(), end, far, most)
    }
    assert set(map(tuple, cells_on_lines(start, ends, length, most).tolist())) == expected


# The collision monitor has no memory: what it counts, it counts in the newest cloud.


def test_collision_monitor_counts_the_chair_and_not_the_floor():
    sample = yaml.safe_load((NAV2 / 'collision_monitor.yaml').read_text(encoding='utf-8'))
    monitor = sample['collision_monitor']['ros__parameters']
    source, enough = monitor['points'], monitor['approach']['min_points']

    def counted(scene):
        points = clouds_of(depth_of_scene(ROBOT, scene), NOISE)['/points']
        band = (source['min_height'], source['max_height'])
        points = points_in_base(points, ROBOT.base_from_optical, *band, 0.0)
        return (np.linalg.norm(points[:, :2], axis=1) < 2.5).sum()

    assert counted(()) == 0
    assert counted((CHAIR,)) > 10 * enough
    leg = Box((1.0, -0.015, 0.0), (1.03, 0.015, 0.45))
    assert counted((leg,)) >= enough


def test_the_node_prints_the_frustum_that_stvl_needs():
    intrinsics = CameraIntrinsics(520.0, 530.0, 300.0, 250.0, 640, 480)
    info = SimpleNamespace(
        width=640, height=480, p=[520.0, 0, 300.0, 0, 0, 530.0, 250.0, 0, 0, 0, 1.0, 0]
    )
    expected = frustum_of(info, obstacle_range_m=3.5)
    found = stvl_frustum(intrinsics)
    assert found.vertical_fov_angle == pytest.approx(expected.vertical_fov_angle)
    assert found.horizontal_fov_angle == pytest.approx(expected.horizontal_fov_angle)
    assert 3.5 * found.reach == pytest.approx(expected.max_z)


# STVL traces no rays: while a reading of its clearing source is there, it forgets what is in view.

STVL = yaml.safe_load((NAV2 / 'costmap_stvl.yaml').read_text(encoding='utf-8'))
STVL_COSTMAP = STVL['local_costmap']['local_costmap']['ros__parameters']
SURFACE = np.stack(np.meshgrid(np.arange(-0.2, 0.2, 0.04), np.arange(-0.2, 0.2, 0.04), [1.5]), -1)
"""A board 1.5 m ahead, in the optical frame."""


def stvl_that_saw_the_board(**clear):
    """With marks on the board; `clear` changes its clearing source."""
    layer = STVL_COSTMAP['stvl_layer']
    layer = {**layer, 'points_clear': {**layer['points_clear'], **clear}}
    stvl = Stvl({**STVL_COSTMAP, 'stvl_layer': layer})
    for _ in range(5):
        stvl.receive(SURFACE.reshape(-1, 3))
        stvl.update()
    assert len(stvl.marks) > 40
    return stvl


def test_stvl_forgets_what_is_gone_within_2_s_and_keeps_what_is_seen():
    stvl = stvl_that_saw_the_board()
    seen = len(stvl.marks)
    for _ in range(int(2 * STVL_COSTMAP['update_frequency'])):
        stvl.receive(SURFACE.reshape(-1, 3))
        stvl.update()
    assert len(stvl.marks) == seen
    for _ in range(int(2 * STVL_COSTMAP['update_frequency'])):
        stvl.receive(np.empty((0, 3)))
        stvl.update()
    assert not stvl.marks


def test_stvl_keeps_its_marks_for_voxel_decay_when_the_node_dies():
    """Its clearing reading is used up, and nothing comes after it."""
    stvl = stvl_that_saw_the_board()
    seen = len(stvl.marks)
    for _ in range(int(0.8 * stvl.decay_s * STVL_COSTMAP['update_frequency'])):
        stvl.update()
    assert len(stvl.marks) == seen
    for _ in range(int(0.4 * stvl.decay_s * STVL_COSTMAP['update_frequency'])):
        stvl.update()
    assert not stvl.marks


def test_stvl_that_keeps_its_last_reading_forgets_what_stands_before_a_dead_node():
    """Planted: as the sample was, and as STVL is unless told otherwise."""
    stvl = stvl_that_saw_the_board(clear_after_reading=False)
    for _ in range(int(2 * STVL_COSTMAP['update_frequency'])):
        stvl.update()
    assert not stvl.marks


# What lies beyond the published depth was never seen.


@pytest.mark.parametrize(('max_depth_m', 'has_seen_it'), [(8.0, True), (3.0, False)])
def test_a_wall_beyond_the_depth_range_is_not_cleared(max_depth_m, has_seen_it):
    """At 3.5 m, with clearing points at 4 m; +Inf says only that nothing is within 3 m."""
    board = Box((3.5, -4.0, 0.0), (3.7, 4.0, 2.5))
    depth = torch.from_numpy(depth_of_scene(ROBOT, (board,)).copy())
    depth = gate_depth(depth, 0.1, max_depth_m, False)
    ahead = depth[ROBOT.intrinsics.height_px // 2 :: 2, ROBOT.intrinsics.width_px // 2]
    assert bool(torch.isinf(ahead[:1])) is not has_seen_it
    cloud = pack_clearing(depth, ROBOT.intrinsics, CLEARING, max_depth_m)
    points = cloud.data.view('<f4').reshape(-1, 4)[:, :3]
    # Whatever has a point lies before the wall and was looked through, as far as depth goes.
    assert (points[:, 2] <= max_depth_m).all()
