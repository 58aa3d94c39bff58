"""Scale from the ground and from sparse ranges, in rendered rooms whose true scale is known."""

import math

import numpy as np
import pytest
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.mounting import (
    base_from_optical,
    base_from_sensor,
    BODY_FROM_OPTICAL,
    inverse_of,
)
from vlm_depth_ros.core.scale import ScaleEstimate, ScaleOptions
from vlm_depth_ros.core.scale_ground import GroundOptions, measure_ground
from vlm_depth_ros.core.scale_ranges import (
    measure_ranges,
    points_of_cloud,
    points_of_range,
    points_of_scan,
    RangeOptions,
)
from vlm_depth_ros.tools.raycast import cast, Grid, Solid

CAMERA = CameraIntrinsics.from_fov(80.0, (240, 320))
GROUND, RANGES = GroundOptions(), RangeOptions()
PLANTED = 0.7
TRUE = 1 / PLANTED
CAMERA_IN_BASE = (0.1, 0.0, 0.6, 0.0, 0.2, 0.0)
SCAN_IN_BASE = (0.2, 0.05, 0.3, 0.0, 0.0, 0.0)


def room(*more):
    """A room of 10 x 8 x 3 m around the robot, the floor at z = 0, with furniture ahead."""
    furniture = (box((3.0, 1.2, 0.4), (0.3, 0.4, 0.4)), box((4.0, -1.3, 0.5), (0.4, 0.5, 0.5)))
    return [Solid.upright('room', (1.5, 0.0, 1.5), (5.0, 4.0, 1.5)), *furniture, *more]


def box(center_m, half_m):
    return Solid.upright('box', center_m, half_m)


def seen(solids=None, camera_in_base=CAMERA_IN_BASE, camera=CAMERA):
    """True depth of the room, (H, W)."""
    pose = base_from_optical(camera_in_base)
    return cast(solids or room(), pose, Grid.of(camera))[0].astype(np.float32)


def spoiled(depth_m, seed=0, noise=0.03, wild_share=0.0):
    """As a network of scale `PLANTED` would predict it, some pixels anything within 2x."""
    random = np.random.default_rng(seed)
    factor = PLANTED * np.exp(random.normal(0, noise, depth_m.shape))
    wild = random.random(depth_m.shape) < wild_share
    factor[wild] *= np.exp(random.uniform(-math.log(2), math.log(2), wild.sum()))
    return (depth_m * factor).astype(np.float32)


def scanned(solids=None, scan_in_base=SCAN_IN_BASE, beams=181, half_fov_deg=45.0):
    """Ranges of a level scan of the sector ahead, first angle, step."""
    angle = np.radians(np.linspace(-half_fov_deg, half_fov_deg, beams))
    # Left is positive in a scan and negative in an optical frame, where columns go right.
    columns = Grid(-np.tan(angle[::-1]), np.zeros(1))
    pose = base_from_sensor(scan_in_base) @ BODY_FROM_OPTICAL
    depth = cast(solids or room(), pose, columns)[0][0, ::-1]
    return depth / np.cos(angle), angle[0], angle[1] - angle[0]


def scan_points(ranges, first, step, scan_in_base=SCAN_IN_BASE, camera_in_base=CAMERA_IN_BASE):
    optical_from_scan = inverse_of(base_from_optical(camera_in_base)) @ base_from_sensor(
        scan_in_base
    )
    return points_of_scan(ranges, first, step, 0.1, 12.0, optical_from_scan)


def on_ground(depth_m, camera_in_base=CAMERA_IN_BASE, options=GROUND, camera=CAMERA):
    return measure_ground(depth_m, camera, base_from_optical(camera_in_base), options)


# --- where sensors sit -------------------------------------------------------------------------


def test_a_level_camera_looks_along_the_x_axis_of_the_base():
    pose = base_from_optical((1.0, 2.0, 0.5, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(pose @ (0, 0, 3, 1), (4, 2, 0.5, 1), atol=1e-12)
    np.testing.assert_allclose(pose @ (1, 0, 0, 1), (1, 1, 0.5, 1), atol=1e-12)  # right
    np.testing.assert_allclose(pose @ (0, 1, 0, 1), (1, 2, -0.5, 1), atol=1e-12)  # down


def test_positive_pitch_looks_down_and_positive_yaw_left():
    ahead = base_from_optical((0, 0, 0, 0, 0.1, 0))[:3, 2]
    np.testing.assert_allclose(ahead, (math.cos(0.1), 0, -math.sin(0.1)), atol=1e-12)
    ahead = base_from_optical((0, 0, 0, 0, 0, 0.1))[:3, 2]
    np.testing.assert_allclose(ahead, (math.cos(0.1), math.sin(0.1), 0), atol=1e-12)


def test_roll_pitch_yaw_turn_about_fixed_axes_in_this_order():
    def turn(axis, angle):
        a, b = [i for i in range(3) if i != axis]
        matrix = np.eye(3)
        matrix[[a, b], [a, b]] = math.cos(angle)
        sign = -1 if axis == 1 else 1
        matrix[a, b], matrix[b, a] = -sign * math.sin(angle), sign * math.sin(angle)
        return matrix

    found = base_from_sensor((0, 0, 0, 0.3, -0.4, 0.5))[:3, :3]
    np.testing.assert_allclose(found, turn(2, 0.5) @ turn(1, -0.4) @ turn(0, 0.3), atol=1e-12)


def test_the_inverse_undoes():
    pose = base_from_optical((1.0, 2.0, 3.0, 0.1, 0.2, 0.3))
    np.testing.assert_allclose(inverse_of(pose) @ pose, np.eye(4), atol=1e-12)


@pytest.mark.parametrize('pose', ((0.0,) * 5, (0, 0, math.nan, 0, 0, 0), 'front', None, (1j,) * 6))
def test_a_pose_that_is_not_six_numbers_is_refused(pose):
    with pytest.raises(ConfigError) as refused:
        base_from_sensor(pose, 'scan_in_base')
    assert str(refused.value) == (
        f'scan_in_base = {pose!r}: expected six finite numbers, [x, y, z] in metres and '
        '[roll, pitch, yaw] in radians.'
    )


# --- the ground ---------------------------------------------------------------------------------


@pytest.mark.parametrize('height_m', (0.25, 0.6, 1.5))
@pytest.mark.parametrize('pitch_rad', (0.0, 0.2, 0.5))
def test_exact_depth_gives_the_exact_factor(height_m, pitch_rad):
    pose = (0.0, 0.0, height_m, 0.0, pitch_rad, 0.3)
    found = on_ground(PLANTED * seen(camera_in_base=pose), pose)
    assert found.factor == pytest.approx(TRUE, rel=0.005), found
    assert found.spread < 0.02


@pytest.mark.parametrize('seed', range(8))
def test_ground_corrects_a_planted_error_with_noise_and_outliers(seed):
    found = on_ground(spoiled(seen(), seed, noise=0.03, wild_share=0.3))
    assert found.factor == pytest.approx(TRUE, rel=0.03), found


def test_a_thinned_image_gives_the_same_factor():
    depth = PLANTED * seen()
    found = on_ground(depth[::2, ::2], camera=CAMERA.strided(2))
    assert found.factor == pytest.approx(on_ground(depth).factor, rel=0.005)


def test_a_robot_that_nods_keeps_its_factor():
    estimate, camera = ScaleEstimate(ScaleOptions('ground')), CAMERA.strided(4)
    for i in range(100):
        nod, sway = math.radians(2) * math.sin(i / 3), math.radians(2) * math.cos(i / 5)
        depth = seen(camera_in_base=(0.1, 0.0, 0.6, sway, 0.2 + nod, 0.0), camera=camera)
        state = estimate.update(on_ground(PLANTED * depth, camera=camera), i / 10)
        assert i < 40 or state.factor == pytest.approx(TRUE, rel=0.03)


def test_a_floor_that_is_predicted_leaning_gives_its_mean_factor_and_is_trusted_less():
    level, v = PLANTED * seen(), np.arange(240)[:, None]
    leaning = level * (1 + 0.1 * (v - 190) / 50)
    found = on_ground(leaning.astype(np.float32))
    assert found.factor == pytest.approx(TRUE, rel=0.06)
    assert found.spread > 0.05 > 0.01 > on_ground(level).spread


def test_a_base_frame_above_the_ground_is_allowed_for():
    raised = (*CAMERA_IN_BASE[:2], CAMERA_IN_BASE[2] - 0.15, *CAMERA_IN_BASE[3:])
    found = on_ground(PLANTED * seen(), raised, GroundOptions(z_m=-0.15))
    assert found.factor == pytest.approx(TRUE, rel=0.005)


def test_missing_depth_is_left_out():
    depth, kind = PLANTED * seen(), np.random.default_rng(0).integers(0, 8, CAMERA.image_hw)
    for number, missing in enumerate((np.nan, np.inf, -1.0, 0.0)):
        depth[kind == number] = missing
    assert on_ground(depth).factor == pytest.approx(TRUE, rel=0.01)


def test_the_same_frame_gives_the_same_answer():
    depth = spoiled(seen(), wild_share=0.3)
    assert on_ground(depth) == on_ground(depth.copy())


def test_a_table_top_is_no_ground_where_the_floor_shows_below_it():
    pose = (0.0, 0.0, 1.1, 0.0, 0.6, 0.0)
    table = box((1.0, 0.2, 0.7), (0.8, 0.6, 0.03))
    found = on_ground(PLANTED * seen(room(table), pose), pose)
    assert math.isnan(found.factor)
    assert found.reason.endswith('of the points lie below the plane: no ground')


def test_a_wall_is_no_ground():
    pose = (0.0, 0.0, 0.6, 0.0, 0.0, 0.0)
    found = on_ground(spoiled(seen([box((0.9, 0.0, 1.0), (0.1, 5.0, 5.0))], pose)), pose)
    assert math.isnan(found.factor)
    assert 'level plane' in found.reason or 'leans' in found.reason


@pytest.mark.parametrize('slope_deg', (18, 25))
@pytest.mark.parametrize('noise', (0.0, 0.05))
def test_a_ramp_is_no_ground(slope_deg, noise):
    pose = (0.0, 0.0, 0.6, 0.0, 0.2, 0.0)
    nodding = (0.0, 0.0, 0.6, 0.0, 0.2 + math.radians(slope_deg), 0.0)
    found = on_ground(spoiled(seen(camera_in_base=nodding), noise=noise), pose)
    assert math.isnan(found.factor) and found.reason != ''


def test_the_floor_is_found_beside_a_larger_wall():
    wall = Solid.upright('room', (0.0, 0.0, 1.5), (1.3, 4.0, 1.5))
    pose = (0.0, 0.0, 0.8, 0.0, 0.25, 0.0)
    found = on_ground(spoiled(seen([wall], pose)), pose)
    assert found.support < 0.5 and found.factor == pytest.approx(TRUE, rel=0.03)


def test_clutter_is_no_ground():
    random = np.random.default_rng(3)
    found = on_ground(random.uniform(0.5, 5.0, CAMERA.image_hw).astype(np.float32))
    assert math.isnan(found.factor) and 'level plane' in found.reason


def test_a_camera_that_looks_up_or_sees_nothing_says_so():
    up = on_ground(seen(), (0.0, 0.0, 0.6, 0.0, -1.2, 0.0))
    nothing = on_ground(np.full(CAMERA.image_hw, np.nan, np.float32))
    assert up.reason == nothing.reason == 'only 0 points below the horizon have a depth'


def test_a_table_seen_instead_of_the_floor_does_not_move_the_scale():
    """Where it fills the view, only the memory of the floor tells it from the floor."""
    estimate, camera = ScaleEstimate(ScaleOptions('ground')), CAMERA.strided(4)
    floor = seen(camera=camera)
    for i in range(60):
        estimate.update(on_ground(spoiled(floor, i, wild_share=0.3), camera=camera), i / 10)
    held = estimate.state.factor
    assert held == pytest.approx(TRUE, rel=0.03)
    top = [Solid.upright('room', (1.5, 0, 1.65), (5.0, 4.0, 1.5))]  # at 0.15 m
    table = seen(top, camera=camera)
    for i in range(60, 160):
        found = on_ground(spoiled(table, i), camera=camera)
        state = estimate.update(found, i / 10)
        assert math.isfinite(found.factor) and state.factor == held
    assert state.status == 'frozen' and 'that earlier frames agree on' in state.reason


# --- sparse ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(8))
def test_a_scan_corrects_a_planted_error_with_noise_and_outliers(seed):
    random = np.random.default_rng(100 + seed)
    ranges, first, step = scanned()
    wild = random.random(len(ranges)) < 0.3
    ranges[wild] *= random.uniform(0.3, 2.0, wild.sum())
    ranges += random.normal(0, 0.01, len(ranges))
    found = measure_ranges(spoiled(seen(), seed), CAMERA, scan_points(ranges, first, step), RANGES)
    assert found.factor == pytest.approx(TRUE, rel=0.03), found


@pytest.mark.parametrize('seed', range(4))
def test_a_cloud_corrects_a_planted_error_with_outliers_in_the_depth(seed):
    truth = seen()
    points = depth_to_points(truth, CAMERA)[5::6, 5::6].reshape(-1, 3)
    away = base_from_sensor((0.0, 0.1, 0.4, 0.1, -0.2, 1.0))
    cloud = points @ inverse_of(away)[:3, :3].T + inverse_of(away)[:3, 3]
    cloud[::9] = np.nan
    found = measure_ranges(
        spoiled(truth, seed, wild_share=0.3), CAMERA, points_of_cloud(cloud, away), RANGES
    )
    assert found.factor == pytest.approx(TRUE, rel=0.03), found


def test_a_range_sensor_before_a_wall_corrects_a_planted_error():
    solids = [Solid.upright('room', (-2.0, 0, 1.5), (4.0, 4.0, 1.5))]
    optical_from_sonar = inverse_of(base_from_optical(CAMERA_IN_BASE)) @ base_from_sensor(
        (0.2, 0.0, 0.7, 0.0, 0.0, 0.0)
    )
    points = points_of_range(1.8, math.radians(20), 0.02, 4.0, optical_from_sonar)
    found = measure_ranges(spoiled(seen(solids)), CAMERA, points, RANGES)
    assert found.factor == pytest.approx(TRUE, rel=0.03), found


def test_a_range_sensor_that_sees_one_thing_of_many_is_refused():
    leg = box((1.0, 0.0, 0.5), (0.03, 0.03, 0.5))
    optical_from_sonar = inverse_of(base_from_optical(CAMERA_IN_BASE)) @ base_from_sensor(
        (0.2, 0.0, 0.5, 0.0, 0.0, 0.0)
    )
    points = points_of_range(0.77, math.radians(30), 0.02, 4.0, optical_from_sonar)
    found = measure_ranges(PLANTED * seen(room(leg)), CAMERA, points, RANGES)
    assert math.isnan(found.factor) or abs(found.factor / TRUE - 1) > 0.5


def test_exact_scan_points_lie_on_the_true_surface():
    ranges, first, step = scanned()
    points = scan_points(ranges, first, step)
    assert points.shape == (181, 3)
    found = measure_ranges(seen(), CAMERA, points, RANGES)
    assert found.factor == pytest.approx(1.0, rel=0.005) and found.support > 0.95


def test_a_reflecting_scan_is_refused():
    """Through two thirds of its beams it sees the room that the mirrors show."""
    ranges, first, step = scanned()
    behind_glass, _, _ = scanned([Solid.upright('room', (3.0, -2.0, 1.5), (8.0, 7.0, 1.5))])
    ranges[60:] = behind_glass[60:]
    found = measure_ranges(spoiled(seen()), CAMERA, scan_points(ranges, first, step), RANGES)
    assert math.isnan(found.factor)
    assert found.reason.startswith('ranges and depth do not agree on one factor')


@pytest.mark.parametrize('seed', range(4))
def test_a_scan_with_scattered_reflections_is_right_or_refused(seed):
    random = np.random.default_rng(seed)
    ranges, first, step = scanned()
    mirrored = random.random(len(ranges)) < 0.6
    ranges[mirrored] *= random.uniform(1.2, 3.0, mirrored.sum())
    found = measure_ranges(spoiled(seen()), CAMERA, scan_points(ranges, first, step), RANGES)
    assert found.reason or found.factor == pytest.approx(TRUE, rel=0.03)


@pytest.mark.parametrize(
    'said',
    ((0.2, 0.05, 0.3, 0, 0, 0.6), (0.2, 0.05, 0.3, 0, 0, -0.6), (0.2, 0.05, 0.3, 3.14159, 0, 0)),
)
def test_a_scan_mounted_otherwise_than_said_is_refused(said):
    found = measure_ranges(
        PLANTED * seen(), CAMERA, scan_points(*scanned(), scan_in_base=said), RANGES
    )
    assert math.isnan(found.factor) and found.reason != ''


def test_a_scan_from_another_plane_is_refused():
    """A scanner tilted to the floor, said to be level."""
    tilted = scanned(scan_in_base=(0.2, 0.05, 0.3, 0.0, 0.12, 0.0))
    found = measure_ranges(PLANTED * seen(), CAMERA, scan_points(*tilted), RANGES)
    assert math.isnan(found.factor) and found.reason != ''


def test_refused_scans_leave_the_scale_as_it_is():
    estimate = ScaleEstimate(ScaleOptions('ranges'))
    depth, (ranges, first, step) = spoiled(seen()), scanned()
    good = measure_ranges(depth, CAMERA, scan_points(ranges, first, step), RANGES)
    turned = (*SCAN_IN_BASE[:5], 0.6)
    bad = measure_ranges(depth, CAMERA, scan_points(ranges, first, step, turned), RANGES)
    for i in range(60):
        estimate.update(good, i / 10)
    held = estimate.state.factor
    assert held == pytest.approx(TRUE, rel=0.03)
    for i in range(60, 160):
        assert estimate.update(bad, i / 10).factor == held
    assert estimate.state.status == 'frozen' and estimate.state.reason == bad.reason


def test_what_stands_behind_something_else_is_not_compared():
    """A scanner on a mast sees the floor behind a box that hides it from the camera."""
    tall = room(box((1.5, 0.0, 0.4), (0.1, 3.0, 0.4)))
    depth = seen(tall)
    on_the_box = depth_to_points(depth, CAMERA)[::4, ::4].reshape(-1, 3)
    x, y = np.meshgrid(np.linspace(2.0, 5.0, 40), np.linspace(-1.5, 1.5, 40))
    floor = np.stack((x, y, 0 * x), axis=-1).reshape(-1, 3)
    hidden = points_of_cloud(floor, inverse_of(base_from_optical(CAMERA_IN_BASE)))
    found = measure_ranges(PLANTED * depth, CAMERA, np.vstack((on_the_box, hidden)), RANGES)
    assert found.factor == pytest.approx(TRUE, rel=0.005) and found.support > 0.8


def test_no_range_in_the_image_says_so():
    behind = np.tile((0.0, 0.0, -1.0), (50, 1))
    found = measure_ranges(seen(), CAMERA, behind, RANGES)
    assert found.reason == '0 of 50 ranges fall on smooth predicted depth, under 20'
    empty = measure_ranges(seen(), CAMERA, np.empty((0, 3)), RANGES)
    assert empty.reason == '0 of 0 ranges fall on smooth predicted depth, under 20'


def test_no_return_is_no_point():
    ranges = [0.05, 0.1, 1.0, 12.0, 12.1, math.inf, -math.inf, math.nan]
    points = points_of_scan(ranges, 0.0, -0.1, 0.1, 12.0, np.eye(4))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), [0.1, 1.0, 12.0])
    np.testing.assert_allclose(np.arctan2(points[:, 1], points[:, 0]), [-0.1, -0.2, -0.3])
    for value in (math.inf, -math.inf, math.nan, 0.01, 5.0):
        assert points_of_range(value, 0.3, 0.02, 4.0, np.eye(4)).shape == (0, 3)


def test_a_range_is_a_disc_across_its_cone():
    points = points_of_range(2.0, math.radians(30), 0.02, 4.0, np.eye(4))
    np.testing.assert_allclose(points[:, 0], 2.0)
    angle = np.degrees(np.arctan2(np.linalg.norm(points[:, 1:], axis=1), points[:, 0]))
    assert angle.max() == pytest.approx(15.0) and angle.min() == 0.0
    np.testing.assert_allclose(points[:, 1:].mean(axis=0), 0.0, atol=1e-12)
    assert len(np.unique(points.round(6), axis=0)) == len(points) >= RANGES.min_points


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', ('blank', 'one row', 'noise', 'huge', 'tiny', 'signs', 'half'))
def test_whatever_the_depth_is_a_source_answers_a_factor_or_a_reason(kind):
    random = np.random.default_rng(0)
    depth = {
        'blank': np.full(CAMERA.image_hw, np.nan),
        'one row': np.where(np.arange(240)[:, None] == 200, 1.0, np.nan) * np.ones((1, 320)),
        'noise': np.exp(random.normal(0, 15, CAMERA.image_hw)),
        'huge': np.full(CAMERA.image_hw, 3e38),
        'tiny': np.full(CAMERA.image_hw, 1e-30),
        'signs': random.choice([math.inf, -math.inf, math.nan, 0.0, -1.0, 2.0], CAMERA.image_hw),
        'half': random.normal(0, 2, CAMERA.image_hw).astype(np.float16),
    }[kind]
    points = np.vstack((random.normal(0, 3, (300, 3)), np.full((3, 3), np.nan), [[0, 0, 1e300]]))
    for found in (on_ground(depth), measure_ranges(depth, CAMERA, points, RANGES)):
        assert found.reason or 0 < found.factor < math.inf
        assert bool(found.reason) == math.isnan(found.factor) == math.isnan(found.spread)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('cls', 'name', 'value', 'bounds'),
    (
        (GroundOptions, 'z_m', math.nan, '-100 to 100'),
        (GroundOptions, 'horizon_margin_deg', 0, '0.5 to 60'),
        (GroundOptions, 'tolerance', 0.6, '0.01 to 0.5'),
        (GroundOptions, 'max_tilt_deg', 90, '1 to 45'),
        (GroundOptions, 'min_support', 1.1, '0.05 to 0.95'),
        (GroundOptions, 'max_below', 0, '0.01 to 0.9'),
        (RangeOptions, 'max_points', 0, '20 to 100000'),
        (RangeOptions, 'min_points', 1, '3 to 10000'),
        (RangeOptions, 'occlusion_margin', None, '0.01 to 1'),
        (RangeOptions, 'tolerance', -1, '0.01 to 1'),
        (RangeOptions, 'min_agreeing', 2, '0.1 to 1'),
        (RangeOptions, 'max_spread', math.inf, '0.01 to 1'),
    ),
)
def test_bad_option_is_refused_with_one_message(cls, name, value, bounds):
    with pytest.raises(ConfigError) as refused:
        cls(**{name: value})
    assert str(refused.value) == f'{name} = {value!r}: expected a number from {bounds}.'


STRETCHED = np.diag((1.0, 1.0, 2.0, 1.0))
REFUSED = {
    'a camera below ground': (
        lambda: on_ground(seen(), (0, 0, -0.1, 0, 0, 0)),
        'the camera is -0.100 m above the ground by base_from_optical: expected a',
    ),
    'another size of the ground': (
        lambda: on_ground(np.ones((10, 10))),
        'depth has shape (10, 10) and its camera is for (240, 320)',
    ),
    'another size of the ranges': (
        lambda: measure_ranges(np.ones((10, 10)), CAMERA, np.ones((30, 3)), RANGES),
        'depth has shape (10, 10) and its camera is for (240, 320)',
    ),
    'no rigid transform': (
        lambda: measure_ground(seen(), CAMERA, STRETCHED, GROUND),
        'base_from_optical of shape (4, 4) is no rigid transform: expected a (4, 4) matrix',
    ),
    'a transform of 3 x 3': (
        lambda: points_of_cloud(np.ones((5, 3)), np.eye(3)),
        'transform into the optical frame of shape (3, 3) is no rigid transform',
    ),
    'a mirror': (
        lambda: points_of_cloud(np.ones((5, 3)), np.diag((1.0, 1.0, -1.0, 1.0))),
        'transform into the optical frame of shape (4, 4) is no rigid transform',
    ),
    'a flat cloud': (
        lambda: points_of_cloud(np.ones(9), np.eye(4)),
        'cloud has shape (9,): expected (N, 3) points, x y z.',
    ),
    'flat ranges': (
        lambda: measure_ranges(seen(), CAMERA, np.ones((5, 2)), RANGES),
        'ranges have shape (5, 2): expected (N, 3) points, x y z.',
    ),
    'a scan without angles': (
        lambda: points_of_scan([1.0], math.nan, 0.1, 0.1, 9.0, np.eye(4)),
        'scan starts at nan and steps by 0.1: expected finite angles in radians.',
    ),
    'a cone of 180 degrees': (
        lambda: points_of_range(1.0, math.pi, 0.1, 9.0, np.eye(4)),
        'range sensor has a field of view of 3.14',
    ),
}


@pytest.mark.parametrize(('call', 'message'), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_refused_with_one_line(call, message):
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value).startswith(message) and '\n' not in str(refused.value)
