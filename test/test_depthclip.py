"""DepthCLIP: constants, feature-to-depth maths, CLIP's own projection, stored phrases."""

import copy
from dataclasses import replace
from functools import cache
import math
from pathlib import Path
import subprocess
import sys

import numpy as np
import open_clip
from open_clip.modified_resnet import AttentionPool2d
import pytest
from safetensors.torch import save_file
import torch
from torch import nn
import torch.nn.functional as F
from towers import build, picture, shared
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.heads.depthclip import BINS_M, DepthClipHead, starting_bins_m
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, load_model, read_card, save_model
from vlm_depth_ros.tools import cli
from vlm_depth_ros.tools.prompt_embeddings import (
    class_embeddings,
    CLASSES,
    LEARNED_TEMPLATE,
    phrases,
    zero_shot_weights,
)

TOWER = 'tiny-rn50'
"""Like RN50 its last map has twice as many channels as its text."""
MODES = ('faithful', 'projected', 'learned')
HW = (64, 96)
every_mode = pytest.mark.parametrize('mode', MODES)


def noise(*shape, seed=0):
    """Reproducible, normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(mode, seed=0, tower=TOWER, hw=HW, **options):
    """A network with stored text, its tower frozen."""
    torch.manual_seed(seed)
    model = DepthModel(ModelConfig(tower, {'name': 'depthclip', 'mode': mode} | options, None, hw))
    model.freeze_tower()
    model.head.set_text(competing_text(model.eval()))
    return model


@torch.no_grad()
def competing_text(model):
    """(K, E) vectors of which each is nearest to some cell.

    All cells of a random tower look much the same: among random vectors one would win everywhere,
    and a constant depth proves nothing.
    """
    cells = model.head._cells(model.backbone(picture((96, 128), 4, seed=8), (4,)))
    cells = cells.movedim(1, -1).flatten(0, -2).double()
    mean = F.normalize(cells.mean(dim=0), dim=0)
    apart = cells[:: len(cells) // 7][:7]
    apart = apart - (apart @ mean)[:, None] * mean
    return F.normalize(mean + F.normalize(apart - apart.mean(dim=0), dim=1), dim=1).float()


@cache
def spec_of(tower):
    """What a head knows of a full-size tower; no weights are made."""
    with torch.device('meta'):
        return Backbone(tower).spec


# --- what is known to the constant --------------------------------------------------------------


def test_phrases_and_depths_are_the_official_ones():
    assert phrases() == [
        'This object is giant',
        'This object is extremely close',
        'This object is close',
        'This object is not in distance',
        'This object is a little remote',
        'This object is far',
        'This object is unseen',
    ]
    assert BINS_M == (1.00, 1.50, 2.00, 2.25, 2.50, 2.75, 3.00)
    assert DepthClipHead.Config().temperature == 0.1
    assert phrases(('near',), LEARNED_TEMPLATE) == ['This object appears to be near']


@pytest.mark.parametrize(('mode', 'shape'), [
    ('faithful', (7, 1024)), ('projected', (7, 1024)), ('learned', (7, 1024)),
])  # fmt: skip
def test_on_rn50_seven_vectors_of_1024_meet_the_last_map(mode, shape):
    spec = spec_of('RN50-quickgelu')
    head = build_head({'name': 'depthclip', 'mode': mode}, spec)
    assert tuple(head.text.shape) == shape and head.layers == (4,) and spec.widths[4] == 2048
    trained = sum(p.numel() for p in head.parameters())
    assert trained == (7 * 1024 + 7 if mode == 'learned' else 0)


@every_mode
def test_classes_have_the_depths_of_their_mode(mode):
    found = starting_bins_m(DepthClipHead.Config(mode=mode))
    even = [0.001 + (k + 0.5) * 9.999 / 7 for k in range(7)]
    assert found == pytest.approx(even if mode == 'learned' else BINS_M)


def test_learned_classes_may_be_many_and_logarithmic():
    """Auty and Mikolajczyk's 256: each lies midway between edges, in the logarithm."""
    config = DepthClipHead.Config('learned', num_bins=256, spacing='log', max_depth_m=80.0)
    found, step = starting_bins_m(config), math.log(80_000) / 256
    assert len(found) == 256
    assert found[0] == pytest.approx(0.001 * math.exp(step / 2))
    assert found[-1] == pytest.approx(80 * math.exp(-step / 2))
    assert starting_bins_m(DepthClipHead.Config('learned', (1.0, 4.0))) == (1.0, 4.0)


# --- from features to depth ---------------------------------------------------------------------


def expected_depth_m(cells, text, bins_m, temperature=0.1, half=True):
    """The official maths cell by cell in float64, from the description; (B, h, w)."""
    cells, text = np.asarray(cells, np.float64), np.asarray(text, np.float64)
    batch, _, height, width = cells.shape
    depth_m = np.zeros((batch, height, width))
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                vector = cells[b, :, y, x] / math.sqrt(sum(cells[b, :, y, x] ** 2))
                if half:
                    vector = vector[[2 * i for i in range(len(vector) // 2)]]
                logits = [100 * float(vector @ t) / temperature for t in text]
                top = max(logits)
                shares = [math.exp(logit - top) for logit in logits]
                depth_m[b, y, x] = sum(s * m for s, m in zip(shares, bins_m)) / sum(shares)
    return depth_m


@pytest.mark.parametrize('mode', ['faithful', 'learned'])
def test_depth_of_a_cell_is_the_official_one(mode):
    """RN50's sizes: 2048 channels of a 13 x 17 map, 7 x 1024 text."""
    head = build_head({'name': 'depthclip', 'mode': mode}, spec_of('RN50-quickgelu')).eval()
    text = F.normalize(noise(7, 1024, seed=1), dim=1)
    # Vectors so near one another that the softmax is not decided everywhere.
    text = F.normalize(text[:1] + 0.05 * text, dim=1)
    head.set_text(text)
    maps = noise(2, 2048, 13, 17).relu()
    features = Features({4: maps}, maps.mean(dim=(2, 3)))
    bins_m = starting_bins_m(head.config)
    expected = expected_depth_m(maps, head.text.detach(), bins_m)
    with torch.no_grad():
        found = head.depth_on_grid(head._cells(features))
    wrong_m = np.abs(found[:, 0].double().numpy() - expected)
    # Of the official depths, to 3 m, in metres; of learned ones, to 10 m, as a share.
    assert (wrong_m if mode == 'faithful' else wrong_m / expected).max() < 1e-5
    assert expected.std() > 0.05, 'all the same: nothing was compared'
    full = head(features).depth_m
    assert full.shape == (2, 1, 416, 544)
    corners = mode == 'faithful'
    enlarged = F.interpolate(
        torch.from_numpy(expected)[:, None], (416, 544), mode='bilinear', align_corners=corners
    )
    torch.testing.assert_close(full.double(), enlarged, rtol=1e-5, atol=1e-6)


def test_every_second_channel_is_the_official_interpolation():
    """Nearest, by half, along the channels: 0, 2, 4, ..., and the norm stays below one."""
    head = model_of('faithful').head
    maps = noise(1, 512, 2, 3)
    rows = F.normalize(maps, dim=1).flatten(2).transpose(1, 2)  # (B, hw, C)
    official = F.interpolate(rows, scale_factor=0.5).transpose(1, 2).unflatten(2, (2, 3))
    cells = head._cells(Features({4: maps}, maps.mean(dim=(2, 3))))
    assert torch.equal(cells, official)
    assert (cells.norm(dim=1) < 1).all()


@every_mode
def test_depth_stays_between_the_nearest_and_the_farthest_class(mode):
    model = model_of(mode)
    with torch.no_grad():
        depth_m = model(picture(HW, 3)).depth_m
    low, high = min(starting_bins_m(model.head.config)), max(starting_bins_m(model.head.config))
    assert low - 1e-5 <= depth_m.min() and depth_m.max() <= high + 1e-5
    assert depth_m.std() > 0.05


def test_a_cell_without_any_feature_is_undecided():
    """All zero behind the ReLU: the official code divides by zero; here the classes tie."""
    head = model_of('faithful').head
    maps = torch.zeros(1, 512, 1, 1)
    found = head(Features({4: maps}, maps.mean(dim=(2, 3)))).depth_m
    torch.testing.assert_close(found, torch.full((1, 1, 32, 32), sum(BINS_M) / 7))


# --- CLIP's own space ---------------------------------------------------------------------------


def test_a_single_cell_projects_to_what_the_attention_pool_says():
    """Of one cell the pool sees the cell and its mean: without positions, the same vector."""
    backbone = shared(TOWER)
    own = backbone.tower.attnpool
    pool = AttentionPool2d(1, 512, own.num_heads, 256)
    state = own.state_dict() | {'positional_embedding': torch.zeros(2, 512)}
    pool.load_state_dict(state)
    cell = noise(3, 512, 1, 1)
    with torch.no_grad():
        expected, found = pool(cell), backbone.project_map(cell)
    assert found.shape == (3, 256, 1, 1)
    torch.testing.assert_close(found[..., 0, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_whole_map_projects_on_average_to_what_the_attention_pool_says():
    """When it attends everywhere alike, it answers the mean of all projected cells."""
    backbone = build(TOWER)
    pool, last = backbone.tower.attnpool, noise(2, 512, 2, 2)
    with torch.no_grad():
        for p in (pool.q_proj.weight, pool.q_proj.bias, pool.positional_embedding):
            p.zero_()
        found = backbone.project_map(last)
        torch.testing.assert_close(found.mean(dim=(2, 3)), pool(last), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found[..., :1, :1], backbone.project_map(last[..., :1, :1]), rtol=1e-4, atol=1e-5
        )


def test_projected_depth_compares_projected_cells():
    model, image = model_of('projected'), picture(HW, 2)
    pool = {k: v.double() for k, v in model.backbone.tower.attnpool.state_dict().items()}
    with torch.no_grad():
        features = model.backbone(image, (4,))
        found = model.head.depth_on_grid(model.head._cells(features))
    cells = torch.einsum('bchw,oc->bohw', features.maps[4].double(), pool['v_proj.weight'])
    cells = cells + pool['v_proj.bias'][:, None, None]
    cells = torch.einsum('bchw,oc->bohw', cells, pool['c_proj.weight'])
    cells = cells + pool['c_proj.bias'][:, None, None]
    expected = expected_depth_m(cells, model.head.text, BINS_M, half=False)
    # The projection itself is float32, and the factor of 1000 stands behind it.
    assert np.abs(found[:, 0].double().numpy() - expected).max() < 1e-4
    assert expected.std() > 0.05


@pytest.mark.parametrize('tower', ['RN101-quickgelu', 'RN50x4-quickgelu', 'tiny-resnet'])
def test_projected_and_learned_take_any_of_clips_resnets(tower):
    spec = spec_of(tower)
    projected = build_head({'name': 'depthclip', 'mode': 'projected'}, spec)
    assert projected.text.shape == (7, spec.embedding_width)
    learned = build_head({'name': 'depthclip', 'mode': 'learned'}, spec)
    assert learned.text.shape == (7, spec.widths[4] // 2)


def test_features_without_the_projection_are_refused():
    model = model_of('projected')
    features = replace(model.backbone(picture(HW), (4,)), extras={})
    with pytest.raises(InputError, match="'projected' got features without the tower's proj"):
        model.head(features)


# --- a head among others ------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize('hw', [(32, 32), (64, 96), (224, 160)], ids=str)
def test_any_size_goes_in_and_comes_out(mode, hw):
    model = model_of(mode, hw=hw)
    with torch.no_grad():
        together = model(picture(hw, 2)).depth_m
        alone = torch.cat([model(i[None]).depth_m for i in picture(hw, 2)])
    assert together.shape == (2, 1, *hw) and torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


@every_mode
def test_a_file_brings_back_the_stored_vectors(tmp_path, mode):
    model, path, image = model_of(mode), tmp_path / 'm.safetensors', picture(HW, 2)
    save_model(path, model, name='m', embed_tower=True)
    found = load_model(path)
    assert found.head.has_text and torch.equal(found.head.text, model.head.text)
    with torch.no_grad():
        assert torch.equal(found(image).depth_m, model(image).depth_m)
        assert torch.equal(copy.deepcopy(found)(image).depth_m, model(image).depth_m)


def test_learning_moves_vectors_and_bins_and_never_the_tower():
    model = model_of('learned', temperature=5.0).train()
    before = model.backbone.state_sha256()
    start = {k: v.clone() for k, v in model.head.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (model(picture(HW, 2)).depth_m.log() - math.log(2.0)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert set(start) == {'text', 'log_bins_m'}
    assert not any(torch.equal(v, start[k]) for k, v in model.head.state_dict().items())
    assert model.backbone.state_sha256() == before
    assert all(p.grad is None for p in model.backbone.parameters())


def test_bins_stay_where_they_are_if_told_so():
    """As published; nor do they move when everything is declared trainable."""
    head = model_of('learned', train_bins=False).head.requires_grad_(True)
    assert [n for n, _ in head.named_parameters()] == ['text']
    assert set(head.state_dict()) == {'text'}


def test_learning_may_start_at_phrases():
    head = model_of('learned').head
    start = F.normalize(noise(7, 256, seed=4), dim=1)
    head.set_text(3 * start)
    torch.testing.assert_close(head.text.data, start)


@every_mode
def test_an_exported_network_answers_the_same(mode):
    class Depth(nn.Module):  # an exported network answers tensors
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model(image).depth_m

    network, image = Depth(model_of(mode)), picture(HW)
    with torch.no_grad():
        exported = torch.export.export(network, (image,)).module()
        torch.testing.assert_close(exported(image), network(image))


@every_mode
def test_half_precision_blurs_by_a_share_of_the_spread(mode):
    """A factor of 1000 is nearly an arg max: where two classes tie, bfloat16 decides anew."""
    model, image = model_of(mode), picture((256, 256), 4)
    with torch.no_grad():
        exact = model(image).depth_m
        with torch.autocast('cpu', torch.bfloat16):
            rough = model(image).depth_m
    assert rough.dtype == torch.float32 and exact.std() > 0.05
    assert (rough - exact).abs().mean() < 0.2 * exact.std()


@every_mode
def test_without_stored_vectors_it_refuses(tmp_path, mode):
    """A head that was never filled, and a file of one; learned vectors are always there."""
    model = DepthModel(ModelConfig(TOWER, {'name': 'depthclip', 'mode': mode}, None, HW)).eval()
    assert model.head.has_text == (mode == 'learned')
    path = tmp_path / 'empty.safetensors'
    save_model(path, model, name='empty', embed_tower=True)
    for m in (model, load_model(path)):
        if mode == 'learned':
            m(picture(HW))
            continue
        assert not m.head.text.any()
        with pytest.raises(ConfigError, match='no text embeddings: none are stored') as caught:
            m(picture(HW))
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('tower', ['tiny-vit', 'tiny-siglip', 'pocket-tower', 'tiny-fastvit'])
@every_mode
def test_other_towers_are_refused_by_name(tower, mode):
    with pytest.raises(ConfigError, match=f"depthclip cannot work on tower '{tower}'") as caught:
        build_head({'name': 'depthclip', 'mode': mode}, shared(tower).spec)
    assert '\n' not in str(caught.value) and 'Use RN50-quickgelu' in str(caught.value)


def test_half_of_the_channels_must_be_as_many_as_the_text_has():
    with pytest.raises(ConfigError, match=r"half of 512 channels.*'tiny-resnet' has text of 24"):
        build_head({'name': 'depthclip'}, shared('tiny-resnet').spec)


@pytest.mark.parametrize(('options', 'message'), [
    ({'mode': 'official'}, "mode = 'official': expected one of"),
    ({'spacing': 'sid'}, "spacing = 'sid': expected one of"),
    ({'bins_m': (1.0,)}, r'bins_m = \(1.0,\): expected two or more'),
    ({'bins_m': (1.0, -2.0)}, 'expected two or more positive depths'),
    ({'num_bins': 1}, 'num_bins = 1: expected an integer of at least 2'),
    ({'num_bins': 7.0}, 'num_bins = 7.0'),
    ({'max_depth_m': 0.0005}, 'min_depth_m = 0.001, max_depth_m = 0.0005'),
    ({'temperature': 0.0}, 'temperature = 0.0: expected more than 0'),
])  # fmt: skip
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DepthClipHead.Config(**options)


@pytest.mark.parametrize(('embeddings', 'message'), [
    (torch.ones(6, 256), r'shape \(6, 256\), expected \(7, 256\)'),
    (torch.ones(7, 512), r'shape \(7, 512\), expected \(7, 256\)'),
    (torch.zeros(7, 256), 'lengths 0 to 0: expected positive'),
    (torch.full((7, 256), math.nan), 'lengths nan to nan'),
], ids=str)  # fmt: skip
def test_vectors_that_do_not_fit_are_refused(embeddings, message):
    head = model_of('faithful').head
    before = head.text.clone()
    with pytest.raises(ConfigError, match=message):
        head.set_text(embeddings)
    assert torch.equal(head.text, before)


# --- at a desk ----------------------------------------------------------------------------------


def test_class_embeddings_are_the_official_mean_of_unit_vectors():
    """Unit length, mean over templates, unit length: in float64."""

    class Text:
        def encode_text(self, tokens):
            return tokens

    def tokenizer(texts):
        assert all(t.startswith('This object') for t in texts)
        return noise(len(texts), 9, seed=len(texts[0])) * 5

    templates = ('This {} is {}', LEARNED_TEMPLATE)
    found = class_embeddings(Text(), tokenizer, templates=templates)
    both = [tokenizer(phrases(template=t)).double().numpy() for t in templates]
    mean = sum(b / np.linalg.norm(b, axis=1, keepdims=True) for b in both) / 2
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match='0 classes and 1 templates were given'):
        class_embeddings(Text(), tokenizer, ())


@pytest.fixture
def clip_file(tmp_path):
    """An image and a text tower in one file, as CLIP is published."""
    torch.manual_seed(5)
    path = tmp_path / 'clip.safetensors'
    save_file({k: v.clone() for k, v in open_clip.create_model(TOWER).state_dict().items()}, path)
    return path


@pytest.mark.parametrize('mode', ['faithful', 'projected'])
def test_a_desk_writes_a_file_that_needs_no_training(tmp_path, clip_file, mode):
    path = tmp_path / 'depthclip.safetensors'
    options = {'tower': TOWER, 'tag': None, 'file': clip_file, 'input_hw': HW}
    zero_shot_weights(path, mode, embed_tower=True, **options)
    model, card = load_model(path), read_card(path)
    clip = open_clip.create_model(TOWER, pretrained=str(clip_file)).eval()
    expected = class_embeddings(clip, open_clip.get_tokenizer(TOWER))
    torch.testing.assert_close(model.head.text, expected)
    assert expected.shape == (len(CLASSES), 256)
    assert card.training['phrases'] == phrases() and card.model['head']['mode'] == mode
    for k, v in clip.visual.state_dict().items():
        assert torch.equal(v, model.backbone.tower.state_dict()[k]), k
    with torch.no_grad():
        depth_m = model(picture(HW)).depth_m
    assert 1 <= depth_m.min() and depth_m.max() <= 3


def test_faithful_sees_images_as_the_official_code_normalises_them(tmp_path, clip_file):
    path = tmp_path / 'depthclip.safetensors'
    zero_shot_weights(path, tower=TOWER, tag=None, file=clip_file, input_hw=HW, embed_tower=True)
    estimator = DepthEstimator.from_weights(path, RuntimeConfig(device='cpu'))
    rgb = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = ((rgb / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    with torch.no_grad():
        expected = load_model(path)(torch.from_numpy(image)).depth_m[0, 0].numpy()
    np.testing.assert_allclose(estimator(rgb).depth_m, expected, rtol=1e-4)
    # CLIP's own embedding is of a picture with CLIP's mean.
    with pytest.raises(ConfigError, match='gives no embedding'):
        estimator(rgb, want_embedding=True)
    with pytest.raises(WeightsError, match='a shared tower sees images with its own'):
        load_model(path, tower=open_clip.create_model(TOWER).visual)


RUN_TIME = """
import gc, sys
import open_clip, torch
from torch import nn
open_clip.add_model_config(sys.argv[2])
from vlm_depth_ros.core.model import load_model
model = load_model(sys.argv[1])
depth_m = model(torch.zeros(1, 3, 64, 96)).depth_m
assert depth_m.shape == (1, 1, 64, 96)
modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
from open_clip.transformer import TextTransformer, Transformer
words = [m for m in modules if isinstance(m, (TextTransformer, Transformer, nn.Embedding))]
words += [n for n, _ in model.named_parameters() if 'token' in n or 'text' in n]
words += [n for n in sys.modules if 'prompt_embeddings' in n]
print(len(modules) > 10, words)
"""


def test_no_text_tower_lives_where_depth_is_estimated(tmp_path):
    """In a process of its own, from the file alone."""
    path = tmp_path / 'depthclip.safetensors'
    save_model(path, model_of('faithful'), name='m', embed_tower=True)
    here = Path(__file__).parent
    said = subprocess.run(
        [sys.executable, '-c', RUN_TIME, str(path), str(here / 'data')],
        cwd=here.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert said.stdout.strip() == 'True []', said.stderr


def test_what_a_desk_cannot_do_is_one_line(tmp_path):
    out = tmp_path / 'out.safetensors'
    with pytest.raises(ConfigError, match="mode 'learned' is trained"):
        zero_shot_weights(out, 'learned')
    options = {'tower': TOWER, 'tag': None, 'input_hw': HW}
    with pytest.raises(WeightsError, match='missing.pt: no such file. Expected one') as caught:
        zero_shot_weights(out, file=tmp_path / 'missing.pt', **options)
    assert '\n' not in str(caught.value)
    image_only = tmp_path / 'image_only.safetensors'
    tower = {f'visual.{k}': v for k, v in shared(TOWER).tower.state_dict().items()}
    save_file(tower, image_only)
    with pytest.raises(WeightsError, match='read with its text side .* Give') as caught:
        zero_shot_weights(out, file=image_only, **options)
    assert '\n' not in str(caught.value) and not out.exists()


@pytest.mark.parametrize('mode', ['faithful', 'projected'])
def test_one_command_makes_a_file(tmp_path, clip_file, mode):
    out = tmp_path / 'depthclip.safetensors'
    arguments = ['--variant', mode, '--tower', TOWER, '--tower-weights', str(clip_file)]
    arguments += ['--size', '64x96']
    assert cli.main(['prompt-weights', 'depthclip', str(out), *arguments, '--embed-tower']) == 0
    whole = load_model(out)
    assert whole.head.has_text and read_card(out).model['input_hw'] == [64, 96]
    assert cli.main(['prompt-weights', 'depthclip', str(out), *arguments]) == 0
    assert not read_card(out).tower_embedded
    small = load_model(out, None, clip_file)
    with torch.no_grad():
        assert torch.equal(small(picture(HW)).depth_m, whole(picture(HW)).depth_m)


def test_without_a_network_the_verb_says_what_to_copy_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    assert cli.main(['prompt-weights', 'depthclip', str(tmp_path / 'out')]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("vlm-depth prompt-weights: weights of tower 'RN50-quickgelu'")
    assert 'Copy open_clip_model.safetensors of https://huggingface.co/' in said
    assert said.endswith(f'to {tmp_path}/RN50-quickgelu.openai.safetensors.')


@pytest.mark.parametrize(('options', 'message'), [
    (('--variant', 'learned'), "mode 'learned' is trained"),
    (('--fit', 'somewhere'), 'depthclip takes neither --fit nor --vocabulary'),
    (('--vocabulary', 'vocab.txt'), 'depthclip takes neither --fit nor --vocabulary'),
    (('--rows', '0:1'), '--rows are rows of a set to fit to'),
    (('--tower', 'tiny-vit'), "head depthclip cannot work on tower 'tiny-vit'"),
    (('--size', '64'), "--size '64': expected HxW in pixels"),
    (('--variant', 'v1'), "mode = 'v1': expected one of"),
    (('--tower-weights', 'none.pt'), 'tower weights none.pt: no such file'),
])  # fmt: skip
def test_what_the_verb_cannot_do_is_one_line(tmp_path, capsys, options, message):
    out = tmp_path / 'out.safetensors'
    assert cli.main(['prompt-weights', 'depthclip', str(out), *options]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith('vlm-depth prompt-weights: ') and message in said
    assert cli.main(['prompt-weights', 'depthclip', str(tmp_path)]) == 1
    assert 'is a folder; name the weights file' in capsys.readouterr().err
    assert not out.exists()
