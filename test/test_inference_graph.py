"""The network for inference is the same network with fewer operations."""

from dataclasses import replace
import logging

import numpy as np
import pytest
from test_space_clip import features_of, head_of, live, SLIM, TINY, VIT_B
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from towers import HIERARCHICAL, picture
from vlm_depth_ros.core import lean_eager
from vlm_depth_ros.core.agreement import BOUNDS
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.heads.space_clip_inference import ConvOfResized, SpaceClipInference
from vlm_depth_ros.core.inference_graph import exported, for_inference
from vlm_depth_ros.core.lean_eager import run_lean
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.ros.loading import load_estimator


def model_of(tower, head, input_hw):
    """A network of random weights whose normalisations are not the initial ones."""
    torch.manual_seed(0)
    config = ModelConfig(tower, head, input_hw=input_hw, camera=TrainingCamera(0.8, 1.1))
    model = DepthModel(config)
    rng = torch.Generator().manual_seed(1)
    for module in model.modules():
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


@pytest.mark.parametrize('tower', HIERARCHICAL)
def test_folded_towers_answer_the_same(tower):
    model = model_of(tower, {'name': 'scale_shape', 'confidence': True}, (64, 96))
    torch.nn.init.normal_(model.head.shape.weight)  # or an untrained head answers one depth
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lean = for_inference(model)
    assert lean is not model and not lean.head.training
    with torch.no_grad():
        for hw in ((64, 96), (96, 64)):
            image = picture(hw, 2)
            assert_same(lean(image), model(image))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_what_is_not_folded_is_not_held_twice():
    model = model_of('pocket-tower', {'name': 'scale_shape'}, (64, 96))
    lean = for_inference(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in lean.modules())
    own = {id(parameter) for parameter in model.parameters()}
    new = [name for name, p in lean.named_parameters() if id(p) not in own]
    assert new and all(isinstance(lean.get_submodule(n.rpartition('.')[0]), torch.nn.Conv2d)
                       for n in new)  # fmt: skip


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


# --- in eager -----------------------------------------------------------------------------------


def estimator_of(model, **options):
    return DepthEstimator(model, RuntimeConfig(device='cpu', **options), 'name')


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_lean_eager_runs_the_folded_network_and_leaves_the_plain_one(
    hierarchical_tower, precision
):
    estimator = estimator_of(hierarchical_tower, precision=precision)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    before = estimator(rgb)
    run_lean(estimator)
    assert type(estimator.ways.at_hand.network.head) is SpaceClipInference
    assert estimator.model is hierarchical_tower
    found = estimator(rgb)
    bound = 1e-5 if precision == 'fp32' else BOUNDS[precision]
    np.testing.assert_allclose(found.depth_m, before.depth_m, bound)
    assert str(estimator.ways.at_hand) == 'eager'


def test_lean_eager_gives_the_embedding_of_the_plain_network(plain_tower):
    estimator = estimator_of(plain_tower)
    rgb = np.full((64, 96, 3), 99, np.uint8)
    before = estimator(rgb, want_embedding=True)
    run_lean(estimator)
    found = estimator(rgb, want_embedding=True)
    np.testing.assert_array_equal(found.embedding, before.embedding)
    np.testing.assert_allclose(found.depth_m, before.depth_m, 1e-5)


def test_a_fold_that_answers_something_else_leaves_the_plain_network(
    hierarchical_tower, monkeypatch, caplog
):
    other = model_of('pocket-tower', {'name': 'space_clip', 'start_m': 9.0, **SLIM}, (64, 96))
    monkeypatch.setattr(lean_eager, 'for_inference', lambda model: other)
    estimator = estimator_of(hierarchical_tower)
    with caplog.at_level(logging.WARNING):
        run_lean(estimator)
    assert estimator.ways.at_hand.network is hierarchical_tower
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith('name with BatchNorm folded in fp32 differs from eager fp32 by ')
    assert text.endswith('it runs as it is. Set engine: eager to say so.') and '\n' not in text


def test_a_network_of_nan_stays_as_it_is():
    model = model_of('pocket-tower', {'name': 'scale_shape'}, (64, 96))
    next(model.head.parameters()).fill_(torch.nan)
    estimator = estimator_of(model)
    run_lean(estimator)
    assert estimator.ways.at_hand.network is model


@pytest.mark.parametrize(('engine', 'is_lean'), [('auto', True), ('eager', False)])
def test_the_node_runs_it_unless_told_eager(hierarchical_tower, engine, is_lean, tmp_path):
    path = tmp_path / 'tiny.safetensors'
    save_model(path, hierarchical_tower, name='tiny', embed_tower=True)
    loaded = load_estimator(str(path), RuntimeConfig(device='cpu', engine=engine))
    assert (loaded.ways.at_hand.network is not loaded.model) == is_lean
