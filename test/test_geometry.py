"""Cameras, lens distortion and unprojection against OpenCV's own models and exact planes."""

from dataclasses import replace
import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional
from vlm_depth_ros.core.camera_model import CameraModel, RegionOfInterest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points

VGA = CameraIntrinsics(525.0, 530.0, 311.5, 247.25, 640, 480)
K = (525.0, 0.0, 311.5, 0.0, 530.0, 247.25, 0.0, 0.0, 1.0)
P = (480.0, 0.0, 322.0, -36.0, 0.0, 484.0, 236.5, 0.0, 0.0, 0.0, 1.0, 0.0)
R = tuple(cv2.Rodrigues(np.array([0.02, -0.03, 0.015]))[0].ravel())
PLUMB_BOB = (-0.28, 0.09, 0.0011, -0.0007, -0.012)
RATIONAL = (0.31, -0.12, 0.0008, -0.0005, 0.02, 0.62, -0.05, 0.01)
THIN_PRISM = (*RATIONAL, 0.0012, -0.0004, 0.0009, 0.0003)
TILTED = (*THIN_PRISM, 0.01, -0.008)
FISHEYE = (-0.02, 0.006, -0.004, 0.0008)
BY_AREA = {'interpolation': cv2.INTER_AREA}
WINDOW = RegionOfInterest(64, 40, 363, 481)


def camera(**changes) -> CameraModel:
    """A VGA camera with a mild lens, with `changes`."""
    return replace(CameraModel(640, 480, 'plumb_bob', PLUMB_BOB, K), **changes)


def plane_depth(intrinsics: CameraIntrinsics, normal, offset_m) -> np.ndarray:
    """Exact depth (float64 rays) of the plane ``normal . X = offset_m``."""
    u, v = np.meshgrid(np.arange(intrinsics.width_px), np.arange(intrinsics.height_px))
    pixels = np.stack([u, v, np.ones_like(u)], -1).astype(np.float64)
    rays = pixels @ np.linalg.inv(intrinsics.matrix).T
    return offset_m / (rays @ np.asarray(normal))


# --- CameraIntrinsics -------------------------------------------------------------------------


@pytest.mark.parametrize('changes', [
    {'fx_px': 0.0}, {'fy_px': -3.0}, {'fx_px': math.nan}, {'cx_px': math.inf}, {'cy_px': math.nan},
    {'width_px': 0}, {'height_px': -1}, {'width_px': 12.5}, {'fx_px': 'wide'},
])  # fmt: skip
def test_intrinsics_refuse_values_that_no_camera_has(changes):
    """A wrong number is told here, not seen as a bent cloud later."""
    with pytest.raises(InputError, match='intrinsics .* expected .*(number|pixel)'):
        replace(VGA, **changes)


def test_intrinsics_of_numpy_values_are_plain_and_hashable():
    """They key caches, and come from messages and tables."""
    other = CameraIntrinsics(
        np.float32(525), np.float64(530), 311.5, 247.25, np.uint32(640), np.int64(480)
    )
    assert other == VGA
    assert hash(other) == hash(VGA)
    assert type(other.width_px) is int


def test_resize_maps_the_image_borders_onto_each_other():
    """The half-pixel rule, from what it means."""
    small = VGA.resized((120, 320))
    assert small.image_hw == (120, 320)
    for border in (-0.5, 639.5):  # The ray through a border is the same before and after.
        before = (border - VGA.cx_px) / VGA.fx_px
        after = ((border + 0.5) / 2 - 0.5 - small.cx_px) / small.fx_px
        assert after == pytest.approx(before, abs=1e-12)
    assert small.cy_px == pytest.approx((VGA.cy_px + 0.5) / 4 - 0.5)
    back = small.resized((480, 640))
    np.testing.assert_allclose(back.matrix, VGA.matrix, rtol=1e-12)


def test_resize_agrees_with_what_opencv_does_to_an_image():
    """The rule is the one of the resize that everybody uses."""
    u = np.arange(640, dtype=np.float32)
    ray = np.tile((u - np.float32(VGA.cx_px)) / np.float32(VGA.fx_px), (480, 1))
    shrunk = cv2.resize(ray, (160, 120), **BY_AREA)
    x, _ = VGA.resized((120, 160)).axis_rays()
    np.testing.assert_allclose(shrunk[0], x, atol=1e-6)


def test_binning_is_the_mean_over_blocks_and_cuts_the_rest():
    """A sensor that bins adds up neighbours."""
    x, y = VGA.cropped(0, 0, (479, 637)).axis_rays()
    binned = VGA.cropped(0, 0, (479, 637)).binned(3, 2)
    assert binned.image_hw == (239, 212)
    bx, by = binned.axis_rays()
    np.testing.assert_allclose(bx, x[:636].reshape(-1, 3).mean(1), atol=1e-6)
    np.testing.assert_allclose(by, y[:478].reshape(-1, 2).mean(1), atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2, 3, 7])
def test_strided_keeps_the_rays_of_the_chosen_pixels(stride):
    """A stride chooses pixels, so nothing shifts by half a pixel."""
    x, y = VGA.axis_rays()
    sx, sy = VGA.strided(stride).axis_rays()
    np.testing.assert_allclose(sx, x[::stride], atol=1e-6)
    np.testing.assert_allclose(sy, y[::stride], atol=1e-6)


@pytest.mark.parametrize('act', [
    lambda: VGA.strided(0), lambda: VGA.binned(0, 1), lambda: VGA.binned(1, 1.5),
    lambda: VGA.resized((0, 5)), lambda: VGA.binned(641, 1), lambda: VGA.cropped(0, 0, (0, 3)),
])  # fmt: skip
def test_impossible_sizes_are_refused(act):
    """No operation makes an empty image."""
    with pytest.raises(InputError, match='expected'):
        act()


def test_field_of_view_gives_square_pixels_around_a_central_axis():
    """The outer borders of the image are seen at half the angle, on either side."""
    camera = CameraIntrinsics.from_fov(90, (480, 640))
    assert camera.fx_px == camera.fy_px == pytest.approx(320)
    assert (camera.cx_px, camera.cy_px, camera.image_hw) == (319.5, 239.5, (480, 640))
    camera = CameraIntrinsics.from_fov(69.0, (375, 1242))
    for border_px, sign in ((-0.5, -1), (1241.5, 1)):
        angle_deg = np.degrees(np.arctan((border_px - camera.cx_px) / camera.fx_px))
        assert angle_deg == pytest.approx(sign * 34.5)


@pytest.mark.parametrize('fov_deg', [0, -10, 180, float('nan'), 'wide'])
def test_field_of_view_of_no_pinhole_is_refused(fov_deg):
    """An angle, and less than half a turn."""
    with pytest.raises(InputError, match='field of view = .*expected'):
        CameraIntrinsics.from_fov(fov_deg, (480, 640))


# --- CameraModel: what is read from a camera_info ---------------------------------------------


@pytest.mark.parametrize('changes, message', [
    ({'k': (0.0,) * 9}, 'not calibrated'),
    ({'k': (-1.0, *K[1:])}, 'K has focal lengths'),
    ({'k': K[:8]}, 'K has 8 numbers: expected 9'),
    ({'r': R[:3]}, 'R has 3 numbers: expected 9'),
    ({'p': P[:9]}, 'P has 9 numbers: expected 12'),
    ({'k': (*K[:2], math.nan, *K[3:])}, r'K\[2\] = nan'),
    ({'d': (0.1, math.nan, 0.0, 0.0, 0.0)}, r'D\[1\] = nan'),
    ({'r': (math.inf, *R[1:])}, r'R\[0\] = inf'),
    ({'p': (*P[:11], math.nan)}, r'P\[11\] = nan'),
    ({'p': (-480.0, *P[1:])}, 'P has focal lengths'),
    ({'p': (480.0, *(0.0,) * 11)}, 'P has focal lengths'),
    ({'r': (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)}, 'no rotation'),
    ({'r': (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, 'no rotation'),
    ({'width_px': 0}, '0 x 480 pixels'),
    ({'binning_x': -1}, 'no negative'),
    ({'binning_y': 1000}, 'leaves no pixel'),
    ({'roi': RegionOfInterest(200, 0, 480, 480)}, 'leaves the 640 x 480 image'),
    ({'roi': RegionOfInterest(-1, 0, 10, 10)}, 'no negative'),
    ({'distortion_model': 'omnidirectional'},
     "'omnidirectional': expected one of plumb_bob, rational_polynomial, equidistant"),
])  # fmt: skip
def test_camera_info_that_cannot_be_is_refused_with_what_to_do(changes, message):
    """Each message names the field."""
    with pytest.raises(InputError, match=message):
        camera(**changes)


@pytest.mark.parametrize('model, count, expected', [
    ('plumb_bob', 3, '4 to 5'), ('plumb_bob', 8, '4 to 5'), ('rational_polynomial', 5, '8 to 14'),
    ('rational_polynomial', 15, '8 to 14'), ('equidistant', 5, '4'), ('equidistant', 3, '4'),
    ('', 6, '8 to 14'), ('pinhole', 2, '4 to 5'),
])  # fmt: skip
def test_wrong_number_of_coefficients_is_refused(model, count, expected):
    """A missing coefficient would be read as another one."""
    with pytest.raises(InputError, match=f'{count} distortion coefficients.*expected {expected}'):
        camera(distortion_model=model, d=(0.01,) * count)


@pytest.mark.parametrize('model', ['', 'pinhole', 'plumb_bob', 'equidistant', 'anything'])
@pytest.mark.parametrize('d', [(), (0.0,) * 5, (0.0,) * 3])
def test_zero_coefficients_are_a_pinhole_whatever_the_model(model, d):
    """Drivers of rectified images keep the name of the lens."""
    ideal = camera(distortion_model=model, d=d)
    assert not ideal.is_distorted
    v, u = np.indices((480, 640), dtype=np.float32)
    np.testing.assert_allclose(ideal.rectify_map(), np.stack([u, v], -1), atol=1e-3)


def test_unnamed_model_is_opencvs_own():
    """Some drivers leave distortion_model empty."""
    expected = camera().rectify_map()
    np.testing.assert_array_equal(camera(distortion_model='').rectify_map(), expected)
    np.testing.assert_array_equal(camera(distortion_model='pinhole').rectify_map(), expected)


def test_distortion_or_rotation_asks_for_rectification():
    """A stereo camera needs its rotation even without distortion."""
    assert camera().is_distorted
    assert camera(d=(), r=R).is_distorted
    assert not camera(d=(), r=(0.0,) * 9).is_distorted  # Many drivers leave R at zero.


def test_intrinsics_take_p_for_the_rectified_image_and_k_for_the_raw_one():
    """As the message documents K and P."""
    stereo = camera(p=P)
    assert stereo.intrinsics(rectified=False) == VGA
    rectified = stereo.intrinsics(rectified=True)
    assert rectified == CameraIntrinsics(480.0, 484.0, 322.0, 236.5, 640, 480)


def test_zero_p_falls_back_to_k():
    """Seen on OAK cameras: consumers that read P alone get nothing."""
    assert camera().intrinsics(rectified=True) == VGA
    only_one = (*(0.0,) * 10, 1.0, 0.0)
    assert camera(p=only_one).intrinsics(rectified=True) == VGA


def test_roi_comes_before_binning():
    """REP-104: the window is in full-resolution pixels."""
    window = camera(roi=WINDOW, binning_x=2, binning_y=3)
    assert window.expected_image_hw == (121, 240)
    got = window.intrinsics(rectified=False)
    assert got.image_hw == (121, 240)
    assert got.fx_px == pytest.approx(525.0 / 2)
    assert got.fy_px == pytest.approx(530.0 / 3)
    assert got.cx_px == pytest.approx((311.5 - 64 + 0.5) / 2 - 0.5)
    assert got.cy_px == pytest.approx((247.25 - 40 + 0.5) / 3 - 0.5)


@pytest.mark.parametrize('roi', [(0, 0, 0, 0), (5, 7, 0, 100), (5, 7, 100, 0), (0, 0, 480, 640)])
def test_roi_without_a_side_is_the_whole_image(roi):
    """Zeros are the default of the message."""
    whole = camera(roi=(*roi, False))
    assert whole.expected_image_hw == (480, 640)
    assert whole.intrinsics(rectified=False) == VGA


def test_camera_model_of_numpy_fields_equals_the_plain_one():
    """A cached map is found again whatever the array type."""
    d, k, r, p = (np.array(numbers) for numbers in (PLUMB_BOB, K, R, P))
    roi = (0, 0, 0, 0, False)
    from_message = CameraModel(np.uint32(640), 480, 'plumb_bob', d, k, r, p, 0, 0, roi)
    plain = camera(r=R, p=P)
    assert from_message == plain
    assert hash(from_message) == hash(plain)


def test_model_from_intrinsics_is_an_ideal_camera_of_the_same_matrix():
    """For sources that know a matrix only."""
    model = CameraModel.from_intrinsics(VGA)
    assert not model.is_distorted
    assert model.intrinsics(rectified=True) == model.intrinsics(rectified=False) == VGA
    assert model.p == (525.0, 0, 311.5, 0, 0, 530.0, 247.25, 0, 0, 0, 1.0, 0)


# --- rectification ----------------------------------------------------------------------------


def raw_pixels(model: CameraModel, points: np.ndarray) -> np.ndarray:
    """Where OpenCV's full lens model puts 3D points (N, 3) in the full-resolution raw image."""
    k, d, zero = np.array(model.k).reshape(3, 3), np.array(model.d), np.zeros(3)
    if model.distortion_model == 'equidistant':
        return cv2.fisheye.projectPoints(points[:, None], zero, zero, k, d)[0][:, 0]
    return cv2.projectPoints(points[:, None], zero, zero, k, d)[0][:, 0]


def delivered(full_px: np.ndarray, model: CameraModel) -> np.ndarray:
    """The half-pixel rule written out: full-resolution pixels to pixels of the delivered image."""
    shifted = full_px - [model.roi.x_offset, model.roi.y_offset]
    return (shifted + 0.5) / [max(model.binning_x, 1), max(model.binning_y, 1)] - 0.5


@pytest.mark.parametrize('lens, d', [
    ('plumb_bob', PLUMB_BOB), ('plumb_bob', PLUMB_BOB[:4]), ('rational_polynomial', RATIONAL),
    ('rational_polynomial', THIN_PRISM), ('rational_polynomial', TILTED), ('equidistant', FISHEYE),
])  # fmt: skip
@pytest.mark.parametrize('p', [P, (0.0,) * 12], ids=['P', 'P=0'])
@pytest.mark.parametrize('window', [
    {}, {'roi': WINDOW, 'binning_x': 2, 'binning_y': 3}, {'binning_x': 4, 'binning_y': 4},
])  # fmt: skip
def test_rectify_map_points_to_where_the_lens_puts_each_scene_point(lens, d, p, window):
    """Against the forward model, which shares no code with the map."""
    model = camera(distortion_model=lens, d=d, r=R, p=p, **window)
    rectified = model.intrinsics(rectified=True)
    source_px = model.rectify_map()
    assert source_px.shape == (*model.expected_image_hw, 2)
    assert source_px.dtype == np.float32

    # Scene points at varying depth, seen by the rectified camera in whole pixels (u, v). R turns
    # points of the camera into its rectified frame, so the transpose brings them back.
    generator = np.random.default_rng(0)
    v = generator.integers(0, rectified.height_px, 500)
    u = generator.integers(0, rectified.width_px, 500)
    depth_m = generator.uniform(0.3, 30.0, 500)
    rays = np.stack([u, v, np.ones(500)], -1) @ np.linalg.inv(rectified.matrix).T
    in_camera = (rays * depth_m[:, None]) @ np.array(R).reshape(3, 3)

    expected = delivered(raw_pixels(model, in_camera), model)
    error_px = np.abs(source_px[v, u] - expected).max()
    assert error_px < 1e-3, f'{error_px} px'


def test_coefficients_between_opencvs_counts_are_filled_with_zeros():
    """OpenCV takes 8, 12 or 14."""
    nine = camera(distortion_model='rational_polynomial', d=(*RATIONAL, 0.001))
    twelve = camera(distortion_model='rational_polynomial', d=(*RATIONAL, 0.001, 0.0, 0.0, 0.0))
    np.testing.assert_array_equal(nine.rectify_map(), twelve.rectify_map())


def test_remapping_a_picture_of_straight_lines_makes_them_straight():
    """What a person sees when it works."""
    model = camera(roi=WINDOW, binning_x=2, binning_y=2, p=P)
    rectified = model.intrinsics(rectified=True)
    # The raw picture: brightness = x coordinate that an ideal camera would see there.
    h, w = model.expected_image_hw
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 1, 2).astype(float)
    ideal = cv2.undistortPoints(
        grid, model.intrinsics(rectified=False).matrix, np.array(PLUMB_BOB), P=rectified.matrix
    )
    raw = ideal[:, 0, 0].reshape(h, w).astype(np.float32)
    source_px = model.rectify_map()
    picture = cv2.remap(raw, source_px[..., 0], source_px[..., 1], cv2.INTER_LINEAR)
    inside = (source_px > 1).all(-1) & (source_px < [w - 2, h - 2]).all(-1)
    assert inside.mean() > 0.5
    error_px = np.abs(picture - np.arange(w))[inside]
    assert error_px.max() < 0.05


def test_pixels_that_the_raw_image_does_not_show_stay_outside():
    """They are not clamped to the border, which would smear it."""
    wide = (300.0, 0.0, 320.0, 0.0, 0.0, 300.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    source_px = camera(p=wide).rectify_map()
    corner = source_px[0, 0]
    assert (corner < -0.5).all()
    assert (camera().rectify_map()[0, 0] != corner).all()


def test_lens_polynomial_that_turns_back_shows_no_mirrored_ring():
    """Plain OpenCV maps show one; it would become depth."""
    barrel, wide = (-0.4, 0.0, 0.0, 0.0, 0.0), (120.0, 0, 320, 0, 0, 120.0, 240, 0, 0, 0, 1, 0)
    model = camera(d=barrel, p=wide)
    source_px = model.rectify_map()
    x, y = model.intrinsics(rectified=True).axis_rays()
    radius = np.hypot(x, y[:, None])
    turning = 1 / math.sqrt(3 * 0.4)  # The derivative of r - 0.4 r^3 is zero there.
    assert (source_px[radius > turning * 1.01] < -1000).all()
    plain = np.stack(
        cv2.initUndistortRectifyMap(
            np.array(K).reshape(3, 3), np.array(barrel), np.eye(3),
            model.intrinsics(rectified=True).matrix, (640, 480), cv2.CV_32FC1,
        ), -1,
    )  # fmt: skip
    kept = radius < turning * 0.99
    np.testing.assert_array_equal(source_px[kept], plain[kept])
    in_image = (plain >= 0).all(-1) & (plain <= [639, 479]).all(-1)
    assert (in_image & (radius > turning * 1.01)).any(), 'the ring is what this test is about'


@pytest.mark.parametrize('lens, d', [('plumb_bob', (0.01,) * 4), ('equidistant', FISHEYE)])
def test_rays_from_behind_the_camera_are_outside_and_finite(lens, d):
    """A perspective division alone would mirror them to the front."""
    turned = tuple(cv2.Rodrigues(np.array([0.0, 1.4, 0.0]))[0].ravel())
    wide = (150.0, 0.0, 320.0, 0.0, 0.0, 150.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    model = camera(distortion_model=lens, d=d, r=turned, p=wide)
    source_px = model.rectify_map()
    assert np.isfinite(source_px).all()
    u, v = np.meshgrid(np.arange(640), np.arange(480))
    rays = np.stack([(u - 320) / 150, (v - 240) / 150, np.ones_like(u)], -1)
    behind = (rays @ np.array(turned).reshape(3, 3))[..., 2] < 0
    assert behind.any() and not behind.all()
    assert (source_px[behind] < -1000).all()
    assert (source_px[~behind] > -1000).any()


# --- unprojection -----------------------------------------------------------------------------

NORMAL = np.array([0.25, -0.45, 0.857])
NORMAL = NORMAL / np.linalg.norm(NORMAL)
FULL_VIEW = camera(p=P)


@pytest.mark.parametrize('intrinsics', [
    VGA,
    FULL_VIEW.intrinsics(rectified=True),
    VGA.resized((173, 259)),
    VGA.cropped(31, 57, (300, 400)),
    VGA.resized((240, 320)).cropped(-8, -16, (256, 352)).binned(2, 2),
    VGA.strided(3),
    camera(roi=WINDOW).intrinsics(rectified=True),
    camera(roi=WINDOW, binning_x=2, binning_y=3, p=P).intrinsics(rectified=True),
    camera(p=(0.0,) * 12, binning_x=4, binning_y=4).intrinsics(rectified=True),
], ids='full P resize crop chain stride roi roi+binning P=0+binning'.split())  # fmt: skip
def test_points_of_a_tilted_plane_lie_on_it(intrinsics):
    """For the camera of every kind of image."""
    depth_m = plane_depth(intrinsics, NORMAL, 2.5).astype(np.float32)
    assert depth_m.min() > 0
    points = depth_to_points(depth_m, intrinsics)
    assert points.dtype == np.float32
    distance_m = points.astype(np.float64) @ NORMAL - 2.5
    assert np.abs(distance_m).max() < 1e-4


@pytest.mark.parametrize('act, pick', [
    (lambda c: c.strided(4), lambda d: d[::4, ::4]),
    (lambda c: c.cropped(30, 50, (200, 100)), lambda d: d[30:230, 50:150]),
    # Inverse depth of a plane is linear in the pixels, so that its block means are exact.
    (lambda c: c.binned(4, 4), lambda d: 1 / (1 / d).reshape(120, 4, 160, 4).mean((1, 3))),
    (lambda c: c.resized((120, 160)), lambda d: 1 / cv2.resize(1 / d, (160, 120), **BY_AREA)),
], ids=['stride', 'crop', 'binning', 'resize'])  # fmt: skip
def test_operations_on_the_camera_follow_the_same_operations_on_the_image(act, pick):
    """Both sides of one resize agree."""
    depth_m = pick(plane_depth(VGA, NORMAL, 2.5))
    points = depth_to_points(depth_m.astype(np.float32), act(VGA))
    assert np.abs(points.astype(np.float64) @ NORMAL - 2.5).max() < 1e-4


def test_a_distorted_view_of_a_plane_is_flat_after_rectification():
    """The whole chain: raw depth through ROI and binning, warped by the map, seen by P."""
    model = camera(roi=WINDOW, binning_x=2, binning_y=2, r=R, p=P)
    raw, rectified = model.intrinsics(rectified=False), model.intrinsics(rectified=True)
    h, w = model.expected_image_hw
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 1, 2).astype(float)
    tight = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-12)
    undistort = getattr(cv2, 'undistortPointsIter', None)
    d, r = np.array(PLUMB_BOB), np.array(R).reshape(3, 3)
    if undistort is not None:
        rays = undistort(grid, raw.matrix, d, r, np.eye(3), tight)[:, 0]
    else:
        rays = cv2.undistortPoints(grid, raw.matrix, d, R=r, criteria=tight)[:, 0]
    # A raw pixel carries 1 / z of its rectified ray, which is linear in the rectified pixel.
    inverse = (np.concatenate([rays, np.ones((h * w, 1))], 1) @ NORMAL / 2.5).reshape(1, 1, h, w)
    source_px = model.rectify_map()
    # Not cv2.remap, which rounds the map to 1/32 of a pixel.
    grid = torch.from_numpy(source_px.astype(float) / [w - 1, h - 1] * 2 - 1)[None]
    warped = functional.grid_sample(torch.from_numpy(inverse), grid, align_corners=True)[0, 0]
    inside = (source_px > 0).all(-1) & (source_px < [w - 1, h - 1]).all(-1)
    points = depth_to_points(1 / np.where(inside, warped.numpy(), np.nan), rectified)
    distance_m = points[inside].astype(np.float64) @ NORMAL - 2.5
    assert inside.mean() > 0.5
    assert np.abs(distance_m).max() < 1e-4


def test_missing_depth_is_nan_in_all_three_coordinates():
    """No point is half a point."""
    depth_m = np.full((480, 640), 2.0, np.float32)
    depth_m[0, 0], depth_m[1, 1], depth_m[2, 2] = np.nan, np.inf, -np.inf
    points = depth_to_points(depth_m, VGA)
    missing = np.isnan(points)
    assert missing.sum() == 9
    assert missing[[0, 1, 2], [0, 1, 2]].all()


def test_depth_of_another_size_is_refused():
    """A camera of another size would scale the scene unseen."""
    with pytest.raises(InputError, match=r'\(240, 320\).*\(480, 640\).*resized'):
        depth_to_points(np.ones((240, 320), np.float32), VGA)
