"""The DPT decoder: ledger, grids, and the whole network computed again from its state."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from towers import HIERARCHICAL, picture, PLAIN, shared
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.registry import build_head

VIT_B = BackboneSpec(
    'ViT-B-16', False, (768,) * 13, (16,) * 13, 768, 512, (224, 224), True, (0.5,) * 3, (0.5,) * 3
)
TINY = replace(VIT_B, tower='tiny', widths=(24,) * 13, pooled_width=20)
STAGES = BackboneSpec(
    'stages', True, (8, 8, 12, 16, 24), (4, 4, 8, 16, 32), 20, None, (64, 96), False,
    (0.5,) * 3, (0.5,) * 3,
)  # fmt: skip
SLIM = {'channels': 12, 'num_bins': 16}


def head_of(spec=VIT_B, device='cpu', **options):
    """A head; on the meta device it has shapes and no numbers."""
    torch.manual_seed(0)
    with torch.device(device):
        return build_head({'name': 'dpt', **options}, spec).eval()


def features_of(head, hw, count=1):
    """Noise in the maps that the head reads; `hw` is the input size."""
    rng, spec = torch.Generator().manual_seed(1), head.spec
    maps = {
        k: torch.randn(count, spec.widths[k], *(n // spec.strides[k] for n in hw), generator=rng)
        for k in head.layers
    }
    pooled = torch.randn(count, spec.pooled_width, generator=rng)
    tokens = {k: torch.randn(count, spec.widths[k], generator=rng) for k in head.layers}
    return Features(maps, pooled, class_tokens=tokens if spec.has_class_token else {})


def count(module):
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters())


# --- to the parameter ---------------------------------------------------------------------------


def test_each_part_has_the_parameters_of_the_ledger():
    head = head_of(device='meta', output='regression')
    residual = 2 * 256 * 256 * 9
    fusion_project = 256 * 256 + 256
    expected = {
        'readouts': 4 * (2 * 768 * 768 + 768),
        'reassemble': sum(768 * c + c for c in (96, 192, 384, 768))
        + (96 * 96 * 16 + 96) + (192 * 192 * 4 + 192) + (768 * 768 * 9 + 768),
        'convs': (96 + 192 + 384 + 768) * 256 * 9,
        'fusions': 7 * residual + 4 * fusion_project,
        'project': 256 * 256 * 9 + 256,
        'narrow': 256 * 128 * 9 + 128,
        'output': (128 * 32 * 9 + 32) + (32 + 1),
    }  # fmt: skip
    assert {name: count(part) for name, part in head.named_children()} == expected
    assert sum(expected.values()) == count(head) == 24_193_921


def test_own_class_tokens_cost_the_same_where_pooled_is_as_wide():
    head = head_of(device='meta', output='regression', class_token='own')
    assert count(head) == 24_193_921
    assert [r.globally.in_features for r in head_of(TINY, class_token='own').readouts] == [24] * 4


def test_a_tower_without_a_class_token_has_none_to_read():
    with pytest.raises(ConfigError, match="head dpt cannot read class tokens of tower 'stages': "):
        head_of(STAGES, class_token='own')


def test_bins_cost_one_wider_layer():
    assert count(head_of(device='meta')) == 24_193_921 + 255 * 33


def test_there_is_no_batch_norm_as_in_the_study():
    head = head_of(device='meta')
    assert not any('norm' in type(m).__name__.lower() for m in head.modules())


def test_a_hierarchical_tower_needs_no_pyramid():
    head = head_of(STAGES, **SLIM)
    assert count(head.reassemble) == 0
    widths = (8, 12, 16, 24)
    assert count(head.readouts) == sum((c + 20) * c + c for c in widths)
    assert count(head.convs) == sum(widths) * 12 * 9


@pytest.mark.parametrize(('num_layers', 'expected'), [
    (12, (3, 6, 9, 12)), (24, (5, 12, 18, 24)), (40, (10, 20, 30, 40)),
])  # fmt: skip
def test_layers_are_the_study_s(num_layers, expected):
    n = num_layers + 1
    assert head_of(replace(VIT_B, widths=(768,) * n, strides=(16,) * n), 'meta').layers == expected


def test_stages_are_the_deepest_of_strides_4_to_32():
    assert head_of(STAGES, **SLIM).layers == (1, 2, 3, 4)
    assert head_of(TINY, layers=[2, 5, 8, 9], **SLIM).layers == (2, 5, 8, 9)


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize(('spec', 'hw', 'expected'), [
    (TINY, (64, 96), (64, 96)),
    (TINY, (224, 288), (224, 288)),
    (STAGES, (64, 96), (64, 96)),
    # 7 x 9 cells: half of them is 4 x 5, as in the study, whose depth is resized to the image.
    (TINY, (112, 144), (128, 160)),
])  # fmt: skip
def test_depth_has_sixteen_times_the_grid(spec, hw, expected):
    head = head_of(spec, **SLIM)
    assert head(features_of(head, hw)).depth_m.shape == (1, 1, *expected)


def reference(state, maps, vectors, layers, is_plain):
    """The scores from the description, as plain functions of a state dict."""

    def conv(name, x, **how):
        return F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), **how)

    def transposed(name, x, factor):
        return F.conv_transpose2d(
            x, state[f'{name}.weight'], state[f'{name}.bias'], stride=factor
        )

    def refined(name, x):
        y = conv(f'{name}.conv1', torch.relu(x), padding=1)
        return x + conv(f'{name}.conv2', torch.relu(y), padding=1)

    def twice(x):
        hw = [2 * n for n in x.shape[-2:]]
        return F.interpolate(x, hw, mode='bilinear', align_corners=True)

    skips = []
    for i, k in enumerate(layers):
        x = maps[k]
        joined = torch.cat([x, vectors[k][:, :, None, None].expand(-1, -1, *x.shape[-2:])], 1)
        whole = torch.cat([
            state[f'readouts.{i}.local.weight'][:, :, 0, 0],
            state[f'readouts.{i}.globally.weight'],
        ], dim=1)  # fmt: skip
        x = torch.einsum('oc,bchw->bohw', whole, joined)
        x = F.gelu(x + state[f'readouts.{i}.local.bias'][:, None, None])
        if is_plain:
            x = conv(f'reassemble.{i}.0', x)
            if i < 2:
                x = transposed(f'reassemble.{i}.1', x, (4, 2)[i])
            if i == 3:
                x = conv(f'reassemble.{i}.1', x, stride=2, padding=1)
        skips.append(conv(f'convs.{i}', x, padding=1))
    x = None
    for i in range(4):
        skip = skips[3 - i]
        if x is None:
            x = skip
        else:
            if skip.shape[-2:] != x.shape[-2:]:
                skip = F.interpolate(skip, x.shape[-2:], mode='bilinear', align_corners=False)
            x = x + refined(f'fusions.{i}.skip', skip)
        x = conv(f'fusions.{i}.project', twice(refined(f'fusions.{i}.refine', x)))
    x = torch.relu(conv('project.0', x, padding=1))
    x = twice(conv('narrow', x, padding=1))
    x = torch.relu(conv('output.0', x, padding=1))
    return conv('output.2', x)


@pytest.mark.parametrize(('spec', 'hw', 'class_token'), [
    (TINY, (64, 96), 'pooled'), (TINY, (80, 112), 'pooled'), (STAGES, (64, 96), 'pooled'),
    (TINY, (64, 96), 'own'),
])  # fmt: skip
@pytest.mark.parametrize('output', ['bins', 'regression'])
def test_depth_is_that_of_the_description_in_float64(spec, hw, class_token, output):
    options = {'output': output, 'class_token': class_token, 'depth_range_m': (0.1, 20.0), **SLIM}
    head = head_of(spec, **options)
    features = features_of(head, hw, count=2)
    state = {k: v.double() for k, v in head.state_dict().items()}
    maps = {k: m.double() for k, m in features.maps.items()}
    own = class_token == 'own'
    vectors = {
        k: (features.class_tokens[k] if own else features.pooled).double() for k in head.layers
    }
    scores = reference(state, maps, vectors, head.layers, not spec.is_hierarchical)
    if output == 'bins':
        p = torch.relu(scores) + 0.1
        depths_m = 0.1 + 19.9 * torch.arange(16, dtype=torch.float64) / 15
        expected = torch.einsum('bnhw,n->bhw', p / p.sum(dim=1, keepdim=True), depths_m)[:, None]
    else:
        expected = (torch.relu(scores) + 0.1).clamp(max=20.0)
        assert (scores > 0).any(), 'nothing but the cut-off was compared'
    found = head(features).depth_m.double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_regression_is_cut_off_in_use_and_not_in_training():
    head = head_of(TINY, output='regression', depth_range_m=(0.5, 2.0), **SLIM)
    with torch.no_grad():
        head.output[2].bias.fill_(1e4)
    features = features_of(head, (64, 64))
    assert torch.equal(head(features).depth_m.unique(), torch.tensor([2.0]))
    assert (head.train()(features).depth_m > 2.0).all()
    with torch.no_grad():
        head.output[2].bias.fill_(-1e4)
    assert torch.equal(head.eval()(features).depth_m.unique(), torch.tensor([0.5]))


@pytest.mark.parametrize('tower', PLAIN + HIERARCHICAL)
def test_every_kind_of_tower_is_served_within_the_range(tower):
    backbone = shared(tower)
    head = head_of(backbone.spec, depth_range_m=[0.5, 4.0], **SLIM)
    with torch.no_grad():
        image = picture(backbone.spec.input_hw)
        depth_m = head(backbone(image, head.layers)).depth_m
    assert depth_m.min() >= 0.5 and depth_m.max() <= 4.0


@pytest.mark.parametrize(('options', 'message'), [
    ({'layers': 4}, 'layers = 4: expected four layer numbers'),
    ({'layers': [3, 6, 9]}, 'layers = (3, 6, 9): expected four layer numbers'),
    ({'layers': [3, 6, 9, 13]}, "head dpt: layers (3, 6, 9, 13) do not fit tower 'ViT-B-16'"),
    ({'layers': [12, 9, 6, 3]}, 'layers (12, 9, 6, 3) do not fit'),
    ({'channels': 1}, 'channels = 1: expected an integer of at least 2'),
    ({'output': 'softplus'}, "output = 'softplus': expected one of ('bins', 'regression')"),
    ({'num_bins': 1}, 'num_bins = 1'),
    ({'bins': 'even'}, "bins = 'even'"),
    ({'depth_range_m': [0, 10]}, 'depth_range_m = (0, 10): expected'),
])  # fmt: skip
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as caught:
        head_of(device='meta', **options)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_towers_that_it_cannot_work_on_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"head dpt cannot work on tower 'stages': it has no"):
        head_of(replace(STAGES, strides=(2, 2, 8, 16, 32)))
    with pytest.raises(ConfigError, match=r"head dpt cannot work on tower 'tiny': its width 4 "):
        head_of(replace(TINY, widths=(4,) * 13))
