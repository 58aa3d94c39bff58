"""Which points a costmap gets: boxes, voxels and free rays, on geometry that is known exactly."""

import math

import numpy as np
import pytest
import torch
from vlm_depth_ros.core import clouds
from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions
from vlm_depth_ros.core.clouds import crop_depth, depths_in_box, ray_ends, voxel_means
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.mounting import base_from_optical

NAN, INF = math.nan, math.inf
CAMERA = CameraIntrinsics(61.0, 59.5, 30.2, 22.9, 67, 45)
POSE = base_from_optical((0.2, -0.1, 0.6, 0.05, 0.3, -0.4))
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def depths(seed=0):
    depth = torch.rand(45, 67, generator=torch.Generator().manual_seed(seed)) * 6 + 0.2
    depth[3:9, 5:40] = NAN
    return depth


def in_frame(depth, frame_from_optical):
    """Points of each pixel, (H, W, 3) float64."""
    points = depth_to_points(depth.numpy(), CAMERA).astype(float)
    return points @ frame_from_optical[:3, :3].T + frame_from_optical[:3, 3]


def coloured(xyz, rgb=None):
    """A cloud (N, 4) of `voxel_means`."""
    points = torch.zeros(len(xyz), 4)
    points[:, :3] = torch.as_tensor(np.asarray(xyz, np.float32).reshape(-1, 3))
    if rgb is not None:
        points.view(torch.uint8)[:, 12:15] = torch.as_tensor(np.asarray(rgb)[:, ::-1].copy())
    return points


def colours(points):
    """RGB (N, 3) of a cloud; its unused byte must be 0."""
    channels = points.cpu().numpy().view(np.uint8)[:, 12:]
    assert not channels[:, 3].any()
    return channels[:, 2::-1]


def ordered(points):
    rows = points.cpu().numpy()
    return rows[np.lexsort(rows[:, :3].T)]


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize('bad, message', [
    ({'voxel_m': 0.005}, r'voxel_m = 0.005: expected 0 \(off\), or from 0.01 to 1 m'),
    ({'voxel_m': 1.5}, 'voxel_m = 1.5: expected a number from 0 to 1'),
    ({'voxel_m': -0.1}, 'voxel_m = -0.1: expected a number from 0 to 1'),
    ({'voxel_m': NAN}, 'voxel_m = nan: expected a number'),
    ({'voxel_m': '5 cm'}, "voxel_m = '5 cm': expected a number"),
    ({'crop_min_m': (0.0, 0.0)}, r'crop_min_m = \(0.0, 0.0\): expected three numbers'),
    ({'crop_max_m': 4.0}, 'crop_max_m = 4.0: expected three numbers'),
    ({'crop_max_m': (1.0, NAN, 1.0)}, 'crop_max_m = .*nan.*: expected three numbers'),
    ({'crop_max_m': (1.0, 2000.0, 1.0)}, 'each from -1000 to 1000'),
    ({'crop_min_m': (0.0, 'a', 0.0)}, "crop_min_m = .*'a'.*: expected three numbers"),
    ({'crop_min_m': (2.0, 0.0, 0.0), 'crop_max_m': (2.0, 1.0, 1.0)}, 'minimum below its maximum'),
    ({'crop_in': 'map'}, r"crop_in = 'map': expected one of \('base', 'optical'\)"),
    ({'crop_max': (1, 1, 1)}, "'crop_max' is not an option. Did you mean 'crop_max_m'"),
])  # fmt: skip
def test_a_cloud_option_out_of_bounds_is_refused(bad, message):
    with pytest.raises(ConfigError, match=message) as raised:
        from_mapping(CloudOptions, bad, 'cloud')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('bad, message', [
    ({'range_m': 0.0}, 'range_m = 0.0: expected a number from 0.1 to 1000'),
    ({'range_m': INF}, 'range_m = inf: expected a number'),
    ({'stride': 0}, 'stride = 0: expected an integer from 1 to 32'),
    ({'stride': 33}, 'stride = 33: expected an integer from 1 to 32'),
    ({'stride': 1.5}, 'stride = 1.5: expected an integer'),
])  # fmt: skip
def test_a_clearing_option_out_of_bounds_is_refused(bad, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(ClearingOptions, bad, 'clearing')


def test_a_box_read_from_yaml_is_the_box():
    box = from_mapping(CloudOptions, {'crop_min_m': [0, -1, 0.1], 'voxel_m': 0.05}, 'cloud')
    assert box == CloudOptions(0.05, (0, -1, 0.1))
    assert box.crops and not CloudOptions().crops
    assert CloudOptions(crop_max_m=(1000.0, 1000.0, 2.0)).crops


def test_voxels_and_an_organised_cloud_exclude_each_other():
    with pytest.raises(ConfigError, match='voxel_m = 0.05 with an organised cloud.*Set voxel_m'):
        CloudOptions(0.05).require_form(organized=True)
    CloudOptions(0.05).require_form(organized=False)
    CloudOptions().require_form(organized=True)


# --- the box ----------------------------------------------------------------------------------


def test_without_a_box_depth_is_the_very_same_tensor():
    """No transform is asked for either."""
    depth = depths()
    assert crop_depth(depth, CAMERA, CloudOptions(0.05), None) is depth


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('frame', ['base', 'optical'])
@pytest.mark.parametrize('low, high', [
    ((0.5, -1.0, 0.05), (3.0, 1.5, 1.2)),
    ((-1000.0, -1000.0, 0.1), (1000.0, 1000.0, 1000.0)),
    ((-1000.0, -0.4, -1000.0), (2.0, 1000.0, 4.0)),
])  # fmt: skip
def test_the_box_keeps_exactly_the_depth_of_points_in_it(frame, low, high, device):
    """Against every point, moved to the frame of the box."""
    depth = depths()
    turn = POSE if frame == 'base' else np.eye(4)
    options = CloudOptions(0.0, low, high, frame)
    kept = crop_depth(depth.to(device), CAMERA, options, POSE).cpu()
    at = in_frame(depth, turn)
    margin = np.minimum(at - low, np.array(high) - at).min(-1)  # NaN compares as false
    inside = margin >= 0
    sure = ~(np.abs(margin) < 1e-5)  # float32 decides on the faces
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(~np.isnan(kept.numpy())[sure], inside[sure])
    there = ~kept.isnan()
    assert torch.equal(kept[there], depth[there])
    assert depth.isnan().sum() == 6 * 35  # The input is as it was.


def test_a_wall_in_the_very_face_of_the_box_is_in_it():
    options = CloudOptions(crop_min_m=(-1000.0, -1000.0, 1.0), crop_max_m=(1000.0, 1000.0, 2.0),
                           crop_in='optical')  # fmt: skip
    for depth_m, kept in ((1.0, True), (2.0, True), (0.999999, False), (2.000001, False)):
        cropped = crop_depth(torch.full((45, 67), depth_m), CAMERA, options, None)
        assert bool(cropped.isfinite().all()) is kept and bool(cropped.isnan().all()) is not kept


def test_the_floor_goes_when_the_box_begins_above_it():
    """A camera 0.5 m up that looks ahead: the row v sees the floor at 0.5 fy / (v - cy)."""
    pose = base_from_optical((0, 0, 0.5, 0, 0, 0))
    v = np.arange(45.0) - CAMERA.cy_px
    floor = np.where(v > 0, 0.5 * CAMERA.fy_px / np.where(v > 0, v, 1), NAN)
    depth = torch.from_numpy(np.repeat(floor[:, None], 67, 1).astype(np.float32))
    everything = CloudOptions(crop_min_m=(-1000.0, -1000.0, -0.01))
    above = CloudOptions(crop_min_m=(-1000.0, -1000.0, 0.01))
    assert torch.equal(crop_depth(depth, CAMERA, everything, pose).isnan(), depth.isnan())
    assert crop_depth(depth, CAMERA, above, pose).isnan().all()


def test_rays_enter_and_leave_a_slab_of_heights_where_geometry_says():
    """Between 0.2 and 0.8 m, seen from 0.5 m: an endless stretch ahead, a short one below."""
    camera = CameraIntrinsics(100.0, 100.0, 2.0, 2.0, 5, 5)
    pose = base_from_optical((0, 0, 0.5, 0, 0, 0))
    near, far = depths_in_box(camera, pose, (-INF, -INF, 0.2), (INF, INF, 0.8))
    assert (near < 1e-30).all()
    np.testing.assert_allclose(far[:, 0], [15, 30, np.finfo(np.float32).max, 30, 15], rtol=1e-6)
    near, far = depths_in_box(camera, pose, (-INF, -INF, -0.5), (INF, INF, 0.0))
    assert (near[:3] > far[:3]).all()
    np.testing.assert_allclose(near[3:, 0], [50, 25], rtol=1e-6)
    np.testing.assert_allclose(far[3:, 0], [100, 50], rtol=1e-6)


def test_a_ray_along_the_face_of_a_slab_is_in_it():
    """Its slope is 0 and so is its distance: no NaN comes of it."""
    camera = CameraIntrinsics(100.0, 100.0, 2.0, 2.0, 5, 5)
    pose = base_from_optical((0, 0, 0.5, 0, 0, 0))
    for low, high in ((0.5, 1.0), (0.0, 0.5)):
        near, far = depths_in_box(camera, pose, (-INF, -INF, low), (INF, INF, high))
        assert not np.isnan(near).any() and not np.isnan(far).any()
        assert (near[2] < 3).all() and (far[2] > 3).all()


def test_a_box_in_the_base_frame_wants_to_know_where_the_camera_is():
    options = CloudOptions(crop_max_m=(3.0, 3.0, 3.0))
    with pytest.raises(InputError, match='no base_from_optical came.*Set camera_in_base') as error:
        crop_depth(depths(), CAMERA, options, None)
    assert '\n' not in str(error.value)
    with pytest.raises(InputError, match='base_from_optical of shape .* is no rigid transform'):
        crop_depth(depths(), CAMERA, options, np.eye(4) * 2)
    in_view = CloudOptions(crop_max_m=(3.0, 3.0, 3.0), crop_in='optical')
    assert crop_depth(depths(), CAMERA, in_view, None).nan_to_num().max() <= 3


# --- voxels -----------------------------------------------------------------------------------

WAYS = {'numpy': voxel_means, 'torch': clouds._voxel_means_torch}
both_ways = pytest.mark.parametrize('means_of', WAYS.values(), ids=WAYS)


def random_cloud(n=5000, seed=0):
    rng = np.random.default_rng(seed)
    xyz = rng.normal(0, 0.4, (n, 3)) + (0, 0, 2)
    return coloured(xyz, rng.integers(0, 256, (n, 3), dtype=np.uint8))


@both_ways
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('voxel_m', [0.01, 0.1, 0.37, 1.0])
def test_each_voxel_keeps_the_mean_of_its_points_and_colours(means_of, voxel_m, device):
    points = random_cloud()
    found = means_of(points.to(device), voxel_m)
    assert found.dtype == torch.float32 and found.device.type == device
    xyz, rgb = points[:, :3].numpy(), colours(points)
    cells = {}
    for place, cell in enumerate(map(tuple, np.floor(xyz * np.float32(1 / voxel_m)).astype(int))):
        cells.setdefault(cell, []).append(place)
    wanted = coloured(
        [xyz[places].astype(float).mean(0) for places in cells.values()],
        [np.floor(rgb[places].mean(0) + 0.5).astype(np.uint8) for places in cells.values()],
    )
    found, wanted = ordered(found), ordered(wanted)
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(colours(torch.tensor(found)), colours(torch.tensor(wanted)))


@both_ways
@pytest.mark.parametrize('voxel_m', [0.03, 0.25])
def test_each_point_lies_within_a_voxel_of_its_own(means_of, voxel_m):
    """And none is lost: a voxel has its point exactly where the cloud had one."""
    points = random_cloud(20_000, 1)
    found = means_of(points, voxel_m)[:, :3].numpy()

    def cells(xyz):
        return {tuple(cell) for cell in np.floor(xyz * np.float32(1 / voxel_m)).astype(int)}

    assert len(cells(found)) == len(found)
    assert cells(found) == cells(points[:, :3].numpy())


@both_ways
def test_points_to_either_side_of_the_axes_do_not_meet(means_of):
    """Truncation instead of floor would make the voxels at the axes twice as wide."""
    corners = np.array(np.meshgrid([-0.01, 0.01], [-0.01, 0.01], [0.09, 0.11])).reshape(3, -1).T
    assert len(means_of(coloured(corners), 0.1)) == 8


@both_ways
@pytest.mark.parametrize('n', [0, 1, 2, 3])
def test_a_few_points_or_none_are_a_cloud(means_of, n):
    points = coloured(np.arange(3 * n).reshape(-1, 3) + 0.5)
    np.testing.assert_array_equal(ordered(means_of(points, 0.1)), points.numpy())


@both_ways
def test_points_without_colour_stay_black(means_of):
    assert not colours(means_of(coloured(np.random.default_rng(0).random((500, 3))), 0.2)).any()


@both_ways
def test_one_voxel_may_hold_the_whole_cloud(means_of):
    """White stays white: no sum overflows."""
    points = coloured(np.full((70_000, 3), 0.25), np.full((70_000, 3), 255, np.uint8))
    found = means_of(points, 1.0)
    np.testing.assert_array_equal(found[:, :3].numpy(), [[0.25] * 3])
    np.testing.assert_array_equal(colours(found), [[255] * 3])


@both_ways
def test_absurdly_far_points_share_a_voxel_and_harm_no_other(means_of):
    found = means_of(coloured([(1e30, 0, 1), (3e30, 0, 1), (-1e30, 0, 1), (1, 0, 1)]), 0.01)
    xs = sorted(found[:, 0].tolist())
    np.testing.assert_allclose(xs, [-1e30, 1.0, 2e30], rtol=1e-6)


def test_voxels_that_fall_on_one_place_of_the_table_are_kept_apart(monkeypatch):
    """With the worst of all hashes, which sends all keys to one place."""
    points = random_cloud(300)
    wanted = ordered(voxel_means(points, 0.1))
    monkeypatch.setattr(clouds, 'HASH', np.uint64(0))
    np.testing.assert_array_equal(ordered(voxel_means(points, 0.1)), wanted)


def test_the_points_before_are_left_as_they_were():
    points = random_cloud(100)
    before = points.clone()
    voxel_means(points, 0.5)
    assert torch.equal(points.view(torch.int32), before.view(torch.int32))


# --- where free rays end ----------------------------------------------------------------------


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('range_m', [0.1, 2.5, 3.3, 5.5, 17.0, 1000.0])
@pytest.mark.parametrize('stride', [1, 3, 32])
def test_rays_end_at_the_range_and_never_within_it(range_m, stride, device):
    """Along the ray, as Nav2 measures; a point within the marking range would be an obstacle."""
    depth, points = ray_ends(CAMERA, torch.device(device), ClearingOptions(range_m, stride))
    depth, points = depth.cpu().numpy(), points.cpu().numpy().astype(float)
    assert depth.shape == (math.ceil(45 / stride), math.ceil(67 / stride))
    distance = np.linalg.norm(points[:, :3], axis=1)
    assert (distance >= range_m).all()
    np.testing.assert_allclose(distance, range_m, rtol=5e-7)
    np.testing.assert_array_equal(points[:, 2], depth.ravel())
    assert not points[:, 3].any()
    v, u = np.mgrid[:45:stride, :67:stride]
    np.testing.assert_allclose(
        points[:, 0] / points[:, 2] * CAMERA.fx_px + CAMERA.cx_px, u.ravel(), atol=1e-4
    )
    np.testing.assert_allclose(
        points[:, 1] / points[:, 2] * CAMERA.fy_px + CAMERA.cy_px, v.ravel(), atol=1e-4
    )
