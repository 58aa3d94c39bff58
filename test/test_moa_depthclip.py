"""MoA-DepthCLIP: adapters inside the tower, tuned blocks, bins; the tower itself stays."""

import copy
from dataclasses import replace
import math

import open_clip
import pytest
from safetensors import safe_open
import torch
from torch import nn
import torch.nn.functional as F
from towers import build, picture, shared, TAG
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.moa_depthclip import (
    bin_edges_m,
    MixtureOfAdapters,
    MoaDepthClipHead,
)
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, load_model, save_model
from vlm_depth_ros.tools.losses import silog
from vlm_depth_ros.tools.losses_moa import moa_loss, printed_silog
from vlm_depth_ros.tools.room_context import mean_of_rooms, NYU_ROOMS, store

HW = (64, 96)
OPTIONS = {'name': 'moa_depthclip', 'num_bins': 16, 'projection_width': 16, 'expert_width': 8}
CONFIG = ModelConfig('tiny-vit', OPTIONS, TAG, HW)
ADAPTED = (2, 5, 8, 11)


def made(seed=0, awake=True, **options):
    """A model on a tiny tower, frozen; `awake`: with adapters that do something."""
    torch.manual_seed(seed)
    model = DepthModel(replace(CONFIG, head=OPTIONS | options))
    model.freeze_tower()
    if hasattr(model.head, 'context'):
        model.head.context.copy_(F.normalize(torch.randn(24), dim=0))
    if awake:
        for p in model.head.tower_change.adapters.parameters():
            p.data.normal_(std=0.2)
    return model.eval()


def count(module):
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


# --- what is known to the constant --------------------------------------------------------------


def test_the_ledger_is_the_papers():
    """ViT-B/32: 495,492 a block, 1,981,968 for four; the last four blocks have 28,351,488."""
    with torch.device('meta'):
        backbone = Backbone('ViT-B-32-quickgelu')
        head = MoaDepthClipHead(MoaDepthClipHead.Config(), backbone.spec)
        head.tower_change.take(backbone.blocks)
    change = head.tower_change
    assert list(change.adapters) == ['2', '5', '8', '11'] and head.layers == (3, 6, 9, 12)
    assert {count(a) for a in change.adapters.values()} == {495_492}
    assert count(change.adapters) == 1_981_968
    assert list(change.blocks) == ['8', '9', '10', '11'] and count(change.blocks) == 28_351_488
    assert head.classify.weight.shape[:2] == (128, 512 + 512)


def test_a_mixture_is_the_gated_sum_of_its_experts():
    """Against float64, expert by expert, gate softmax(Linear ReLU Linear / 2)."""
    torch.manual_seed(0)
    moa = MixtureOfAdapters(12, 4, 5, 7, 2.0)
    x = torch.randn(2, 3, 12)
    assert torch.equal(moa(x), x), 'training does not start at CLIP'
    for p in moa.parameters():
        p.data.normal_()
    w = {k: v.double() for k, v in moa.state_dict().items()}
    d = x.double()
    logits = (d @ w['gate.0.weight'].T + w['gate.0.bias']).relu() @ w['gate.2.weight'].T
    gate = torch.softmax((logits + w['gate.2.bias']) / 2.0, -1)
    expected = d.clone()
    for k in range(4):
        rows = slice(5 * k, 5 * k + 5)
        hidden = d @ w['down.weight'][rows].T + w['down.bias'][rows]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        expert = hidden @ w['up.weight'][:, rows].T + w['up_bias'][k]
        expected += gate[..., k : k + 1] * expert
    torch.testing.assert_close(moa(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('bins', 'lowest', 'middle'), [
    ('uniform', 0.001 + 9.999 / 256, 5.0005), ('log', None, 0.1),
])  # fmt: skip
def test_bins_reach_from_a_millimetre_to_ten_metres(bins, lowest, middle):
    edges = bin_edges_m(MoaDepthClipHead.Config(bins=bins))
    assert len(edges) == 129 and (edges.diff() > 0).all()
    assert edges[0].item() == pytest.approx(0.001) and edges[-1].item() == pytest.approx(10.0)
    assert edges[64].item() == pytest.approx(middle, rel=1e-4)
    if lowest:
        assert (edges[:2].mean().item()) == pytest.approx(lowest, rel=1e-4)


@pytest.mark.parametrize('fusion', ['mean', 'bins', 'regression'])
@pytest.mark.parametrize('upsample', ['logits', 'depth'])
def test_depth_is_made_of_bins_and_regression(fusion, upsample):
    """Feature to depth, re-computed in float64."""
    model = made(fusion=fusion, upsample=upsample)
    head, image = model.head, picture(HW, 2)
    with torch.no_grad():
        found = model.backbone(image, head.layers, change=head.tower_change)
        depth_m = model(image).depth_m
    w = {k: v.double() for k, v in head.state_dict().items()}
    x = sum(found.maps[k].double() for k in (3, 6, 9, 12)) / 4
    x = torch.einsum('bchw,oc->bohw', x, w['project.weight'][..., 0, 0])
    x = x + w['project.bias'][:, None, None]
    context = w['context'][None, :, None, None].expand(2, -1, 4, 6)
    x = torch.cat([x, context], 1)
    both = {}
    for name in ('classify', 'regress'):
        both[name] = torch.einsum('bchw,oc->bohw', x, w[f'{name}.weight'][..., 0, 0])
        both[name] += w[f'{name}.bias'][:, None, None]
        if upsample == 'logits':
            both[name] = F.interpolate(both[name], HW, mode='bilinear')
    edges = torch.linspace(0.001, 10, 17, dtype=torch.float64)
    share = both['classify'].exp() / both['classify'].exp().sum(1, keepdim=True)
    binned = torch.einsum('bnhw,n->bhw', share, (edges[1:] + edges[:-1]) / 2)[:, None]
    regressed = 10 / (1 + (-both['regress']).exp())
    expected = {
        'mean': 0.5 * (binned + regressed), 'bins': binned, 'regression': regressed
    }[fusion]  # fmt: skip
    assert depth_m.shape[-2:] == (HW if upsample == 'logits' else (4, 6))
    torch.testing.assert_close(depth_m.double(), expected, rtol=1e-5, atol=1e-5)


# --- inside the tower ---------------------------------------------------------------------------


def test_before_training_the_tower_sees_what_clip_sees():
    """To the last bit, also through the copies of the last four blocks."""
    model, image = made(awake=False), picture(HW, 2)
    layers = range(13)
    with torch.no_grad():
        plain = model.backbone(image, layers)
        changed = model.backbone(image, layers, change=model.head.tower_change)
    assert all(torch.equal(plain.maps[k], changed.maps[k]) for k in layers)
    assert torch.equal(plain.pooled, changed.pooled)


@pytest.mark.parametrize('adapted', ADAPTED)
def test_an_adapter_acts_after_its_block_and_on_all_that_follows(adapted):
    model, image = made(awake=False), picture(HW)
    for p in model.head.tower_change.adapters[str(adapted)].parameters():
        p.data.normal_(std=0.2)
    with torch.no_grad():
        plain = model.backbone(image, range(13))
        found = model.backbone(image, range(13), change=model.head.tower_change)
    same = [torch.equal(plain.maps[k], found.maps[k]) for k in range(13)]
    assert same == [k <= adapted for k in range(13)]
    assert not torch.equal(plain.pooled, found.pooled), 'the class token has an adapter too'


def test_blocks_may_be_counted_from_one():
    """The figure's numbering: after blocks 2, 5, 8 and 11 of 1 to 12."""
    spec = shared('tiny-vit').spec
    head = build_head(OPTIONS | {'after': ADAPTED, 'first_block': 1}, spec)
    assert list(head.tower_change.adapters) == ['1', '4', '7', '10']
    assert head.layers == (2, 5, 8, 11)


def test_training_moves_what_is_declared_and_nothing_else():
    model = made(awake=False).train()
    before = model.backbone.state_sha256(), model.backbone.frozen_sha256()
    start = {k: v.clone() for k, v in model.head.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == len(list(model.head.parameters()))
    optimiser = torch.optim.SGD(trained, lr=0.1)
    truth_m = torch.full((2, 1, *HW), 2.0)
    for seed in range(2):  # adapters that start at zero pass on a gradient from the second on
        found = model(picture(HW, 2, seed))
        loss = moa_loss(found, truth_m, truth_m > 0, model.head.bin_edges_m)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (model.backbone.state_sha256(), model.backbone.frozen_sha256()) == before
    assert all(p.grad is None for p in model.backbone.parameters())
    still = [k for k, p in model.head.named_parameters() if not p.grad.any()]
    assert still == []
    assert {k for k, v in model.head.state_dict().items() if torch.equal(v, start[k])} == {
        'context'
    }


def test_gradients_reach_an_early_adapter_through_frozen_blocks():
    model = made(awake=False, tuned_blocks=0).train()
    model(picture(HW)).depth_m.sum().backward()
    assert model.head.tower_change.adapters['2'].up.weight.grad.any()
    assert len(model.head.tower_change.blocks) == 0


def test_tuned_blocks_start_where_the_loaded_tower_is():
    """Not where the random tower was when the head was built; and not again after training."""
    model, published = DepthModel(CONFIG), build('tiny-vit', seed=7)
    model.backbone.load_native_state(published.tower.state_dict(), 'here')
    model.freeze_tower()
    ours = model.head.tower_change.blocks['9'].state_dict()
    theirs = published.blocks[9].state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    trained = {k: v + 1 for k, v in model.head.state_dict().items()}
    model.head.load_state_dict(trained)
    model.freeze_tower()
    assert all(torch.equal(v, trained[k]) for k, v in model.head.state_dict().items())


def test_heads_without_adapters_run_as_before():
    """No change is asked for, and none is made."""
    model = DepthModel(replace(CONFIG, head={'name': 'linear'})).eval()
    assert model.head.tower_change is None and isinstance(model.head, LinearHead)
    with torch.no_grad():
        features = model.backbone(picture(HW), model.head.layers)
    assert features.extras == {}


# --- files, sharing, other consumers ------------------------------------------------------------


@pytest.mark.parametrize('embed_tower', [True, False])
def test_a_file_brings_back_adapters_and_tuned_blocks(tmp_path, monkeypatch, embed_tower):
    model, path, image = made(), tmp_path / 'moa.safetensors', picture(HW, 2)
    for p in model.head.tower_change.blocks.parameters():
        p.data.add_(0.01)
    save_model(path, model, name='moa', embed_tower=embed_tower)
    tower = {f'visual.{k}': v for k, v in model.backbone.tower.state_dict().items()}
    torch.save(tower, tmp_path / f'tiny-vit.{TAG}.pt')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    found = load_model(path)
    with torch.no_grad():
        assert torch.equal(found(image).depth_m, model(image).depth_m)
    assert torch.equal(found.head.context, model.head.context)


def test_a_file_without_a_tuned_block_is_refused(tmp_path):
    model, path = made(), tmp_path / 'moa.safetensors'
    del model.head.tower_change.blocks['9']
    save_model(path, model, name='moa', embed_tower=True)
    with safe_open(path, 'pt') as file:
        assert any(k.startswith('head.tower_change.blocks.8') for k in file.keys())
    with pytest.raises(WeightsError, match=r'head lacks 12 tensors \(tower_change.blocks.9'):
        load_model(path)


def test_a_shared_tower_is_used_but_not_changed(tmp_path):
    """Another consumer sees the very same tower while the adapters run."""
    model, path, image = made(), tmp_path / 'moa.safetensors', picture(HW)
    save_model(path, model, name='moa', embed_tower=False)
    with torch.no_grad():
        before = model.backbone(image, (12,), True)
        other = load_model(path, tower=model.backbone)
        assert other.backbone is model.backbone
        assert torch.equal(other(image).depth_m, model(image).depth_m)
        after = model.backbone(image, (12,), True)
    assert torch.equal(before.maps[12], after.maps[12])
    assert torch.equal(before.embedding, after.embedding)


def test_features_of_the_plain_tower_are_refused():
    """They would give a depth that looks right and is not."""
    model = made()
    with pytest.raises(InputError, match='features of the plain tower, but its adapters stand'):
        model.head(model.backbone(picture(HW), model.head.layers))


def test_the_embedding_is_the_towers_own():
    model, image = made(), picture(HW)
    with torch.no_grad():
        found = model(image, want_embedding=True)
        expected = model.backbone(image, (), True).embedding
    assert torch.equal(found.extras['embedding'], expected)


@pytest.mark.parametrize(('change', 'message'), [
    ({'tower': 'pocket-tower', 'pretrained': None}, "cannot work on tower 'pocket-tower'"),
    ({'tower': 'tiny-resnet', 'pretrained': None}, "cannot work on tower 'tiny-resnet'"),
    ({'tower': 'tiny-siglip'}, "cannot work on tower 'tiny-siglip'"),
    ({'tower': 'tiny-timm-vit', 'pretrained': None},
     "tower 'tiny-timm-vit' cannot be changed from the inside"),
    ({'head': OPTIONS | {'after': (2, 12)}}, r'after blocks \(2, 12\), counted from 0.* 12 bl'),
    ({'head': OPTIONS | {'after': (0,), 'first_block': 1}}, r'\(0,\), counted from 1'),
    ({'head': OPTIONS | {'after': ()}}, r'after blocks \(\)'),
    ({'head': OPTIONS | {'tuned_blocks': 13}}, 'tuned_blocks = 13, but tower'),
], ids=str)  # fmt: skip
def test_a_tower_or_a_block_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        DepthModel(replace(CONFIG, **change))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('options', 'message'), [
    ({'fusion': 'sum'}, "fusion = 'sum': expected one of"),
    ({'bins': 'sid'}, "bins = 'sid': expected one of"),
    ({'context': 'text'}, "context = 'text': expected one of"),
    ({'upsample': ''}, "upsample = '': expected one of"),
    ({'first_block': 2}, 'first_block = 2: expected 0 or 1'),
    ({'experts': 0}, 'experts = 0: expected a positive integer'),
    ({'num_bins': None}, 'num_bins = None: expected a positive integer'),
    ({'tuned_blocks': -1}, 'tuned_blocks = -1'),
    ({'temperature': 0.0}, 'temperature = 0.0: expected more than 0'),
    ({'min_depth_m': 11.0}, 'min_depth_m = 11.0, max_depth_m = 10.0'),
])  # fmt: skip
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MoaDepthClipHead.Config(**options)


# --- context ------------------------------------------------------------------------------------


def test_the_context_is_the_mean_of_unit_embeddings_of_prompts():
    texts = []

    class Text(nn.Module):
        def encode_text(self, tokens):
            return tokens

    def tokenizer(prompts):
        texts.extend(prompts)
        return torch.randn(len(prompts), 24, generator=torch.Generator().manual_seed(1)) * 9

    found = mean_of_rooms(Text(), tokenizer)
    assert len(texts) == len(NYU_ROOMS) == 16 and texts[8] == 'a photo of a kitchen'
    vectors = tokenizer(texts[:16]).double()
    expected = (vectors / vectors.norm(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    unit = mean_of_rooms(Text(), tokenizer, renormalise=True)
    torch.testing.assert_close(unit, F.normalize(found, dim=0))
    with pytest.raises(ConfigError, match='no rooms were named'):
        mean_of_rooms(Text(), tokenizer, ())


def test_a_real_text_tower_fills_the_head():
    model = made()
    text = open_clip.create_model('tiny-vit').eval()
    context = mean_of_rooms(text, open_clip.get_tokenizer('tiny-vit'), ('kitchen', 'classroom'))
    store(model.head, context)
    assert torch.equal(model.head.context, context) and 0 < context.norm() <= 1


def test_training_without_the_stored_context_is_refused():
    model = made()
    model.head.context.zero_()
    with pytest.raises(ConfigError, match='none is stored. Name the tag of the tower'):
        model.train()(picture(HW))
    without = made(context='none')
    without.train()(picture(HW, 2)).depth_m.sum().backward()
    with pytest.raises(ConfigError, match="built with context = 'none'"):
        store(without.head, torch.ones(24))
    with pytest.raises(ConfigError, match=r'shape \(5,\), expected \(24,\)'):
        store(model.head, torch.ones(5))


def test_a_context_needs_a_joint_space():
    spec = replace(shared('tiny-vit').spec, embedding_width=None)
    with pytest.raises(ConfigError, match="no joint space with text.* Set context = 'none'"):
        build_head(OPTIONS, spec)
    assert build_head(OPTIONS | {'context': 'none'}, spec).classify.in_channels == 16


def test_the_context_is_a_bias_in_disguise():
    """One constant vector in front of a 1x1 layer: what an ablation would find."""
    model, image = made(), picture(HW)
    plain = copy.deepcopy(model)
    for layer in (plain.head.classify, plain.head.regress):
        layer.bias.data += layer.weight[:, 16:, 0, 0] @ plain.head.context
    plain.head.context.zero_()
    with torch.no_grad():
        torch.testing.assert_close(plain(image).depth_m, model(image).depth_m)


# --- loss ---------------------------------------------------------------------------------------


def test_the_loss_is_the_papers():
    """1.0 CE + 1.0 L1 + 0.5 x 10 (var + 0.85 mean^2), pixel by pixel in float64."""
    g = torch.Generator().manual_seed(0)
    edges = torch.tensor([0.5, 1.0, 2.0, 4.0])
    logits = torch.randn(1, 3, 2, 2, generator=g)
    regressed = torch.rand(1, 1, 2, 2, generator=g) + 1
    truth = torch.tensor([[[[0.7, 1.0], [9.0, float('nan')]]]])
    found = HeadOutput(regressed, extras={'bin_logits': logits, 'regressed_m': regressed})
    loss = moa_loss(found, truth, torch.isfinite(truth), edges)

    picked = [(0, 0, 0), (0, 1, 1), (1, 0, 2)]  # row, column, bin: 1.0 opens the second one
    ce = sum(
        logits[0, :, i, j].double().logsumexp(0) - logits[0, n, i, j].double()
        for i, j, n in picked
    ) / 3
    depth = torch.stack([regressed[0, 0, i, j].double() for i, j, _ in picked])
    known = torch.stack([truth[0, 0, i, j].double() for i, j, _ in picked])
    log = depth.log() - known.log()
    expected = ce + (depth - known).abs().mean()
    expected = expected + 5 * (log.var(unbiased=False) + 0.85 * log.mean() ** 2)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_both_published_forms_of_silog_are_there():
    depth_m, truth_m = torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 2, 2)
    valid = truth_m > 0
    ln2 = math.log(2)
    assert printed_silog(depth_m, truth_m, valid).item() == pytest.approx(8.5 * ln2**2, rel=1e-5)
    edges = torch.linspace(0.001, 10, 17)
    found = HeadOutput(
        depth_m, extras={'bin_logits': torch.zeros(1, 16, 2, 2), 'regressed_m': depth_m}
    )
    rest = math.log(16) + 1
    for usual, scale in ((False, 8.5 * ln2**2), (True, silog(depth_m, truth_m, valid).item())):
        loss = moa_loss(found, truth_m, valid, edges, usual_silog=usual).item()
        assert loss == pytest.approx(rest + 0.5 * scale, rel=1e-5)


def test_a_picture_without_truth_costs_nothing_and_stays_finite():
    depth_m = torch.full((1, 1, 2, 2), 2.0, requires_grad=True)
    extras = {'bin_logits': torch.zeros(1, 16, 2, 2), 'regressed_m': depth_m}
    truth_m = torch.full((1, 1, 2, 2), float('nan'))
    edges = torch.linspace(0.001, 10, 17)
    loss = moa_loss(HeadOutput(depth_m, extras=extras), truth_m, truth_m > 0, edges)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(depth_m.grad).all()


# --- export -------------------------------------------------------------------------------------


class DepthOnly(nn.Module):
    """An exported program answers tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image).depth_m


def test_an_exported_network_keeps_its_adapters():
    model, image = made(), picture(HW)
    exported = torch.export.export(DepthOnly(model), (image,), strict=False)
    with torch.no_grad():
        expected = model(image).depth_m
        torch.testing.assert_close(exported.module()(image), expected)
        asleep = made(awake=False)
        assert not torch.allclose(asleep(image).depth_m, expected)


def test_one_graph_holds_the_compiled_network():
    """Dynamo traces adapters and tuned blocks without a break; no compiler is needed for that."""
    model, image = made(), picture(HW)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image).depth_m, model(image).depth_m)
