"""The one door: arrays and packed outputs, geometry end to end, and what it refuses."""

from dataclasses import replace
import logging
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
import towers  # noqa: F401  registers tiny-vit
from vlm_depth_ros.core.camera_model import CameraModel, RegionOfInterest
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.devices import choose_device
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.core.options import OutputOptions

CPU = RuntimeConfig(device='cpu')
BOTH = frozenset({'depth', 'points'})
SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
CONFIG = ModelConfig('tiny-vit', SLIM, input_hw=(64, 96), camera=TrainingCamera(0.8, 1.1))
VGA = CameraIntrinsics(525.0, 530.0, 311.5, 247.25, 640, 480)


class StandIn(torch.nn.Module):
    """A network that answers the depth it is given, and keeps what it was asked."""

    def __init__(self, depths=None, camera=None, confidence=None, range_m=(0.01, 100.0)):
        super().__init__()
        self.config = ModelConfig(
            'stand-in', input_hw=(48, 64), depth_range_m=range_m, camera=camera
        )
        self.backbone = torch.nn.Module()
        self.backbone.spec = BackboneSpec(
            'stand-in', True, (3,), (1,), 3, None, (48, 64), False, (0.0,) * 3, (1.0,) * 3
        )
        self.depths, self.confidence, self.asked = depths, confidence, []

    def forward(self, image):
        """(B, 1, h, w) of whatever size the given depths have."""
        self.asked.append(image.clone())
        depths = self.depths or [np.full((48, 64), 2.0)] * len(image)
        depth_m = torch.from_numpy(np.stack(depths)).float()[:, None]
        return HeadOutput(depth_m, self.confidence)


def estimator_of(*args, **kwargs):
    """An estimator around a stand-in, and the stand-in."""
    model = StandIn(*args, **kwargs)
    return DepthEstimator(model, CPU, 'stand-in'), model


@pytest.fixture(scope='module')
def real():
    """A tiny tower with a slim head of random weights."""
    torch.manual_seed(0)
    return DepthEstimator(DepthModel(CONFIG), CPU)


def noise(hw, seed=0):
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


# --- arrays in, arrays out ----------------------------------------------------------------------


@pytest.mark.parametrize('hw', [(48, 64), (480, 640), (64, 96), (33, 517), (700, 20), (1, 1)])
def test_any_image_size_and_aspect_gives_depth_of_that_size(real, hw):
    found = real(noise(hw))
    assert found.depth_m.shape == hw and found.depth_m.dtype == np.float32
    assert (found.depth_m > 0).all()
    assert (found.confidence, found.intrinsics) == (None, None)
    assert found.latency_ms > 0


def test_a_list_of_images_gives_what_each_gives_alone_in_one_call(real):
    """Of different sizes: the network sees one size."""
    images = [noise((48, 64), 1), noise((100, 80), 2), noise((64, 96), 3)]
    together = real(images)
    assert isinstance(together, list) and len(together) == 3
    for image, found in zip(images, together):
        np.testing.assert_allclose(found.depth_m, real(image).depth_m, rtol=1e-4)
    assert len({found.latency_ms for found in together}) == 1


@pytest.mark.parametrize('count', [0, 1, 4])
def test_a_batch_is_one_network_call(count):
    estimator, model = estimator_of()
    found = estimator([noise((48, 64), i) for i in range(count)])
    assert len(found) == count
    assert [len(image) for image in model.asked] == ([count] if count else [])


def test_the_network_sees_the_squashed_normalised_image():
    estimator, model = estimator_of()
    rgb = noise((48, 64))
    estimator(rgb)
    expected = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    torch.testing.assert_close(model.asked[0][0], expected)


def test_the_image_is_not_written_to(real):
    rgb = noise((64, 96))
    before = rgb.copy()
    real(rgb)
    real.process([Frame(rgb)], OutputOptions())
    assert np.array_equal(rgb, before)


def test_the_answer_belongs_to_the_caller(real):
    """Writing into it must not reach the next one."""
    rgb = noise((64, 96))
    first = real(rgb).depth_m
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(real(rgb).depth_m, kept)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 0.0, -3.0])
@pytest.mark.parametrize('scale', [1, 4])
def test_what_is_no_depth_is_nan_and_does_not_bleed(bad, scale):
    """Neither at the head's size nor after a resize is a bad value blended into a good one."""
    depth = np.full((48, 64), 2.0)
    depth[10, 20] = bad
    estimator, _ = estimator_of([depth])
    found = estimator(noise((48 * scale, 64 * scale))).depth_m
    hole = np.isnan(found)
    assert hole[10 * scale : 11 * scale, 20 * scale : 21 * scale].all()
    assert hole.sum() <= (2 * scale) ** 2
    assert (found[~hole] == 2.0).all()

    packed = estimator.process([Frame(noise((48, 64)))], OutputOptions())[0].depth
    gated = packed.data.view(np.float32).reshape(48, 64)
    assert np.isnan(gated[10, 20]) and np.isnan(gated).sum() == 1


def test_confidence_comes_back_at_the_images_size():
    confidence = torch.full((1, 1, 24, 32), 0.25)
    estimator, _ = estimator_of(confidence=confidence)
    found = estimator(noise((96, 128))).confidence
    assert found.shape == (96, 128) and (found == 0.25).all()


@pytest.mark.parametrize('bad', [
    np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8),
    np.zeros((4, 0, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), [[1, 2], [3, 4]], ['a.png'],
])  # fmt: skip
def test_what_is_no_image_is_refused(real, bad):
    with pytest.raises(InputError, match=r'image .*: expected an \(H, W, 3\) RGB array'):
        real(bad)


def test_an_image_of_another_type_is_refused(real):
    with pytest.raises(InputError, match='image of float32: expected uint8, 0 to 255'):
        real(np.zeros((4, 4, 3), np.float32))


# --- embedding ----------------------------------------------------------------------------------


def test_the_embedding_is_open_clips_of_what_the_tower_sees(real):
    """`encode_image(normalize=True)`: of each image of a list, from one call with depth."""
    images = [noise((48, 64), 1), noise((100, 80), 2)]
    found = real(images, want_embedding=True)
    expected = F.normalize(real.backbone.tower(real.tower_input(images)), dim=-1)
    for answer, image, vector in zip(found, images, expected.detach().numpy()):
        assert answer.embedding.shape == (24,) and answer.embedding.dtype == np.float32
        assert np.linalg.norm(answer.embedding) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(answer.embedding, vector, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answer.depth_m, real(image).depth_m, rtol=1e-4)


def test_an_embedding_comes_only_when_asked_for(real):
    assert real(noise((48, 64))).embedding is None
    found = real.process([Frame(noise((48, 64)), wants=BOTH)], OutputOptions())[0]
    assert found.embedding is None


def test_asking_for_an_embedding_changes_no_depth(real):
    rgb = noise((96, 128))
    assert np.array_equal(real(rgb, want_embedding=True).depth_m, real(rgb).depth_m)


def test_an_embedding_costs_the_projection_and_nothing_else(real):
    """Counted: one product of the pooled vector with the projection."""
    rgb, counts = noise((64, 96)), []
    for want_embedding in (False, True):
        with FlopCounterMode(display=False) as counter:
            real(rgb, want_embedding=want_embedding)
        counts.append(counter.get_total_flops())
    spec = real.backbone.spec
    assert counts[0] > 1e6
    assert counts[1] - counts[0] == 2 * spec.pooled_width * spec.embedding_width


def test_only_frames_that_want_an_embedding_get_one_packed(real):
    """In one call with others; the vector is the one that arrays give."""
    frames = [
        Frame(noise((48, 64), 1)),
        Frame(noise((100, 80), 2), wants=frozenset({'depth', 'embedding'})),
        Frame(noise((64, 96), 3), wants=frozenset({'embedding'})),
    ]
    found = real.process(frames, OutputOptions())
    assert [f.depth is None for f in found] == [False, False, True]
    assert found[0].embedding is None
    for frame, packed in zip(frames[1:], (f.embedding for f in found[1:])):
        assert (packed.height, packed.width, packed.encoding, packed.step) == (1, 24, '32FC1', 96)
        expected = real(frame.rgb, want_embedding=True).embedding
        np.testing.assert_allclose(packed.data.view(np.float32), expected, rtol=1e-4, atol=1e-6)


def test_the_embedding_alone_is_the_same_and_runs_no_head(real, monkeypatch):
    frame = Frame(noise((48, 64)), wants=frozenset({'embedding'}))
    expected = real(frame.rgb, want_embedding=True).embedding
    monkeypatch.setattr(real.model.head, 'forward', lambda _: pytest.fail('the head ran'))
    packed = real.process([frame], OutputOptions())[0]
    np.testing.assert_array_equal(packed.embedding.data.view(np.float32), expected)
    assert (packed.depth, packed.camera_info, packed.points, packed.color) == (None,) * 4


def test_the_embedding_of_a_distorted_image_is_that_of_the_rectified_one(real):
    camera = lens(d=PLUMB_BOB)
    rgb = noise(camera.expected_image_hw)
    wants = frozenset({'embedding'})
    frames = [Frame(rgb, camera, wants=wants), Frame(rgb, camera, rectify=False, wants=wants)]
    found = [
        real.process([f], OutputOptions())[0].embedding.data.view(np.float32) for f in frames
    ]
    np.testing.assert_array_equal(found[1], real(rgb, want_embedding=True).embedding)
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_a_tower_without_a_trained_projection_refuses_in_one_line():
    pocket = DepthEstimator.from_weights('pocket', CPU)
    message = (
        "^pocket gives no embedding: its tower 'pocket-tower' has no trained projection. Use "
        'weights on a CLIP, SigLIP or MobileCLIP tower.$'
    )
    assert not pocket.can_embed
    with pytest.raises(ConfigError, match=message):
        pocket(noise((48, 64)), want_embedding=True)
    with pytest.raises(ConfigError, match=message):
        pocket.process([Frame(noise((48, 64)), wants=frozenset({'embedding'}))], OutputOptions())


def test_whether_there_is_an_embedding_can_be_asked(real):
    assert real.can_embed
    assert not estimator_of()[0].can_embed


# --- focal correction ---------------------------------------------------------------------------


def test_depth_scales_with_the_focal_length_exactly():
    """Twice the focal length: what fills the same part of the image is twice as far away."""
    training = TrainingCamera(VGA.fx_px / 640, VGA.fy_px / 480)
    estimator, _ = estimator_of(camera=training)
    rgb = noise((480, 640))
    assert estimator(rgb).depth_m.max() == 2.0
    assert estimator(rgb, VGA).depth_m.max() == pytest.approx(2.0, rel=1e-6)
    tele = replace(VGA, fx_px=2 * VGA.fx_px, fy_px=2 * VGA.fy_px)
    assert estimator(rgb, tele).depth_m.max() == pytest.approx(4.0, rel=1e-6)
    oblong = replace(VGA, fx_px=2 * VGA.fx_px)
    assert estimator(rgb, oblong).depth_m.max() == pytest.approx(2 * math.sqrt(2), rel=1e-6)


def test_a_resize_of_the_image_changes_no_depth():
    """Same lens, same scene, half the pixels."""
    estimator, _ = estimator_of(camera=TrainingCamera(0.7, 0.9))
    large = estimator(noise((480, 640)), VGA).depth_m.max()
    small = estimator(noise((240, 320)), VGA.resized((240, 320))).depth_m.max()
    assert small == pytest.approx(large, rel=1e-6)


def test_each_image_of_a_list_is_corrected_by_its_own_camera():
    estimator, _ = estimator_of(camera=TrainingCamera(VGA.fx_px / 640, VGA.fy_px / 480))
    wide = CameraIntrinsics(VGA.fx_px / 4, VGA.fy_px / 4, 159.5, 119.5, 320, 240)
    rgb = [noise((480, 640)), noise((240, 320)), noise((9, 9))]
    found = estimator(rgb, [VGA, wide, None])
    assert [f.depth_m.max() for f in found] == pytest.approx([2.0, 1.0, 2.0], rel=1e-6)
    assert [f.intrinsics for f in found] == [VGA, wide, None]


def test_weights_without_a_camera_are_not_corrected_and_say_so_once(caplog):
    estimator, _ = estimator_of(camera=None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert estimator(noise((480, 640)), VGA).depth_m.max() == 2.0
        frame = Frame(noise((480, 640)), CameraModel.from_intrinsics(VGA))
        estimator.process([frame], OutputOptions())
    assert [r.message for r in caplog.records] == [
        'stand-in does not say which camera it was trained for: depth is not corrected for the '
        'focal length.'
    ]


def test_a_camera_of_another_size_is_refused(real):
    with pytest.raises(InputError, match=r'image \(240, 320\) but its camera is for \(480, 640\)'):
        real(noise((240, 320)), VGA)


def test_as_many_cameras_as_images_are_expected(real):
    with pytest.raises(InputError, match='2 images but 1 cameras'):
        real([noise((8, 8))] * 2, [None])


def test_focal_correction_can_be_switched_off():
    estimator, _ = estimator_of(camera=TrainingCamera(0.1, 0.1))
    frame = Frame(noise((480, 640)), CameraModel.from_intrinsics(VGA))
    on, off = (
        estimator.process([frame], OutputOptions(focal_correction=c))[0] for c in (True, False)
    )
    factor = VGA.normalised_focal / 0.1
    assert on.depth.data.view(np.float32)[0] == pytest.approx(2 * factor, rel=1e-6)
    assert off.depth.data.view(np.float32)[0] == 2.0


# --- the robot's door ---------------------------------------------------------------------------


@pytest.mark.parametrize('wants', [{'depth'}, {'points'}, {'color'}, {'depth', 'points', 'color'}])
def test_only_what_is_wanted_is_packed(wants):
    estimator, _ = estimator_of()
    frame = Frame(noise((48, 64)), CameraModel.from_intrinsics(VGA.resized((48, 64))))
    found = estimator.process([replace(frame, wants=frozenset(wants))], OutputOptions())[0]
    made = {name for name in ('depth', 'points', 'color') if getattr(found, name) is not None}
    assert made == wants
    assert found.camera_info is not None


def test_without_a_camera_there_is_depth_and_no_points():
    """A camera_info that never came: depth flows, points wait."""
    estimator, _ = estimator_of()
    found = estimator.process([Frame(noise((48, 64)), wants=BOTH)], OutputOptions())[0]
    assert (found.depth.height, found.depth.width) == (48, 64)
    assert found.camera_info is None and found.points is None


def test_frames_of_all_cameras_share_one_network_call():
    """Of any sizes, with and without a camera, each with its own outputs."""
    depths = [np.full((48, 64), d) for d in (1.0, 2.0, 3.0)]
    estimator, model = estimator_of(depths)
    distorted = lens(d=PLUMB_BOB)
    frames = [
        Frame(noise((48, 64)), wants=frozenset({'depth'})),
        Frame(noise(distorted.expected_image_hw), distorted, wants=BOTH),
        Frame(noise((480, 640)), CameraModel.from_intrinsics(VGA), wants=frozenset({'points'})),
    ]
    found = estimator.process(frames, OutputOptions())
    assert [len(image) for image in model.asked] == [3]
    assert [f.depth.data.view(np.float32)[0] for f in found[:1]] == [1.0]
    depth = found[1].depth.data.view(np.float32)
    assert np.nanmin(depth) == np.nanmax(depth) == 2.0
    assert found[2].depth is None
    z = found[2].points.data.view(np.float32).reshape(-1, 4)[:, 2]
    assert (z == 3.0).all() and found[2].points.width == 240 * 320


def test_depth_is_gated_by_the_models_range_narrowed_by_the_options():
    """REP-117: NaN too near, +Inf beyond; never clamped."""
    ramp = np.tile(np.linspace(0.5, 20.0, 64), (48, 1))
    estimator, _ = estimator_of([ramp], range_m=(1.0, 10.0))

    def depth(**options):
        frame = Frame(noise((48, 64)))
        return estimator.process([frame], OutputOptions(**options))[0].depth.data.view(np.float32)

    flat = np.float32(ramp).ravel()
    for options, low, high in (({}, 1, 10), ({'min_depth_m': 2.0, 'max_depth_m': 5.0}, 2, 5),
                               ({'min_depth_m': 0.2, 'max_depth_m': 50.0}, 1, 10)):  # fmt: skip
        expected = np.where(flat < low, np.nan, np.where(flat > high, np.inf, flat))
        np.testing.assert_array_equal(depth(**options), expected)
    assert np.isneginf(depth(near_is_neg_inf=True)[0])
    assert estimator.range_m(OutputOptions(max_depth_m=4.0)) == (1.0, 4.0)


def test_colour_has_a_fixed_range():
    """The same metres have the same colour whatever else is in the picture."""
    first, second = np.full((48, 64), 2.0), np.full((48, 64), 9.0)
    first[:, 32:] = 5.0
    second[:, 32:] = 5.0
    second[0, 0], second[0, 1] = np.nan, 200.0
    estimator, _ = estimator_of([first, second], range_m=(0.5, 10.0))
    frames = [Frame(noise((48, 64)), wants=frozenset({'color'}))] * 2
    found = [f.color for f in estimator.process(frames, OutputOptions())]
    assert {(c.encoding, c.height, c.width, c.step) for c in found} == {('bgr8', 48, 64, 192)}
    a, b = (c.data.reshape(48, 64, 3).astype(int) for c in found)
    assert np.array_equal(a[5, 40], b[5, 40]) and not np.array_equal(a[5, 5], b[5, 5])
    assert a[5, 5, 2] > a[5, 5, 0] and b[5, 5, 0] > b[5, 5, 2], 'near is red, far is blue'
    assert b[0, 0].tolist() == [0, 0, 0] and b[0, 1].tolist() == [64, 64, 64]


@pytest.mark.parametrize(('hw', 'divisor'), [((48, 64), 5), ((47, 64), 2), ((48, 62), 4)])
def test_a_divisor_that_does_not_divide_the_image_is_refused(hw, divisor):
    estimator, model = estimator_of()
    with pytest.raises(InputError, match=rf'{hw[0]}, {hw[1]}\) cannot be divided by depth_div'):
        estimator.process([Frame(noise(hw))], OutputOptions(depth_divisor=divisor))
    assert model.asked == []


def test_a_camera_info_of_another_size_is_refused():
    estimator, _ = estimator_of()
    frame = Frame(noise((48, 64)), CameraModel.from_intrinsics(VGA))
    with pytest.raises(InputError, match=r'image \(48, 64\) but its camera_info .* \(480, 640\)'):
        estimator.process([frame], OutputOptions())


# --- geometry, end to end -----------------------------------------------------------------------

PLUMB_BOB = (-0.28, 0.09, 0.0011, -0.0007, -0.012)
RATIONAL = (0.31, -0.12, 0.0008, -0.0005, 0.02, 0.62, -0.05, 0.01)
FISHEYE = (-0.02, 0.006, -0.004, 0.0008)
R = tuple(cv2.Rodrigues(np.array([0.02, -0.03, 0.015]))[0].ravel())
K = (262.5, 0.0, 155.5, 0.0, 265.0, 123.25, 0.0, 0.0, 1.0)
P = (240.0, 0.0, 161.0, -36.0, 0.0, 242.0, 118.25, 0.0, 0.0, 0.0, 1.0, 0.0)
ROI = RegionOfInterest(32, 20, 184, 244)
NORMAL, OFFSET_M = np.array([0.25, -0.3, 0.9]), 2.0


def lens(**changes):
    """A 320 x 240 camera, ideal but for `changes`."""
    return replace(CameraModel(320, 240, 'plumb_bob', (0.0,) * 5, K), **changes)


CAMERAS = {
    'identity': lens(),
    'identity_with_p': lens(p=P),  # nothing is warped, so the raw camera stays: K
    'p_zero': lens(d=PLUMB_BOB),
    'plumb_bob': lens(d=PLUMB_BOB, p=P),
    'rational': lens(distortion_model='rational_polynomial', d=RATIONAL, p=P),
    'equidistant': lens(distortion_model='equidistant', d=FISHEYE, p=P),
    'stereo': lens(d=PLUMB_BOB, r=R, p=P),
    'roi': lens(d=PLUMB_BOB, p=P, roi=ROI),
    'roi_without_distortion': lens(roi=ROI),
    'binning': lens(d=PLUMB_BOB, p=P, binning_x=2, binning_y=2),
    'binning_without_distortion': lens(binning_x=4, binning_y=2),
    'everything': lens(distortion_model='rational_polynomial', d=RATIONAL, r=R, p=P, roi=ROI,
                       binning_x=2, binning_y=2),
    'fisheye_everything': lens(distortion_model='equidistant', d=FISHEYE, r=R, roi=ROI,
                               binning_x=2, binning_y=1),
}  # fmt: skip


def window_of(camera):
    """Left, top, height, width of the sensor window, and both binnings: from the message alone."""
    left, top, height, width, _ = camera.roi
    if not height:
        left, top, height, width = 0, 0, camera.height_px, camera.width_px
    return left, top, height, width, camera.binning_x or 1, camera.binning_y or 1


def sensor_pixels(camera):
    """Full-resolution (x, y) of the centre of each delivered pixel, (H, W, 2) float64."""
    left, top, height, width, bx, by = window_of(camera)
    u = left + (np.arange(width // bx) + 0.5) * bx - 0.5
    v = top + (np.arange(height // by) + 0.5) * by - 0.5
    return np.stack(np.meshgrid(u, v), -1)


def rays_of(pixels, matrix):
    """(..., 3) rays with z = 1 through pixels of a pinhole."""
    x = (pixels[..., 0] - matrix[2]) / matrix[0]
    y = (pixels[..., 1] - matrix[5]) / matrix[4]
    return np.stack([x, y, np.ones_like(x)], -1)


def rectified_matrix(camera):
    """Camera of the rectified image at full resolution: the left of P, or K where P is zero."""
    return (*camera.p[0:3], *camera.p[4:7]) if camera.p[0] and camera.is_distorted else camera.k


def on_plane(rays):
    """Where rays meet the plane, (..., 3) metres."""
    return rays * (OFFSET_M / (rays @ NORMAL))[..., None]


def texture(points):
    """Smooth colours of the plane, (..., 3) in 0..255."""
    x, y = points[..., 0], points[..., 1]
    waves = [np.sin(4 * x), np.sin(4 * y + 1), np.sin(3 * (x + y))]
    return 127.5 + 110 * np.stack(waves, -1)


def photograph(camera):
    """What the distorted camera sees of the plane: each raw pixel's ray, from OpenCV's inverse."""
    pixels = sensor_pixels(camera)
    rays = rays_of(pixels, camera.k)
    if any(camera.d):
        lens_of = cv2.fisheye if camera.distortion_model == 'equidistant' else cv2
        matrix, d = np.reshape(camera.k, (3, 3)), np.array(camera.d)
        ideal = lens_of.undistortPoints(pixels.reshape(-1, 1, 2), matrix, d)
        rays[..., :2] = ideal.reshape(rays[..., :2].shape)
    rays = rays @ np.reshape(camera.r, (3, 3)).T  # into the rectified frame
    return np.rint(texture(on_plane(rays))).astype(np.uint8)


def points_of(cloud):
    """(H, W, 3) coordinates and (H, W, 3) RGB of an organised cloud."""
    grid = cloud.data.reshape(cloud.height, cloud.width, 16)
    return grid[..., :12].copy().view(np.float32), grid[..., [14, 13, 12]]


@pytest.mark.parametrize('divisor', [1, 2])
@pytest.mark.parametrize('name', CAMERAS)
def test_a_tilted_plane_comes_out_where_it_is(name, divisor):
    """Through distortion, rotation, ROI, binning, P = 0 and a smaller depth: within 1e-4 m.

    The stand-in answers the true depth of the rectified camera; the photograph is made with
    OpenCV's inverse of the lens, so that colours tell whether image and depth lie on one another.
    """
    camera = CAMERAS[name]
    truth = on_plane(rays_of(sensor_pixels(camera), rectified_matrix(camera)))
    estimator, model = estimator_of([truth[..., 2]])
    options = OutputOptions(depth_divisor=divisor, cloud_stride=1, cloud_organized=True)
    found = estimator.process([Frame(photograph(camera), camera, wants=BOTH)], options)[0]
    points, rgb = points_of(found.points)

    h, w = (n // divisor for n in camera.expected_image_hw)
    assert points.shape == (h, w, 3)
    true_points = truth.reshape(h, divisor, w, divisor, 3).mean(axis=(1, 3))
    true_points = on_plane(true_points / true_points[..., 2:])
    seen = np.isfinite(points[..., 2])
    assert seen.mean() > (0.75 if camera.is_distorted else 0.999)
    assert np.abs(points[seen] @ NORMAL - OFFSET_M).max() < 1e-4
    assert np.linalg.norm(points - true_points, axis=-1)[seen].max() < 1e-4

    inside = cv2.erode(seen.astype(np.uint8), np.ones((3, 3)), borderValue=0) > 0
    assert np.abs(rgb - texture(true_points))[inside].max() < 6

    # depth_image_proc's formula on the published pair gives the same points.
    info = found.camera_info
    depth = found.depth.data.view(np.float32).reshape(h, w).astype(np.float64)
    assert (info.height, info.width, found.depth.height, found.depth.width) == (h, w, h, w)
    assert (info.d, info.r) == ((0.0,) * 5, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    fx, cx, tx, fy, cy, ty = (info.p[i] for i in (0, 2, 3, 5, 6, 7))
    assert (fx, cx, fy, cy) == (info.k[0], info.k[2], info.k[4], info.k[5]) and tx == ty == 0
    v, u = np.mgrid[:h, :w]
    formula = np.stack([(u - cx) * depth / fx, (v - cy) * depth / fy, depth], -1)
    assert np.array_equal(np.isfinite(formula[..., 2]), seen)
    assert np.abs(formula - points)[seen].max() < 1e-5


@pytest.mark.parametrize('stride', [1, 3])
def test_a_strided_cloud_is_every_nth_point(stride):
    truth = on_plane(rays_of(sensor_pixels(lens()), K))
    estimator, _ = estimator_of([truth[..., 2]])
    frame = Frame(photograph(lens()), lens(), wants=BOTH)
    options = OutputOptions(cloud_stride=stride, cloud_organized=True)
    points, _ = points_of(estimator.process([frame], options)[0].points)
    assert np.abs(points - truth[::stride, ::stride]).max() < 1e-4


def test_pixels_without_a_source_are_nan_not_invented():
    """Barrel-shaped borders of a rectified image show nothing, so there is no depth."""
    camera = lens(d=(0.4, 0.1, 0.0, 0.0, 0.0))
    estimator, model = estimator_of([np.full((240, 320), 2.0)])
    frame = Frame(np.full((240, 320, 3), 255, np.uint8), camera)
    depth = estimator.process([frame], OutputOptions())[0].depth.data.view(np.float32)
    source = camera.rectify_map()
    outside = ((source < -0.5) | (source > (319.5, 239.5))).any(-1)
    assert 0.05 < outside.mean() < 0.5
    assert np.array_equal(np.isnan(depth.reshape(240, 320)), outside)


def test_an_image_that_arrives_rectified_is_not_warped_again():
    """`rectify` off: the image is the one of P, whatever D says."""
    camera = CAMERAS['plumb_bob']
    truth = on_plane(rays_of(sensor_pixels(camera), rectified_matrix(camera)))
    rgb = np.rint(texture(truth)).astype(np.uint8)
    estimator, model = estimator_of([truth[..., 2]])
    options = OutputOptions(cloud_stride=1, cloud_organized=True)
    found = estimator.process([Frame(rgb, camera, rectify=False, wants=BOTH)], options)[0]
    points, colours = points_of(found.points)
    assert np.abs(points - truth).max() < 1e-4
    assert np.array_equal(colours, rgb)


# --- how it runs --------------------------------------------------------------------------------


def test_device_and_precision_are_chosen_by_what_is_there():
    assert choose_device('auto', 0).type == 'cpu'
    assert choose_device('auto', 1).type == 'cuda'
    assert choose_device('cuda:1', 2).index == 1
    assert DepthEstimator(StandIn(), CPU).precision == 'fp32'


@pytest.mark.parametrize(('name', 'count', 'message'), [
    ('cuda', 0, 'no CUDA device. Use cpu or auto'), ('cuda:2', 2, r'only 2 CUDA device\(s\)'),
])  # fmt: skip
def test_a_device_that_is_absent_is_a_config_error(name, count, message):
    with pytest.raises(ConfigError, match=f'device {name!r}: torch sees {message}'):
        choose_device(name, count)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
def test_cuda_without_cuda_is_a_config_error():
    with pytest.raises(ConfigError, match="device 'cuda': torch sees no CUDA device"):
        DepthEstimator(StandIn(), RuntimeConfig(device='cuda'))


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_is_near_full_precision(real, precision):
    rgb = noise((96, 128))
    torch.manual_seed(0)
    half = DepthEstimator(DepthModel(CONFIG), RuntimeConfig(device='cpu', precision=precision))
    exact, rough = real(rgb).depth_m, half(rgb).depth_m
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, rtol=0.02)


def test_the_same_image_gives_the_same_depth(real):
    rgb = noise((96, 128))
    assert np.array_equal(real(rgb).depth_m, real(rgb).depth_m)


def test_warming_up_runs_the_network_and_tells_the_time(real):
    estimator, model = estimator_of()
    assert estimator.warm_up((48, 64)) > 0
    assert len(model.asked) == 2


def test_an_estimator_from_a_file_is_the_model_in_it(tmp_path):
    """And carries its name and the one line about its licence."""
    torch.manual_seed(3)
    model = DepthModel(CONFIG).eval()
    path = tmp_path / 'm.safetensors'
    save_model(path, model, name='m', embed_tower=True, notice='Research use only.')
    loaded, direct = DepthEstimator.from_weights(path, CPU), DepthEstimator(model, CPU)
    rgb = noise((50, 70))
    assert np.array_equal(loaded(rgb).depth_m, direct(rgb).depth_m)
    assert (loaded.name, loaded.notice) == (str(path), 'Research use only.')
    assert (loaded.config.camera, loaded.device.type) == (CONFIG.camera, 'cpu')
    with pytest.raises(WeightsError, match='neither a file nor a shipped name'):
        DepthEstimator.from_weights(tmp_path / 'none.safetensors')


def test_running_builds_no_graph(real):
    """It would grow with every frame."""
    assert any(p.requires_grad for p in real.model.head.parameters())
    estimator, model = estimator_of()
    model.head = torch.nn.Conv2d(3, 1, 1)
    asked = []
    model.register_forward_hook(lambda *_: asked.append(model.head(model.asked[-1])))
    estimator(noise((48, 64)))
    assert not asked[0].requires_grad
