"""A scan against boxes on a floor, seen by a camera that is level, pitched, or put aside."""

from dataclasses import replace
import math
import tracemalloc

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.cloud_options import MOST_PLACES, ScanOptions
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.mounting import base_from_optical
from vlm_depth_ros.core.scan import scan_of

NAN, INF = math.nan, math.inf
CAMERA = CameraIntrinsics(131.0, 131.0, 79.5, 59.5, 160, 120)  # 63 by 49 degrees
BAND = ScanOptions(0.1, 0.5, 0.5, 5.0, stride=1)
LEVEL = base_from_optical((0.0, 0.0, 0.4, 0.0, 0.0, 0.0))
PITCHED = base_from_optical((0.15, 0.05, 0.8, 0.02, math.radians(25), 0.1))
POSES = {'level': LEVEL, 'pitched': PITCHED}
CRATE = ((2.0, -0.3, 0.0), (2.5, 0.3, 0.4))
"""Two corners of a box on the floor ahead."""
TABLE_TOP = ((0.9, -0.9, 0.62), (1.8, 0.9, 0.66))
"""Hangs above the band."""
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def seen(pose, *boxes, floor=True, range_m=10.0, camera=CAMERA):
    """Exact depth (H, W) of boxes on the floor z = 0; +Inf beyond the range."""
    x, y = (axis.astype(float) for axis in camera.axis_rays())
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], 1.0), -1) @ pose[:3, :3].T
    start = pose[:3, 3]
    depth = np.full(camera.image_hw, INF)
    solids = [*boxes, ((-99.0, -99.0, -1.0), (99.0, 99.0, 0.0))] if floor else boxes
    rays[np.abs(rays) < 1e-9] = 1e-9
    for low, high in solids:
        one, other = (np.array(low) - start) / rays, (np.array(high) - start) / rays
        enters, leaves = np.minimum(one, other).max(-1), np.maximum(one, other).min(-1)
        depth = np.where((enters <= leaves) & (enters > 0), np.minimum(depth, enters), depth)
    depth[depth > range_m] = INF
    return torch.from_numpy(depth.astype(np.float32))


def angles_of(scan):
    return scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))


def at_angle(scan, angle_rad):
    """Range of the bin about this direction."""
    return float(scan.ranges[round((angle_rad - scan.angle_min) / scan.angle_increment)])


def distance_to(box, angles):
    """Along level rays from the origin to the sides of a box; +Inf beside it."""
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions[np.abs(directions) < 1e-9] = 1e-9
    one, other = np.array(box[0][:2]) / directions, np.array(box[1][:2]) / directions
    enters, leaves = np.minimum(one, other).max(-1), np.maximum(one, other).min(-1)
    return np.where((enters <= leaves) & (enters > 0), enters, INF)


# --- what is marked ---------------------------------------------------------------------------


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('pose', POSES.values(), ids=POSES)
def test_a_crate_is_as_far_as_it_is_from_the_base(pose, device):
    """Whether the camera looks ahead, or down from beside the axis of the base."""
    scan = scan_of(seen(pose, CRATE).to(device), CAMERA, pose, BAND)
    angles = angles_of(scan)
    wanted = distance_to(CRATE, angles)
    inner = np.abs(angles) < math.atan2(0.3, 2.0) - 0.012
    assert inner.sum() > 20
    # The nearest point of a bin half a degree wide, of pixels a few millimetres apart.
    np.testing.assert_allclose(scan.ranges[inner], wanted[inner], atol=0.012)
    beside = np.abs(angles) > math.atan2(0.3, 2.0) + 0.012
    assert not np.isfinite(scan.ranges[beside]).any()


@pytest.mark.parametrize('pose', POSES.values(), ids=POSES)
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_each_bin_holds_its_nearest_point_in_the_band(pose, stride):
    """Against a loop over all points, moved to the base."""
    options = replace(BAND, stride=stride, min_height_m=-0.1)
    depth = seen(pose, CRATE, TABLE_TOP)
    depth[10:20, 30:60] = NAN
    scan = scan_of(depth, CAMERA, pose, options)
    strided = CAMERA.strided(stride)
    points = depth_to_points(depth[::stride, ::stride].numpy(), strided).astype(float)
    x, y, z = np.moveaxis(points @ pose[:3, :3].T + pose[:3, 3], -1, 0)
    wanted = np.full(len(scan.ranges), INF)
    for px, py, pz in zip(x.ravel(), y.ravel(), z.ravel()):
        at = round((math.atan2(py, px) - scan.angle_min) / scan.angle_increment) if px == px else 0
        if -0.1 <= pz <= 0.5 and 0.5 <= math.hypot(px, py) <= 5.0:
            assert 0 <= at < len(wanted)  # The bins derived from the camera hold all it sees.
            wanted[at] = min(wanted[at], math.hypot(px, py))
    hit = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(scan.ranges), hit)
    np.testing.assert_allclose(scan.ranges[hit], wanted[hit], rtol=1e-5)


def test_what_is_below_or_above_the_band_is_no_obstacle():
    """A floor, a sill of 5 cm, a lamp at 0.7 m."""
    sill, lamp = ((2.0, -2.0, 0.0), (2.1, 2.0, 0.05)), ((2.0, -2.0, 0.7), (2.1, 2.0, 0.9))
    scan = scan_of(seen(LEVEL, sill, lamp), CAMERA, LEVEL, BAND)
    assert not np.isfinite(scan.ranges).any()
    assert at_angle(scan, 0.0) == INF


def test_points_nearer_or_farther_than_the_ranges_are_dropped():
    """Farther leaves the bin free; nearer does not, but what is behind it still counts."""
    far = scan_of(seen(LEVEL, ((5.2, -9.0, 0.0), (6.0, 9.0, 2.0))), CAMERA, LEVEL, BAND)
    assert at_angle(far, 0.0) == INF and not np.isfinite(far.ranges).any()
    for top_m in (0.3, 2.0):  # seen over or not, the bin is not free
        near = scan_of(seen(LEVEL, ((0.4, -9.0, 0.0), (0.45, 9.0, top_m))), CAMERA, LEVEL, BAND)
        assert not np.isinf(near.ranges).any() and math.isnan(at_angle(near, 0.0))
    low, tall = ((0.4, -9.0, 0.0), (0.45, 9.0, 0.3)), ((3.0, -9.0, 0.0), (4.0, 9.0, 2.0))
    both = scan_of(seen(LEVEL, low, tall), CAMERA, LEVEL, BAND)
    assert math.isclose(at_angle(both, 0.0), 3.0, abs_tol=1e-3)
    assert (far.range_min, far.range_max) == (0.5, 5.0)


@pytest.mark.parametrize('yaw', [0.0, 0.7, math.pi / 2, -2.5, math.pi, -math.pi])
def test_a_camera_that_looks_aside_fills_the_bins_there(yaw):
    """To the rear the angles run on beyond pi, in one piece."""
    ahead = np.array((math.cos(yaw), math.sin(yaw)))
    pose, post = base_from_optical((*(0.1 * ahead), 0.4, 0.0, 0.0, yaw)), 3.0 * ahead
    box = ((*(post - 0.1), 0.0), (*(post + 0.1), 1.0))
    scan = scan_of(seen(pose, box), CAMERA, pose, BAND)
    assert math.radians(55) < scan.angle_max - scan.angle_min < math.radians(70)
    middle = (scan.angle_min + scan.angle_max) / 2
    assert math.isclose(math.remainder(middle - yaw, 2 * math.pi), 0, abs_tol=0.01)
    assert 2.8 < scan.ranges[len(scan.ranges) // 2] < 3.0
    assert 5 < np.isfinite(scan.ranges).sum() < 12


def test_bins_can_be_told_instead():
    """Half a circle in degrees: what the camera does not see is NaN, not free."""
    options = replace(
        BAND, angle_min_rad=-math.pi / 2, angle_max_rad=math.pi / 2,
        angle_increment_rad=math.pi / 180,
    )  # fmt: skip
    scan = scan_of(seen(LEVEL, CRATE), CAMERA, LEVEL, options)
    assert len(scan.ranges) == 181 and math.isclose(scan.angle_max, math.pi / 2)
    assert np.isnan(scan.ranges[:50]).all() and np.isnan(scan.ranges[-50:]).all()
    assert math.isclose(scan.ranges[90], 2.0, abs_tol=0.01)
    np.testing.assert_array_equal(scan.ranges[60:80], INF)


def test_a_whole_turn_has_no_seam():
    """A crate behind the robot, seen by the camera to the rear, in bins from -pi to pi."""
    behind = ((-2.5, -0.3, 0.0), (-2.0, 0.3, 1.0))
    pose = base_from_optical((0.0, 0.0, 0.4, 0.0, 0.0, math.pi))
    options = replace(BAND, angle_min_rad=-math.pi, angle_max_rad=math.pi)
    scan = scan_of(seen(pose, behind), CAMERA, pose, options)
    np.testing.assert_allclose(scan.ranges[1:10], 2.0, atol=0.02)
    np.testing.assert_allclose(scan.ranges[-10:-1], 2.0, atol=0.02)


# --- what is free -----------------------------------------------------------------------------


def test_an_open_floor_before_a_level_camera_is_free():
    """All bins but the two rims, of which no pixel looks at the middle."""
    scan = scan_of(seen(LEVEL), CAMERA, LEVEL, BAND)
    assert np.isinf(scan.ranges[1:-1]).all() and (scan.ranges[1:-1] > 0).all()
    assert np.isnan(scan.ranges[[0, -1]]).all()


def test_a_camera_that_sees_the_floor_up_to_a_metre_frees_nothing_beyond():
    """Pitched so far down that no ray is still in the band at 5 m: not known to be free."""
    pose = base_from_optical((0.0, 0.0, 0.5, 0.0, math.radians(50), 0.0))
    floor = seen(pose)
    assert np.isfinite(floor.numpy()).all()
    narrow = replace(BAND, range_min_m=0.35)
    assert np.isnan(scan_of(floor, CAMERA, pose, narrow).ranges).all()
    nearer = replace(narrow, range_max_m=0.75)
    assert np.isinf(scan_of(floor, CAMERA, pose, nearer).ranges).any()


@pytest.mark.parametrize('range_max_m, free', [(2.0, True), (3.0, True), (8.0, False)])
def test_a_pitched_camera_frees_as_far_as_its_highest_ray_is_in_the_band(range_max_m, free):
    """From 0.7 m up, the top row falls below 0.1 m at 0.6 m / tan(9.6 degrees) = 3.5 m."""
    pose = base_from_optical((0.0, 0.0, 0.7, 0.0, math.radians(34), 0.0))
    options = replace(BAND, range_min_m=0.6, range_max_m=range_max_m)
    scan = scan_of(seen(pose), CAMERA, pose, options)
    assert (at_angle(scan, 0.0) == INF) is free
    assert free or np.isnan(scan.ranges).all()


@pytest.mark.parametrize('max_depth_m, free', [(3.0, False), (4.9, False), (5.1, True)])
def test_beyond_range_is_free_only_as_far_as_the_range_goes(max_depth_m, free):
    """A wall at 3.5 m is +Inf to a range of 3 m; the scan says free up to 5 m, and must not."""
    wall = ((3.5, -9.0, 0.0), (3.6, 9.0, 2.0))
    scan = scan_of(seen(LEVEL, wall, range_m=3.0), CAMERA, LEVEL, BAND, 3.0)
    assert np.isnan(scan.ranges).all()
    nearer = replace(BAND, range_max_m=2.9)
    assert at_angle(scan_of(seen(LEVEL, wall, range_m=3.0), CAMERA, LEVEL, nearer, 3.0), 0) == INF
    clear = torch.full(CAMERA.image_hw, INF)
    scan = scan_of(clear, CAMERA, LEVEL, BAND, max_depth_m)
    assert (at_angle(scan, 0.0) == INF) is free
    assert free or math.isnan(at_angle(scan, 0.0))


def test_space_nearer_than_the_blind_zone_has_to_be_excused():
    """What the camera can never see is never free: range_min_m says what need not be seen."""
    pose = base_from_optical((0.0, 0.0, 1.0, 0.0, math.radians(20), 0.0))
    clear = torch.full(CAMERA.image_hw, INF)
    options = replace(BAND, range_max_m=3.0)
    assert np.isnan(scan_of(clear, CAMERA, pose, replace(options, range_min_m=0.3)).ranges).all()
    assert np.isinf(scan_of(clear, CAMERA, pose, replace(options, range_min_m=0.7)).ranges).any()


def test_a_table_top_above_the_band_frees_nothing_behind_it():
    """It is no obstacle in the band, and hides the band from a camera above it."""
    pose = base_from_optical((0.0, 0.0, 1.0, 0.0, math.radians(20), 0.0))
    options = replace(BAND, range_min_m=0.7, range_max_m=3.0)
    scan = scan_of(seen(pose, TABLE_TOP), CAMERA, pose, options)
    assert math.isnan(at_angle(scan, 0.0))
    assert at_angle(scan_of(seen(pose), CAMERA, pose, options), 0.0) == INF


def test_behind_a_thing_below_the_band_is_free_only_where_it_is_seen():
    """A camera of 0.4 m sees over a sill."""
    sill = ((1.0, -2.0, 0.0), (1.1, 2.0, 0.09))
    scan = scan_of(seen(LEVEL, sill), CAMERA, LEVEL, BAND)
    assert at_angle(scan, 0.0) == INF


@pytest.mark.parametrize('value', [NAN, -INF, 0.0, -1.0])
def test_a_picture_without_depth_is_all_unknown(value):
    """NaN; also where something was too near to measure."""
    scan = scan_of(torch.full(CAMERA.image_hw, value), CAMERA, LEVEL, BAND)
    assert scan.ranges.dtype == np.float32 and np.isnan(scan.ranges).all()


def test_a_crate_of_unknown_depth_is_not_free():
    """Glass, or what a filter removed: more heights are unknown than are seen through."""
    depth = seen(LEVEL, CRATE)
    crate = scan_of(depth, CAMERA, LEVEL, BAND)
    hidden = depth.clone()
    hidden[depth < seen(LEVEL)] = NAN
    scan = scan_of(hidden, CAMERA, LEVEL, BAND)
    inner = np.abs(angles_of(scan)) < math.atan2(0.3, 2.5) - 0.02
    assert np.isfinite(crate.ranges[inner]).all() and inner.sum() > 10
    assert np.isnan(scan.ranges[inner]).all()
    assert at_angle(scan, 0.4) == INF


def test_single_missing_pixels_leave_a_bin_free():
    """Filters punch holes in every frame."""
    depth = seen(LEVEL)
    holes = torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) < 0.02
    depth[holes] = NAN
    scan = scan_of(depth, CAMERA, LEVEL, BAND)
    assert np.isinf(scan.ranges).mean() > 0.9


def test_a_box_in_the_band_is_never_cleared():
    """Boxes of any size anywhere: no bin whose middle meets one is +Inf."""
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(60):
        x, y = rng.uniform(0.7, 5.5), rng.uniform(-2.5, 2.5)
        low = np.array((x, y, 0.0))
        box = (tuple(low), tuple(low + (*rng.uniform(0.1, 0.8, 2), rng.uniform(0.12, 1.5))))
        pose = base_from_optical((
            *rng.uniform(-0.2, 0.2, 2), rng.uniform(0.2, 1.0),
            *rng.uniform(-0.05, 0.05, 1), rng.uniform(-0.05, 0.5), rng.uniform(-0.3, 0.3),
        ))  # fmt: skip
        options = replace(BAND, range_min_m=rng.uniform(0.3, 0.9), range_max_m=rng.uniform(2, 5))
        scan = scan_of(seen(pose, box), CAMERA, pose, options)
        middle = distance_to(box, angles_of(scan))
        within = (middle > options.range_min_m) & (middle < options.range_max_m - 0.1)
        met += np.isfinite(scan.ranges[within]).sum()
        assert not np.isinf(scan.ranges[within]).any()
    assert met > 300


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_depth_of_any_precision_and_layout_is_taken(dtype):
    depth = seen(LEVEL, CRATE).to(dtype)
    wanted = scan_of(depth.float(), CAMERA, LEVEL, BAND).ranges
    np.testing.assert_array_equal(scan_of(depth, CAMERA, LEVEL, BAND).ranges, wanted)
    view = depth.t().contiguous().t().requires_grad_()
    np.testing.assert_array_equal(scan_of(view, CAMERA, LEVEL, BAND).ranges, wanted)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize('bad, message', [
    ({'min_height_m': NAN}, 'min_height_m = nan: expected a number from -100 to 100'),
    ({'min_height_m': 1.0}, 'min_height_m = 1 and max_height_m = 1: expected min_height_m below'),
    ({'max_height_m': 0.0}, 'min_height_m = 0.1 and max_height_m = 0: expected'),
    ({'range_min_m': 5.0}, 'range_min_m = 5 and range_max_m = 5: expected range_min_m below'),
    ({'range_min_m': -0.1}, 'range_min_m = -0.1: expected a number from 0 to 100'),
    ({'range_max_m': INF}, 'range_max_m = inf: expected a number from 0.1 to 100'),
    ({'angle_increment_rad': 0.0}, 'angle_increment_rad = 0.0: expected a number from 0.001'),
    ({'angle_min_rad': 0.5}, 'angle_min_rad = 0.5 and angle_max_rad = 0: expected the first'),
    ({'angle_min_rad': -4.0, 'angle_max_rad': 4.0}, 'below the second by one turn at most'),
    ({'angle_max_rad': 'wide'}, "angle_max_rad = 'wide': expected a number"),
    ({'stride': 0}, 'stride = 0: expected an integer from 1 to 16'),
    ({'stride': 2.0}, 'stride = 2.0: expected an integer'),
    ({'height': 1.0}, "'height' is not an option"),
    ({'angle_increment_rad': 0.001, 'range_max_m': 100.0},
     '6284 bins of 998 places each.*expected at most 800000 in all.*Raise angle_increment_rad'),
])  # fmt: skip
def test_a_scan_option_out_of_bounds_is_refused(bad, message):
    with pytest.raises(ConfigError, match=message) as raised:
        from_mapping(ScanOptions, bad, 'scan')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('change, message', [
    ({'depth': torch.ones(60, 160)}, r'\(60, 160\).*\(120, 160\)'),
    ({'pose': np.eye(3)}, r'base_from_optical of shape \(3, 3\) is no rigid transform'),
    ({'pose': np.full((4, 4), NAN)}, 'is no rigid transform'),
    ({'pose': base_from_optical((0, 0, 0.4, 0, -1.2, 0))}, 'sees nothing between 0.1 and 0.5 m'),
    ({'options': ScanOptions(7.0, 8.0)}, 'sees nothing between 7 and 8 m.*Check camera_in_base'),
    ({'options': ScanOptions(angle_min_rad=2.0, angle_max_rad=3.0)}, 'at the angles of the scan'),
])  # fmt: skip
def test_what_gives_no_scan_is_refused(change, message):
    depth = change.get('depth', seen(LEVEL))
    with pytest.raises(InputError, match=message) as raised:
        scan_of(depth, CAMERA, change.get('pose', LEVEL), change.get('options', BAND))
    assert '\n' not in str(raised.value)


def test_the_finest_scan_that_is_taken_costs_megabytes():
    """Tables are kept for eight poses; a finer one would be gigabytes, and is refused."""
    finest = ScanOptions(range_max_m=12.0, angle_increment_rad=0.001)
    assert finest.bins * finest.steps > 0.9 * MOST_PLACES
    tracemalloc.start()
    scan_of(torch.full(CAMERA.image_hw, INF), CAMERA, LEVEL, finest)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6 and kept < 30e6
