"""The bytes that a robot reads, decoded as its consumers decode them."""

from array import array
import math
import warnings

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.mounting import base_from_optical
from vlm_depth_ros.core.packing import (
    camera_info_of,
    gate_depth,
    pack_clearing,
    pack_cloud,
    pack_confidence,
    pack_depth,
    pack_embedding,
    pack_picture,
    PackedCloud,
    PackedImage,
    POINT_FIELDS,
    POINT_STEP,
)

CAMERA = CameraIntrinsics(61.0, 59.5, 30.2, 22.9, 67, 45)
NAN, INF = math.nan, math.inf
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gated depth with unknown, too near and too far pixels, and an image for it."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(45, 67, generator=generator) * 6 + 0.5
    depth[3:9, 5:40] = NAN
    depth[20:25, 30:] = INF
    depth[40, :7] = -INF
    rgb = torch.randint(0, 256, (45, 67, 3), dtype=torch.uint8, generator=generator)
    return depth, rgb


def decode_image(image: PackedImage) -> np.ndarray:
    """Read a 32FC1 image as cv_bridge does."""
    assert image.encoding == '32FC1'
    assert image.data.size == image.step * image.height
    return image.data.view('<f4').reshape(image.height, image.step // 4)


def decode_cloud(cloud: PackedCloud) -> np.ndarray:
    """Read a cloud as sensor_msgs_py does: a structured array by the fields."""
    dtype = np.dtype({
        'names': [name for name, _, _ in POINT_FIELDS],
        'formats': ['<f4'] * len(POINT_FIELDS),
        'offsets': [offset for _, offset, _ in POINT_FIELDS],
        'itemsize': cloud.point_step,
    })  # fmt: skip
    assert cloud.row_step == cloud.width * cloud.point_step
    assert cloud.data.size == cloud.height * cloud.row_step
    return np.frombuffer(cloud.data.tobytes(), dtype).reshape(cloud.height, cloud.width)


def xyz(points: np.ndarray) -> np.ndarray:
    """Coordinates of a structured cloud as (..., 3)."""
    return np.stack([points['x'], points['y'], points['z']], axis=-1)


# --- gate_depth -------------------------------------------------------------------------------


@pytest.mark.parametrize('near_is_neg_inf, near', [(False, NAN), (True, -INF)])
@pytest.mark.parametrize('device', DEVICES)
def test_gate_writes_every_kind_of_value_as_rep_117_says(near_is_neg_inf, near, device):
    """The bounds themselves are valid; what is no depth has no side of a bound."""
    values = [NAN, INF, -INF, 0.0, -0.0, -1.0, 1e-30, 0.2, 0.3, 5.0, 7.9999, 8.0, 8.001, 1e30]
    expected = [NAN, NAN, NAN, NAN, NAN, NAN, near, near, 0.3, 5.0, 7.9999, 8.0, INF, INF]
    depth = torch.tensor(values * 5, device=device).reshape(2, 1, 5, 7)
    gated = gate_depth(depth, 0.3, 8.0, near_is_neg_inf)
    want = np.array(expected * 5, np.float32).reshape(2, 1, 5, 7)
    np.testing.assert_array_equal(gated.cpu().numpy(), want)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gate_gives_float32_and_leaves_its_input_alone(dtype):
    """A network at half precision is gated at full precision."""
    depth = torch.tensor([[0.0, 0.5, 2.0, 100.0, NAN]], dtype=dtype)
    before = depth.clone()
    gated = gate_depth(depth, 1.0, 10.0, False)
    assert gated.dtype == torch.float32
    torch.testing.assert_close(
        gated, torch.tensor([[NAN, NAN, 2.0, INF, NAN]]), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(depth, before, equal_nan=True, rtol=0, atol=0)


def test_gate_without_bounds_still_lets_no_zero_out():
    """0 is an obstacle at the lens to depth_image_proc."""
    gated = gate_depth(torch.tensor([0.0, -2.0, 1e-6, 3e5]), 0.0, INF, True)
    np.testing.assert_array_equal(gated.numpy(), np.array([NAN, NAN, 1e-6, 3e5], np.float32))


@pytest.mark.parametrize('low, high', [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0), (NAN, 1.0), (0, NAN)])
def test_gate_refuses_an_empty_range(low, high):
    """Each would make every pixel unknown, silently."""
    with pytest.raises(InputError, match='expected 0 <= minimum < maximum'):
        gate_depth(torch.ones(2, 2), low, high, False)


# --- pack_depth, camera_info_of ---------------------------------------------------------------


@pytest.mark.parametrize('device', DEVICES)
def test_depth_image_decodes_to_the_same_values(device):
    """Bit for bit, not-a-number included."""
    depth, _ = scene()
    image = pack_depth(depth.to(device))
    assert (image.height, image.width, image.step) == (45, 67, 67 * 4)
    assert image.data.dtype == np.uint8 and image.data.ndim == 1
    assert image.data.flags.c_contiguous
    np.testing.assert_array_equal(decode_image(image), depth.numpy())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_depth_of_another_precision_is_packed_as_float32(dtype):
    """There is no 16FC1 that consumers read."""
    depth = scene()[0].to(dtype)
    np.testing.assert_array_equal(decode_image(pack_depth(depth)), depth.float().numpy())


def test_depth_that_is_a_view_or_has_a_gradient_is_packed_in_row_order():
    """Any tensor of the right size is fine."""
    depth = scene()[0].requires_grad_()
    turned = pack_depth(depth.t())
    np.testing.assert_array_equal(decode_image(turned), depth.detach().numpy().T)


def test_depth_with_a_channel_axis_is_refused():
    """Guessing which axis is the batch would hide a mistake."""
    with pytest.raises(InputError, match=r'\(1, 45, 67\): expected \(height, width\)'):
        pack_depth(scene()[0][None])


@pytest.mark.parametrize('device', DEVICES)
def test_confidence_is_missing_exactly_where_depth_is_unknown(device):
    """Beyond range something was seen; where nothing was, no confidence is one."""
    depth = torch.tensor([[1.0, NAN, INF], [-INF, 2.0, NAN]], device=device)
    said = torch.linspace(0, 1, 6, device=device).view(2, 3)
    found = decode_image(pack_confidence(said, depth))
    expected = np.array([[0, NAN, 0.4], [0.6, 0.8, NAN]], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('shape', [(2, 4), (3, 2), (1, 2, 3)])
def test_confidence_of_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=r'confidence has shape .*: expected .*, \(2, 3\)'):
        pack_confidence(torch.zeros(shape), torch.ones(2, 3))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_embedding_is_an_image_of_one_row(dtype, device):
    """Also one row of a batch, in lower precision, with a gradient."""
    batch = torch.randn(3, 24, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    packed = pack_embedding(batch.requires_grad_()[1])
    assert (packed.height, packed.width, packed.step) == (1, 24, 96)
    expected = batch[1].detach().float().cpu().numpy()
    np.testing.assert_array_equal(decode_image(packed)[0], expected)


@pytest.mark.parametrize('shape', [(), (1, 24), (2, 3, 4)])
def test_an_embedding_with_another_axis_is_refused(shape):
    with pytest.raises(InputError, match=r'embedding has shape .*: expected \(width,\)'):
        pack_embedding(torch.zeros(shape))


@pytest.mark.parametrize('device', DEVICES)
def test_colour_picture_is_packed_row_by_row(device):
    """A view of a larger picture too."""
    picture = scene()[1].to(device)[:, 3:30]
    image = pack_picture(picture, 'bgr8')
    assert (image.height, image.width, image.encoding, image.step) == (45, 27, 'bgr8', 81)
    np.testing.assert_array_equal(image.data.reshape(45, 27, 3), picture.cpu().numpy())


def test_camera_info_describes_the_published_image_and_nothing_else():
    """Rectified: consumers may use K or P alike."""
    info = camera_info_of(CAMERA)
    assert (info.height, info.width, info.distortion_model) == (45, 67, 'plumb_bob')
    assert info.d == (0.0,) * 5
    assert info.k == (61.0, 0, 30.2, 0, 59.5, 22.9, 0, 0, 1)
    assert info.r == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert info.p == (61.0, 0, 30.2, 0, 0, 59.5, 22.9, 0, 0, 0, 1, 0)
    assert all(type(v) is float for v in (*info.d, *info.k, *info.r, *info.p))


# --- pack_cloud -------------------------------------------------------------------------------


def depth_image_proc(image: PackedImage, info) -> np.ndarray:
    """Points (H, W, 3) by the formula of depth_image_proc, from what is published."""
    z = decode_image(image).astype(np.float64)
    fx, cx, fy, cy = info.p[0], info.p[2], info.p[5], info.p[6]
    v, u = np.indices(z.shape)
    points = np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z], axis=-1)
    points[~np.isfinite(z)] = NAN
    return points


@pytest.mark.parametrize('device', DEVICES)
def test_cloud_equals_what_depth_image_proc_makes_of_depth_and_camera_info(device):
    """Both clouds lie on each other."""
    depth, rgb = scene()
    expected = depth_image_proc(pack_depth(depth), camera_info_of(CAMERA))
    organised = pack_cloud(depth.to(device), CAMERA, rgb.to(device), organized=True)
    np.testing.assert_allclose(xyz(decode_cloud(organised)), expected, rtol=1e-6, atol=1e-6)
    compact = pack_cloud(depth.to(device), CAMERA, rgb.to(device))
    expected = expected[np.isfinite(expected).all(-1)]
    np.testing.assert_allclose(xyz(decode_cloud(compact)[0]), expected, rtol=1e-6, atol=1e-6)


def test_cloud_equals_the_points_of_the_geometry_module():
    """The desk and the robot see one scene."""
    depth, _ = scene()
    cloud = pack_cloud(depth, CAMERA, organized=True)
    np.testing.assert_array_equal(xyz(decode_cloud(cloud)), depth_to_points(depth.numpy(), CAMERA))


def test_point_layout_is_the_documented_one():
    """Consumers find the fields by offset."""
    cloud = pack_cloud(torch.full((45, 67), 2.0), CAMERA)
    assert POINT_FIELDS == (('x', 0, 7), ('y', 4, 7), ('z', 8, 7), ('rgb', 12, 7))
    assert cloud.point_step == POINT_STEP == 16
    assert cloud.data.dtype == np.uint8 and cloud.data.flags.c_contiguous
    assert cloud.data[8:12].tobytes() == np.array([2.0], '<f4').tobytes()


@pytest.mark.parametrize('organized', [False, True])
@pytest.mark.parametrize('stride', [1, 2, 3, 16])
def test_colour_bits_are_those_of_the_pixel_of_each_point(organized, stride):
    """0x00RRGGBB, with a stride and after holes are dropped."""
    depth, rgb = scene()
    cloud = pack_cloud(depth, CAMERA, rgb, stride, organized)
    assert cloud.has_rgb
    picked = rgb.numpy()[::stride, ::stride].astype(np.uint32)
    words = picked[..., 0] << 16 | picked[..., 1] << 8 | picked[..., 2]
    if not organized:
        words = words[np.isfinite(depth.numpy()[::stride, ::stride])][None]
    np.testing.assert_array_equal(decode_cloud(cloud)['rgb'].view(np.uint32), words)


def test_one_orange_pixel_is_the_word_that_pcl_expects():
    """Little endian: blue first, alpha 0."""
    one = CameraIntrinsics(1.0, 1.0, 0.0, 0.0, 1, 1)
    orange = torch.tensor([[[255, 128, 1]]], dtype=torch.uint8)
    cloud = pack_cloud(torch.ones(1, 1), one, orange)
    assert cloud.data[12:].tobytes() == bytes([1, 128, 255, 0])


@pytest.mark.parametrize('organized', [False, True])
def test_cloud_without_an_image_says_so_and_is_black(organized):
    """No byte is left as the allocator found it."""
    cloud = pack_cloud(scene()[0], CAMERA, None, 1, organized)
    assert not cloud.has_rgb
    assert not decode_cloud(cloud)['rgb'].view(np.uint32).any()


@pytest.mark.parametrize('stride', [1, 2, 3, 4, 16])
def test_organised_cloud_keeps_the_grid_with_nan_where_there_is_no_point(stride):
    """All three coordinates, infinite depth too."""
    depth, rgb = scene()
    cloud = pack_cloud(depth, CAMERA, rgb, stride, organized=True)
    assert (cloud.height, cloud.width) == (math.ceil(45 / stride), math.ceil(67 / stride))
    points = xyz(decode_cloud(cloud))
    missing = ~np.isfinite(depth.numpy()[::stride, ::stride])
    assert np.isnan(points[missing]).all()
    assert np.isfinite(points[~missing]).all()
    everything = xyz(decode_cloud(pack_cloud(depth, CAMERA, organized=True)))
    np.testing.assert_allclose(points, everything[::stride, ::stride], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2, 5])
def test_compact_cloud_is_the_organised_one_without_its_holes(stride):
    """In the same order."""
    depth, rgb = scene()
    organised = decode_cloud(pack_cloud(depth, CAMERA, rgb, stride, organized=True))
    cloud = pack_cloud(depth, CAMERA, rgb, stride)
    assert cloud.height == 1
    kept = organised[~np.isnan(organised['z'])]
    assert decode_cloud(cloud).tobytes() == kept.tobytes()


@pytest.mark.parametrize('device', DEVICES)
def test_dense_means_that_every_coordinate_is_finite(device):
    """PCL skips the finite test on a dense cloud, and crashes if that is a lie."""
    depth = torch.full((45, 67), 3.0, device=device)
    assert pack_cloud(depth, CAMERA, organized=True).is_dense is True
    assert pack_cloud(depth, CAMERA).is_dense is True
    for hole in (NAN, INF, -INF):
        depth[13, 7] = hole
        assert pack_cloud(depth, CAMERA, organized=True).is_dense is False
        assert pack_cloud(depth, CAMERA, None, 2, organized=True).is_dense is True  # Not chosen.
        compact = pack_cloud(depth, CAMERA)
        assert compact.is_dense is True
        assert np.isfinite(xyz(decode_cloud(compact))).all()
        assert compact.width == 45 * 67 - 1


def test_cloud_of_nothing_is_empty_and_well_formed():
    """A robot in the dark still publishes valid messages."""
    cloud = pack_cloud(torch.full((45, 67), NAN), CAMERA)
    assert (cloud.height, cloud.width, cloud.row_step, cloud.data.size) == (1, 0, 0, 0)
    assert cloud.is_dense is True


@pytest.mark.parametrize('organized', [False, True])
def test_no_point_lies_at_or_behind_the_lens_even_without_gating(organized):
    """The last line of defence."""
    depth = torch.full((45, 67), 3.0)
    depth[0, :3] = torch.tensor([0.0, -0.0, -4.0])
    z = decode_cloud(pack_cloud(depth, CAMERA, None, 1, organized))['z']
    assert np.nanmin(z) == 3.0
    assert np.isfinite(z).sum() == 45 * 67 - 3


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_cloud_of_another_precision_is_float32(dtype):
    """Converted before unprojection, which keeps the error that of the depth."""
    depth, rgb = scene()
    depth = depth.to(dtype)
    cloud, expected = pack_cloud(depth, CAMERA, rgb), pack_cloud(depth.float(), CAMERA, rgb)
    assert cloud.data.tobytes() == expected.data.tobytes()


def test_cloud_of_views_is_in_row_order():
    """Memory order of the input must not leak into the message."""
    depth, rgb = scene()
    turned = CameraIntrinsics(59.5, 61.0, 22.9, 30.2, 45, 67)
    for organized in (False, True):
        cloud = pack_cloud(depth.t(), turned, rgb.transpose(0, 1), 2, organized)
        plain = pack_cloud(
            depth.t().contiguous(), turned, rgb.transpose(0, 1).contiguous(), 2, organized
        )
        assert cloud.data.tobytes() == plain.data.tobytes()


def test_tensors_from_inference_mode_and_with_gradients_are_packed_alike():
    """Cached rays must serve both modes."""
    depth, rgb = scene()
    expected = pack_cloud(depth, CAMERA, rgb).data.tobytes()
    with torch.inference_mode():
        inside = pack_cloud(gate_depth(depth.clone(), 0.0, INF, False), CAMERA, rgb.clone())
    assert inside.data.tobytes() == expected
    assert pack_cloud(depth.requires_grad_(), CAMERA, rgb).data.tobytes() == expected


def test_a_packed_cloud_keeps_its_bytes_when_the_next_frame_comes():
    """No buffer is reused behind a message that waits to be sent."""
    depth, rgb = scene()
    for organized in (False, True):
        first = pack_cloud(depth, CAMERA, rgb, 1, organized)
        before = first.data.tobytes()
        pack_cloud(*(scene(1)[0], CAMERA, scene(1)[1]), 1, organized)
        assert first.data.tobytes() == before


@pytest.mark.parametrize('change, message', [
    ({'depth': torch.ones(44, 67)}, r'\(44, 67\).*\(45, 67\)'),
    ({'depth': torch.ones(1, 45, 67)}, r'\(1, 45, 67\)'),
    ({'rgb': torch.zeros(90, 134, 3, dtype=torch.uint8)}, r'\(90, 134, 3\).*\(45, 67, 3\)'),
    ({'rgb': torch.zeros(45, 67, 3)}, 'torch.float32.*expected torch.uint8'),
    ({'stride': 0}, 'stride = 0: expected at least 1'),
    ({'stride': -2}, 'stride = -2: expected at least 1'),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(change, message):
    """Each message names both sides."""
    depth, rgb = scene()
    arguments = {'depth': depth, 'intrinsics': CAMERA, 'rgb': rgb, 'stride': 1, **change}
    with pytest.raises(InputError, match=message):
        pack_cloud(**arguments)


def test_packing_raises_no_warning():
    """A log line for each frame hides the others."""
    depth, rgb = scene()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pack_cloud(gate_depth(depth, 1e-3, 10.0, True), CAMERA, rgb, 2, True)
        gate_depth(depth, 0.1, 1e38, False)


@pytest.mark.parametrize('name', ['image', 'organised', 'compact'])
def test_packed_bytes_go_into_an_array_without_a_copy_by_element(name):
    """`array.frombytes(memoryview)` needs one dimension of bytes, contiguous."""
    depth, rgb = scene()
    packed = {
        'image': lambda: pack_depth(depth),
        'organised': lambda: pack_cloud(depth, CAMERA, rgb, 1, True),
        'compact': lambda: pack_cloud(depth, CAMERA, rgb),
    }[name]()
    data = array('B')
    data.frombytes(memoryview(packed.data))
    assert data.tobytes() == packed.data.tobytes()


# --- pack_cloud with options ------------------------------------------------------------------

POSE = base_from_optical((0.2, -0.1, 0.6, 0.05, 0.3, -0.4))
BOX = CloudOptions(0.0, (0.5, -1.0, 0.05), (3.0, 1.5, 1.2), 'base')


@pytest.mark.parametrize('organized', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_options_that_ask_for_nothing_give_the_very_same_bytes(organized, stride):
    """With a pose and without."""
    depth, rgb = scene()
    plain = pack_cloud(depth, CAMERA, rgb, stride, organized)
    for pose in (None, POSE):
        cloud = pack_cloud(depth, CAMERA, rgb, stride, organized, CloudOptions(), pose)
        assert cloud.data.tobytes() == plain.data.tobytes()
        assert (cloud.height, cloud.width, cloud.is_dense, cloud.has_rgb) == (
            plain.height, plain.width, plain.is_dense, plain.has_rgb,
        )  # fmt: skip


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('stride', [1, 3])
def test_a_box_makes_holes_in_an_organised_cloud_and_a_compact_one_smaller(stride, device):
    """Points stay in the optical frame; only the test is made in the base."""
    depth, rgb = (tensor.to(device) for tensor in scene())
    plain = decode_cloud(pack_cloud(depth, CAMERA, rgb, stride, True))
    cloud = pack_cloud(depth, CAMERA, rgb, stride, True, BOX, POSE)
    organised = decode_cloud(cloud)
    kept = ~np.isnan(organised['z'])
    assert cloud.is_dense is False and 0 < kept.sum() < np.isfinite(plain['z']).sum()
    assert organised[kept].tobytes() == plain[kept].tobytes()
    assert np.isnan(xyz(organised)[~kept]).all()
    in_base = xyz(plain).astype(float) @ POSE[:3, :3].T + POSE[:3, 3]
    margin = np.minimum(in_base - BOX.crop_min_m, np.array(BOX.crop_max_m) - in_base).min(-1)
    sure = ~(np.abs(margin) < 1e-5)
    np.testing.assert_array_equal(kept[sure], (margin >= 0)[sure])
    compact = pack_cloud(depth, CAMERA, rgb, stride, False, BOX, POSE)
    assert compact.data.tobytes() == organised[kept].tobytes()
    assert compact.is_dense is True and compact.width == kept.sum()


def test_an_organised_cloud_that_fits_into_the_box_stays_dense():
    """And one that lies outside is all holes, or empty."""
    depth = torch.full((45, 67), 2.0)
    around = CloudOptions(crop_max_m=(1000.0, 1000.0, 2.0), crop_in='optical')
    beyond = CloudOptions(crop_min_m=(-1000.0, -1000.0, 2.5), crop_in='optical')
    assert pack_cloud(depth, CAMERA, organized=True, options=around).is_dense is True
    outside = pack_cloud(depth, CAMERA, organized=True, options=beyond)
    assert outside.is_dense is False and np.isnan(xyz(decode_cloud(outside))).all()
    empty = pack_cloud(depth, CAMERA, options=beyond)
    assert (empty.height, empty.width, empty.row_step, empty.data.size) == (1, 0, 0, 0)
    assert empty.is_dense is True


@pytest.mark.parametrize('device', DEVICES)
def test_a_voxel_cloud_is_dense_small_and_coloured(device):
    depth, rgb = (tensor.to(device) for tensor in scene())
    plain = pack_cloud(depth, CAMERA, rgb)
    cloud = pack_cloud(depth, CAMERA, rgb, options=CloudOptions(0.5))
    points = decode_cloud(cloud)
    assert (cloud.height, cloud.is_dense, cloud.has_rgb) == (1, True, True)
    assert 0 < cloud.width < plain.width / 2
    assert np.isfinite(xyz(points)).all()
    cells = np.floor(xyz(points)[0] * 2).astype(int)
    assert len(np.unique(cells, axis=0)) == cloud.width
    assert points['rgb'].view(np.uint32).any()
    black = pack_cloud(depth, CAMERA, options=CloudOptions(0.5))
    assert not black.has_rgb and not decode_cloud(black)['rgb'].view(np.uint32).any()
    nothing = pack_cloud(torch.full_like(depth, NAN), CAMERA, rgb, options=CloudOptions(0.5))
    assert (nothing.width, nothing.data.size, nothing.is_dense) == (0, 0, True)


def test_one_orange_pixel_is_the_same_word_after_voxels():
    one = CameraIntrinsics(1.0, 1.0, 0.0, 0.0, 1, 1)
    orange = torch.tensor([[[255, 128, 1]]], dtype=torch.uint8)
    cloud = pack_cloud(torch.ones(1, 1), one, orange, options=CloudOptions(0.1))
    assert cloud.data[12:].tobytes() == bytes([1, 128, 255, 0])


def test_a_box_and_voxels_work_together():
    """First the box: a voxel on its face holds the mean of what is inside."""
    options = CloudOptions(0.2, (-1000.0, -1000.0, 1.0), (1000.0, 1000.0, 2.1), 'optical')
    z = decode_cloud(pack_cloud(scene()[0], CAMERA, options=options))['z']
    assert z.size and 1.0 <= z.min() and z.max() <= 2.1


def test_an_organised_cloud_of_voxels_is_refused():
    with pytest.raises(ConfigError, match='voxel_m = 0.05 with an organised cloud'):
        pack_cloud(scene()[0], CAMERA, organized=True, options=CloudOptions(0.05))


def test_a_box_in_the_base_frame_without_a_pose_is_refused():
    with pytest.raises(InputError, match='no base_from_optical came'):
        pack_cloud(scene()[0], CAMERA, options=BOX)


# --- pack_clearing ----------------------------------------------------------------------------


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('stride', [1, 2, 5])
def test_free_rays_get_a_point_each_and_all_others_none(stride, device):
    """Beyond the range, by distance and not by depth, or beyond that of the sensor."""
    depth, _ = scene()
    cloud = pack_clearing(depth.to(device), CAMERA, ClearingOptions(4.0, stride))
    x, y = (axis.astype(float) for axis in CAMERA.axis_rays())
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], 1.0), -1)
    length = np.linalg.norm(rays, axis=-1)
    free = (depth.numpy() * length > 4.0)[::stride, ::stride]
    assert 0 < free.sum() < (depth.numpy() > 0)[::stride, ::stride].sum()
    wanted = (rays * 4.0 / length[..., None])[::stride, ::stride][free]
    np.testing.assert_allclose(xyz(decode_cloud(cloud))[0], wanted, rtol=1e-6, atol=1e-6)
    assert (cloud.height, cloud.is_dense, cloud.has_rgb) == (1, True, False)
    assert not decode_cloud(cloud)['rgb'].view(np.uint32).any()


def test_a_wall_beside_the_range_is_free_where_it_is_farther_along_the_ray():
    """At a depth of 3 m the corners of the picture are farther than 3.2 m, the middle is not."""
    wall = torch.full((45, 67), 3.0)
    some = xyz(decode_cloud(pack_clearing(wall, CAMERA, ClearingOptions(3.2, 1))))[0]
    assert 0 < len(some) < wall.numel()
    off_axis = np.hypot(some[:, 0], some[:, 1]) / some[:, 2]
    assert off_axis.min() >= math.sqrt((3.2 / 3.0) ** 2 - 1) - 1e-6
    assert (some[:, 2] <= 3.0).all()
    assert pack_clearing(wall, CAMERA, ClearingOptions(9.0, 1)).width == 0
    assert pack_clearing(wall, CAMERA, ClearingOptions(2.9, 1)).width == wall.numel()


@pytest.mark.parametrize('value, points', [
    (INF, 45 * 67), (NAN, 0), (-INF, 0), (0.0, 0), (-9.0, 0), (0.2, 0), (900.0, 45 * 67),
])  # fmt: skip
def test_unknown_is_not_free(value, points):
    cloud = pack_clearing(torch.full((45, 67), value), CAMERA, ClearingOptions(4.0, 1))
    assert (cloud.height, cloud.width, cloud.row_step) == (1, points, points * 16)
    assert cloud.data.size == points * 16 and cloud.is_dense is True
    assert np.isfinite(xyz(decode_cloud(cloud))).all()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('max_m, some, all_', [(3.0, False, False), (3.7, True, False),
                                               (4.0, True, True), (9.0, True, True)])  # fmt: skip
def test_beyond_range_is_free_only_as_far_as_the_range_goes(max_m, some, all_, device):
    """A wall at 3.5 m behind a range of 3 m is +Inf: 4 m of that ray were never seen."""
    beyond = torch.full((45, 67), INF, device=device)
    options = ClearingOptions(4.0, 1)
    cloud = pack_clearing(beyond, CAMERA, options, max_m)
    assert (cloud.width > 0, cloud.width == beyond.numel()) == (some, all_)
    # Range and depth differ off the axis: what has a point ends before the last depth.
    assert (decode_cloud(cloud)['z'] <= max_m).all()
    wall = torch.full((45, 67), 3.9, device=device)
    assert pack_clearing(wall, CAMERA, options, 3.95).width == pack_clearing(
        wall, CAMERA, options
    ).width


@pytest.mark.parametrize('range_m', [2.5, 3.3, 5.0])
def test_no_clearing_point_lies_within_the_marking_range(range_m):
    """Even if the user sets both to the same number."""
    cloud = pack_clearing(torch.full((45, 67), INF), CAMERA, ClearingOptions(range_m, 1))
    points = xyz(decode_cloud(cloud))[0].astype(float)
    assert (np.einsum('ij,ij->i', points, points) >= range_m**2).all()


def test_clearing_points_of_one_frame_do_not_change_those_of_the_next():
    """The table of ray ends is kept, what is sent is not part of it."""
    depth = torch.full((45, 67), INF)
    first = pack_clearing(depth, CAMERA, ClearingOptions(4.0, 1))
    before = first.data.tobytes()
    first.data[:] = 7
    assert pack_clearing(depth, CAMERA, ClearingOptions(4.0, 1)).data.tobytes() == before


def test_clearing_takes_views_and_other_precisions():
    depth, _ = scene()
    turned = CameraIntrinsics(59.5, 61.0, 22.9, 30.2, 45, 67)
    options = ClearingOptions(4.0, 2)
    half = depth.half()
    for given, same, camera in (
        (depth.t(), depth.t().contiguous(), turned),
        (half, half.float(), CAMERA),
        (depth.clone().requires_grad_(), depth, CAMERA),
    ):
        found, wanted = (pack_clearing(d, camera, options) for d in (given, same))
        assert found.width and found.data.tobytes() == wanted.data.tobytes()


def test_clearing_of_another_size_is_refused():
    with pytest.raises(InputError, match=r'\(44, 67\).*\(45, 67\)'):
        pack_clearing(torch.ones(44, 67), CAMERA, ClearingOptions())
