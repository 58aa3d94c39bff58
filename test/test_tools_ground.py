"""Flatness of the ground, on floors whose unevenness is known."""

import numpy as np
import pytest
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.tools.ground import find_ground, fit_plane, flatness
from vlm_depth_ros.tools.metrics import compare, PROTOCOLS

CAMERA = CameraIntrinsics(100.0, 100.0, 63.5, 30.0, 128, 96)
V = np.arange(96)[:, None] + np.zeros((1, 128))
IS_FLOOR = np.broadcast_to(V > 50, (96, 128))
WALL_M = 5.0


def floor(height_m=1.0, slope=0.0):
    """Depth of the plane y = height + slope z below row 50, of a wall above."""
    depth = np.full((96, 128), WALL_M)
    rise = (V[IS_FLOOR] - CAMERA.cy_px) / CAMERA.fy_px - slope
    depth[IS_FLOOR] = np.broadcast_to(height_m, V.shape)[IS_FLOOR] / rise
    return depth


def compared(depth_m, truth_m=None):
    return compare(depth_m, floor() if truth_m is None else truth_m, PROTOCOLS['full'])


def test_plane_fit_equals_values_by_hand():
    corners = np.array([[0, 1, 0], [2, 1, 0], [0, 1, 4], [2, 1, 4]], float)
    normal, offset, rms = fit_plane(corners)
    assert normal == pytest.approx([0, -1, 0]) and offset == pytest.approx(-1)
    assert rms == pytest.approx(0, abs=1e-9)
    corners[[0, 3], 1] += 0.25
    corners[[1, 2], 1] -= 0.25
    normal, _, rms = fit_plane(corners)
    assert normal == pytest.approx([0, -1, 0]) and rms == pytest.approx(0.25)


def test_ground_is_found_in_the_lower_image_only():
    truth = floor()
    truth[60:, 40:60] = 1.0  # something stands on it
    ground = find_ground(compared(truth, truth), CAMERA)
    expected = np.zeros((96, 128), bool)
    expected[58:] = True  # the lower 38 of 96 rows
    expected[60:, 40:60] = False
    stands_out = ground & ~expected
    assert (ground[expected]).mean() > 0.99 and stands_out.mean() < 0.01
    assert (find_ground(compared(truth, truth), CAMERA) == ground).all()


def test_wrong_scale_alone_is_flat():
    found = flatness(compared(1.3 * floor()), CAMERA)
    assert found['rms_m'] == pytest.approx(0, abs=1e-4)
    assert found['tilt_deg'] == pytest.approx(0, abs=0.05)
    assert found['true_rms_m'] == pytest.approx(0, abs=1e-4)


def test_unevenness_is_measured_as_it_is():
    checks = np.where((np.indices((96, 128)).sum(axis=0) // 4) % 2, 0.03, -0.03)
    found = flatness(compared(floor(1.0 + checks)), CAMERA)
    assert found['rms_m'] == pytest.approx(0.03, rel=0.03)
    truth_m = floor()[58:]
    assert found['rms_share'] == pytest.approx(0.03 / np.median(truth_m), rel=0.05)
    assert found['tilt_deg'] < 0.5


@pytest.mark.parametrize('tilt_deg', [-8.0, 5.0])
def test_tilt_is_measured_as_it_is(tilt_deg):
    depth = floor(slope=-np.tan(np.radians(tilt_deg)))
    found = flatness(compared(depth), CAMERA)
    assert found['tilt_deg'] == pytest.approx(abs(tilt_deg), abs=0.1)
    assert found['rms_m'] == pytest.approx(0, abs=1e-3)


def cluttered():
    return floor() * np.random.default_rng(0).uniform(0.6, 1.0, (96, 128))


def sparse():
    truth = np.full((96, 128), np.nan)
    truth[::12, ::12] = floor()[::12, ::12]
    return truth


@pytest.mark.parametrize('truth', [np.full((96, 128), WALL_M), cluttered(), sparse()],
                         ids=['wall', 'clutter', 'few points'])  # fmt: skip
def test_no_ground_is_none(truth):
    assert flatness(compared(floor(), truth), CAMERA) is None
