"""Squash and its undo: PIL's picture on the way in, a depth on its own ray on the way back."""

import warnings

import numpy as np
from PIL import Image
import pytest
import torch
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.preprocess import (
    _squash,
    _squash_as_float,
    has_source,
    network_input,
    normalisation_of,
    remap,
    resize_rgb,
    sampling_grid,
    to_camera_grid,
    upload,
)

CPU = torch.device('cpu')
NO_MEAN, NO_STD = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
CLIP_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
CLIP_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]


def noise(hw, seed=0):
    """(H, W, 3) uint8 with every grey level and hard edges."""
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def natural(hw):
    """Something smooth with an edge: (H, W, 3) uint8."""
    v, u = np.mgrid[: hw[0], : hw[1]]
    planes = [127 + 120 * np.sin(u / 9), 127 + 120 * np.cos(v / 7), np.where(u > v, 250, 3)]
    return np.stack(planes, -1).astype(np.uint8)


@pytest.mark.parametrize('squash', [_squash, _squash_as_float])
@pytest.mark.parametrize(('hw', 'network_hw'), [
    ((480, 640), (224, 224)), ((480, 640), (192, 256)), ((375, 1242), (224, 224)),
    ((61, 47), (224, 224)), ((480, 640), (480, 320)), ((1, 1), (32, 32)),
])  # fmt: skip
@pytest.mark.parametrize('picture', [noise, natural])
def test_squash_equals_pils_bicubic_within_one_grey_level(picture, hw, network_hw, squash):
    """The authors' preprocessing, by the CPU's kernel and by what a GPU computes."""
    rgb = picture(hw)
    found = squash(upload(rgb, CPU)[None], network_hw)[0].float()
    pil = Image.fromarray(rgb).resize(network_hw[::-1], Image.Resampling.BICUBIC)
    off = (found - torch.from_numpy(np.array(pil)).permute(2, 0, 1)).abs()
    assert found.shape == (3, *network_hw)
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.01


def test_input_is_normalised_with_mean_and_std():
    rgb = noise((32, 48))
    found = network_input(upload(rgb, CPU)[None], (32, 48), CLIP_MEAN, CLIP_STD)[0].numpy()
    expected = (rgb / 255 - CLIP_MEAN.numpy()[:, 0, 0]) / CLIP_STD.numpy()[:, 0, 0]
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_an_image_of_the_network_size_passes_unchanged():
    rgb = noise((64, 96))
    found = network_input(upload(rgb, CPU)[None], (64, 96), NO_MEAN, NO_STD)[0]
    assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), rgb)


@pytest.mark.parametrize('view', [
    lambda a: a, lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[4:20, 3:30],
    lambda a: np.asfortranarray(a), lambda a: a[..., ::-1],
], ids=['plain', 'upside_down', 'mirrored', 'window', 'fortran', 'bgr'])  # fmt: skip
def test_any_view_of_an_array_is_uploaded_as_it_reads(view):
    """Drivers and users hand over windows, flips and swapped channels."""
    rgb = view(noise((32, 40)))
    assert np.array_equal(upload(rgb, CPU).permute(1, 2, 0).numpy(), rgb)


def test_a_read_only_array_is_uploaded_without_a_word():
    """What lies in a message or a bytes object cannot be written to."""
    rgb = np.frombuffer(noise((8, 8)).tobytes(), np.uint8).reshape(8, 8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(upload(rgb, CPU).permute(1, 2, 0).numpy(), rgb)


def test_another_preprocessing_is_refused():
    assert normalisation_of('squash-bicubic-v1') is None
    with pytest.raises(ConfigError, match="'squash-bicubic-v9' is unknown here. Expected one of"):
        normalisation_of('squash-bicubic-v9')


# --- the way back -------------------------------------------------------------------------------


def plane_depth(camera, normal=(0.2, -0.35, 0.9), offset_m=2.0):
    """Exact depth of a tilted plane in a camera, float64."""
    v, u = np.mgrid[: camera.height_px, : camera.width_px]
    x, y = (u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px
    return offset_m / (normal[0] * x + normal[1] * y + normal[2])


@pytest.mark.parametrize('head_hw', [(224, 224), (192, 256), (96, 128), (240, 320), (480, 640)])
def test_a_planes_depth_survives_the_way_back_from_any_head_size(head_hw):
    """Half-pixel centres on both ways: a shift of half a pixel would cost millimetres here.

    The outermost half cells have no neighbour to interpolate with, and are left out.
    """
    camera = CameraIntrinsics(525.0, 530.0, 311.5, 247.25, 640, 480)
    head = torch.from_numpy(plane_depth(camera.resized(head_hw))).float()[None, None]
    found = to_camera_grid(head, camera.image_hw)[0, 0].numpy()
    by, bx = (int(np.ceil(n / m / 2)) for n, m in zip(camera.image_hw, head_hw))
    inside = np.s_[by : 480 - by, bx : 640 - bx]
    assert found.shape == camera.image_hw
    assert np.abs(found - plane_depth(camera))[inside].max() < 5e-5


def test_the_way_in_and_the_way_back_are_one_another():
    """What stands at a pixel of the camera stands at the same place after both."""
    ramp = np.broadcast_to(np.linspace(20, 230, 640)[None, :, None], (480, 640, 3))
    squashed = network_input(upload(ramp.astype(np.uint8), CPU)[None], (96, 128), NO_MEAN, NO_STD)
    back = to_camera_grid(squashed[:, :1] * 255, (480, 640))[0, 0].numpy()
    assert np.abs(back - ramp[..., 0])[:, 10:-10].max() < 1.5


def test_a_depth_of_the_cameras_size_is_not_touched():
    depth = torch.rand(1, 1, 30, 40)
    assert torch.equal(to_camera_grid(depth, (30, 40)), depth)


def test_colours_of_a_smaller_depth_are_means():
    """No aliasing: an 8 x 8 block of a checkerboard is grey."""
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)[..., None].repeat(3, -1)
    small = resize_rgb(upload(board, CPU), (8, 8))
    assert small.shape == (3, 8, 8) and small.dtype == torch.uint8
    assert (small.int() - 100).abs().max() <= 6


# --- rectification ------------------------------------------------------------------------------


def identity_map(hw):
    """Each pixel's own coordinates, (H, W, 2) x first."""
    v, u = np.mgrid[: hw[0], : hw[1]]
    return np.stack([u, v], -1).astype(np.float32)


@pytest.mark.parametrize('hw', [(48, 64), (33, 47), (1, 5)])
def test_the_identity_map_changes_no_pixel(hw):
    rgb = noise(hw)
    grid = sampling_grid(identity_map(hw), CPU)
    assert np.array_equal(remap(upload(rgb, CPU), grid).permute(1, 2, 0).numpy(), rgb)
    assert has_source(grid).all()


def test_remap_reads_where_the_map_points():
    """(x, y) in pixel centres, bilinear between them, as cv2.remap."""
    import cv2

    rgb, rng = natural((48, 64)), np.random.default_rng(1)
    shift = rng.uniform(-3, 3, (48, 64, 2)).astype(np.float32)
    source = identity_map((48, 64)) + shift
    found = remap(upload(rgb, CPU), sampling_grid(source, CPU)).permute(1, 2, 0).numpy()
    expected = cv2.remap(
        rgb.astype(np.float32), source[..., 0], source[..., 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )  # fmt: skip
    assert np.abs(found - expected).max() <= 8.5  # OpenCV interpolates in steps of 1/32 pixel
    assert np.abs(found - expected).mean() < 0.6


def test_a_pixel_that_looks_past_the_image_is_black_and_has_no_source():
    source = identity_map((16, 16))
    source[:, 12:] += 40
    source[0, 0] = -1e4
    grid, seen = sampling_grid(source, CPU), np.ones((16, 16), bool)
    seen[:, 12:] = seen[0, 0] = False
    found = remap(torch.full((3, 16, 16), 200, dtype=torch.uint8), grid)[0].numpy()
    assert np.array_equal(has_source(grid).numpy(), seen)
    assert (found[seen] == 200).all() and (found[~seen] == 0).all()
