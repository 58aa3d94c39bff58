"""Depth that follows the edges of the picture, and says nothing that the network did not say."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='core runs on torch')
from vlm_depth_ros.core.guided import (  # noqa: E402
    EPSILON,
    OpenCvPlanes,
    TorchPlanes,
    upsample_guided,
)
from vlm_depth_ros.core.preprocess import to_camera_grid  # noqa: E402

HW = (60, 80)
RADIUS_PX = 3
RNG = np.random.default_rng(3)


def picture_of(grey):
    """(3, H, W) of one brightness (H, W)."""
    return torch.from_numpy(np.asarray(grey, np.uint8)).expand(3, -1, -1)


def tensor(depth_m):
    return torch.as_tensor(np.asarray(depth_m), dtype=torch.float32)[None, None]


def by_the_book(colour, depth_m, radius_px):
    """He, Sun and Tang's equations 19 to 21 at one size, pixel by pixel, in float64."""
    height, width = depth_m.shape

    def mirrored(i, n):
        return n - 1 - abs(n - 1 - abs(i))

    def window(u, v):
        return (
            np.array([mirrored(v + d, height) for d in range(-radius_px, radius_px + 1)])[:, None],
            np.array([mirrored(u + d, width) for d in range(-radius_px, radius_px + 1)])[None],
        )

    fits = np.zeros((height, width, 4))
    for v in range(height):
        for u in range(width):
            c = colour[window(u, v)].reshape(-1, 3)
            z = depth_m[window(u, v)].ravel()
            spread = np.cov(c.T, bias=True) + EPSILON * np.eye(3)
            slope = np.linalg.solve(spread, ((c - c.mean(0)) * (z - z.mean())[:, None]).mean(0))
            fits[v, u] = *slope, z.mean() - slope @ c.mean(0)
    found = np.zeros((height, width))
    for v in range(height):
        for u in range(width):
            fit = fits[window(u, v)].mean((0, 1))
            rows = slice(max(v - radius_px, 0), v + radius_px + 1)
            near = depth_m[rows, max(u - radius_px, 0) : u + radius_px + 1]
            found[v, u] = np.clip(fit[:3] @ colour[v, u] + fit[3], near.min(), near.max())
    return found


def test_it_is_the_guided_filter_of_the_paper():
    rgb = RNG.integers(0, 256, (12, 15, 3), np.uint8)
    depth_m = RNG.uniform(1, 5, (12, 15))
    found = upsample_guided(tensor(depth_m), torch.from_numpy(rgb).permute(2, 0, 1), RADIUS_PX)
    expected = by_the_book(rgb / 255, depth_m, RADIUS_PX)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=2e-3)


@pytest.mark.parametrize('hw', [(60, 80), (61, 83), (24, 32), (15, 20)])
def test_every_device_does_the_same(hw):
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *hw), np.uint8))
    depth = tensor(RNG.uniform(1, 5, (24, 32)))
    ways = OpenCvPlanes, TorchPlanes
    one, other = (upsample_guided(depth, picture, RADIUS_PX, 1.5, planes) for planes in ways)
    assert one.shape == other.shape == (1, 1, *hw)
    assert torch.allclose(one, other, atol=2e-3)


def test_a_soft_step_ends_where_the_thing_in_the_picture_ends():
    edge = 42  # not on a pixel of the network's own map
    grey = np.full(HW, 40)
    grey[:, edge:] = 200
    soft_m = np.tile(np.interp(np.arange(20), [8.5, 12.5], [1.0, 3.0]), (15, 1))
    plain = to_camera_grid(tensor(soft_m), HW)[0, 0, 30].numpy()
    found = upsample_guided(tensor(soft_m), picture_of(grey), RADIUS_PX)[0, 0, 30].numpy()
    steps = np.abs(np.diff(found))
    assert steps.argmax() == edge - 1 and steps.max() > 5 * np.abs(np.diff(plain)).max()


def test_a_picture_without_edges_moves_no_depth_beyond_its_window():
    depth_m = 1 + np.tile(np.linspace(0, 2, 20), (15, 1))
    plain = to_camera_grid(tensor(depth_m), HW)
    found = upsample_guided(tensor(depth_m), picture_of(np.full(HW, 90)), RADIUS_PX)
    inside = (slice(None), slice(None), slice(None), slice(30, 50))
    assert torch.allclose(found[inside], plain[inside], atol=1e-3)


def test_constant_depth_stays_what_it_is_whatever_the_picture():
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *HW), np.uint8))
    found = upsample_guided(tensor(np.full((15, 20), 2.5)), picture, RADIUS_PX)
    assert torch.equal(found, torch.full((1, 1, *HW), 2.5))


@pytest.mark.parametrize('radius_px', [1, 3, 16])
def test_nothing_is_nearer_or_farther_than_what_the_network_says(radius_px):
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *HW), np.uint8))
    depth = tensor(RNG.uniform(0.5, 8, (15, 20)))
    found = upsample_guided(depth, picture, radius_px)
    assert found.min() >= depth.min() and found.max() <= depth.max()


@pytest.mark.parametrize('missing', [float('nan'), float('inf')])
def test_a_missing_depth_spreads_no_farther_than_without_the_picture(missing):
    depth = tensor(RNG.uniform(1, 5, (15, 20)))
    depth[0, 0, 7, 9] = missing
    found = upsample_guided(depth, picture_of(np.full(HW, 90)), RADIUS_PX)
    np.testing.assert_array_equal(found.numpy(), to_camera_grid(depth, HW).numpy())


def test_a_step_that_the_picture_does_not_show_stays_a_step():
    """As of a chair before a wall of its colour: nothing may float between them."""
    depth_m = np.full((15, 20), 1.5)
    depth_m[:, 10:] = 3.5
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *HW), np.uint8))
    smeared = upsample_guided(tensor(depth_m), picture, RADIUS_PX)
    assert ((smeared > 1.6) & (smeared < 3.4)).any()
    found = upsample_guided(tensor(depth_m), picture, RADIUS_PX, 1.2)
    assert set(found.unique().tolist()) == {1.5, 3.5}


def test_depth_without_a_step_is_guided_whatever_the_ratio():
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *HW), np.uint8))
    depth = tensor(np.tile(np.geomspace(1, 3, 20), (15, 1)))
    guided = upsample_guided(depth, picture, RADIUS_PX)
    assert torch.equal(upsample_guided(depth, picture, RADIUS_PX, 1.2), guided)


def test_a_map_smaller_than_the_window_is_no_error():
    found = upsample_guided(tensor([[2.0]]), picture_of(np.full(HW, 90)), RADIUS_PX)
    assert torch.equal(found, torch.full((1, 1, *HW), 2.0))
    found = upsample_guided(tensor(np.ones((2, 3))), picture_of(np.full(HW, 90)), RADIUS_PX)
    assert torch.equal(found, torch.ones(1, 1, *HW))
