"""The tower contract on open_clip's real architecture names, with random weights.

Every map, the pooled vector and the embedding are compared with what hooks see in open_clip's own
forward, at the tower's own size and at one that is not square. One tower is held at a time.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
import gc
import json
from types import SimpleNamespace

import open_clip
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
import pytest
from quick_start import quick_start
import torch
from torch import nn
from towers import picture
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.tower_module import build_tower

BF16_ERROR = 0.02
"""How far bfloat16 may be from float32, as a share of the map's norm: it keeps 8 bits (0.4 %) of
each product, and a dozen blocks add up."""


@dataclass(frozen=True)
class Tower:
    """What is known of an architecture beforehand; `strides` of one number: a plain one."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    pooled: int
    embedding: int
    side: int = 224
    class_token: bool = False

    @property
    def wide_hw(self):
        """A small input that is not square."""
        cells = (2, 3) if len(self.strides) > 1 else (4, 6)
        return tuple(n * max(self.strides) for n in cells)


def plain(layers, width, patch, pooled, embedding, side=224, class_token=True):
    """A transformer: the embedding and what each block gives."""
    return Tower((width,) * (layers + 1), (patch,), pooled, embedding, side, class_token)


def staged(widths, pooled, embedding, side=224, strides=(4, 4, 8, 16, 32)):
    """A hierarchical tower: the stem and what each stage gives."""
    return Tower(widths, strides, pooled, embedding, side)


TOWERS = {
    # open_clip's own transformers: class token, attention pool, mean of tokens before the norm
    'ViT-B-32-quickgelu': plain(12, 768, 32, 768, 512),
    'ViT-B-16-quickgelu': plain(12, 768, 16, 768, 512),
    'ViT-M-16-alt': plain(12, 512, 16, 512, 384),
    'coca_ViT-B-32': plain(12, 768, 32, 512, 512),
    # timm's transformers
    'ViT-B-16-SigLIP': plain(12, 768, 16, 768, 768, class_token=False),
    'MobileCLIP-B': plain(12, 768, 16, 768, 512),
    'EVA02-B-16': plain(12, 768, 16, 768, 512),
    'PE-Core-T-16-384': plain(12, 192, 16, 192, 512, 384, class_token=True),
    'ViTamin-S': plain(14, 384, 16, 384, 384, class_token=False),
    'vit_medium_patch16_gap_256': plain(12, 512, 16, 512, 512, 256, class_token=False),
    'vit_relpos_medium_patch16_cls_224': plain(12, 512, 16, 512, 512),
    # hierarchical
    'MobileCLIP-S1': staged((64, 64, 128, 256, 512), 1024, 512, 256),
    'MobileCLIP2-S0': staged((64, 64, 128, 256, 512), 1024, 512, 256),
    'MobileCLIP2-S3': staged(
        (96, 96, 192, 384, 768, 1536), 3072, 768, 256, (4, 4, 8, 16, 32, 64)
    ),
    'convnext_base': staged((128, 128, 256, 512, 1024), 1024, 512),
    'RN50-quickgelu': staged((64, 256, 512, 1024, 2048), 2048, 1024),
    'RN101': staged((64, 256, 512, 1024, 2048), 2048, 512),
}

LARGER = ('ViT-B-16-quickgelu', 'MobileCLIP2-S3', 'RN101')
"""Of a kind that is here already: at the small size and in float32 only, to save time."""


@pytest.fixture(scope='module', autouse=True)
def no_text_tower():
    """Only the vision tower is built, whatever the text side of a name is."""

    def refuse(*args, **kwargs):
        raise AssertionError('a text tower was built')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('open_clip.model._build_text_tower', refuse)
        patch.setattr('open_clip.transformer.TextTransformer.__init__', refuse)
        patch.setattr('open_clip.hf_model.HFTextEncoder.__init__', refuse)
        yield


@dataclass
class Case:
    """One tower at its own size and at a small one, with the same weights."""

    name: str
    known: Tower
    native: Backbone
    """Without numbers in it, if the tower is one of `LARGER`."""
    wide: Backbone
    is_fitted: bool
    """Whether loading the native state at another size gave what building there gives."""


@pytest.fixture(scope='module', params=TOWERS)
def case(request):
    """One tower at a time: the next is built after this one is gone."""
    name, known = request.param, TOWERS[request.param]
    with quick_start():
        torch.manual_seed(0)
        native = on_meta(name) if name in LARGER else Backbone(name).requires_grad_(False).eval()
        state = (build_tower(name) if name in LARGER else native.tower).state_dict()
        torch.manual_seed(0)
        wide = Backbone(name, known.wide_hw).requires_grad_(False).eval()
    built = {k: v.clone() for k, v in wide.tower.state_dict().items() if 'pos' in k}
    wide.load_native_state(state, name)
    loaded = wide.tower.state_dict()
    is_fitted = all(torch.equal(v, loaded[k]) for k, v in built.items())
    del loaded, state
    liven(wide.tower)
    if name not in LARGER:
        liven(native.tower)
    yield Case(name, known, native, wide, is_fitted)
    del native, wide
    gc.collect()


def liven(tower):
    """Move every parameter off a constant start: a block that adds nothing hides mistakes."""
    rng = torch.Generator().manual_seed(1)
    for parameter in tower.parameters():
        if parameter.ndim == 1 and parameter.min() == parameter.max():
            noise = torch.rand(parameter.shape, generator=rng)
            # A scale that starts at nothing (LayerScale, the last norm of a bottleneck), a bias.
            start = parameter[0].abs().clamp(min=0.1)
            parameter.copy_(parameter + start * (noise - 0.5))


@torch.no_grad()
def seen_in_open_clip(tower, image):
    """Maps, pooled vector and embedding in open_clip's own forward; a resnet's at its size."""
    seen, is_native = {}, isinstance(tower, VisionTransformer)
    trunk = getattr(tower, 'trunk', tower)
    with ExitStack() as stack:

        def keep(k, module, before=False):
            if before:
                hook = module.register_forward_pre_hook(lambda _, a: seen.update({k: a[0]}))
            else:
                hook = module.register_forward_hook(lambda _, a, out: seen.update({k: out}))
            stack.callback(hook.remove)

        if is_native or hasattr(trunk, 'patch_embed'):
            blocks = tower.transformer.resblocks if is_native else trunk.blocks
            keep(0, blocks[0], before=True)
        elif isinstance(tower, ModifiedResNet):
            keep(0, tower.avgpool)
            blocks = [tower.layer1, tower.layer2, tower.layer3, tower.layer4]
        else:
            keep(0, trunk.stem)
            blocks = trunk.stages
        for k, block in enumerate(blocks, start=1):
            keep(k, block)
        if trunk is not tower:
            keep('pooled', trunk.get_classifier(), before=True)
        model = SimpleNamespace(visual=tower)
        if getattr(tower, 'output_tokens', False):
            embedding = CoCa._encode_image(model, image, normalize=True)[0]
        else:
            embedding = CLIP.encode_image(model, image, normalize=True)
    pooled = seen.pop('pooled', None)
    if isinstance(tower, ModifiedResNet):
        pooled = seen[4].mean(dim=(2, 3))  # its own pool projects inside
    elif is_native:
        projection, tower.proj = tower.proj, None
        pooled = CLIP.encode_image(model, image)
        pooled = pooled[0] if tower.output_tokens else pooled
        tower.proj = projection
    return Features(seen, pooled, embedding)


def as_map(tokens, grid):
    """(B, prefix + h*w, C) tokens or a map, as (B, C, h, w)."""
    if tokens.ndim == 4:
        return tokens
    return tokens[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


def check_against_open_clip(backbone, image, strides):
    """Every map and both vectors."""
    spec, tower = backbone.spec, backbone.tower
    hw = image.shape[-2:]
    is_off_size = isinstance(tower, ModifiedResNet) and hw != (tower.image_size,) * 2
    pool = getattr(tower, 'attnpool', None)
    if is_off_size:  # whose pool has learned positions: open_clip's forward without it
        tower.attnpool = nn.Flatten()
    theirs = seen_in_open_clip(tower, image)
    if is_off_size:
        tower.attnpool = pool
    with torch.no_grad():
        ours = backbone(image, range(spec.num_layers + 1), want_embedding=not is_off_size)
    assert list(ours.maps) == sorted(theirs.maps)
    for k, found in ours.maps.items():
        stride = strides[min(k, len(strides) - 1)]
        grid = (hw[0] // stride, hw[1] // stride)
        assert found.shape == (len(image), spec.widths[k], *grid)
        assert torch.equal(found, as_map(theirs.maps[k], grid)), f'map {k}'
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-5, atol=1e-6)
    if not is_off_size:
        assert ours.embedding.shape == (len(image), spec.embedding_width)
        torch.testing.assert_close(ours.embedding, theirs.embedding, rtol=0, atol=1e-5)


def error(found, exact):
    """Norm of the difference as a share of the norm."""
    return float((found.float() - exact).norm() / exact.norm())


# --- each tower ---------------------------------------------------------------------------------


def test_spec_is_what_is_known_of_the_architecture(case):
    spec, known = case.native.spec, case.known
    assert spec.tower == case.name
    assert spec.is_hierarchical == (len(known.strides) > 1)
    assert spec.widths == known.widths
    assert spec.strides == (known.strides * len(known.widths))[:len(known.widths)]
    assert (spec.pooled_width, spec.embedding_width) == (known.pooled, known.embedding)
    assert (spec.input_hw, spec.has_class_token) == ((known.side,) * 2, known.class_token)
    assert case.wide.spec == replace(spec, input_hw=known.wide_hw)


def test_at_its_own_size_all_is_what_open_clip_computes(case):
    if case.name in LARGER:
        pytest.skip('a smaller one of its kind is compared at its own size')
    check_against_open_clip(case.native, picture(case.native.spec.input_hw), case.known.strides)


def test_at_a_size_that_is_not_square_all_is_what_open_clip_computes(case):
    image = picture(case.known.wide_hw, count=2)
    check_against_open_clip(case.wide, image, case.known.strides)


def test_a_native_state_is_fitted_as_the_tower_itself_is(case):
    """Loading at another size equals loading at the native one and resizing then."""
    assert case.is_fitted


def test_a_batch_is_its_images(case):
    backbone, image, layers, embeds = asked(case)
    with torch.no_grad():
        together = backbone(image, layers, embeds)
        alone = [backbone(i[None], layers, embeds) for i in image]
    for k in layers:
        assert error(torch.cat([a.maps[k] for a in alone]), together.maps[k]) < 1e-5, f'map {k}'
    assert error(torch.cat([a.pooled for a in alone]), together.pooled) < 1e-5
    if embeds:
        assert error(torch.cat([a.embedding for a in alone]), together.embedding) < 1e-5


def test_bfloat16_is_near_float32(case):
    if case.name in LARGER:
        pytest.skip('a smaller one of its kind is compared in bfloat16')
    backbone, image, layers, embeds = asked(case)
    with torch.no_grad():
        exact = backbone(image, layers, embeds)
        with torch.autocast('cpu', torch.bfloat16):
            rough = backbone(image, layers, embeds)
    for k in layers:
        assert error(rough.maps[k], exact.maps[k]) < BF16_ERROR, f'map {k}'
    assert error(rough.pooled, exact.pooled) < BF16_ERROR
    if embeds:
        assert error(rough.embedding, exact.embedding) < BF16_ERROR


def asked(case):
    """A tower, two images, all its layers, and whether it embeds at this size."""
    layers = range(case.wide.spec.num_layers + 1)
    return case.wide, picture(case.known.wide_hw, 2), layers, not case.name.startswith('RN')


def test_clipas_mean_of_tokens_before_the_norm(tmp_path):
    """The one kind of native transformer that comes in large only: its config, cut to 2 blocks."""
    config = open_clip.get_model_config('ViT-L-14-CLIPA')
    config['vision_cfg']['layers'] = 2
    (tmp_path / 'CLIPA-of-two-blocks.json').write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    backbone = Backbone('CLIPA-of-two-blocks', (56, 84)).requires_grad_(False).eval()
    assert isinstance(backbone.tower.ln_pre, nn.Identity) and backbone.tower.pool_type == 'avg'
    liven(backbone.tower)
    check_against_open_clip(backbone, picture((56, 84), count=2), (14,))


# --- names without numbers ----------------------------------------------------------------------


def on_meta(name, input_hw=None):
    """A tower that has shapes and no numbers: size does not matter."""
    with torch.device('meta'):
        return Backbone(name, input_hw)


@pytest.mark.parametrize(('name', 'same'), [
    ('ViT-B-16-SigLIP2', 'ViT-B-16-SigLIP'), ('MobileCLIP2-B', 'MobileCLIP-B'),
    ('roberta-ViT-B-32', 'ViT-B-32-quickgelu'), ('nllb-clip-base', 'ViT-B-32'),
])  # fmt: skip
def test_names_that_differ_in_their_text_side_have_one_image_tower(name, same):
    one, other = on_meta(name), on_meta(same)
    assert replace(one.spec, tower=same) == other.spec
    shapes = [
        {k: v.shape for k, v in backbone.tower.state_dict().items()} for backbone in (one, other)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(('name', 'known'), [
    ('ViT-L-14-quickgelu', plain(24, 1024, 14, 1024, 768)),
    ('EVA02-E-14', plain(64, 1792, 14, 1792, 1024)),
    ('ViT-bigG-14-CLIPA-336', plain(48, 1664, 14, 1664, 1280, 336)),
    ('PE-Core-B-16', plain(12, 768, 16, 768, 1024)),
    ('ViT-SO400M-16-SigLIP2-512', plain(27, 1152, 16, 1152, 1152, 512, class_token=False)),
    ('RN50x64-quickgelu', staged((128, 512, 1024, 2048, 4096), 4096, 1024, 448)),
    ('convnext_xxlarge', staged((384, 384, 768, 1536, 3072), 3072, 1024, 256)),
])  # fmt: skip
def test_larger_ones_answer_their_spec(name, known):
    spec = on_meta(name).spec
    assert spec.widths == known.widths and set(spec.strides) == set(known.strides)
    assert (spec.pooled_width, spec.embedding_width) == (known.pooled, known.embedding)
    assert (spec.input_hw, spec.has_class_token) == ((known.side,) * 2, known.class_token)


# --- refused ------------------------------------------------------------------------------------


def test_a_tower_of_fixed_windows_is_refused_when_built():
    """Swin takes the one size that its windows were made for; nobody publishes its weights."""
    name = 'swin_base_patch4_window7_224'
    assert open_clip.list_pretrained_tags_by_model(name) == []
    with pytest.raises(ConfigError) as caught:
        on_meta(name)
    message = str(caught.value)
    assert message.startswith(f'tower {name!r} gives no maps at (64, 64) input (')
    assert message.endswith('Expected a plain transformer, or a hierarchical tower that takes '
                            'any input size.')  # fmt: skip
    assert '\n' not in message


@pytest.mark.parametrize(('name', 'input_hw', 'multiple'), [
    ('MobileCLIP-B', (36, 36), r'patch size \(16, 16\)'),
    ('ViTamin-S', (72, 72), r'patch size \(16, 16\)'),
    ('EVA02-B-16', (72, 64), r'patch size \(16, 16\)'),
    ('ViT-L-14-quickgelu', (224, 256), r'patch size \(14, 14\)'),
    ('MobileCLIP2-S3', (96, 128), '64'),
    ('ViT-SO400M-14-SigLIP-384', (384, 384), '14'),
])  # fmt: skip
def test_a_size_between_cells_is_refused_with_the_right_multiple(name, input_hw, multiple):
    """Also where a convolutional stem comes before the patches."""
    message = f'{name!r}: both sides must be multiples of .*{multiple}'
    with pytest.raises(ConfigError, match=message):
        on_meta(name, input_hw)


def test_siglip_of_384_pixels_and_patches_of_14_runs_on_its_27_cells():
    """Its own convolution leaves the last 6 pixels out; a map that is said to cover them lies."""
    backbone = on_meta('ViT-SO400M-14-SigLIP-384', (378, 378))
    assert backbone.tower.trunk.pos_embed.shape == (1, 27 * 27, 1152)
    assert backbone.spec.strides == (14,) * 28
