"""Random views keep the camera's truth: what a view shows lies where its depth and focal say.

The picture is a ruler: red is the column and green the row of the source pixel, so that each view
tells by its colours where it looks and how far it zooms.
"""

import math

import pytest
import torch
from vlm_depth_ros.tools.augment import AugmentConfig, blend, random_views

H, W = 48, 64
FOCAL, CANONICAL = 0.9, 1.1
COLOURLESS = dict(
    brightness=0.0, contrast=0.0, saturation=0.0, channel=0.0, gamma=0.0, grey=0.0, noise=0.0,
    blur=0.0,
)  # fmt: skip
STILL = AugmentConfig(min_crop=1.0, aspect=0.0, roll_deg=0.0, flip=False, **COLOURLESS)


def ruler(count):
    """(rgb, depth, focal) of `count` copies: the ruler, and a tilted plane seen by a pinhole."""
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing='ij')
    rgb = torch.stack([u * 3 + 20, v * 4 + 20, torch.full_like(u, 128)]).to(torch.uint8)
    fx, fy = FOCAL * W, FOCAL * H
    depth = 2.0 / (1 + 0.5 * (u - (W - 1) / 2) / fx + 0.3 * (v - (H - 1) / 2) / fy)
    return rgb.repeat(count, 1, 1, 1), depth.repeat(count, 1, 1, 1), torch.full((count,), FOCAL)


def seen_pixels(view):
    """Source column and row of each view pixel, from its colour."""
    return (view[:, 0] * 255 - 20) / 3, (view[:, 1] * 255 - 20) / 4


def source_area(u, v):
    """Signed source pixels per view pixel, (B,): the Jacobian at the middle of the views."""
    y, x = u.shape[1] // 2, u.shape[2] // 2
    ux, uy = u[:, y, x + 1] - u[:, y, x], u[:, y + 1, x] - u[:, y, x]
    vx, vy = v[:, y, x + 1] - v[:, y, x], v[:, y + 1, x] - v[:, y, x]
    return ux * vy - uy * vx


@pytest.mark.parametrize('options', [
    dict(min_crop=0.5, aspect=0.0, roll_deg=0.0, flip=False),
    dict(min_crop=1.0, aspect=0.3, roll_deg=0.0, flip=False),
    dict(min_crop=1.0, aspect=0.0, roll_deg=20.0, flip=False),
    dict(min_crop=1.0, aspect=0.0, roll_deg=0.0, flip=True),
    dict(min_crop=0.5, aspect=0.2, roll_deg=10.0, flip=True),
], ids=['crop', 'stretch', 'roll', 'flip', 'all'])  # fmt: skip
def test_depth_of_a_view_is_that_of_the_pixels_it_shows(options):
    config = AugmentConfig(**options, **COLOURLESS)
    rgb, depth, focal = ruler(16)
    rng = torch.Generator().manual_seed(1)
    view, canonical = random_views(rgb, depth, focal, CANONICAL, (96, 128), config, rng)
    u, v = seen_pixels(view)
    # The view's own normalised focal length, from nothing but its colours.
    share = source_area(u, v).abs() * (96 * 128) / (H * W)
    focal_here = FOCAL / share.sqrt()
    metres = canonical[:, 0] * (focal_here / CANONICAL)[:, None, None]
    known = torch.isfinite(metres)
    assert known.float().mean() > 0.7
    # Depth takes the nearest pixel; where that is a matter of rounding, nothing is asked.
    clear = ((u - u.round()).abs() < 0.45) & ((v - v.round()).abs() < 0.45) & known
    image = torch.arange(16)[:, None, None].expand_as(u)
    truth = depth[image, 0, v.round().long().clamp(0, H - 1), u.round().long().clamp(0, W - 1)]
    error = (metres / truth - 1).abs()[clear]
    assert clear.float().mean() > 0.5 and error.max() < 2e-3


def test_crop_is_a_zoom():
    rgb, depth, focal = ruler(16)
    config = AugmentConfig(min_crop=0.5, aspect=0.0, roll_deg=0.0, flip=False, **COLOURLESS)
    rng = torch.Generator().manual_seed(1)
    view, canonical = random_views(rgb, depth, focal, CANONICAL, (H, W), config, rng)
    crop = source_area(*seen_pixels(view)).sqrt()
    assert crop.min() < 0.6 and crop.max() > 0.85
    # Nearer by as much as it is larger: the wall is 2 m away in the middle of the whole image.
    farthest, nearest = depth.max() * CANONICAL / FOCAL, depth.min() * CANONICAL / FOCAL
    assert (canonical.amax((1, 2, 3)) <= farthest * crop * 1.001).all()
    assert (canonical.amin((1, 2, 3)) >= nearest * crop * 0.999).all()


def test_flip_mirrors_half_of_the_views():
    rgb, depth, focal = ruler(64)
    config = AugmentConfig(min_crop=1.0, aspect=0.0, roll_deg=0.0, **COLOURLESS)
    view, canonical = random_views(
        rgb, depth, focal, FOCAL, (H, W), config, torch.Generator().manual_seed(0)
    )
    mirrored = source_area(*seen_pixels(view)) < 0
    assert 20 < mirrored.sum() < 44
    assert torch.allclose(canonical[mirrored], depth[mirrored].flip(-1))
    assert torch.allclose(canonical[~mirrored], depth[~mirrored])


def test_roll_turns_without_shear():
    rgb, depth, focal = ruler(32)
    config = AugmentConfig(min_crop=1.0, aspect=0.0, roll_deg=30.0, flip=False, **COLOURLESS)
    view, canonical = random_views(
        rgb, depth, focal, FOCAL, (H, W), config, torch.Generator().manual_seed(0)
    )
    u, v = seen_pixels(view)
    right = torch.stack([u[:, 24, 33] - u[:, 24, 32], v[:, 24, 33] - v[:, 24, 32]], -1)
    down = torch.stack([u[:, 25, 32] - u[:, 24, 32], v[:, 25, 32] - v[:, 24, 32]], -1)
    assert torch.allclose(right.norm(dim=-1), torch.ones(32), atol=2e-3)
    assert torch.allclose(down.norm(dim=-1), torch.ones(32), atol=2e-3)
    assert ((right * down).sum(-1)).abs().max() < 2e-3
    angle = torch.atan2(right[:, 1], right[:, 0]).abs()
    assert math.radians(15) < angle.max() <= math.radians(30) + 1e-3
    turned = angle > math.radians(5)
    assert torch.isnan(canonical[turned]).flatten(1).any(1).all()  # corners look past the image


def test_zero_bounds_give_the_plain_image():
    rgb, depth, focal = ruler(2)
    depth[0, 0, 5, 6], depth[1, 0, 7, 8] = torch.nan, 0.0
    view, canonical = random_views(
        rgb, depth, focal, CANONICAL, (H, W), STILL, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(view, rgb / 255, atol=2e-4)
    hole = torch.isnan(canonical)
    assert hole.sum() == 2 and hole[0, 0, 5, 6] and hole[1, 0, 7, 8]  # 0 is no depth either
    expected = depth * (CANONICAL / FOCAL)
    assert torch.allclose(canonical[~hole], expected[~hole])


def test_colour_changes_never_move_depth():
    rgb, depth, focal = ruler(8)
    config = AugmentConfig(min_crop=1.0, aspect=0.0, roll_deg=0.0, flip=False)
    view, canonical = random_views(
        rgb, depth, focal, FOCAL, (H, W), config, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(canonical, depth)
    assert (view - rgb / 255).abs().mean() > 0.02
    assert view.min() >= 0 and view.max() <= 1


def test_same_seed_gives_the_same_views():
    def draw(seed):
        rng = torch.Generator().manual_seed(seed)
        return random_views(*ruler(4), CANONICAL, (40, 56), AugmentConfig(), rng)

    first, again, other = draw(5), draw(5), draw(6)
    torch.rand(3)  # the global generator has no say
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].nan_to_num(-1), again[1].nan_to_num(-1))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (4, 3, 40, 56) and first[1].shape == (4, 1, 40, 56)


def test_blended_views_lose_their_truth_and_the_others_stay():
    view, valid = torch.rand(400, 3, 2, 2), torch.ones(400, 1, 4, 4, dtype=torch.bool)
    torch.manual_seed(0)
    mixed, known = blend(view, valid, 0.25)
    changed = (mixed != view).flatten(1).any(1)
    assert torch.equal(known, ~changed[:, None, None, None].expand_as(known))
    assert 60 < changed.sum() < 140
    part = (mixed - view.roll(1, 0))[changed] / (view - view.roll(1, 0))[changed]
    first = part[:, :1, :1, :1]
    assert torch.allclose(part, first.expand_as(part), atol=1e-2)
    assert first.min() >= 0.29 and first.max() <= 0.71
