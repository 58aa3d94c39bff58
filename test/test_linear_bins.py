"""The linear head over bins: ledger, layers, and the study's order of operations in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from towers import HIERARCHICAL, picture, PLAIN, shared
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.registry import build_head

VIT_B = BackboneSpec(
    'ViT-B-16', False, (768,) * 13, (16,) * 13, 768, 512, (224, 224), True, (0.5,) * 3, (0.5,) * 3
)
STAGES = BackboneSpec(
    'stages', True, (8, 8, 12, 16, 24), (4, 4, 8, 16, 32), 20, None, (64, 96), False,
    (0.5,) * 3, (0.5,) * 3,
)  # fmt: skip


def head_of(spec=VIT_B, device='cpu', **options):
    """A head; on the meta device it has shapes and no numbers."""
    torch.manual_seed(0)
    with torch.device(device):
        return build_head({'name': 'linear_bins', **options}, spec).eval()


def depth_of_plain(num_layers):
    """ViT-B with another number of blocks."""
    n = num_layers + 1
    return replace(VIT_B, widths=(768,) * n, strides=(16,) * n)


def features_of(head, hw, count=2):
    """Noise in the maps that the head reads; `hw` is the input size."""
    rng, spec = torch.Generator().manual_seed(1), head.spec
    maps = {
        k: torch.randn(count, spec.widths[k], *(n // spec.strides[k] for n in hw), generator=rng)
        for k in head.layers
    }
    pooled = torch.randn(count, spec.pooled_width, generator=rng)
    tokens = {k: torch.randn(count, spec.widths[k], generator=rng) for k in head.layers}
    return Features(maps, pooled, class_tokens=tokens if spec.has_class_token else {})


@pytest.mark.parametrize(('layers', 'class_token', 'expected'), [
    (1, 'pooled', 2 * 768 * 256 + 256),  # 393,472: the study's, to the parameter
    (4, 'pooled', 5 * 768 * 256 + 256),
    (1, 'own', 393_472),
    (4, 'own', 1_573_120),  # the study's: 8 x 768 x 256 + 256
])  # fmt: skip
def test_parameters_by_hand(layers, class_token, expected):
    head = head_of(device='meta', layers=layers, class_token=class_token)
    assert sum(p.numel() for p in head.parameters()) == expected
    assert not any('norm' in type(m).__name__.lower() for m in head.modules())


def test_a_state_holds_weights_only():
    """The bins follow from the options."""
    assert sorted(head_of(device='meta', layers=1).state_dict()) == [
        'globally.bias', 'globally.weight', 'local.0.weight'
    ]  # fmt: skip


@pytest.mark.parametrize(('num_layers', 'expected'), [
    (12, (3, 6, 9, 12)), (24, (5, 12, 18, 24)), (40, (10, 20, 30, 40)),
])  # fmt: skip
def test_four_layers_are_the_study_s(num_layers, expected):
    """Counted from the embedding: 2, 5, 8, 11 of the study's code are 3, 6, 9, 12 here."""
    assert head_of(depth_of_plain(num_layers), 'meta').layers == expected
    assert head_of(depth_of_plain(num_layers), 'meta', layers=1).layers == (num_layers,)


def test_stages_are_the_deepest_of_strides_4_to_32():
    assert head_of(STAGES).layers == (1, 2, 3, 4)
    assert head_of(STAGES, layers=1).layers == (4,)
    assert head_of(shared('pocket-tower').spec).layers == (1, 2, 3, 4)


def test_layers_can_be_named():
    assert head_of(device='meta', layers=[0, 7]).layers == (0, 7)


@pytest.mark.parametrize(('spec', 'layers', 'expected'), [
    (VIT_B, 1, (16, 24)), (VIT_B, 4, (16, 24)), (STAGES, 1, (8, 12)), (STAGES, 4, (16, 24)),
])  # fmt: skip
def test_depth_has_four_times_the_deepest_grid_or_the_finest(spec, layers, expected):
    head = head_of(spec, layers=layers)
    assert head(features_of(head, (64, 96))).depth_m.shape == (2, 1, *expected)


@pytest.mark.parametrize('spec', [VIT_B, STAGES])
@pytest.mark.parametrize('layers', [1, 4])
@pytest.mark.parametrize('bins', ['uniform', 'log'])
def test_depth_is_that_of_joining_resizing_and_convolving(spec, layers, bins):
    """The study's order, in float64: resize all channels, join, one 1x1 convolution, bins."""
    range_m = (0.1, 20.0)
    head = head_of(spec, layers=layers, bins=bins, depth_range_m=range_m)
    features = features_of(head, (64, 96))
    found = head(features).depth_m.detach()
    hw = found.shape[-2:]
    state = {k: v.double() for k, v in head.state_dict().items()}
    joined = [
        F.interpolate(features.maps[k].double(), hw, mode='bilinear', align_corners=False)
        for k in head.layers
    ]
    joined.append(features.pooled.double()[:, :, None, None].expand(-1, -1, *hw))
    weight = [state[f'local.{i}.weight'] for i in range(layers)]
    weight = torch.cat([*weight, state['globally.weight'][:, :, None, None]], dim=1)
    logits = F.conv2d(torch.cat(joined, dim=1), weight, state['globally.bias'])
    p = torch.relu(logits) + 0.1
    p = p / p.sum(dim=1, keepdim=True)
    steps = torch.arange(256, dtype=torch.float64) / 255
    if bins == 'uniform':
        depths_m = range_m[0] + (range_m[1] - range_m[0]) * steps
    else:
        depths_m = range_m[0] * (range_m[1] / range_m[0]) ** steps
    expected = torch.einsum('bnhw,n->bhw', p, depths_m)[:, None]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_with_own_class_tokens_each_layer_is_joined_with_its_own():
    """In the study's order, in float64: join, resize by 4, one 1x1 convolution over all layers."""
    head = head_of(class_token='own')
    features = features_of(head, (64, 96))
    state = {k: v.double() for k, v in head.state_dict().items()}
    joined, weight = [], []
    for i, k in enumerate(head.layers):
        x, token = features.maps[k].double(), features.class_tokens[k].double()
        x = torch.cat([x, token[:, :, None, None].expand_as(x)], dim=1)
        joined.append(F.interpolate(x, scale_factor=4, mode='bilinear', align_corners=False))
        of_token = state['globally.weight'][:, 768 * i : 768 * (i + 1), None, None]
        weight += [state[f'local.{i}.weight'], of_token]
    logits = F.conv2d(torch.cat(joined, 1), torch.cat(weight, 1), state['globally.bias'])
    p = torch.relu(logits) + 0.1
    depths_m = torch.linspace(0.001, 10.0, 256, dtype=torch.float64)
    expected = torch.einsum('bnhw,n->bhw', p / p.sum(dim=1, keepdim=True), depths_m)[:, None]
    found = head(features).depth_m.detach()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('tower', ['tiny-siglip', 'pocket-tower'])
def test_a_tower_without_a_class_token_has_none_to_read(tower):
    with pytest.raises(ConfigError) as caught:
        head_of(shared(tower).spec, class_token='own')
    assert str(caught.value) == (
        f"head linear_bins cannot read class tokens of tower '{tower}': it has none. Set "
        'class_token: pooled.'
    )


def test_features_without_the_class_tokens_are_refused():
    head = head_of(class_token='own')
    features = replace(features_of(head, (64, 64)), class_tokens={})
    with pytest.raises(InputError, match=r'lack the class tokens of layers \[3, 6, 9, 12\]'):
        head(features)


@pytest.mark.parametrize('tower', PLAIN + HIERARCHICAL)
@pytest.mark.parametrize('layers', [1, 4])
def test_every_kind_of_tower_is_served_within_the_range(tower, layers):
    backbone = shared(tower)
    head = head_of(backbone.spec, layers=layers, depth_range_m=[0.5, 4.0])
    with torch.no_grad():
        image = picture(backbone.spec.input_hw)
        depth_m = head(backbone(image, head.layers)).depth_m
    assert depth_m.min() >= 0.5 and depth_m.max() <= 4.0


def test_a_few_steps_reach_a_planted_depth():
    """A metric head must come back with metres, at the near end too."""
    head = head_of(replace(STAGES, pooled_width=4), num_bins=32, depth_range_m=(0.1, 10.0))
    features = features_of(head, (64, 64), count=1)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        (head(features).depth_m.log() - torch.tensor(1.5).log()).abs().mean().backward()
        optimiser.step()
    assert head(features).depth_m.median().item() == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize(('options', 'message'), [
    ({'layers': 2}, 'layers = 2: expected 1, 4 or a list of layer numbers'),
    ({'layers': True}, 'layers = True: expected 1, 4'),
    ({'layers': []}, 'layers = (): expected 1, 4'),
    ({'layers': [3, 13]}, "layers (3, 13) do not fit tower 'ViT-B-16': expected ascending"),
    ({'layers': [6, 3]}, 'layers (6, 3) do not fit'),
    ({'layers': [3, 3]}, 'layers (3, 3) do not fit'),
    ({'layers': ['3']}, "layers ('3',) do not fit"),
    ({'num_bins': 0}, 'num_bins = 0'),
    ({'class_token': 'raw'}, "class_token = 'raw': expected one of ('pooled', 'own')"),
    ({'bins': 'SID'}, "bins = 'SID': expected one of ('uniform', 'log')"),
    ({'depth_range_m': [10, 1]}, 'depth_range_m = (10, 1): expected 0 < minimum < maximum'),
])  # fmt: skip
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as caught:
        head_of(device='meta', **options)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_tower_without_the_strides_is_refused_unless_its_layers_are_named():
    spec = replace(STAGES, strides=(2, 2, 8, 16, 32))
    with pytest.raises(ConfigError, match=r"head linear_bins cannot work on tower 'stages': it ha"
                       r's no map of stride \[4\] .*Name its layers in layers'):  # fmt: skip
        head_of(spec)
    assert head_of(spec, layers=[1, 2, 3, 4]).layers == (1, 2, 3, 4)


def test_a_tower_of_two_blocks_has_no_four_layers():
    with pytest.raises(ConfigError, match=r"do not fit tower 'ViT-B-16': .* from 0 to 2"):
        head_of(depth_of_plain(2), 'meta')
