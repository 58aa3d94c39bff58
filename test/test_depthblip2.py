"""DepthBLIP-2: constants, feature-to-depth maths, transformers' own BLIP-2, stored phrases."""

from dataclasses import replace
import json
import math
import os
from pathlib import Path
import subprocess
import sys

import blip2
from blip2 import model_of, TAG, TOWER, vectors, WIDTH
import desk_sets
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
import torch
from torch import nn
import towers
from towers import picture
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from vlm_depth_ros.core.blip2_tower import BLIP2_TOWERS, Blip2Backbone
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError, InputError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.heads.depthblip2 import BINS_M, CHANNEL_ORDERS, DepthBlip2Head
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, load_model, read_card, save_model
from vlm_depth_ros.core.towers import published_file
from vlm_depth_ros.tools import cli
from vlm_depth_ros.tools.few_shot import bins_loss
from vlm_depth_ros.tools.prompt_embeddings import phrase_vectors, phrases

HW = (64, 96)
WORDS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'this', 'object', 'is', 'giant',
         'extremely', 'close', 'not', 'in', 'distance', 'a', 'little', 'remote', 'far',
         'unseen')  # fmt: skip
ORDERS = tuple(CHANNEL_ORDERS)
every_order = pytest.mark.parametrize('order', ORDERS)
every_kind = pytest.mark.parametrize('bins', ['preset', 'learned'])


def full_size_head(**options):
    """A head on the published tower's measures; no tower is built."""
    vision = BLIP2_TOWERS['blip2-itm-vit-g']['vision']
    spec = replace(
        blip2.shared().spec, tower='blip2-itm-vit-g', input_hw=(224, 224),
        widths=(vision['hidden_size'],) * 40, strides=(14,) * 40,
    )  # fmt: skip
    return build_head({'name': 'depthblip2', **options}, spec).eval()


# --- what is known to the constant --------------------------------------------------------------


def test_depths_phrases_and_temperatures_are_the_official_ones():
    assert BINS_M == (1.00, 1.75, 2.25, 2.50, 2.75, 3.00, 3.50)
    assert full_size_head().temperature == 0.05
    assert full_size_head(channel_order='v2').temperature == 0.5
    assert phrases()[1] == 'This object is extremely close' and len(phrases()) == len(BINS_M)


def test_the_network_of_learned_bins_has_83463_parameters():
    head = full_size_head(bins='learned')
    assert sum(p.numel() for p in head.parameters()) == 83_463
    assert [m.out_features for m in head.mlp if isinstance(m, nn.Linear)] == [
        64, 128, 256, 128, 64, 7,
    ]  # fmt: skip
    dropouts = [i for i, m in enumerate(head.mlp) if isinstance(m, nn.Dropout)]
    assert dropouts == [6, 9] and {head.mlp[i].p for i in dropouts} == {0.5}
    assert sum(p.numel() for p in full_size_head().parameters()) == 0


def test_the_published_tower_has_its_published_size():
    """Blip2ForImageTextRetrieval has 1.17 thousand million parameters; words and ends are out."""
    with torch.device('meta'):
        tower = Blip2Backbone('blip2-itm-vit-g', pretrained='salesforce')
    spec, parts = tower.spec, tower.tower
    assert (spec.num_layers, spec.widths[39], spec.size_multiple) == (39, 1408, 14)
    assert spec.input_hw == (224, 224) and parts.query_tokens.shape == (1, 32, 768)
    sizes = {k: sum(p.numel() for p in getattr(parts, k).parameters())
             for k in ('vision_model', 'qformer')}  # fmt: skip
    words = (30_523 + 512) * 768
    ends = 2 * (768 * 256 + 256) + 2 * 768 + 2
    whole = sum(sizes.values()) + 32 * 768 + words + ends
    assert round(whole / 1e9, 2) == 1.17 and round(whole * 4 / 1e9, 2) == 4.69  # GB of its file


@pytest.mark.parametrize(('order', 'channel'), [
    ('v1', lambda row, column, colour: 48 * row + 3 * column + colour),
    ('v2', lambda row, column, colour: 256 * colour + 16 * row + column),
])  # fmt: skip
def test_768_channels_become_16_by_16_cells_in_both_orders(order, channel):
    head = full_size_head(channel_order=order, temperature=1.0)
    for place in ((0, 0, 0), (3, 14, 2), (15, 7, 1)):
        answers = torch.zeros(1, 7, 32, 768)
        answers[:, 4, :, channel(*place)] = 9.0
        shares = head.shares_of(answers)
        assert shares.shape == (1, 7, 16, 16)
        expected = torch.full((16, 16), 1 / 7)
        expected[place[:2]] = math.exp(9) / (math.exp(9) + 6)
        torch.testing.assert_close(shares[0, 4], expected)


# --- from features to depth ---------------------------------------------------------------------


def expected_depth_m(answers, bins_m, order, temperature):
    """The official maths cell by cell in float64, from the description; (B, h, w)."""
    answers = np.asarray(answers, np.float64)
    batch, num, _, width = answers.shape
    side = math.isqrt(width // 3)
    depth_m = np.zeros((batch, side, side))
    for b in range(batch):
        for row in range(side):
            for column in range(side):
                logits = []
                for k in range(num):
                    vector = sum(answers[b, k]) / len(answers[b, k])
                    if order == 'v1':
                        places = [3 * side * row + 3 * column + g for g in range(3)]
                    else:
                        places = [side * side * g + side * row + column for g in range(3)]
                    logits.append(max(vector[p] for p in places) / temperature)
                top = max(logits)
                weights = [math.exp(logit - top) for logit in logits]
                depth_m[b, row, column] = sum(
                    w * float(d) for w, d in zip(weights, bins_m)
                ) / sum(weights)
    return depth_m


@every_kind
@every_order
def test_depth_of_a_cell_is_the_official_one(order, bins):
    head = model_of(channel_order=order, bins=bins).head
    answers = torch.randn(2, 7, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    bins_m = [float(b) for b in BINS_M]
    if bins == 'learned':
        x = np.array(bins_m)
        for part in head.mlp:
            if isinstance(part, nn.Linear):
                weight, bias = (p.detach().double().numpy() for p in (part.weight, part.bias))
                x = weight @ x + bias
            elif isinstance(part, nn.ReLU):
                x = np.maximum(x, 0)
        bins_m = 1.0 + (1 / (1 + np.exp(-x))) ** 2 * 2.5
    with torch.no_grad():
        found = torch.einsum('bkhw,k->bhw', head.shares_of(answers), head.bins_m())
    expected = expected_depth_m(answers, bins_m, order, CHANNEL_ORDERS[order])
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > (0.1 if bins == 'preset' else 0.001)


def test_the_orders_give_different_maps():
    image = picture(HW)
    with torch.no_grad():
        one, other = (model_of(channel_order=o, temperature=0.5)(image).depth_m for o in ORDERS)
    assert not torch.allclose(one, other, atol=0.05)


@every_kind
@every_order
def test_depth_stays_between_the_nearest_and_the_farthest_bin(order, bins):
    with torch.no_grad():
        depth_m = model_of(channel_order=order, bins=bins)(100 * picture(HW, 2)).depth_m
    assert depth_m.min() > 1 - 1e-5 and depth_m.max() < 3.5 + 1e-5


def test_learned_bins_are_one_constant_for_all_images():
    model = model_of(bins='learned')
    with torch.no_grad():
        before = model.head.bins_m()
        model(picture(HW, 2))
        assert torch.equal(model.head.bins_m(), before) and before.shape == (7,)


# --- the tower, beside transformers' own --------------------------------------------------------


def whole_blip2(seed=0):
    """Transformers' own whole BLIP-2 of the tiny measures, with its text side."""
    torch.manual_seed(seed)
    sizes = BLIP2_TOWERS[TOWER]
    qformer = {**sizes['qformer'], 'use_qformer_text_input': True, 'vocab_size': len(WORDS),
               'max_position_embeddings': 16}  # fmt: skip
    config = Blip2Config(
        vision_config=sizes['vision'], qformer_config=qformer,
        num_query_tokens=sizes['num_queries'], initializer_range=0.3,
    )  # fmt: skip
    whole = Blip2ForImageTextRetrieval(config).eval()
    nn.init.normal_(whole.query_tokens)
    return whole


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A BLIP-2 and BERT's vocabulary, as they are published, and the BLIP-2 itself."""
    folder, whole = tmp_path_factory.mktemp('published'), whole_blip2()
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, folder / 'b.safetensors')
    (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    return folder / 'b.safetensors', folder / 'vocab.txt', whole


def token_ids(text):
    """By hand: begin, words, end."""
    return [WORDS.index(word) for word in ('[CLS]', *text.lower().split(), '[SEP]')]


def test_the_tower_is_that_of_transformers(published):
    """Maps are what enters and leaves its blocks, `pooled` is the class token at its end."""
    file, _, whole = published
    tower, image = blip2.build(), picture((64, 64), 2)
    tower.load_published(TAG, file)
    with torch.no_grad():
        found = tower(image, range(5))
        theirs = whole.vision_model(image, output_hidden_states=True)
        patches = whole.vision_model.post_layernorm(found.maps[4].flatten(2).mT)
    for k in range(4):
        expected = theirs.hidden_states[k][:, 1:].mT.unflatten(2, (4, 4))
        torch.testing.assert_close(found.maps[k], expected, msg=f'map {k}')
    torch.testing.assert_close(found.pooled, theirs.last_hidden_state[:, 0])
    torch.testing.assert_close(patches, theirs.last_hidden_state[:, 1:])


def test_queries_say_what_transformers_says_phrase_by_phrase(published):
    """Its matching pass, one phrase at a time and unpadded, is what the authors' code runs."""
    file, vocabulary, whole = published
    tower, image = blip2.build(), picture((64, 64), 2)
    tower.load_published(TAG, file)
    stored = torch.zeros(7, 12, WIDTH)
    found = phrase_vectors(phrases(), file, vocabulary)
    stored[:, : found.shape[1]] = found
    with torch.no_grad():
        features = tower(image, (4,))
        answers = features.extras['ask'](features.maps[4], features.pooled, stored)
        for k, text in enumerate(phrases()):
            ids = torch.tensor([token_ids(text)] * 2)
            theirs = whole(
                image, ids, attention_mask=torch.ones_like(ids), use_image_text_matching_head=True
            ).text_model_output.last_hidden_state[:, :5]
            torch.testing.assert_close(answers[:, k], theirs, rtol=1e-4, atol=1e-4)
    assert (answers[:, 0] - answers[:, 1]).abs().max() > 0.01, 'the phrases reach the answers'
    assert (answers[0] - answers[1]).abs().max() > 0.01, 'so does the image'


def test_seven_phrases_cost_one_pass_of_the_image_tower():
    model, passes = model_of(), []
    model.backbone.tower.vision_model.register_forward_hook(lambda *_: passes.append('image'))
    model.backbone.tower.qformer.register_forward_hook(lambda *_: passes.append('phrases'))
    model(picture(HW))
    assert passes == ['image', 'phrases']


def test_padding_of_a_short_phrase_changes_nothing():
    model, image = model_of(), picture(HW)
    shorter = vectors()[:1, :5]
    with torch.no_grad():
        features = model.backbone(image, (4,))
        alone = model.backbone.ask(features.maps[4], features.pooled, shorter)
        padded = model.backbone.ask(features.maps[4], features.pooled, vectors())
    torch.testing.assert_close(padded[:, :1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('hw', [(64, 64), (32, 128), (96, 64)])
def test_any_size_goes_in_and_comes_out(hw, published):
    model = model_of(hw=hw)
    model.backbone.load_published(TAG, published[0])
    with torch.no_grad():
        assert model(picture(hw)).depth_m.shape == (1, 1, *hw)
    same = model_of()
    same.backbone.load_published(TAG, published[0])
    assert same.backbone.frozen_sha256() == model.backbone.frozen_sha256()
    rgb = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    depth_m = DepthEstimator(model, RuntimeConfig('cpu'))(rgb).depth_m
    assert depth_m.shape == (50, 71) and np.isfinite(depth_m).all()


def test_an_exported_network_answers_the_same():
    class Depth(nn.Module):  # an exported network answers tensors
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model(image).depth_m

    network, image = Depth(model_of(bins='learned')), picture(HW)
    with torch.no_grad():
        exported = torch.export.export(network, (image,)).module()
        torch.testing.assert_close(exported(image), network(image))


def test_a_second_estimator_may_share_the_tower():
    first = DepthEstimator(model_of(), RuntimeConfig('cpu'))
    again = DepthModel(first.config, first.backbone)
    assert again.backbone is first.backbone


# --- files --------------------------------------------------------------------------------------


@every_kind
def test_a_file_brings_everything_back(tmp_path, bins):
    model, image, path = model_of(bins=bins), picture(HW, 2), tmp_path / 'm.safetensors'
    save_model(path, model, name='m', embed_tower=True)
    found = load_model(path)
    with torch.no_grad():
        assert torch.equal(found(image).depth_m, model(image).depth_m)
    assert found.head.has_phrases and torch.equal(found.head.phrases, model.head.phrases)
    assert not any(p.requires_grad for p in found.backbone.parameters())


def test_a_small_file_finds_its_tower_and_no_other(tmp_path, published):
    model, path = model_of(), tmp_path / 'm.safetensors'
    model.backbone.load_published(TAG, published[0])
    save_model(path, model, name='m', embed_tower=False)
    assert path.stat().st_size < 100_000
    with torch.no_grad():
        expected = model(picture(HW)).depth_m
        assert torch.equal(load_model(path, None, published[0])(picture(HW)).depth_m, expected)
    other = tmp_path / 'other.safetensors'
    save_file({k: v + 1e-3 for k, v in load_file(published[0]).items()}, other)
    with pytest.raises(WeightsError, match='trained on another tower'):
        load_model(path, None, other)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path, published):
    state = load_file(published[0])
    broken = tmp_path / 'broken.safetensors'
    for key, message in (
        ('query_tokens', r'1 tensors differ \(query_tokens'),
        ('qformer.layernorm.bias', r'1 tensors differ \(qformer.layernorm.bias'),
    ):
        save_file({k: v for k, v in state.items() if k != key}, broken)
        with pytest.raises(WeightsError, match=message):
            blip2.build().load_published(TAG, broken)
    broken.write_bytes(b'no tensors')
    with pytest.raises(WeightsError, match='not a readable tower file'):
        blip2.build().load_published(TAG, broken)
    with pytest.raises(WeightsError, match='none.safetensors: no such file'):
        blip2.build().load_published(TAG, tmp_path / 'none.safetensors')


def test_without_a_network_the_error_says_what_to_copy_where(tmp_path, monkeypatch):
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(WeightsError) as caught:
        published_file('blip2-itm-vit-g', 'salesforce')
    assert str(caught.value).endswith(
        'Copy model.safetensors of https://huggingface.co/Salesforce/blip2-itm-vit-g to '
        f'{tmp_path}/blip2-itm-vit-g.salesforce.safetensors.'
    )
    (tmp_path / f'{TOWER}.{TAG}.safetensors').touch()
    assert published_file(TOWER, TAG) == tmp_path / f'{TOWER}.{TAG}.safetensors'


RUN_TIME = """
import sys
import blip2, torch
from vlm_depth_ros.core.model import load_model
from vlm_depth_ros.tools.doctor import text_readers
model = load_model(sys.argv[1])
assert model(torch.zeros(1, 3, 64, 96)).depth_m.shape == (1, 1, 64, 96)
words = text_readers() + [n for n, m in model.named_modules() if type(m).__name__ == 'Embedding']
words += [n for n in sys.modules if 'prompt_embeddings' in n]
print(words)
"""


def test_no_words_live_where_depth_is_estimated(tmp_path):
    """In a process of its own, from the file alone: no text tower, no table of words."""
    path, here = tmp_path / 'm.safetensors', Path(__file__).parent
    save_model(path, model_of(), name='m', embed_tower=True)
    said = subprocess.run(
        [sys.executable, '-c', RUN_TIME, str(path)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(here), *sys.path])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert said.stdout.strip() == '[]', said.stderr


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize('tower', ['tiny-vit', 'tiny-rn50', 'pocket-tower'])
def test_other_towers_are_refused_by_name(tower):
    with pytest.raises(ConfigError, match=f"depthblip2 cannot work on tower '{tower}'") as caught:
        build_head({'name': 'depthblip2'}, towers.shared(tower).spec)
    assert 'Use blip2-itm-vit-g' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('head', ['depthclip', 'moa_depthclip'])
def test_heads_that_need_clip_refuse_this_tower_by_name(head):
    with pytest.raises(ConfigError, match=f"'{TOWER}'") as caught:
        DepthModel(ModelConfig(TOWER, {'name': head}, None, HW))
    assert '\n' not in str(caught.value)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(DependencyError, match=r"pip install 'vlm_depth_ros\[blip2\]'"):
        blip2.build()


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'pretrained': 'openai'}, "no pretrained tag 'openai'. Known tags: nowhere"),
    ({'activation': 'gelu_tanh'}, "tower_activation 'gelu_tanh' .*: expected none"),
    ({'input_hw': (60, 64)}, r'\(60, 64\) does not fit .*: both sides must be multiples of 16'),
    ({'module': nn.Identity()}, 'cannot be shared as a module'),
])  # fmt: skip
def test_what_the_tower_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Blip2Backbone(TOWER, **arguments)


def test_what_the_tower_cannot_do_is_refused():
    tower = blip2.shared(HW)
    with pytest.raises(ConfigError, match='no trained projection'):
        tower(picture(HW), (4,), want_embedding=True)
    with pytest.raises(InputError, match=r'built for \(64, 96\) input, got \(64, 64\)'):
        tower(picture((64, 64)), (4,))
    with pytest.raises(ConfigError, match='has layers 0 to 4, asked for'):
        tower(picture(HW), (5,))


@pytest.mark.parametrize(('options', 'message'), [
    ({'bins': 'adaptive'}, "bins = 'adaptive': expected one of"),
    ({'channel_order': 'v3'}, "channel_order = 'v3': expected one of"),
    ({'bins_m': (1.0,)}, r'bins_m = \(1.0,\): expected two or more'),
    ({'bins_m': (1.0, math.inf)}, 'expected two or more positive depths'),
    ({'temperature': 0.0}, 'temperature = 0.0: expected more than 0'),
])  # fmt: skip
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DepthBlip2Head.Config(**options)


@pytest.mark.parametrize(('phrases', 'message'), [
    (vectors(6), r'shape \(6, 8, 48\), expected \(7, at most 12, 48\)'),
    (vectors()[:, :, :9], r'shape \(7, 8, 9\)'),
    (torch.ones(7, 13, WIDTH), r'shape \(7, 13, 48\)'),
    (torch.zeros(7, 8, WIDTH), 'hold NaN or are empty'),
    (vectors() * math.nan, 'hold NaN or are empty'),
], ids=['six', 'narrow', 'long', 'empty', 'nan'])  # fmt: skip
def test_phrases_that_do_not_fit_are_refused(phrases, message):
    head = model_of().head
    before = head.phrases.clone()
    with pytest.raises(ConfigError, match=message):
        head.set_phrases(phrases)
    assert torch.equal(head.phrases, before)


def test_without_phrases_or_q_former_it_refuses(tmp_path):
    model, path = model_of(), tmp_path / 'empty.safetensors'
    features = model.backbone(picture(HW), (4,))
    with pytest.raises(InputError, match="without the tower's Q-Former"):
        model.head(replace(features, extras={}))
    empty = DepthModel(model.config)
    save_model(path, empty, name='empty', embed_tower=True)
    for m in (empty, load_model(path)):
        with pytest.raises(ConfigError, match='no phrases: none are stored'):
            m(picture(HW))


# --- at a desk ----------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path, published):
    """The verb on the tiny published files; answers its exit code and the file it wrote."""
    out = tmp_path / 'out.safetensors'

    def run(*options):
        files = ('--tower', TOWER, '--tower-weights', published[0], '--vocabulary', published[1])
        return cli.main(['prompt-weights', 'depthblip2', str(out), *map(str, files + options)])

    return run, out


def test_phrases_are_stored_as_sums_of_word_and_place(published):
    file, vocabulary, whole = published
    found = phrase_vectors(phrases(), file, vocabulary)
    assert found.shape == (7, 8, WIDTH)
    for vector, text in zip(found, phrases()):
        ids = token_ids(text)
        expected = whole.embeddings(torch.tensor([ids]))[0].detach()
        torch.testing.assert_close(vector[: len(ids)], expected)
        assert not vector[len(ids) :].any()


def test_words_are_cut_as_berts_own_tokenizer_cuts_them(tmp_path):
    """A vocabulary without "unseen" and "remote", but with pieces of them, long and short."""
    pieces = ('re', 'rem', '##ote', '##mote', 'u', 'un', '##seen', '##see', '##n')
    words = [word for word in WORDS if word not in ('unseen', 'remote')]
    vocabulary = tmp_path / 'vocab.txt'
    vocabulary.write_text('\n'.join((*words, *pieces)) + '\n')
    theirs = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    rows = torch.eye(len(words) + len(pieces), WIDTH)
    tables = {f'embeddings.{kind}_embeddings.weight': rows * scale
              for kind, scale in (('word', 1), ('position', 0))}  # fmt: skip
    save_file(tables, tmp_path / 'tables.safetensors')
    found = phrase_vectors(phrases(), tmp_path / 'tables.safetensors', vocabulary)
    for vector, text in zip(found, phrases()):
        expected = theirs.encode(text).ids
        assert vector[: len(expected)].argmax(dim=1).tolist() == expected
    assert theirs.encode(phrases()[-1]).tokens[-3:-1] == ['un', '##seen']


@every_order
def test_one_command_makes_a_file_that_needs_no_training(desk, published, order):
    run, out = desk
    assert run('--variant', order, '--size', '64x96') == 0
    card, model = read_card(out), load_model(out, None, published[0])
    assert card.training == {'phrases': phrases(), 'trained': 'nothing: zero-shot'}
    assert card.model['head'] == {'name': 'depthblip2', 'channel_order': order, 'bins': 'preset'}
    assert not card.tower_embedded and card.model['input_hw'] == [64, 96]
    with torch.no_grad():
        assert model(picture(HW)).depth_m.std() > 0.01


def test_bins_are_fitted_to_a_few_images(desk, published, tmp_path):
    """The recipe of 16 images; here the nearest truth draws all bins nearer."""
    run, out = desk
    data = desk_sets.write_set(tmp_path / 'set', [1.2] * 3)
    fit = ('--fit', data, '--rows', '0:2', '--device', 'cpu')
    assert run(*fit, '--embed-tower') == 0
    card, model = read_card(out), load_model(out)
    record = card.training
    assert record['loss_m'] < record['loss_before_m'] and len(record['images']) == 2
    assert record['epochs'] == 50 and all(1 <= b <= 3.5 for b in record['bins_m'])
    with torch.no_grad():
        assert model.head.bins_m().tolist() == pytest.approx(record['bins_m'])
    tower = blip2.build((224, 224))
    tower.load_published(TAG, published[0])
    assert model.backbone.state_sha256() == tower.state_sha256(), 'the tower stayed as it was'
    assert run(*fit) == 0 and read_card(out).training == record, 'the same again'


def test_the_loss_is_half_absolute_and_half_squared_over_all_pixels():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0]])
    pixels = [(weights[0], torch.tensor([1.0, 3.0])), (weights[1], torch.tensor([2.0]))]
    errors = [1.5 - 1, 2.25 - 3, 3 - 2]
    expected = sum(map(abs, errors)) / 6 + 0.5 * math.sqrt(sum(e * e for e in errors) / 3)
    assert bins_loss(torch.tensor([1.5, 3.0]), pixels).item() == pytest.approx(expected)


def test_what_a_desk_cannot_do_is_one_line(desk, published, tmp_path, capsys):
    run, out = desk
    far = desk_sets.write_set(tmp_path / 'far', [30.0])
    image_only = tmp_path / 'image_only.safetensors'
    state = {k: v for k, v in load_file(published[0]).items() if not k.startswith('embeddings')}
    save_file(state, image_only)
    other = tmp_path / 'other.txt'
    other.write_text('\n'.join(WORDS[:-1]))
    for options, message in (
        (('--variant', 'v3'), "channel_order = 'v3': expected one of"),
        (('--size', '64'), "--size '64': expected HxW in pixels"),
        (('--rows', '0:1'), 'name it by --fit'),
        (('--fit', tmp_path / 'none'), 'none: does not exist'),
        (('--fit', far, '--rows', ''), "rows '': expected A:B"),
        (('--fit', far, '--device', 'gpu'), "device = 'gpu': expected auto, cpu, cuda"),
        (('--fit', far, '--rows', '0:16'), 'far: rows 0:16 do not exist: the set has 1 rows'),
        (('--fit', far, '--rows', '0:1'), 'no pixel inside the crop has a depth between'),
        (('--tower-weights', image_only), 'has no words for these phrases'),
        (('--tower-weights', tmp_path / 'no.safetensors'), 'no.safetensors: no such file'),
        (('--vocabulary', other), 'lacks words of the phrases (unseen). Expected vocab.txt of'),
        (('--vocabulary', tmp_path / 'no.txt'), 'not a readable vocabulary'),
        (('--tower', 'tiny-vit'), "depthblip2 cannot work on tower 'tiny-vit'"),
    ):
        assert run(*options) == 1, options
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith('vlm-depth prompt-weights: ') and message in said, options
    assert not out.exists()


def test_a_vocabulary_that_cannot_be_fetched_is_named(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    arguments = ['--tower', TOWER, '--tower-weights', str(published[0])]
    assert cli.main(['prompt-weights', 'depthblip2', str(tmp_path / 'o'), *arguments]) == 1
    said = capsys.readouterr().err
    assert 'Copy vocab.txt of https://huggingface.co/google-bert/bert-base-uncased' in said
    assert json.dumps(said).count('\\n') == 1
