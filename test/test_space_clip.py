"""SPACE-CLIP to the parameter: ledger, key list, grids and wiring; and what we added."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from towers import HIERARCHICAL, picture, shared
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.registry import build_head

KEYS = Path(__file__).parent / 'data' / 'space_clip_keys.txt'
VIT_B = BackboneSpec(
    'ViT-B-16', False, (768,) * 13, (16,) * 13, 768, 512, (224, 224), True, (0.5,) * 3, (0.5,) * 3
)
SLIM = {'widths': (24, 16, 12, 8), 'film_width': 10, 'output_width': 6}
TINY = replace(VIT_B, tower='tiny', widths=(20,) * 13, pooled_width=28)


def head_of(spec=VIT_B, device='cpu', seed=0, **options):
    """A head; on the meta device it has shapes and no numbers."""
    torch.manual_seed(seed)
    with torch.device(device):
        return build_head({'name': 'space_clip', **options}, spec).eval()


def features_of(head, hw=(4, 6), count=1, device='cpu', seed=0):
    """Random features of a plain tower with the maps that the head reads."""
    rng = torch.Generator().manual_seed(seed)
    spec = head.spec

    def noise(*shape):
        if device == 'meta':
            return torch.empty(shape, device='meta')
        return torch.randn(shape, generator=rng)

    maps = {k: noise(count, spec.widths[k], *hw) for k in head.layers}
    return Features(maps, noise(count, spec.pooled_width))


def count_parameters(module):
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters())


# --- the paper's network ------------------------------------------------------------------------


@pytest.mark.parametrize(('options', 'expected'), [
    ({}, 12_050_996),
    ({'structural': 'early'}, 12_050_996),
    ({'structural': 'late', 'output_activation': 'relu'}, 12_050_996),
    ({'aux_heads': False}, 11_663_249),
    ({'structural': 'none'}, 7_570_932),
])  # fmt: skip
def test_parameters_are_those_of_the_authors(options, expected):
    assert count_parameters(head_of(device='meta', **options)) == expected


def test_each_part_has_the_parameters_of_the_ledger():
    head = head_of(device='meta')
    expected = {
        'film_param_generators': 2_366_464,
        'main_path_projections': 369_120,
        'structural_path_projections': 344_512,
        'structural_decoder_blocks': 2_557_184 + 574_080 + 143_680,
        'main_decoder_blocks': 3_934_976 + 1_049_984 + 262_848 + 55_616,
        'depth_prediction_head': 4_785,
        'aux_depth_heads': 295_297 + 73_921 + 18_529,
    }
    assert {name: count_parameters(part) for name, part in head.named_children()} == expected


@pytest.mark.parametrize('structural', ['early', 'middle', 'late'])
def test_state_has_the_222_keys_and_shapes_of_the_authors_checkpoints(structural):
    """Their weights load by name, in their order."""
    lines = (line.split('\t') for line in KEYS.read_text().splitlines())
    expected = [(key, shape) for key, shape in lines]
    state = head_of(device='meta', structural=structural).state_dict()
    assert len(expected) == 222
    assert sorted((k, str(tuple(v.shape))) for k, v in state.items()) == sorted(expected)


@pytest.mark.parametrize(('hw', 'grids'), [
    ((14, 14), [(28, 28), (56, 56), (112, 112), (224, 224)]),
    ((14, 28), [(28, 56), (56, 112), (112, 224), (224, 448)]),
])  # fmt: skip
def test_stages_double_the_grid_up_to_the_input_size(hw, grids):
    """28, 56, 112, 224 for 224 input; the structural pathway at the first three."""
    head, seen = head_of(device='meta').train(), {}
    for name in ('main_decoder_blocks', 'structural_decoder_blocks'):
        for i, block in enumerate(getattr(head, name)):
            block.register_forward_hook(
                lambda _, args, out, at=(name, i): seen.__setitem__(at, tuple(out.shape[1:]))
            )
    found = head(features_of(head, hw, device='meta'))
    widths = (256, 128, 64, 32)
    for i, (grid, width) in enumerate(zip(grids, widths)):
        assert seen['main_decoder_blocks', i] == (width, *grid)
        if i < 3:
            assert seen['structural_decoder_blocks', i] == (width, *grid)
    assert found.depth_m.shape == (1, 1, *grids[-1])
    assert [a.shape[-2:] for a in found.extras['aux_depth_m']] == grids[:3]


def reference(state, features, semantic, structural):
    """The network from its description, as plain functions of a state dict, in evaluation."""

    def conv(name, x, padding=0):
        return F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), padding=padding)

    def norm(name, x):
        mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
        return F.batch_norm(x, mean, var, state[f'{name}.weight'], state[f'{name}.bias'])

    def up(name, x):
        x = F.conv_transpose2d(
            x, state[f'{name}.upsample.weight'], state[f'{name}.upsample.bias'], stride=2
        )
        return F.relu(norm(f'{name}.conv.1', conv(f'{name}.conv.0', x, 1)))

    def to(x, like):
        return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)

    def gate(name, x):
        return 1 + torch.sigmoid(conv(f'{name}.0', x))

    skips = []
    for i, k in enumerate(semantic):
        hidden = F.relu(F.linear(
            features.pooled,
            state[f'film_param_generators.{i}.0.weight'],
            state[f'film_param_generators.{i}.0.bias'],
        ))  # fmt: skip
        both = F.linear(
            hidden,
            state[f'film_param_generators.{i}.2.weight'],
            state[f'film_param_generators.{i}.2.bias'],
        )[:, :, None, None]
        width = both.shape[1] // 2
        film = both[:, :width] * features.maps[k] + both[:, width:]  # raw gamma, not 1 + gamma
        skips.append(conv(f'main_path_projections.{i}', film))
    structures, x = [], features.maps[structural[0]] if structural else None
    for i, k in enumerate(structural):
        block = f'structural_decoder_blocks.{i}'
        u = up(f'{block}.upsample_low', x)
        p = to(conv(f'structural_path_projections.{i}', features.maps[k]), u)
        x = conv(f'{block}.fusion_conv.0', torch.cat([u, p], 1), 1)
        x = F.relu(norm(f'{block}.fusion_conv.1', x))
        structures.append(x)
    x = skips[0]
    for i in range(4):
        block = f'main_decoder_blocks.{i}'
        u = up(f'{block}.upsample_low', x)
        parts = [u, to(skips[i], u) * gate(f'{block}.skip_clip_gate', u)]
        if i < len(structures):
            parts.append(structures[i] * gate(f'{block}.skip_struct_gate', u))
        fusion = f'{block}.fusion_conv'
        y = F.relu(norm(f'{fusion}.1', conv(f'{fusion}.0', torch.cat(parts, 1), 1)))
        z = F.relu(norm(f'{fusion}.3.norm1', conv(f'{fusion}.3.conv1', y, 1)))
        x = F.relu(norm(f'{fusion}.3.norm2', conv(f'{fusion}.3.conv2', z, 1)) + y)
    x = conv('depth_prediction_head.0', x, 1)
    return conv('depth_prediction_head.3', F.relu(norm('depth_prediction_head.1', x)), 1)


def live(head):
    """Give every normalisation values of its own, as training does: initial ones hide mistakes."""
    rng = torch.Generator().manual_seed(3)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.data = torch.rand(module.weight.shape, generator=rng) + 0.5
            module.bias.data = torch.rand(module.bias.shape, generator=rng) - 0.5
    with torch.no_grad():
        head.train()(features_of(head, count=4, seed=5))
    head.eval()
    head.depth_prediction_head[3].weight.data *= 5


@pytest.mark.parametrize(('taps', 'structural'), [
    ('early', (2, 1, 0)), ('middle', (7, 5, 4)), ('late', (11, 10, 8)), ('none', ()),
    ((6, 3, 0), (6, 3, 0)),
])  # fmt: skip
def test_wiring_is_that_of_the_paper(taps, structural):
    """Against a second writing of it, with running statistics that are not the initial ones."""
    head = head_of(TINY, structural=taps, output_activation='relu', **SLIM)
    live(head)
    features = features_of(head, count=2)
    assert (head.semantic, head.structural) == ((12, 9, 6, 3), structural)
    with torch.no_grad():
        expected = reference(head.state_dict(), features, (12, 9, 6, 3), structural)
        found = head(features).depth_m
    assert expected.std() > 0.1 and (expected > 0).any() and (expected < 0).any()
    torch.testing.assert_close(found, F.relu(expected), rtol=1e-4, atol=1e-5)


# --- taps ---------------------------------------------------------------------------------------


def test_default_taps_are_the_middle_ones():
    """Lower error and a seventh of the spread over seeds of the paper's early ones."""
    assert head_of(device='meta').structural == (7, 5, 4)


@pytest.mark.parametrize(('structural', 'expected'), [
    ('early', (4, 2, 0)), ('middle', (14, 10, 8)), ('late', (22, 20, 16)), ('none', ()),
])  # fmt: skip
def test_taps_of_24_layers_lie_at_the_same_depth(structural, expected):
    spec = replace(VIT_B, tower='ViT-L-14', widths=(1024,) * 25, strides=(14,) * 25)
    head = head_of(spec, 'meta', structural=structural)
    assert (head.semantic, head.structural) == ((24, 18, 12, 6), expected)


@pytest.mark.parametrize(('structural', 'expected'), [
    ('early', (2, 1, 0)), ('middle', (3, 2, 1)), ('late', (4, 3, 2)), ('none', ()),
])  # fmt: skip
def test_presets_of_a_hierarchical_tower_are_one_map_apart(structural, expected):
    """Its maps are few; early ends in the stem and late starts at the deepest semantic tap."""
    spec = shared('tiny-fastvit').spec
    assert spec.strides == (4, 4, 8, 16, 32)
    head = head_of(spec, 'meta', structural=structural)
    assert (head.semantic, head.structural) == ((4, 3, 2, 1), expected)


OTHER_STRIDES = replace(TINY, is_hierarchical=True, strides=(2, 4, 8, 16), widths=(8, 9, 10, 11))


@pytest.mark.parametrize(('options', 'semantic', 'structural'), [
    ({'semantic': (3, 2, 1, 0), 'structural': 'none'}, (3, 2, 1, 0), ()),
    ({'semantic': (3, 2, 1, 0), 'structural': (2, 1, 0)}, (3, 2, 1, 0), (2, 1, 0)),
    ({'semantic': (3, 2, 1, 0)}, (3, 2, 1, 0), (3, 2, 1)),
])  # fmt: skip
def test_a_hierarchical_tower_needs_no_stride_that_nobody_reads(options, semantic, structural):
    """Explicit taps win: this one has no map of stride 32."""
    head = head_of(OTHER_STRIDES, **options, **SLIM)
    assert (head.semantic, head.structural) == (semantic, structural)
    maps = {
        k: torch.randn(1, OTHER_STRIDES.widths[k], 64 // stride, 96 // stride)
        for k, stride in enumerate(OTHER_STRIDES.strides)
    }
    depth_m = head(Features(maps, torch.randn(1, TINY.pooled_width))).depth_m
    assert depth_m.shape == (1, 1, 64, 96), '16 times the grid of the first semantic tap'


def test_explicit_taps_are_taken_as_they_are():
    head = head_of(device='meta', structural=[8, 2, 1], semantic=[11, 10, 4, 0])
    assert (head.structural, head.semantic) == ((8, 2, 1), (11, 10, 4, 0))
    assert head.layers == (0, 1, 2, 4, 8, 10, 11)


@pytest.mark.parametrize(('tower', 'semantic', 'structural'), [
    ('pocket-tower', (4, 3, 2, 1), (3, 2, 1)),
    ('tiny-resnet', (4, 3, 2, 1), (3, 2, 1)),
    ('tiny-fastvit', (4, 3, 2, 1), (3, 2, 1)),
    ('tiny-convnext', (4, 3, 2, 1), (3, 2, 1)),
])  # fmt: skip
def test_taps_of_a_hierarchical_tower_go_by_stride(tower, semantic, structural):
    """Strides 32, 16, 8, 4 and 16, 8, 4; the deepest map of each, so the stage, not the stem."""
    spec = shared(tower).spec
    head = head_of(spec, 'meta')
    assert (head.semantic, head.structural) == (semantic, structural)
    assert [spec.strides[k] for k in head.semantic] == [32, 16, 8, 4]


@pytest.mark.parametrize('tower', HIERARCHICAL)
def test_depth_of_a_hierarchical_tower_has_half_the_input_size(tower):
    """16 times a trunk grid of stride 32."""
    backbone = shared(tower)
    head = head_of(backbone.spec, **SLIM)
    with torch.no_grad():
        found = head(backbone(picture((64, 96)), head.layers))
    assert found.depth_m.shape == (1, 1, 32, 48)


@pytest.mark.parametrize(('options', 'spec', 'message'), [
    ({}, OTHER_STRIDES, r"head space_clip cannot work on tower 'tiny': it has no map of stride "
     r"\[32\] \(strides \(2, 4, 8, 16\)\). Name its layers in semantic and structural."),
    ({'semantic': (3, 2, 1, 0)}, replace(OTHER_STRIDES, strides=(1, 2, 8, 32)),
     r"'tiny': it has no map of stride \[16, 4\]"),
    ({'structural': 'early'}, replace(OTHER_STRIDES, strides=(4, 8, 16, 32)),
     r"layer -1 does not exist on tower 'tiny' \(0 to 3\)"),
    ({'structural': (1, 2, 5)}, None, "layer 5 does not exist on tower 'pocket-tower' "),
    ({'semantic': (13, 9, 6, 3)}, TINY, r"layer 13 does not exist on tower 'tiny' \(0 to 12\)"),
    ({'structural': (2, 1, -1)}, TINY, "layer -1 does not exist on tower 'tiny'"),
    ({'structural': (2, 1, '0')}, TINY, "layer '0' does not exist on tower 'tiny'"),
])  # fmt: skip
def test_a_tower_that_does_not_fit_is_refused_by_name(options, spec, message):
    with pytest.raises(ConfigError, match=message):
        head_of(spec or shared('pocket-tower').spec, 'meta', **options)


@pytest.mark.parametrize(('options', 'message'), [
    ({'structural': 'deep'}, "structural = 'deep': expected one of .*'early', 'middle', 'late'"),
    ({'structural': (1, 2)}, 'expected three layer numbers or none'),
    ({'semantic': (12, 9, 6)}, 'expected four layer numbers'),
    ({'upsample': 'nearest'}, "expected one of .*'transposed', 'bilinear'"),
    ({'output_activation': 'exp'}, "expected one of .*'softplus', 'relu'"),
    ({'widths': (256, 128, 64)}, 'widths = .*: expected four positive integers'),
    ({'widths': (256, 128, 64, 0)}, 'expected four positive integers'),
    ({'film_width': 0}, 'film_width = 0: expected a positive integer'),
    ({'output_width': 1.5}, 'output_width = 1.5: expected a positive integer'),
    ({'dropout': 1.0}, 'dropout = 1.0: expected 0 to below 1'),
    ({'start_m': 0.0}, 'start_m = 0.0: expected a positive depth, with softplus'),
    ({'start_m': 2.0, 'output_activation': 'relu'}, 'start_m = 2.0: expected a positive depth'),
    ({'widths': 5}, 'head space_clip: '),
])  # fmt: skip
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        head_of(VIT_B, 'meta', **options)


# --- our additions ------------------------------------------------------------------------------


def test_slim_widths_change_widths_and_nothing_else():
    head = head_of(TINY, **SLIM)
    assert head(features_of(head)).depth_m.shape == (1, 1, 64, 96)
    assert set(head.state_dict()) == set(head_of(device='meta').state_dict())
    assert [p.out_channels for p in head.main_path_projections] == [24, 16, 12, 8]
    assert count_parameters(head) < 12_050_996 // 100


def gradients_where_the_output_is_off(activation):
    """Head gradients of an image whose every pixel lies far below zero before the activation."""
    head = head_of(TINY, output_activation=activation, **SLIM).train()
    with torch.no_grad():
        head.depth_prediction_head[3].bias.fill_(-20.0)
    head(features_of(head, count=2)).depth_m.sum().backward()
    return [p.grad for n, p in head.named_parameters() if not n.startswith('aux_')]


def test_relu_output_can_die_and_softplus_cannot():
    """At exactly zero the published ReLU passes no gradient: such a pixel never comes back."""
    assert not any(g.any() for g in gradients_where_the_output_is_off('relu'))
    assert all(g.any() for g in gradients_where_the_output_is_off('softplus')[-2:])


def test_softplus_is_the_default_and_positive():
    head = head_of(TINY, **SLIM)
    assert head.config.output_activation == 'softplus'
    assert (head(features_of(head)).depth_m > 0).all()


def test_auxiliary_depths_exist_in_training_only():
    head = head_of(TINY, **SLIM)
    features = features_of(head, count=2)
    assert head(features).extras == {}
    aux = head.train()(features).extras['aux_depth_m']
    assert [a.shape for a in aux] == [(2, 1, 8, 12), (2, 1, 16, 24), (2, 1, 32, 48)]
    assert head_of(TINY, aux_heads=False, **SLIM).train()(features).extras == {}


def test_depth_without_auxiliary_heads_is_the_same_depth():
    """They only feed the loss; a weights file leaves them out."""
    full, lean = head_of(TINY, **SLIM), head_of(TINY, seed=1, aux_heads=False, **SLIM)
    lean.load_state_dict({k: v for k, v in full.state_dict().items() if k in lean.state_dict()})
    features = features_of(full)
    assert torch.equal(full(features).depth_m, lean(features).depth_m)


def test_bilinear_upsampling_starts_without_a_grid_of_two_pixels():
    """A constant stays one; a transposed convolution has a kernel for each of its four places."""
    for upsample in ('bilinear', 'transposed'):
        up = head_of(TINY, **SLIM, upsample=upsample).main_decoder_blocks[0].upsample_low.upsample
        channels = next(up.parameters()).shape[1 if upsample == 'bilinear' else 0]
        four = up(torch.ones(1, channels, 3, 3))
        assert four.shape[-2:] == (6, 6)
        is_flat = torch.allclose(four, four[..., :1, :1].expand_as(four), atol=1e-5)
        assert is_flat is (upsample == 'bilinear')


def test_confidence_changes_no_depth_and_bends_nothing():
    plain, sure = head_of(seed=3), head_of(seed=3, confidence=True)
    live(plain)
    sure.load_state_dict(plain.state_dict(), strict=False)
    features = features_of(plain)
    found = sure.eval()(features)
    assert torch.equal(found.depth_m, plain.eval()(features).depth_m)
    assert found.confidence.shape == found.depth_m.shape
    assert (found.confidence > 0).all() and (found.confidence < 1).all()
    assert plain(features).confidence is None
    sure.train()(features).extras['confidence_logit'].sum().backward()
    learning = {n.split('.')[0] for n, p in sure.named_parameters() if p.grad is not None}
    assert learning == {'confidence_head'}


def test_gain_and_shift_turn_confidence_into_probability():
    head = head_of(confidence=True).eval()
    features = features_of(head)
    before = head(features).confidence.logit()
    head.confidence_head.gain.fill_(0.5)
    head.confidence_head.shift.fill_(-1.0)
    assert torch.allclose(head(features).confidence.logit(), 0.5 * before - 1, atol=1e-4)


def test_untrained_head_answers_around_the_given_depth():
    head = head_of(start_m=2.3).train()
    found = head(features_of(head))
    for depth_m in (found.depth_m, *found.extras['aux_depth_m']):
        assert depth_m.median().item() == pytest.approx(2.3, abs=0.6)
