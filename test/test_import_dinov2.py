"""DINOv2's published towers and depth heads answer here as they do there, or are refused.

Their files were never seen: these are written here, of random weights, under the names of the
authors' code, and judged by its maths, computed again in float64.
"""

import re

import numpy as np
import open_clip
import pytest
from safetensors.torch import save_file
import timm
from timm.layers import resample_abs_pos_embed, SwiGLUPacked
import torch
from torch import nn
import torch.nn.functional as F
from towers import picture
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.inference_graph import exported
from vlm_depth_ros.core.model import DepthModel, load_model, read_card
from vlm_depth_ros.tools import import_dinov2
from vlm_depth_ros.tools.cli import main

WIDTH, BLOCKS, NATIVE = 24, 12, (70, 70)
LAYERS = (3, 6, 9, 12)
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}
SWIGLU = {'mlp_ratio': 2.66667 * 2, 'mlp_layer': SwiGLUPacked, 'act_layer': nn.SiLU}


def registered(name, **options):
    """A tower of DINOv2's kind that nobody published, as timm and open_clip would know it."""

    def tiny(pretrained=False, num_classes=0, global_pool='token', **_):
        return timm.models.vision_transformer.VisionTransformer(
            img_size=NATIVE, patch_size=14, embed_dim=WIDTH, depth=BLOCKS, num_heads=2,
            init_values=1e-5, num_classes=num_classes, global_pool=global_pool, **options,
        )  # fmt: skip

    tiny.__name__ = name.replace('-', '_')
    timm.models.register_model(tiny)
    published = open_clip.get_model_config('ViT-B-32')
    published['vision_cfg'] = {
        'timm_model_name': tiny.__name__, 'timm_pool': 'token', 'timm_proj': 'none',
        'image_size': NATIVE[0],
    }  # fmt: skip
    open_clip.factory._MODEL_CONFIGS[name] = published
    return name


TINY, TINY_GATED = registered('tiny-dinov2'), registered('tiny-dinov2-gated', **SWIGLU)


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    """What a head of 24 channels is taken to belong to."""
    monkeypatch.setitem(import_dinov2.TOWERS, WIDTH, TINY)


def noise(*shape, scale=0.2, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tower_file(folder, gated=False, seed=0, naming='official'):
    """Random weights of that tower, as a file of the authors or of timm."""
    d, hidden = WIDTH, 64 if gated else 4 * WIDTH
    wide, narrow = ('mlp.w12', 'mlp.w3') if gated else ('mlp.fc1', 'mlp.fc2')
    shapes = {
        'cls_token': (1, 1, d), 'pos_embed': (1, 26, d), 'patch_embed.proj.weight': (d, 3, 14, 14),
        'patch_embed.proj.bias': (d,), 'norm.weight': (d,), 'norm.bias': (d,),
    }  # fmt: skip
    for i in range(BLOCKS):
        shapes |= {
            f'blocks.{i}.{name}': shape
            for name, shape in {
                'norm1.weight': (d,), 'norm1.bias': (d,), 'norm2.weight': (d,), 'norm2.bias': (d,),
                'attn.qkv.weight': (3 * d, d), 'attn.qkv.bias': (3 * d,),
                'attn.proj.weight': (d, d), 'attn.proj.bias': (d,),
                'ls1.gamma': (d,), 'ls2.gamma': (d,),
                f'{wide}.weight': (hidden * (2 if gated else 1), d),
                f'{wide}.bias': (hidden * (2 if gated else 1),),
                f'{narrow}.weight': (d, hidden), f'{narrow}.bias': (d,),
            }.items()
        }  # fmt: skip
    state = {k: noise(*shape, seed=1000 * seed + i) for i, (k, shape) in enumerate(shapes.items())}
    if naming == 'timm':
        renamed = {k.replace('w12', 'fc1').replace('w3', 'fc2'): v for k, v in state.items()}
        save_file(renamed, folder / 'model.safetensors')
        return folder / 'model.safetensors', state
    torch.save(state | {'mask_token': noise(1, d)}, folder / 'dinov2_tiny_pretrain.pth')
    return folder / 'dinov2_tiny_pretrain.pth', state


# --- towers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'width', 'blocks', 'parameters'), [
    ('dinov2-vit-s14', 384, 12, 22_056_192), ('dinov2-vit-b14', 768, 12, 86_579_712),
    ('dinov2-vit-l14', 1024, 24, 304_367_616), ('dinov2-vit-g14', 1536, 40, 1_136_479_232),
])  # fmt: skip
def test_towers_have_their_published_size(name, width, blocks, parameters):
    with torch.device('meta'):
        backbone = Backbone(name, (70, 98))
    spec = backbone.spec
    assert (spec.widths, spec.strides) == ((width,) * (blocks + 1), (14,) * (blocks + 1))
    assert (spec.pooled_width, spec.embedding_width) == (width, None)
    assert spec.has_class_token and not spec.is_hierarchical
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    positions = {k: v.numel() for k, v in backbone.tower.state_dict().items() if 'pos' in k}
    counted = sum(p.numel() for p in backbone.parameters()) - sum(positions.values())
    assert counted + (37 * 37 + 1) * width == parameters
    assert import_dinov2.TOWERS[width] == name


def their_tower(state, gated):
    """The tower of transformers with these weights."""
    transformers = pytest.importorskip('transformers')
    config = transformers.Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, image_size=NATIVE[0],
        patch_size=14, use_swiglu_ffn=gated,
    )  # fmt: skip
    model = transformers.Dinov2Model(config).eval().requires_grad_(False)
    found = {}
    for key, own in model.state_dict().items():
        name = key
        for theirs, official in {
            r'embeddings\.position_embeddings': 'pos_embed',
            r'embeddings\.patch_embeddings\.projection': 'patch_embed.proj',
            r'embeddings\.': '',
            r'(encoder\.)?layer\.(\d+)\.': r'blocks.\2.',
            r'^layernorm': 'norm',
            r'attention\.(output\.dense|o_proj)': 'attn.proj',
            r'layer_scale(\d)\.lambda1': r'ls\1.gamma',
            r'mlp\.weights_in': 'mlp.w12',
            r'mlp\.(weights_out|down_proj)': 'mlp.w3',
        }.items():
            name = re.sub(theirs, official, name)
        part = re.fullmatch(
            r'(.+)\.(?:attention\.)+(query|key|value|q_proj|k_proj|v_proj)\.(\w+)', name
        )
        gate = re.fullmatch(r'(.+)\.mlp\.(gate|up)_proj\.(\w+)', name)
        if part:
            stacked = state[f'{part[1]}.attn.qkv.{part[3]}'].chunk(3)
            found[key] = stacked['qkv'.index(part[2][0])]
        elif gate:
            found[key] = state[f'{gate[1]}.mlp.w12.{gate[3]}'].chunk(2)[gate[2] == 'up']
        else:
            found[key] = state.get(name, own)
            assert name in state or name == 'mask_token', name
    model.load_state_dict(found)
    return model


@pytest.mark.parametrize('gated', [False, True], ids=['mlp', 'swiglu'])
def test_maps_and_class_tokens_are_those_of_transformers(tmp_path, gated):
    """Un-normalised after each block; ``pooled`` is the normalised class token."""
    file, state = tower_file(tmp_path, gated)
    backbone = Backbone(TINY_GATED if gated else TINY).eval().requires_grad_(False)
    backbone.load_published(None, file)
    image = picture(NATIVE, count=2)
    expected = their_tower(state, gated)(image, output_hidden_states=True)
    found = backbone(image, range(BLOCKS + 1))
    assert len(expected.hidden_states) == BLOCKS + 1
    for k, tokens in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.maps[k].flatten(2).mT, tokens[:, 1:], **CLOSE)
        torch.testing.assert_close(found.class_tokens[k], tokens[:, 0], **CLOSE)
    torch.testing.assert_close(found.pooled, expected.pooler_output, **CLOSE)


@pytest.mark.parametrize('gated', [False, True], ids=['mlp', 'swiglu'])
def test_timms_file_of_a_tower_is_the_authors_file(tmp_path, gated):
    backbone = Backbone(TINY_GATED if gated else TINY, (42, 98))
    hashes = set()
    for naming in ('official', 'timm'):
        backbone.load_published(None, tower_file(tmp_path, gated, naming=naming)[0])
        hashes.add((backbone.frozen_sha256(), backbone.state_sha256()))
    assert len(hashes) == 1


def test_the_square_of_positions_is_fitted_to_the_input(tmp_path):
    file, state = tower_file(tmp_path)
    backbone = Backbone(TINY, (42, 98))
    backbone.load_published(None, file)
    found = backbone.tower.state_dict()['trunk.pos_embed']
    assert torch.equal(found[:, 0], state['pos_embed'][:, 0])
    assert torch.equal(found, resample_abs_pos_embed(state['pos_embed'], [3, 7]))


@pytest.mark.parametrize(('change', 'message'), [
    (lambda s: s.pop('norm.bias'), r'1 tensors differ \(trunk.norm.bias'),
    (lambda s: s.update(register_tokens=torch.zeros(1, 4, WIDTH)), 'trunk.register_tokens'),
    (lambda s: s.update({'blocks.3.ls1.gamma': torch.zeros(7)}), 'trunk.blocks.3.ls1.gamma'),
])  # fmt: skip
def test_a_tower_file_that_does_not_fit_is_refused(tmp_path, change, message):
    _, state = tower_file(tmp_path)
    change(state)
    torch.save(state, tmp_path / 'changed.pth')
    with pytest.raises(WeightsError, match=f"does not fit tower 'tiny-dinov2'.*{message}"):
        Backbone(TINY).load_published(None, tmp_path / 'changed.pth')


# --- heads --------------------------------------------------------------------------------------


def head_state(kind, width=WIDTH, channels=8, bins=256, seed=0):
    """A head's random tensors under the names of the authors' code."""
    if kind != 'dpt':
        joined = 2 * width * (4 if kind == 'linear4' else 1)
        shapes = {'conv_depth.weight': (bins, joined, 1, 1), 'conv_depth.bias': (bins,)}
    else:
        c, d = channels, width
        steps = (d // 8, d // 4, d // 2, d)
        inside = 'reassemble_blocks'
        shapes = {
            f'{inside}.resize_layers.0.weight': (steps[0], steps[0], 4, 4),
            f'{inside}.resize_layers.0.bias': (steps[0],),
            f'{inside}.resize_layers.1.weight': (steps[1], steps[1], 2, 2),
            f'{inside}.resize_layers.1.bias': (steps[1],),
            f'{inside}.resize_layers.3.weight': (d, d, 3, 3),
            f'{inside}.resize_layers.3.bias': (d,),
            'project.conv.weight': (c, c, 3, 3), 'project.conv.bias': (c,),
            'conv_depth.head.0.weight': (c // 2, c, 3, 3), 'conv_depth.head.0.bias': (c // 2,),
            'conv_depth.head.2.weight': (32, c // 2, 3, 3), 'conv_depth.head.2.bias': (32,),
            'conv_depth.head.4.weight': (1, 32, 1, 1), 'conv_depth.head.4.bias': (1,),
        }  # fmt: skip
        for i, n in enumerate(steps):
            shapes |= {
                f'{inside}.projects.{i}.conv.weight': (n, d, 1, 1),
                f'{inside}.projects.{i}.conv.bias': (n,),
                f'{inside}.readout_projects.{i}.0.weight': (d, 2 * d),
                f'{inside}.readout_projects.{i}.0.bias': (d,),
                f'convs.{i}.conv.weight': (c, n, 3, 3),
                f'fusion_blocks.{i}.project.conv.weight': (c, c, 1, 1),
                f'fusion_blocks.{i}.project.conv.bias': (c,),
            }
            for unit in (1, 2) if i else (2,):
                for conv in (1, 2):
                    name = f'fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight'
                    shapes[name] = (c, c, 3, 3)
    return {
        f'decode_head.{k}': noise(*shape, seed=9000 * (seed + 1) + i)
        for i, (k, shape) in enumerate(shapes.items())
    }


def linear_depth(state, layers, far_m):
    """The authors' linear head on (map, class token) of each layer, in float64."""
    joined = []
    for x, token in layers:
        x = torch.cat([x, token[:, :, None, None].expand_as(x)], dim=1)
        hw = [4 * n for n in layers[0][0].shape[-2:]]
        joined.append(F.interpolate(x, hw, mode='bilinear', align_corners=False))
    weight, bias = (state[f'decode_head.conv_depth.{k}'] for k in ('weight', 'bias'))
    p = torch.relu(F.conv2d(torch.cat(joined, dim=1), weight, bias)) + 0.1
    p = p / p.sum(dim=1, keepdim=True)
    depths_m = torch.linspace(0.001, far_m, len(weight), dtype=torch.float64)
    return torch.einsum('ikmn,k->imn', p, depths_m)[:, None].clamp(0.001, far_m)


def dpt_depth(state, layers, far_m):
    """The authors' DPT head on (map, class token) of four layers, in float64."""

    def conv(name, x, **how):
        name = f'decode_head.{name}'
        return F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), **how)

    def up(name, x, stride):
        weight, bias = (state[f'decode_head.{name}.{k}'] for k in ('weight', 'bias'))
        return F.conv_transpose2d(x, weight, bias, stride=stride)

    def unit(name, x):
        y = conv(f'{name}.conv1.conv', torch.relu(x), padding=1)
        return x + conv(f'{name}.conv2.conv', torch.relu(y), padding=1)

    def doubled(x):
        return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)

    inside, found = 'reassemble_blocks', []
    for i, (x, token) in enumerate(layers):
        tokens = x.flatten(2).mT
        tokens = torch.cat([tokens, token[:, None].expand_as(tokens)], dim=-1)
        name = f'decode_head.{inside}.readout_projects.{i}.0'
        tokens = F.gelu(F.linear(tokens, state[f'{name}.weight'], state[f'{name}.bias']))
        x = conv(f'{inside}.projects.{i}.conv', tokens.mT.reshape(x.shape))
        if i < 2:
            x = up(f'{inside}.resize_layers.{i}', x, (4, 2)[i])
        elif i == 3:
            x = conv(f'{inside}.resize_layers.3', x, stride=2, padding=1)
        found.append(conv(f'convs.{i}.conv', x, padding=1))
    x = found[3]
    for i in range(4):
        if i > 0:
            skip = found[3 - i]
            if skip.shape != x.shape:
                skip = F.interpolate(skip, x.shape[2:], mode='bilinear', align_corners=False)
            x = x + unit(f'fusion_blocks.{i}.res_conv_unit1', skip)
        x = unit(f'fusion_blocks.{i}.res_conv_unit2', x)
        x = conv(f'fusion_blocks.{i}.project.conv', doubled(x))
    x = torch.relu(conv('project.conv', x, padding=1))
    x = doubled(conv('conv_depth.head.0', x, padding=1))
    x = torch.relu(conv('conv_depth.head.2', x, padding=1))
    return (torch.relu(conv('conv_depth.head.4', x)) + 0.001).clamp(0.001, far_m)


def published(folder, kind, name='dinov2_tiny_nyu_{}_head.pth', **options):
    """A head's file as mmcv's training writes it: with an optimiser and a log beside it."""
    state, file = head_state(kind, **options), folder / name.format(kind)
    momenta = {i: {'exp_avg': torch.zeros(3)} for i in range(2)}
    torch.save({
        'meta': {'epoch': 24, 'mmcv_version': '1.5.0', 'time': 'Sat Apr 1 00:00:00 2023'},
        'state_dict': state, 'optimizer': {'state': momenta, 'param_groups': [{'lr': 1e-4}]},
    }, file)  # fmt: skip
    return file, state


def run(file, out, *flags):
    return main(['import-weights', 'dinov2', str(file), str(out), *map(str, flags)])


def imported(folder, file, *flags, tower=None):
    """The new file, with its tower inside unless flags say otherwise."""
    out = folder / 'out.safetensors'
    if not flags or flags[0] != '--bare':
        tower = tower or tower_file(folder)[0]
        flags = ('--tower-weights', tower, '--embed-tower', *flags)
    assert run(file, out, *(f for f in flags if f != '--bare')) == 0
    return out


def deep(layers):
    return [tuple(t.double() for t in pair) for pair in layers]


@pytest.mark.parametrize('kind', ['linear', 'linear4', 'dpt'])
@pytest.mark.parametrize('size', [(42, 70), (70, 42)])
def test_a_head_answers_as_the_authors_code_does(tmp_path, kind, size):
    """From the file by the command line to depth; 3 x 5 cells are halved to 2 x 3, as there."""
    file, state = published(tmp_path, kind)
    model = load_model(imported(tmp_path, file, '--size', *size))
    image = picture(size, count=2)
    layers = LAYERS if kind != 'linear' else LAYERS[-1:]
    assert model.head.layers == layers and model.config.depth_range_m == (0.001, 10.0)
    with torch.no_grad():
        seen = model.backbone(image, layers)
        found = model(image).depth_m
    pairs = deep((seen.maps[k], seen.class_tokens[k]) for k in layers)
    exact = {k: v.double() for k, v in state.items()}
    expected = (dpt_depth if kind == 'dpt' else linear_depth)(exact, pairs, 10.0)
    assert expected.std() > 0.01
    torch.testing.assert_close(found.double(), expected, **CLOSE)


@pytest.mark.parametrize('kind', ['linear4', 'dpt'])
def test_from_the_image_on_it_is_transformers_tower_and_the_authors_head(tmp_path, kind):
    file, state = published(tmp_path, kind)
    tower, weights = tower_file(tmp_path)
    theirs = their_tower(weights, gated=False).double()
    model, image = load_model(imported(tmp_path, file, '--size', *NATIVE)), picture(NATIVE)
    states = theirs(image.double(), output_hidden_states=True).hidden_states
    pairs = [(states[k][:, 1:].mT.unflatten(2, (5, 5)), states[k][:, 0]) for k in LAYERS]
    exact = {k: v.double() for k, v in state.items()}
    expected = (dpt_depth if kind == 'dpt' else linear_depth)(exact, pairs, 10.0)
    with torch.no_grad():
        found = model(image).depth_m.double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(('kind', 'parameters'), [
    ('linear', 393_472), ('linear4', 1_573_120), ('dpt', 24_193_921),
])  # fmt: skip
def test_a_head_for_vit_b_has_the_published_number_of_parameters(kind, parameters):
    with torch.device('meta'):
        spec = Backbone('dinov2-vit-b14', (70, 70)).spec
    shapes = {k: torch.empty_like(v, device='meta') for k, v in
              head_state(kind, width=768, channels=256).items()}  # fmt: skip
    assert sum(v.numel() for v in shapes.values()) == parameters
    options, fits = import_dinov2._described(import_dinov2._state(shapes), kind)
    assert fits == {'dinov2-vit-b14': 1 if kind == 'linear' else 4}
    if kind != 'dpt':
        options['layers'] = fits['dinov2-vit-b14']
    with torch.device('meta'):
        head = build_head(options, spec)
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_an_imported_file_exports_as_one_graph(tmp_path):
    """Class tokens do not stand in its way."""
    file, _ = published(tmp_path, 'linear4')
    model, image = load_model(imported(tmp_path, file, '--size', 42, 70)), picture((42, 70), 3)
    with torch.no_grad():
        (found,) = exported(model).module()(image)
        torch.testing.assert_close(found, model(image).depth_m, **CLOSE)


# --- range, camera, tower -----------------------------------------------------------------------


def test_the_range_is_that_of_the_data_set_and_never_80_m_for_all(tmp_path):
    """The same tensors say eight times as far as a KITTI head; in the authors' hub code not."""
    found, tower = {}, tower_file(tmp_path)[0]
    for data in ('nyu', 'kitti'):
        file, _ = published(tmp_path, 'linear', f'dinov2_vit_{data}_linear_head.pth')
        out = imported(tmp_path, file, '--size', 42, 70, tower=tower)
        assert read_card(out).training['dataset'] == data
        model = load_model(out)
        assert model.config.depth_range_m == (0.001, {'nyu': 10.0, 'kitti': 80.0}[data])
        with torch.no_grad():
            found[data] = model(picture((42, 70))).depth_m
    torch.testing.assert_close(found['kitti'] / found['nyu'], torch.full_like(found['nyu'], 8.0),
                               rtol=1e-2, atol=0)  # fmt: skip


def test_a_file_of_another_name_needs_the_data_set_and_may_reach_elsewhere(tmp_path):
    file, _ = published(tmp_path, 'dpt', 'head.pth')
    out = imported(tmp_path, file, '--bare', '--size', 42, 70, '--dataset', 'kitti')
    assert read_card(out).model['depth_range_m'] == [0.001, 80.0]
    out = imported(
        tmp_path, file, '--bare', '--size', 42, 70, '--dataset', 'nyu', '--max-depth', 20,
        '--camera', '300,310,640,480',
    )  # fmt: skip
    assert read_card(out).model['depth_range_m'] == [0.001, 20.0]
    assert read_card(out).model['camera'] == {
        'fx_per_width': 300 / 640, 'fy_per_height': 310 / 480
    }  # fmt: skip


@pytest.mark.parametrize(('data', 'input_hw', 'image_hw', 'fx_px', 'fy_px'), [
    ('nyu', (490, 644), (480, 640), 518.8579, 519.4696),
    ('kitti', (364, 1218), (352, 1216), 721.5377, 721.5377),
])  # fmt: skip
def test_the_input_is_the_studys_padded_size_with_its_focal_lengths_in_pixels(
    tmp_path, monkeypatch, data, input_hw, image_hw, fx_px, fy_px
):
    """The study pads to it, here the image is stretched, by a few per cent; depth is corrected."""
    file, _ = published(tmp_path, 'linear', f'dinov2_tiny_{data}_linear_head.pth')
    config = ModelConfig.from_dict(read_card(imported(tmp_path, file, '--bare')).model)
    assert config.input_hw == input_hw
    assert config.camera == TrainingCamera(fx_px / input_hw[1], fy_px / input_hw[0])
    rgb = np.zeros((*image_hw, 3), np.uint8)
    model = DepthModel(config).eval()
    estimator = DepthEstimator(model, RuntimeConfig('cpu', 'fp32'))
    height, width = image_hw
    camera = CameraIntrinsics(fx_px, fy_px, width / 2, height / 2, width, height)
    ratio = np.median(estimator(rgb, camera).depth_m / estimator(rgb).depth_m)
    stretch = input_hw[0] / height * input_hw[1] / width
    assert ratio == pytest.approx(stretch**0.5, rel=1e-5)


def test_without_the_tower_a_file_says_so_and_takes_it_later(tmp_path, caplog):
    file, _ = published(tmp_path, 'linear4')
    bare = imported(tmp_path, file, '--bare', '--size', 42, 70)
    card = read_card(bare)
    assert (card.tower_embedded, card.tower_sha256, card.model['pretrained']) == (False, '', None)
    assert 'will not be checked' in card.training['notes'][0]
    assert card.training['notes'][0] in caplog.text
    with pytest.raises(WeightsError, match=r'name a file with its weights \(tower_weights\)'):
        load_model(bare)
    official, timms = tower_file(tmp_path)[0], tower_file(tmp_path, naming='timm')[0]
    image, model = picture((42, 70)), load_model(bare, tower_weights=official)
    checked = tmp_path / 'checked.safetensors'
    assert run(file, checked, '--size', 42, 70, '--tower-weights', official) == 0
    other = load_model(checked, tower_weights=timms)  # the same tower by another name
    with torch.no_grad():
        assert torch.equal(model(image).depth_m, other(image).depth_m)
    with pytest.raises(WeightsError, match='trained on another tower'):
        load_model(checked, tower_weights=tower_file(tmp_path, seed=1)[0])


def test_the_estimator_runs_it_and_the_record_says_where_it_is_from(tmp_path):
    file, _ = published(tmp_path, 'dpt')
    out = imported(tmp_path, file, '--size', 42, 70)
    card = read_card(out)
    assert card.licence.startswith('Apache-2.0')
    assert card.training == {'imported': 'dinov2', 'file': file.name, 'dataset': 'nyu',
                             'notes': []}  # fmt: skip
    estimator = DepthEstimator.from_weights(out, RuntimeConfig('cpu', 'fp32'))
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    depth_m = estimator(rgb).depth_m
    assert depth_m.shape == (60, 80)
    assert np.nanmin(depth_m) >= 0.001 and np.nanmax(depth_m) <= 10.0


# --- refusals -----------------------------------------------------------------------------------


def without(kind, key):
    state = head_state(kind)
    del state[f'decode_head.{key}']
    return state


CASES = {
    'another network': (lambda: {'encoder.weight': torch.zeros(3)},
                        'no depth head of DINOv2: among its 1 tensors is neither'),
    'nothing': (dict, 'among its 0 tensors'),
    'the classifier that is linked beside it': (
        lambda: {'weight': torch.zeros(10, 48), 'bias': torch.zeros(10)},
        'looks like the ImageNet classifier.* called as dinov2_vitb14_nyu_linear_head.pth'),
    'a width that no tower has': (lambda: head_state('linear', width=100),
                                  'a head of 200 channels, expected twice the width'),
    'a decoder that no tower has': (lambda: head_state('dpt', width=40),
                                    'a head of 40 channels, expected the width of the tower'),
    'no bias': (lambda: without('linear', 'conv_depth.bias'), r'lacks 1 tensors \(globally.bias'),
    'a convolution of 3 x 3': (
        lambda: head_state('linear') | {
            'decode_head.conv_depth.weight': torch.zeros(256, 2 * WIDTH, 3, 3)},
        'head misfits 2 tensors'),
    'half a decoder': (lambda: without('dpt', 'fusion_blocks.2.res_conv_unit1.conv2.conv.weight'),
                       r'lacks 1 tensors \(fusions.2.skip.conv2.weight'),
    'a skip where there is none': (
        lambda: head_state('dpt') | {
            'decode_head.fusion_blocks.0.res_conv_unit1.conv1.conv.weight': torch.zeros(1)},
        r'has unknown 1 tensors \(fusions.0.skip.conv1.weight'),
    'a tower beside it': (lambda: head_state('linear') | {'backbone.cls_token': torch.zeros(1)},
                          r'has unknown 1 tensors \(backbone.cls_token'),
    'a batch norm': (lambda: head_state('linear') | {'decode_head.bn.weight': torch.ones(3)},
                     r'has unknown 1 tensors \(bn.weight'),
}  # fmt: skip


def refused(capsys, file, out, *flags):
    """The one line that a user gets."""
    assert run(file, out, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists()
    return line


@pytest.mark.parametrize('case', CASES)
def test_what_is_no_such_head_is_one_line_and_writes_nothing(tmp_path, capsys, case):
    make, message = CASES[case]
    file = tmp_path / 'dinov2_nyu_head.pth'
    torch.save({'state_dict': make()}, file)
    line = refused(capsys, file, tmp_path / 'out.safetensors', '--size', 42, 42)
    assert re.search(message, line), line


@pytest.mark.parametrize(('name', 'flags', 'message'), [
    ('head.pth', [], 'whether it was trained on NYU Depth V2 or on KITTI, and no tensor does'),
    ('nyu_then_kitti.pth', [], 'Give --dataset nyu or --dataset kitti.'),
    ('a_kitti_head.pth', ['--dataset', 'nyu'], 'a_kitti_head.pth is a kitti head by its name'),
    ('nyu.pth', ['--size', 42, 50], '--size 42 50: expected multiples of 14 pixels.'),
    ('nyu.pth', ['--size', 0, 14], '--size 0 14: expected multiples of 14'),
    ('nyu.pth', ['--embed-tower'], 'holds the head alone. Name the file with the tower by'),
    ('nyu.pth', ['--camera', 'kitti'], "--camera 'kitti': expected FX,FY,W,H in pixels"),
    ('nyu.pth', ['--max-depth', 0], 'depth_range_m = (0.001, 0.0): expected 0 < minimum'),
    ('nyu.pth', ['--taps', 'early'], 'dinov2 takes no --taps. Leave it out.'),
    ('nyu.pth', ['--tower', 'RN50'], "its tensors fit tiny-dinov2, not 'RN50'"),
    ('dinov2_vitl14_nyu.pth', [], "its tensors fit tiny-dinov2, not 'dinov2-vit-l14'"),
    ('nyu.pth', ['--tower-weights', 'nowhere.pth'], 'nowhere.pth: no such file'),
])  # fmt: skip
def test_names_and_flags_that_do_not_fit_are_one_line(tmp_path, capsys, name, flags, message):
    file, _ = published(tmp_path, 'linear', name)
    flags = flags if '--size' in flags else [*flags, '--size', 42, 42]
    assert message in refused(capsys, file, tmp_path / 'out.safetensors', *flags)


def test_four_layers_of_vit_s_and_one_of_vit_g_need_the_name_of_the_tower(tmp_path, capsys):
    """Either has 3,072 channels."""
    file, state = published(tmp_path, 'linear4', 'nyu.pth', width=384, bins=4)
    assert state['decode_head.conv_depth.weight'].shape[1] == 3072
    line = refused(capsys, file, tmp_path / 'out.safetensors', '--size', 28, 28)
    assert 'its tensors fit dinov2-vit-s14, dinov2-vit-g14 alike. Give --tower' in line
    described = import_dinov2._described(import_dinov2._state(state), 'x')
    assert described[1] == {'dinov2-vit-s14': 4, 'dinov2-vit-g14': 1}
    for named, flags in (('vits14_nyu.pth', ()), ('nyu.pth', ('--tower', 'dinov2-vit-s14'))):
        file, _ = published(tmp_path, 'linear4', named, width=384, bins=4)
        card = read_card(imported(tmp_path, file, '--bare', '--size', 28, 28, *flags))
        assert (card.model['tower'], card.model['head']['layers']) == ('dinov2-vit-s14', 4)


def test_flags_of_this_method_are_none_of_the_other(tmp_path, capsys):
    torch.save({}, tmp_path / 'theirs.pt')
    flags = ['import-weights', 'space-clip', str(tmp_path / 'theirs.pt'), str(tmp_path / 'out')]
    assert main([*flags, '--dataset', 'nyu', '--size', '28', '28']) == 1
    assert 'space-clip takes no --dataset, --size. Leave it out.' in capsys.readouterr().err
