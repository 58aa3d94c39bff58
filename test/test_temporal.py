"""The temporal filter: steady where nothing moves, no trail where something does, quick to forget.

The scenes are rendered here, so what is right is known at every pixel.
"""

import math

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.options import TemporalOptions
from vlm_depth_ros.core.temporal import TemporalFilter

HW = (120, 160)
OPTIONS = TemporalOptions(weight=0.8)
NAN = math.nan
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def room(box_at=None, box_m=1.5, box_rgb=(200, 60, 40)):
    """A textured wall at 3 m that leans, and a box in front of it: true depth and image."""
    depth = 3.0 + 0.002 * np.arange(HW[1], dtype=np.float32) * np.ones(HW, np.float32)
    image = np.random.default_rng(7).integers(60, 180, (3, *HW)).astype(np.uint8)
    if box_at is not None:
        rows, columns = slice(30, 90), slice(box_at, box_at + 40)
        depth[rows, columns] = box_m
        image[:, rows, columns] = np.array(box_rgb, np.uint8)[:, None, None]
    return torch.from_numpy(depth), torch.from_numpy(image)


def noisy(depth, random, share=0.01):
    return depth * torch.from_numpy(1 + share * random.standard_normal(HW)).float()


def shot(image, random, grey=2.0):
    """The picture with the noise of a sensor."""
    noise = torch.from_numpy(grey * random.standard_normal((3, *HW))).round()
    return (image + noise).clamp(0, 255).to(torch.uint8)


def flicker(frames):
    """Median relative change from one frame to the next."""
    steps = [torch.log(b / a).abs().median() for a, b in zip(frames, frames[1:])]
    return float(torch.stack(steps).mean())


@pytest.mark.parametrize('device', DEVICES)
def test_flicker_of_a_static_scene_falls_to_a_third(device):
    depth, image = room(40)
    random, steady = np.random.default_rng(1), TemporalFilter(OPTIONS)
    raw = [noisy(depth, random).to(device) for _ in range(30)]
    seen = [steady(z, shot(image, random).to(device), i / 10, 'front') for i, z in enumerate(raw)]
    assert flicker(seen[5:]) <= flicker(raw[5:]) / 3
    errors = [((z.cpu() / depth) - 1).abs().mean() for z in (raw[-1], seen[-1])]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize('box_m', (1.5, 2.8, 2.95))
@pytest.mark.parametrize('speed_px', (1, 4, 15, 45))
def test_a_moving_box_leaves_no_trail(box_m, speed_px):
    steady = TemporalFilter(OPTIONS)
    for frame in range(3):
        depth, image = room(10 + frame * speed_px, box_m)
        found = steady(depth, image, frame / 10, 'front')
        assert ((found / depth) - 1).abs().max() <= 0.01


def test_the_trail_is_bounded_even_where_the_picture_does_not_tell():
    random, steady = np.random.default_rng(2), TemporalFilter(OPTIONS)
    image = torch.full((3, *HW), 128, dtype=torch.uint8)
    depth = torch.full(HW, 2.0)
    for frame in range(50):
        depth = depth * torch.from_numpy(1 + 0.04 * random.standard_normal(HW)).float()
        found = steady(depth, image, frame / 10)
        assert ((found / depth) - 1).abs().max() <= 0.8 * 0.05 / 4 + 1e-6


def test_missing_depth_stays_missing_and_is_never_filled_from_the_past():
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    holes = depth.clone()
    holes[10:20, 10:20] = NAN
    steady(holes, image, 0.0)
    later = depth * 1.01
    later[15:30, 15:30] = NAN
    found = steady(later, image, 0.1)
    assert torch.equal(found.isnan(), later.isnan())
    assert torch.equal(found[10:15, 10:20], later[10:15, 10:20])  # no past there
    assert (found[40:] < later[40:]).all()


@pytest.mark.parametrize('device', DEVICES)
def test_weight_zero_gives_the_same_object_and_stores_nothing(device):
    depth, image = (t.to(device) for t in room())
    off = TemporalFilter(TemporalOptions())
    assert off(depth, image, 0.0) is depth
    assert off(depth * 1.01, image, 0.1) is not depth
    off.options = OPTIONS
    assert off(depth, image, 0.2) is depth  # nothing was kept


def smoothed(steady, depth, image, stamp_s, camera=None):
    return steady(depth, image, stamp_s, camera) is not depth


def test_each_cut_drops_the_past():
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    near = depth * 1.01
    assert not smoothed(steady, depth, image, 10.0)
    assert smoothed(steady, near, image, 10.5)
    assert not smoothed(steady, near, image, 11.01)  # a pause
    assert not smoothed(steady, near, image, 11.0)  # back in time
    assert smoothed(steady, near, image, 11.0)  # the same stamp again
    assert not smoothed(steady, near, image, 11.1, 'rear')
    assert not smoothed(steady, near[:60], image[:, :60], 11.2, 'rear')
    assert smoothed(steady, near[:60], image[:, :60], 11.3, 'rear')
    steady.reset()
    assert not smoothed(steady, near[:60], image[:, :60], 11.4, 'rear')


def test_the_past_returns_after_a_cut():
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    steady(depth, image, 0.0)
    assert not smoothed(steady, depth * 2, image, 0.1)
    assert smoothed(steady, depth * 2.02, image, 0.2)


@pytest.mark.parametrize('share', (0.55, 0.65))
@pytest.mark.parametrize('kind', ('depth', 'grey'))
def test_a_cut_is_so_many_changed_pixels(share, kind):
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    steady(depth, image, 0.0)
    rows = round(share * HW[0])
    after, picture = depth * 1.01, image.clone()
    if kind == 'depth':
        after[:rows] *= 2
    else:
        picture[:, :rows] += 50
    assert smoothed(steady, after, picture, 0.1) == (share < OPTIONS.cut_share)


def test_holes_do_not_count_as_change():
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    depth[:100] = NAN
    steady(depth, image, 0.0)
    assert smoothed(steady, depth * 1.01, image, 0.1)


def test_the_picture_is_copied():
    depth, image = room()
    steady = TemporalFilter(OPTIONS)
    steady(depth, image, 0.0)
    before = image.clone()
    image[:] = 0
    assert smoothed(steady, depth * 1.01, before, 0.1)


def test_inputs_are_never_written_to():
    depth, image = room(40)
    steady = TemporalFilter(OPTIONS)
    for frame in range(3):
        z, picture = depth * (1 + 0.01 * frame), image.clone()
        kept = z.clone()
        steady(z, picture, frame / 10)
        assert torch.equal(z, kept) and torch.equal(picture, image)


REFUSED = {
    'weight': (-0.1, 0.96, NAN, 'much'),
    'max_change': (0, 0.6),
    'max_grey': (0, 256),
    'cut_share': (0, 1.1),
    'max_gap_s': (0, 61, None),
}


@pytest.mark.parametrize(
    ('name', 'value'), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_an_option_out_of_bounds_is_refused_in_one_line(name, value):
    with pytest.raises(ConfigError, match=f'{name} = .*expected') as refusal:
        TemporalOptions(**{name: value})
    assert '\n' not in str(refusal.value)


def test_an_image_that_does_not_fit_is_refused():
    depth, image = room()
    with pytest.raises(InputError, match=r'image has shape \(3, 119, 160\).*\(3, 120, 160\)'):
        TemporalFilter(OPTIONS)(depth, image[:, 1:], 0.0)
