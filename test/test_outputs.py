"""What leaves for a costmap of a frame: nothing that was not seen is called free."""

import math

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions, ScanOptions
from vlm_depth_ros.core.frames import Frame
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.mounting import base_from_optical
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.outputs import pack_outputs

NAN, INF = math.nan, math.inf
CAMERA = CameraIntrinsics(64.0, 64.0, 31.5, 23.5, 64, 48)
AHEAD = base_from_optical((0.0, 0.0, 0.4, 0.0, 0.0, 0.0))
FREE = {'clearing', 'scan'}


def packed(depth, wants, range_m=(0.1, 10.0), **options):
    """Of an image with this depth everywhere, or (48, 64)."""
    depth = torch.as_tensor(depth, dtype=torch.float32).expand(1, 1, 48, 64).clone()
    frame = Frame(
        np.zeros((48, 64, 3), np.uint8), CameraModel.from_intrinsics(CAMERA),
        wants=frozenset(wants), base_from_optical=AHEAD,
    )  # fmt: skip
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    return pack_outputs(frame, image, None, depth, None, range_m, OutputOptions(**options))


def free_bins(found):
    return np.isposinf(found['scan'].ranges).sum()


# --- free space ---------------------------------------------------------------------------------


@pytest.mark.parametrize('depth_m', [3.5, 20.0])
def test_what_lies_beyond_the_range_of_depth_is_not_called_free(depth_m):
    """A wall at 3.5 m is +Inf to a range of 3 m, and so is the open: nobody can tell."""
    clearing, scan = ClearingOptions(4.0), ScanOptions(stride=1)
    found = packed(depth_m, FREE, (0.1, 3.0), clearing=clearing, scan=scan)
    assert found['clearing'].width == 0 and found['clearing'].is_dense
    assert np.isnan(found['scan'].ranges).all()
    assert set(found['notes']) == FREE
    assert 'clearing_range_m = 4 lies beyond the range of depth, 3 m' in found['notes']['clearing']
    assert 'scan_range_max_m = 5 lies beyond the range of depth, 3 m' in found['notes']['scan']
    for note in found['notes'].values():
        assert 'max_depth_m' in note and '\n' not in note


def test_what_was_seen_through_is_free_without_a_word():
    clearing, scan = ClearingOptions(4.0), ScanOptions(stride=1)
    found = packed(20.0, FREE, (0.1, 8.0), clearing=clearing, scan=scan)
    assert found['clearing'].width == 12 * 16 and free_bins(found) > 80
    assert found['notes'] == {}


def test_max_depth_of_the_options_is_the_range_that_counts():
    """The range that is handed over is already the narrower one."""
    for range_m, seen in (((0.1, 4.1), True), ((0.1, 3.9), False)):
        found = packed(20.0, {'clearing'}, range_m, clearing=ClearingOptions(4.0))
        centre = np.abs(found['clearing'].data.view('<f4').reshape(-1, 4)[:, :2]).max(axis=1)
        assert (centre < 0.3).any() == seen
        assert ('clearing' in found['notes']) is not seen


def test_nobody_is_told_about_what_nobody_asked_for():
    assert packed(20.0, {'depth'}, (0.1, 3.0), clearing=ClearingOptions(4.0))['notes'] == {}


# --- a camera that knows nothing ----------------------------------------------------------------


@pytest.mark.parametrize('organized', [False, True])
@pytest.mark.parametrize('value', [NAN, 0.0, -1.0, 0.05])
def test_a_picture_without_any_depth_has_no_cloud_at_all(value, organized):
    """An empty one is fresh and free to who reads it: STVL clears by its header alone."""
    found = packed(value, {'depth', 'points'}, cloud_organized=organized)
    assert 'points' not in found and found['depth'].height == 48
    assert found['notes']['points'].startswith('No points: ')
    assert 'unknown' in found['notes']['points'] and '\n' not in found['notes']['points']


@pytest.mark.parametrize('organized', [False, True])
def test_one_too_near_to_measure_has_none_either(organized):
    """A hand on the lens, as REP-117's -Inf."""
    found = packed(0.05, {'points'}, near_is_neg_inf=True, cloud_organized=organized)
    assert 'points' not in found


@pytest.mark.parametrize('organized', [False, True])
def test_the_open_has_an_empty_cloud(organized):
    """All +Inf is known: nothing within range. So is what a crop box leaves out."""
    found = packed(20.0, {'points'}, cloud_organized=organized)
    assert found['notes'] == {}
    assert not np.isfinite(found['points'].data.view('<f4').reshape(-1, 4)[:, :3]).any()
    beyond = CloudOptions(crop_min_m=(-1000.0, -1000.0, 5.0), crop_in='optical')
    found = packed(2.0, {'points'}, cloud_organized=organized, cloud=beyond)
    assert found['notes'] == {} and not np.isfinite(found['points'].data.view('<f4')[:3]).any()


def test_one_known_pixel_is_a_cloud():
    depth = torch.full((48, 64), NAN)
    depth[10, 20] = 2.0
    assert packed(depth, {'points'})['points'].width == 1
