"""The head contract, for every head in the registry on every kind of tower."""

import copy
from dataclasses import FrozenInstanceError, replace
from functools import partial
import inspect
from pathlib import Path

import blip2
import pytest
import torch
from towers import HIERARCHICAL, picture, PLAIN, shared
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.registry import build_head, HEADS

OPEN_CLIP = (
    'tiny-vit', 'tiny-siglip', 'pocket-tower', 'tiny-resnet', 'tiny-rn50', 'tiny-fastvit'
)  # fmt: skip
TOWERS = (*OPEN_CLIP, blip2.TOWER)
HW = {'tiny-siglip': (64, 96)}
# Heads that are made for some towers only; what they say to the others is in their own tests.
ACCEPTS = {
    'moa_depthclip': ('tiny-vit',),
    'depthclip': ('tiny-resnet', 'tiny-rn50'),
    'depthblip2': (blip2.TOWER,),
    'linear': (*OPEN_CLIP, blip2.TOWER),  # others take BLIP-2's ViT too, and slowly
}
NO_POOLED = ('moa_depthclip', 'depthclip')
# Wide ones narrow: the contract is about what flows, not about how much of it. Of others the mode
# that trains, and less like an arg max: bfloat16 alone would turn it. The rest of each is in its
# own tests.
OPTIONS = {
    'space_clip': {'widths': (64, 32, 16, 8), 'film_width': 64},
    'dpt': {'channels': 64},
    'depthclip': {'mode': 'learned', 'temperature': 2.0},
    'depthblip2': {'bins': 'learned', 'temperature': 1.0},
}
# Without those that other test files register.
OURS = [name for name, head in HEADS.items() if head.__module__.startswith('vlm_depth_ros')]
every_head = pytest.mark.parametrize('head_name', OURS)
every_tower = pytest.mark.parametrize('tower', TOWERS)
some_towers = pytest.mark.parametrize(
    'tower', ['tiny-vit', 'pocket-tower', 'tiny-rn50', blip2.TOWER]
)


def options_of(head_name):
    """With which the contract is tested: the defaults, for most."""
    return {'name': head_name, **OPTIONS.get(head_name, {})}


def made(head_name, tower):
    """A head with its default options on a shared tower, and the tower."""
    if tower not in ACCEPTS.get(head_name, OPEN_CLIP):
        pytest.skip(f'{head_name} is not made for {tower}')
    backbone = (blip2.shared if tower == blip2.TOWER else partial(shared, tower))(
        HW.get(tower, (64, 96))
    )
    return head_on(head_name, backbone), backbone


def head_on(head_name, backbone, seed=0):
    """A head of random weights with what a desk has stored in it."""
    torch.manual_seed(seed)
    head = build_head(options_of(head_name), backbone.spec).eval()
    if hasattr(head, 'context'):
        head.context.fill_(0.1)
    if hasattr(head, 'phrases'):
        head.set_phrases(blip2.vectors())
    return head


def features_of(head, backbone, count=1, seed=0):
    """What the head asks for, and nothing else."""
    image = picture(backbone.spec.input_hw, count, seed)
    return backbone(image, head.layers, change=head.tower_change)


@every_head
def test_the_name_of_a_head_is_its_file_and_its_key(head_name):
    head = HEADS[head_name]
    assert head.name == head_name == Path(inspect.getfile(head)).stem
    assert issubclass(head, DepthHead)


@every_head
def test_options_are_frozen_and_unknown_ones_are_refused(head_name):
    config = HEADS[head_name].Config()
    option = next(iter(vars(config)))
    with pytest.raises(FrozenInstanceError):
        setattr(config, option, None)
    with pytest.raises(ConfigError) as caught:
        build_head({'name': head_name, f'{option}x': 1}, shared('tiny-vit').spec)
    assert f"head {head_name}: '{option}x' is not an option. Did you mean {option!r}?" in str(
        caught.value
    )


@pytest.mark.parametrize('options', [{}, {'name': None}, {'name': 'space-clip'}])
def test_an_unknown_head_is_refused_with_the_list(options):
    with pytest.raises(ConfigError, match='is unknown. Available: space_clip, linear'):
        build_head(options, shared('tiny-vit').spec)


@every_head
@every_tower
def test_a_head_answers_depth_in_metres(head_name, tower):
    """(B, 1, h, w), positive, of the aspect of the input, for input that is not square."""
    head, backbone = made(head_name, tower)
    with torch.no_grad():
        found = head(features_of(head, backbone, count=2))
    assert isinstance(found, HeadOutput)
    count, channels, h, w = found.depth_m.shape
    assert (count, channels) == (2, 1)
    assert h * 96 == w * 64
    assert torch.isfinite(found.depth_m).all() and (found.depth_m >= 0).all()
    if found.confidence is not None:
        assert found.confidence.shape == found.depth_m.shape
        assert found.confidence.min() >= 0 and found.confidence.max() <= 1
    assert found.extras == {}, 'training-only outputs outside of training'


@every_head
@every_tower
def test_layers_are_valid_sorted_and_all_that_is_read(head_name, tower):
    head, backbone = made(head_name, tower)
    assert list(head.layers) == sorted(set(head.layers))
    assert all(0 <= k <= backbone.spec.num_layers for k in head.layers)
    found = features_of(head, backbone)
    for k in head.layers:
        fewer = replace(found, maps={j: m for j, m in found.maps.items() if j != k})
        with pytest.raises(KeyError):
            head(fewer)


@every_head
@every_tower
def test_an_image_does_not_depend_on_its_batch(head_name, tower):
    """Several cameras share one call."""
    head, backbone = made(head_name, tower)
    with torch.no_grad():
        together = head(features_of(head, backbone, count=3)).depth_m
        image = picture(backbone.spec.input_hw, 3)
        change = head.tower_change
        singles = [backbone(i[None], head.layers, change=change) for i in image]
        alone = torch.cat([head(found).depth_m for found in singles])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@every_head
@every_tower
def test_the_image_reaches_the_depth(head_name, tower):
    """Neither the maps nor the pooled vector may be cut off."""
    head, backbone = made(head_name, tower)
    found = features_of(head, backbone)
    maps = {k: m.detach().clone().requires_grad_() for k, m in found.maps.items()}
    pooled = found.pooled.detach().clone().requires_grad_()
    head(replace(found, maps=maps, pooled=pooled)).depth_m.sum().backward()
    for k, m in maps.items():
        assert m.grad is not None and m.grad.abs().max() > 0, f'map {k}'
    if head_name in NO_POOLED:
        assert pooled.grad is None
    else:
        assert pooled.grad.abs().max() > 0


@every_head
@some_towers
def test_training_moves_every_parameter_of_the_head_and_none_of_the_tower(head_name, tower):
    """TFI-FB: the tower is frozen; its state has the same hash, and no gradient is in it."""
    head, backbone = made(head_name, tower)
    backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
    before, weights = backbone.state_sha256(), copy.deepcopy(head.state_dict())
    optimiser = torch.optim.SGD(head.train().parameters(), lr=1e-2)
    touched = set()
    for _ in range(2):  # What starts behind a zero gets its first gradient in the second step.
        optimiser.zero_grad()
        found = head(features_of(head, backbone, count=2))
        outputs = [found.depth_m, *found.extras.get('aux_depth_m', ())]
        sum(((1.5 - d) ** 2).mean() for d in outputs).backward()
        named = head.named_parameters()
        touched |= {n for n, p in named if p.grad is not None and p.grad.any()}
        optimiser.step()
    # A convolution's bias before a BatchNorm, or a ReLU that is off, may have a zero gradient.
    assert {n for n, _ in head.named_parameters() if n.endswith('weight')} <= touched
    assert backbone.state_sha256() == before
    assert all(p.grad is None for p in backbone.parameters())
    assert any(not torch.equal(v, weights[k]) for k, v in head.state_dict().items())


@every_head
@some_towers
def test_a_state_restores_the_head_bit_for_bit(head_name, tower):
    head, backbone = made(head_name, tower)
    other = head_on(head_name, backbone, seed=9)
    found = features_of(head, backbone)
    with torch.no_grad():
        assert not torch.equal(other(found).depth_m, head(found).depth_m)
        other.load_state_dict(head.state_dict())
        assert torch.equal(other(found).depth_m, head(found).depth_m)


@every_head
@some_towers
def test_a_deep_copy_is_a_head_of_its_own(head_name, tower):
    """Averaging weights in training needs one."""
    head, backbone = made(head_name, tower)
    found = features_of(head, backbone)
    with torch.no_grad():
        before = head(found).depth_m
        other = copy.deepcopy(head)
        for p in head.parameters():
            p.mul_(0.5)
        assert torch.equal(other(found).depth_m, before)
        assert not torch.equal(head(found).depth_m, before)


@every_head
@some_towers
def test_half_precision_stays_near(head_name, tower):
    head, backbone = made(head_name, tower)
    with torch.no_grad():
        exact = head(features_of(head, backbone)).depth_m
        with torch.autocast('cpu', torch.bfloat16):
            rough = head(features_of(head, backbone)).depth_m.float()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.03)


# --- the linear head ----------------------------------------------------------------------------


@pytest.mark.parametrize('tower', PLAIN + HIERARCHICAL)
def test_linear_head_is_softplus_of_a_linear_function(tower):
    backbone = shared(tower)
    head = build_head({'name': 'linear'}, backbone.spec)
    found = features_of(head, backbone)
    m = found.maps[backbone.spec.num_layers]
    score = torch.einsum('bchw,c->bhw', m, head.local.weight[0, :, 0, 0]) + head.local.bias
    score = score + (found.pooled @ head.globally.weight[0])[:, None, None]
    torch.testing.assert_close(
        head(found).depth_m[:, 0], torch.log1p(score.exp()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(('layer', 'expected'), [(-1, 12), (0, 0), (-13, 0), (5, 5)])
def test_linear_head_counts_layers_from_both_ends(layer, expected):
    assert build_head({'name': 'linear', 'layer': layer}, shared('tiny-vit').spec).layers == (
        expected,
    )


@pytest.mark.parametrize('layer', [13, -14])
def test_linear_head_refuses_a_layer_that_the_tower_lacks(layer):
    with pytest.raises(ConfigError, match=rf"head linear: layer {layer} .*'tiny-vit' \(0 to 12\)"):
        build_head({'name': 'linear', 'layer': layer}, shared('tiny-vit').spec)


def test_linear_head_refuses_a_layer_that_is_no_number():
    with pytest.raises(ConfigError, match="layer = 'last': expected an integer"):
        LinearHead.Config(layer='last')


def test_a_tower_is_named_as_the_spec_names_it():
    """Messages must name what the user wrote."""
    spec = replace(shared('tiny-vit').spec, tower='somebodys-tower')
    with pytest.raises(ConfigError, match="'somebodys-tower'"):
        build_head({'name': 'linear', 'layer': 99}, spec)
