"""The network for inference is the same network with fewer operations."""

from dataclasses import replace

import pytest
from test_space_clip import features_of, head_of, live, SLIM, TINY, VIT_B
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from towers import picture
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera
from vlm_depth_ros.core.heads.space_clip_inference import ConvOfResized, SpaceClipInference
from vlm_depth_ros.core.inference_graph import exported, for_inference
from vlm_depth_ros.core.model import DepthModel


def model_of(tower, head, input_hw):
    """A network of random weights whose normalisations are not the initial ones."""
    torch.manual_seed(0)
    config = ModelConfig(tower, head, input_hw=input_hw, camera=TrainingCamera(0.8, 1.1))
    model = DepthModel(config)
    rng = torch.Generator().manual_seed(1)
    for module in model.head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_mean, module.running_var):
                values.copy_(torch.rand(values.shape, generator=rng) + 0.5)
    model.freeze_tower()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def plain_tower():
    """A transformer: its sizes are fixed, so that resizes are matrices."""
    head = {'name': 'space_clip', 'confidence': True, **SLIM}
    return model_of('tiny-vit', head, (64, 96))


@pytest.fixture(scope='module')
def hierarchical_tower():
    """Sizes stay open."""
    return model_of('pocket-tower', {'name': 'space_clip', **SLIM}, (64, 96))


def assert_same(found, expected, rtol=1e-5):
    """Of two `HeadOutput`."""
    torch.testing.assert_close(
        found.depth_m, expected.depth_m, rtol=rtol, atol=rtol * expected.depth_m.mean().item()
    )
    assert (found.confidence is None) == (expected.confidence is None)
    if expected.confidence is not None:
        torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=rtol)


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize('options', [
    {},
    {'structural': 'early', 'output_activation': 'relu'},
    {'structural': 'late', 'aux_heads': False},
    {'structural': 'none'},
    {'structural': (0, 0, 0), 'semantic': (12, 12, 1, 0)},
    {'upsample': 'bilinear'},
    {'confidence': True},
    {'start_m': 2.0},
    {'widths': (5, 16, 4, 1)},  # some UP blocks are cheaper as two convolutions
], ids=str)  # fmt: skip
def test_head_for_inference_answers_the_same_depth(options):
    """Of two images, square or not, down to a grid of one cell; in fp32 it rounds as well."""
    for hw in ((4, 6), (5, 3), (1, 1)):
        spec = replace(TINY, input_hw=tuple(16 * n for n in hw))
        head = head_of(spec, **SLIM | options)
        live(head)
        head.depth_prediction_head[3].bias.data += 1.0  # so that a ReLU lets something through
        features = features_of(head, hw, count=2)
        with torch.no_grad():
            rounded = [network(features).depth_m for network in (head, SpaceClipInference(head))]
            head, features = head.double(), features.each(torch.Tensor.double)
            expected, found = head(features), SpaceClipInference(head)(features)
        assert found.depth_m.shape == (2, 1, *spec.input_hw)
        assert expected.depth_m.std() > 0
        assert_same(found, expected, 1e-12)
        plain, lean = ((depth_m - expected.depth_m).abs().max() for depth_m in rounded)
        assert lean <= 4 * plain + 1e-6


def test_taps_of_several_grids_are_resized_each_from_its_own():
    """Explicit taps of a hierarchical tower: the sizes are those of the input, whatever it is."""
    spec = replace(TINY, is_hierarchical=True, widths=(8, 9, 10, 11), strides=(4, 8, 16, 32))
    head = head_of(spec, semantic=(3, 2, 1, 0), structural=(3, 1, 2), **SLIM)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        lean = SpaceClipInference(head)
        for h, w in ((64, 96), (32, 32)):
            features = features_of(head)
            features.maps = {
                k: torch.randn(2, c, h // s, w // s, generator=rng)
                for k, (c, s) in enumerate(zip(spec.widths, spec.strides))
            }
            features.pooled = torch.randn(2, spec.pooled_width, generator=rng)
            assert_same(lean(features), head(features))


@pytest.mark.parametrize(('small_hw', 'large_hw'), [
    ((3, 5), (6, 10)), ((1, 2), (8, 16)), ((4, 4), (4, 7)), ((6, 5), (3, 4)),
])  # fmt: skip
def test_convolution_of_a_resized_map_is_done_on_the_small_grid(small_hw, large_hw):
    """Zeros beyond the border of the large grid, the last cell repeated beyond the small one."""
    x, weight = torch.randn(2, 3, *small_hw), torch.randn(4, 3, 3, 3)
    x, weight = x.double(), weight.double()
    large = F.interpolate(x, large_hw, mode='bilinear', align_corners=False)
    expected = F.conv2d(large, weight, padding=1)
    found = ConvOfResized(weight, small_hw, large_hw)(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', ['plain_tower', 'hierarchical_tower'])
def test_network_for_inference_answers_the_same(name, request):
    model = request.getfixturevalue(name)
    lean = for_inference(model)
    sizes = ((64, 96),) if name == 'plain_tower' else ((64, 96), (96, 32))
    for hw in sizes:
        with torch.inference_mode():
            assert_same(lean(picture(hw, 2)), model(picture(hw, 2)))


@pytest.mark.parametrize('name', ['plain_tower', 'hierarchical_tower'])
def test_exported_graph_answers_the_same(name, request):
    """Of every batch, and of every size where the tower takes any."""
    model = request.getfixturevalue(name)
    run = exported(model).module()
    shapes = [((64, 96), 1), ((64, 96), 3)]
    if name == 'hierarchical_tower':
        shapes += [((96, 64), 2), ((64, 128), 1)]
    for hw, count in shapes:
        image = picture(hw, count, seed=count)
        with torch.inference_mode():
            expected, found = model(image), run(image)
        answers = [expected.depth_m, expected.confidence][: len(found)]
        for one, other in zip(found, answers):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# --- nothing else changes -----------------------------------------------------------------------


def test_the_network_it_is_made_of_stays_as_it_is():
    head = head_of(TINY, **SLIM).train()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    lean = SpaceClipInference(head)
    assert head.training and all(m.training for m in head.modules())
    assert all(p.requires_grad for p in head.parameters())
    assert not any(p.requires_grad for p in lean.parameters())
    for key, value in head.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_only_the_head_is_another(plain_tower):
    keys = set(plain_tower.state_dict())
    lean = for_inference(plain_tower)
    assert lean.backbone is plain_tower.backbone and lean.config is plain_tower.config
    assert lean.head is not plain_tower.head
    assert set(plain_tower.state_dict()) == keys


def test_a_network_whose_head_has_nothing_to_win_goes_as_it_is():
    model = model_of('tiny-vit', {'name': 'linear'}, (64, 96))
    assert for_inference(model) is model


# --- fewer operations ---------------------------------------------------------------------------


def operations(head, hw=(14, 14)):
    """Multiplications and additions of one image; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(features_of(head, hw, device='meta'))
    return counter.get_total_flops()


@pytest.mark.parametrize(('options', 'share'), [
    ({}, 0.864), ({'structural': 'none'}, 0.924), ({'upsample': 'bilinear'}, 0.93),
])  # fmt: skip
def test_the_decoder_takes_fewer_operations(options, share):
    """On ViT-B/16 at 224, where the network of the paper takes 32.5 GFLOP."""
    head = head_of(device='meta', **options)
    plain, lean = operations(head), operations(SpaceClipInference(head))
    if not options:
        assert plain == pytest.approx(32.5e9, rel=0.01)
    assert lean / plain == pytest.approx(share, abs=0.003)


def test_no_rewriting_takes_more_operations():
    """Wide and flat, slim, and on a grid where the resize would cost more than it saves."""
    for hw, widths in (((14, 14), (8, 8, 8, 8)), ((4, 90), (6, 5, 4, 3)), ((37, 37), (64,) * 4)):
        spec = replace(VIT_B, input_hw=tuple(16 * n for n in hw))
        head = head_of(spec, 'meta', widths=widths)
        assert operations(SpaceClipInference(head), hw) < operations(head, hw)
