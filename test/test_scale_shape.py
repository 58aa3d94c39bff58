"""The head of our own: a scale for the scene, a shape within it, and what both cost."""

from dataclasses import replace
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from towers import picture, shared
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.heads.scale_shape import Guide, Trunk, WIDEST_RATIO

SLIM_SPACE_CLIP = {
    'name': 'space_clip', 'widths': (64, 48, 32, 16), 'film_width': 64, 'aux_heads': False
}  # fmt: skip


def head_of(tower='pocket-tower', hw=(64, 96), seed=0, **options):
    """A head on random features of a tower, and these."""
    backbone = shared(tower, hw)
    torch.manual_seed(seed)
    head = build_head({'name': 'scale_shape', **options}, backbone.spec).eval()
    with torch.no_grad():
        return head, backbone(picture(hw, 2), head.layers)


@torch.no_grad()
def test_scale_multiplies_the_whole_map():
    head, features = head_of()
    before_m = head(features).depth_m
    head.scale[-1].bias.fill_(math.log(3.0))
    torch.testing.assert_close(head(features).depth_m, 3 * before_m)


@torch.no_grad()
@pytest.mark.parametrize('start_m', [1.0, 10.0])
def test_an_untrained_head_answers_around_its_start(start_m):
    head, features = head_of(start_m=start_m)
    ratio = head(features).depth_m / start_m
    assert 0.6 < ratio.min() and ratio.max() < 1.6


@torch.no_grad()
def test_shape_keeps_within_its_widest_ratio():
    head, features = head_of(start_m=1.0)
    for chosen, ratio in ((0, 1 / WIDEST_RATIO), (-1, WIDEST_RATIO)):
        head.shape.bias.zero_()
        head.shape.bias[chosen] = 1e4
        depth_m = head(features).depth_m
        torch.testing.assert_close(depth_m, torch.full_like(depth_m, ratio))


def test_scale_is_a_function_of_the_scene_and_has_a_loss_of_its_own():
    """What it says before the shape is added goes to the loss, and the deepest map hears of it."""
    head, features = head_of()
    torch.nn.init.normal_(head.scale[-1].weight)
    head.train()
    (alone_m,) = head(features).extras['aux_depth_m']
    assert alone_m.shape == (2, 1, 1, 1) and alone_m[0] != alone_m[1]
    alone_m.sum().backward()
    moved = {n.split('.')[0] for n, p in head.named_parameters() if p.grad is not None}
    assert moved == {'scale', 'trunk'}


@pytest.mark.parametrize(('options', 'absent'), [
    ({'scale': False}, 'scale.'), ({'refine': 'bilinear'}, 'guide.'),
])  # fmt: skip
def test_a_part_that_is_switched_off_leaves_nothing_behind(options, absent):
    whole, head = head_of()[0].state_dict(), head_of(**options)[0].state_dict()
    assert set(whole) - set(head) == {k for k in whole if k.startswith(absent)} != set()


@torch.no_grad()
def test_without_a_scale_there_is_no_loss_of_it():
    head, features = head_of(scale=False)
    assert head.train()(features).extras == {}


@torch.no_grad()
def test_one_bin_is_a_regression_without_bounds():
    head, features = head_of(num_bins=1, start_m=1.0)
    head.shape.weight.mul_(1e2)
    assert head(features).depth_m.max() > WIDEST_RATIO


def test_each_cell_of_the_deepest_map_reaches_every_depth():
    """Also from corner to corner of a grid that no stack of 3x3 convolutions here would cross."""
    head, features = head_of('pocket-tower', (256, 512))
    deepest = max(head.layers)
    far = features.maps[deepest].clone().requires_grad_()
    found = head(replace(features, maps=features.maps | {deepest: far}))
    found.depth_m[0, 0, 0, 0].backward()
    assert far.grad[0].abs().sum(dim=0).min() > 0 and far.grad[1].abs().max() == 0


@torch.no_grad()
def test_cells_know_their_places():
    """The same content above and below is not the same depth: floors lie below."""
    torch.manual_seed(0)
    trunk = Trunk(8, 8, 16, 0.0).eval()
    cells, _ = trunk(torch.ones(1, 8, 4, 6), torch.zeros(1, 8))
    assert (cells[..., 0, :] - cells[..., -1, :]).abs().max() > 0.01
    assert (cells[..., 0] - cells[..., -1]).abs().max() > 0.01


@torch.no_grad()
def test_last_doubling_starts_as_a_bilinear_resize():
    values = torch.randn(2, 1, 5, 7)
    plain = F.interpolate(values, scale_factor=2, mode='bilinear', align_corners=False)
    guided = Guide(4)(values, torch.randn(2, 4, 5, 7))
    torch.testing.assert_close(guided, plain, rtol=0, atol=0.03)


@torch.no_grad()
def test_last_doubling_only_interpolates():
    """Whatever it has learned, no value lies beyond the nine around it."""
    torch.manual_seed(0)
    values, guide = torch.randn(1, 1, 6, 8), Guide(4)
    torch.nn.init.normal_(guide.weigh.weight, std=10)
    finer = guide(values, torch.randn(1, 4, 6, 8))
    padded = F.pad(values, (1, 1, 1, 1), mode='replicate')
    highest, lowest = (sign * F.max_pool2d(sign * padded, 3, 1) for sign in (1, -1))
    doubled = [m.repeat_interleave(2, -1).repeat_interleave(2, -2) for m in (lowest, highest)]
    assert (finer >= doubled[0] - 1e-5).all() and (finer <= doubled[1] + 1e-5).all()
    constant = guide(torch.full_like(values, 0.7), torch.randn(1, 4, 6, 8))
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7))


def test_confidence_looks_at_the_depth_and_changes_nothing():
    head, features = head_of()
    sure, _ = head_of(confidence=True)
    sure.load_state_dict(head.state_dict(), strict=False)
    found = sure(features)
    assert torch.equal(found.depth_m, head(features).depth_m) and found.extras == {}
    assert found.confidence.shape == found.depth_m.shape
    sure.confidence_head.train()
    logit = sure(features).extras['confidence_logit']
    logit.sum().backward()
    touched = {n for n, p in sure.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in sure.named_parameters() if n.startswith('confidence_head.')}


@pytest.mark.parametrize(('tower', 'layers', 'finest'), [
    ('pocket-tower', (1, 2, 3, 4), 2),
    ('tiny-resnet', (1, 2, 3, 4), 2),
    ('tiny-vit', (3, 6, 9, 12), 1),
])  # fmt: skip
def test_depth_has_sixteen_times_the_deepest_grid(tower, layers, finest):
    head, features = head_of(tower)
    assert head.layers == layers
    h, w = features.maps[layers[-1]].shape[-2:]
    with torch.no_grad():
        hw = head(features).depth_m.shape[-2:]
    assert hw == (16 * h, 16 * w) == (64 // finest, 96 // finest)


@torch.no_grad()
def test_it_costs_less_than_half_of_what_pockets_own_head_does():
    spec = shared('pocket-tower', (192, 256)).spec
    counts = []
    for options in ({'name': 'scale_shape'}, SLIM_SPACE_CLIP):
        with torch.device('meta'):
            head = build_head(options, spec).eval()
            maps = {
                k: torch.empty(1, spec.widths[k], 192 // spec.strides[k], 256 // spec.strides[k])
                for k in head.layers
            }
            features = Features(maps, torch.empty(1, spec.pooled_width))
        with FlopCounterMode(display=False) as counter:
            head(features)
        parameters = sum(p.numel() for p in head.parameters())
        counts.append((counter.get_total_flops(), parameters))
    assert counts[0][0] < 0.5 * counts[1][0] and counts[0][1] < counts[1][1]


def test_a_tower_without_the_strides_is_refused():
    spec = BackboneSpec(
        'coarse', True, (8, 8), (16, 32), 8, None, (64, 64), False, (0.5,) * 3, (0.5,) * 3
    )
    with pytest.raises(ConfigError, match=r"head scale_shape cannot work on tower 'coarse': it "
                       r'has no map of stride \[4, 8\]'):  # fmt: skip
        build_head({'name': 'scale_shape'}, spec)


@pytest.mark.parametrize(('options', 'message'), [
    ({'num_bins': 0}, 'num_bins = 0: expected a positive integer'),
    ({'num_bins': 2.5}, 'num_bins = 2.5: expected a positive integer'),
    ({'refine': 'sharp'}, "refine = 'sharp': expected one of"),
    ({'layers': [1, 2]}, r'layers = \(1, 2\): expected four layer numbers'),
    ({'layers': [1, 2, 3, 9]}, r'head scale_shape: layers \(1, 2, 3, 9\) do not fit tower'),
    ({'widths': [8, 8, 8]}, r'widths = \(8, 8, 8\): expected four positive integers'),
    ({'widths': [6, 8, 8, 8]}, 'the first a multiple of 4'),
    ({'dropout': 1.0}, 'dropout = 1.0: expected 0 to below 1'),
    ({'start_m': 0.0}, 'start_m = 0.0: expected a positive depth'),
    ({'scale': 'yes'}, "scale = 'yes': expected true or false"),
])  # fmt: skip
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_head({'name': 'scale_shape', **options}, shared('pocket-tower', (64, 96)).spec)
