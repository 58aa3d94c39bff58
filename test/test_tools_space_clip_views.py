"""SPACE-CLIP's published views: their order, bounds and shares, told by what a picture shows."""

import math

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.preprocess import network_input
from vlm_depth_ros.tools.space_clip_views import space_clip_view, SpaceClipAugment

H, W = 60, 80
STILL = {'roll_deg': 0.0, 'flip': 0.0, 'recolour': 0.0}


def ruler():
    """(rgb, depth): red is the column and green the row; depth is the column in metres."""
    v, u = np.mgrid[0:H, 0:W]
    rgb = np.stack([u * 3 + 10, v * 4 + 10, np.full_like(u, 128)], -1).astype(np.uint8)
    return rgb, (u + 1).astype(np.float32)


def views(count, seed=0, picture=None, **options):
    """`count` pairs of a view and its depth, one after the other from one generator."""
    rgb, depth_m = picture or ruler()
    config = SpaceClipAugment(**{'crop_hw': (H, W), **options})
    rng = torch.Generator().manual_seed(seed)
    return [space_clip_view(rgb, depth_m, (32, 32), config, rng) for _ in range(count)]


def test_without_chance_it_is_the_image_as_the_network_always_sees_it():
    ((view, depth_m),) = views(1, **STILL)
    rgb, truth_m = ruler()
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    assert torch.equal(view, network_input(image, (32, 32), torch.zeros(()), torch.ones(()))[0])
    assert depth_m.shape == (1, H, W) and np.array_equal(depth_m[0].numpy(), truth_m)


def test_depth_stays_at_the_size_of_the_crop_and_in_its_metres():
    seen = set()
    for view, depth_m in views(60, **STILL | {'crop_hw': (40, 50)}):
        assert view.shape == (3, 32, 32) and depth_m.shape == (1, 40, 50)
        left = int(depth_m[0, 0, 0]) - 1
        assert np.array_equal(depth_m[0, 0].numpy(), np.arange(left + 1, left + 51))
        # Colour was cut at the same place.
        assert view[0].min().item() * 255 == pytest.approx(left * 3 + 10, abs=2)
        seen.add(left)
    assert min(seen) <= 2 and max(seen) >= 28 and max(seen) <= 30


def test_rotation_is_uniform_within_one_degree_about_the_middle():
    height, width, angles = 240, 320, []
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.zeros((height, width, 3), np.uint8), u + 1
    inside = np.s_[10:-10, 10:-10]
    axes = [(u - (width - 1) / 2)[inside].ravel(), (v - (height - 1) / 2)[inside].ravel()]
    axes = np.stack([*axes, np.ones_like(axes[0])], 1)
    for _, depth_m in views(100, 0, picture, **STILL | {'roll_deg': 1.0, 'crop_hw': (240, 320)}):
        column = depth_m[0].numpy()[inside].ravel()
        along, across, middle = np.linalg.lstsq(axes, column, rcond=None)[0]
        angles.append(math.degrees(math.atan2(across, along)))
        assert middle == pytest.approx((width + 1) / 2, abs=0.2)
    assert max(angles) <= 1.05 and min(angles) >= -1.05
    assert np.std(angles) == pytest.approx(1 / math.sqrt(3), abs=0.1)
    assert abs(np.mean(angles)) < 0.2


def test_what_comes_from_outside_is_black_and_has_no_depth():
    bright = np.full((H, W, 3), 200, np.uint8), np.full((H, W), 2.0, np.float32)
    ((view, depth_m),) = views(1, seed=3, picture=bright, **STILL | {'roll_deg': 30.0})
    assert view[:, 0, 0].max() < 0.3
    assert set(depth_m.unique().tolist()) == {0.0, 2.0}


def test_half_of_the_views_are_mirrored_depth_and_colour_together():
    mirrored = []
    for view, depth_m in views(200, **STILL | {'flip': 0.5}):
        is_flipped = bool(depth_m[0, 0, 0] > depth_m[0, 0, -1])
        assert (view[0, 0, 0] > view[0, 0, -1]) == is_flipped
        mirrored.append(is_flipped)
    assert 0.4 < np.mean(mirrored) < 0.6


def test_half_of_the_views_change_colour_within_the_bounds():
    """Grey of 0.5 becomes 0.5^g * b * c per channel, each of the three within 10 % of 1."""
    grey = np.full((H, W, 3), 128, np.uint8), np.ones((H, W), np.float32)
    seen = views(400, picture=grey, **STILL | {'recolour': 0.5})
    colours = torch.stack([view[:, 5, 5] for view, _ in seen])
    same = (colours == 128 / 255).all(1)
    assert 0.4 < same.float().mean() < 0.6
    changed = colours[~same]
    low, high = (128 / 255) ** 1.1 * 0.9 * 0.9, (128 / 255) ** 0.9 * 1.1 * 1.1
    assert low - 0.005 <= changed.min() < low + 0.06 and high - 0.08 < changed.max() <= high
    # Channels have gains of their own, of at most 1.1 / 0.9 to one another.
    ratio = changed.amax(1) / changed.amin(1)
    assert 1.15 < ratio.max() <= 1.1 / 0.9 + 0.01


def test_bright_colours_are_clipped():
    white = np.full((H, W, 3), 255, np.uint8), np.ones((H, W), np.float32)
    shades = torch.stack([v for v, _ in views(40, picture=white, **STILL | {'recolour': 1.0})])
    assert shades.max() == 1.0 and shades.min() >= 0.8


def test_image_smaller_than_the_crop_is_resized_to_it():
    ((view, depth_m),) = views(1, **STILL | {'crop_hw': (90, 120)})
    assert depth_m.shape == (1, 90, 120) and set(depth_m.unique().tolist()) <= set(range(1, W + 1))
    assert view[0, 16, 0] < view[0, 16, -1]


def test_same_generator_gives_the_same_views():
    first, again, other = (views(3, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize('options, message', [
    ({'crop_hw': [480]}, r'crop_hw = \(480,\), expected two positive integers'),
    ({'crop_hw': [480, 0]}, r'crop_hw = \(480, 0\)'),
    ({}, 'crop_hw'),
    ({'crop_hw': [4, 4], 'rol_deg': 2}, "Did you mean 'roll_deg'"),
])  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(SpaceClipAugment, options, 'augment')
