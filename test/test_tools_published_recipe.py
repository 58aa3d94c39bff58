"""SPACE-CLIP's training recipe, constant by constant, and what ours mends beside it.

The constants are those of the paper's release (https://github.com/taewan2002/SPACE-CLIP, commit
543eb5e: ``configs/nyu.yaml``, ``configs/kitti.yaml``, ``train.py``), written out again here.
"""

from dataclasses import replace
import math
from pathlib import Path
from types import SimpleNamespace

from published_sets import kitti_lines, write_kitti, write_nyu_list
import pytest
from rich.progress import Progress
import torch
from torch import nn
import towers
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import from_mapping, ModelConfig
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import DepthModel, read_card
from vlm_depth_ros.tools import stage as stages
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.draws import Draws
from vlm_depth_ros.tools.losses import dissimilarity, silog
from vlm_depth_ros.tools.objective import loss_terms
from vlm_depth_ros.tools.optimiser import build_optimiser, MovingAverage, rate
from vlm_depth_ros.tools.recipe import read_recipe, StageConfig
from vlm_depth_ros.tools.samples import Pick, SpaceClipSamples
from vlm_depth_ros.tools.space_clip_views import SpaceClipAugment
from vlm_depth_ros.tools.train import train

RECIPES = Path(__file__).parent.parent / 'config' / 'train'
NYU, KITTI, MENDED = (
    read_recipe(RECIPES / f'space_clip_{name}.yaml') for name in ('nyu', 'kitti', 'nyu_mended')
)
EXACT = pytest.mark.parametrize('recipe', [NYU, KITTI], ids=['nyu', 'kitti'])


def stage_of(recipe):
    (options,) = recipe.stages
    return from_mapping(StageConfig, options, recipe.name)


@EXACT
def test_network_is_the_papers(recipe):
    model = ModelConfig.from_dict(recipe.model)
    assert (model.tower, model.pretrained) == ('ViT-B-16-quickgelu', 'openai')
    assert model.input_hw == (224, 224) and model.head['output_activation'] == 'relu'
    small = replace(model, tower='tiny-vit', pretrained=None, input_hw=(64, 64))
    with torch.device('meta'):
        head = DepthModel(small).head
    assert head.semantic == (12, 9, 6, 3) and head.structural == (2, 1, 0)
    config = head.config
    assert (config.widths, config.film_width, config.dropout) == ((256, 128, 64, 32), 256, 0.1)


@pytest.mark.parametrize('recipe, images, batch, per_epoch, steps', [
    (NYU, 24231, 32, 757, 15140), (KITTI, 23158, 64, 361, 7220),
], ids=['nyu', 'kitti'])  # fmt: skip
def test_twenty_epochs_have_the_published_number_of_steps(recipe, images, batch, per_epoch, steps):
    assert recipe.batch == batch and recipe.accumulate == 1 and recipe.seed == 42
    source = SimpleNamespace(files=[[None] * images], entries=[SetConfig('x')])
    team = SimpleNamespace(size=1, rank=0)
    draws = Draws(source, recipe, stage_of(recipe), 0, team)
    assert (draws.steps_per_epoch, draws.steps) == (per_epoch, steps)


@EXACT
def test_set_is_opened_as_stored_and_cut_as_published(recipe):
    ((options,), augment) = recipe.sets, from_mapping(SpaceClipAugment, recipe.augment, 'augment')
    assert recipe.views == 'space_clip'
    assert augment == SpaceClipAugment(
        crop_hw=(352, 704) if recipe is KITTI else (480, 640),
        roll_deg=1.0, flip=0.5, recolour=0.5, gamma=0.1, brightness=0.1, channel=0.1,
    )  # fmt: skip
    entry = from_mapping(SetConfig, options, 'sets')
    assert entry.border_px == 0 and entry.max_depth_m == (80.0 if recipe is KITTI else 10.0)
    assert ModelConfig.from_dict(recipe.model).depth_range_m[0] == 0.001


@EXACT
def test_optimiser_is_adamw_with_decay_on_everything(recipe):
    stage = stage_of(recipe)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimiser = build_optimiser(module, stage)
    decays = {
        id(p): group['weight_decay'] for group in optimiser.param_groups for p in group['params']
    }
    assert decays == {id(p): 0.01 for p in module.parameters()}
    assert type(optimiser) is torch.optim.AdamW
    assert {g['lr'] for g in optimiser.param_groups} == {1e-4}
    assert {g['betas'] for g in optimiser.param_groups} == {(0.9, 0.999)}
    assert {g['eps'] for g in optimiser.param_groups} == {1e-8}
    assert stage.frozen_tower and not stage.teacher_weight and stages.LARGEST_NORM == 1.0


def test_our_own_recipes_decay_matrices_only():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    kernel, *rest = module.parameters()
    decayed, others = build_optimiser(module, stage_of(MENDED)).param_groups
    assert [id(p) for p in decayed['params']] == [id(kernel)]
    assert len(others['params']) == len(rest) and others['weight_decay'] == 0


@pytest.mark.parametrize('step, expected', [
    (0, 1e-4 / 757),
    (377, 378e-4 / 757),
    (756, 1e-4),
    (757, 1e-4),
    (757 + 14383 // 2, 5.05e-5),  # midway of the cosine: (1e-4 + 1e-6) / 2
    (757 + 14383 // 4, 1e-6 + 99e-6 * (0.5 + 0.5 * math.cos(math.pi * 3595 / 14383))),
    (15139, 1e-6),
])  # fmt: skip
def test_learning_rate_of_nyu_at_a_step(step, expected):
    """5 % of 15 140 steps warm up, then a cosine from 1e-4 to 1e-6, step by step."""
    optimiser = build_optimiser(nn.Linear(1, 1), stage_of(NYU))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate(s, 15140))
    found = schedule.base_lrs[0] * schedule.lr_lambdas[0](step)
    assert found == pytest.approx(expected, rel=2e-4 if step == 757 + 14383 // 2 else 1e-5)


@EXACT
def test_average_moves_all_floating_state_and_copies_counts(recipe):
    """0.996 of what was, from the untrained state on; statistics of BatchNorm too."""
    assert recipe.ema == 0.996 and recipe.ema_from_start
    layer = nn.BatchNorm1d(1)
    average = MovingAverage(layer, recipe)
    expected = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)
    now = dict(weight=3.0, bias=-2.0, running_mean=5.0, running_var=7.0, num_batches_tracked=9)
    for step in (1, 2):
        layer.load_state_dict({
            k: torch.tensor([v]) if k != 'num_batches_tracked' else torch.tensor(v + step)
            for k, v in now.items()
        })  # fmt: skip
        average.update_parameters(layer)
        expected = {k: 0.996 * v + 0.004 * now[k] for k, v in expected.items()}
    state = average.module.state_dict()
    assert {k: state[k].item() for k in expected} == pytest.approx(expected, rel=1e-6)
    assert state['num_batches_tracked'].item() == 11


def test_average_of_other_recipes_starts_at_the_first_step():
    layer = nn.Linear(1, 1, bias=False)
    average = MovingAverage(layer, MENDED)
    for value, expected in ((5.0, 5.0), (10.0, 5.02)):
        nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
        assert average.module.weight.item() == pytest.approx(expected)


def answer(truth_m, seed=0):
    """A head's answer at a quarter of the truth's size, with three auxiliary depths."""
    rng = torch.Generator().manual_seed(seed)
    hw = [n // 4 for n in truth_m.shape[-2:]]
    one = [torch.rand((len(truth_m), 1, *hw), generator=rng) * 4 + 0.5 for _ in range(4)]
    return HeadOutput(one[0], extras={'aux_depth_m': one[1:]})


@EXACT
def test_loss_is_the_published_sum(recipe):
    """0.5 SILog + 0.5 (1 - SSIM) + 0.10 SILog(aux 0) + 0.05 SILog(aux 1), at the truth's size."""
    truth_m = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(1)) * 4 + 0.5
    truth_m[0, 0, 3:9, 4:30] = 0.0
    valid, found = truth_m > 0, answer(truth_m)
    grown = [
        nn.functional.interpolate(m, (32, 48), mode='bilinear', align_corners=False)
        for m in (found.depth_m, *found.extras['aux_depth_m'])
    ]
    terms = loss_terms(recipe, stage_of(recipe), SimpleNamespace(), found, truth_m, valid)
    expected = {
        'silog': 0.5 * silog(grown[0], truth_m, valid),
        'ssim': 0.5 * dissimilarity(grown[0], truth_m, valid, 'all'),
        'aux0': 0.10 * silog(grown[1], truth_m, valid),
        'aux1': 0.05 * silog(grown[2], truth_m, valid),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-6)


@EXACT
def test_arithmetic_is_full_precision(recipe):
    assert recipe.precision == 'fp32' and recipe.feature_views == 0


def test_the_mended_recipe_differs_where_it_says_so():
    head = ModelConfig.from_dict(MENDED.model).head
    assert (head['structural'], head['output_activation']) == ('middle', 'softplus')
    assert MENDED.views == 'camera' and MENDED.ssim_windows == 'whole'
    assert (MENDED.silog_weight, MENDED.ssim_weight, MENDED.gradient_weight) == (0.5, 0.5, 0.0)
    assert (MENDED.ema, MENDED.aux_weights[:2]) == (0.996, (0.1, 0.05))
    assert (stage_of(MENDED).lr, stage_of(MENDED).weight_decay) == (1e-4, 0.01)
    select = from_mapping(SetConfig, MENDED.select, 'select')
    assert (select.folder, select.rows) == ('nyu_train795', ((159, 238),))


def opened(recipe, root, entry):
    with Progress(disable=True) as progress:
        model = ModelConfig.from_dict(recipe.model)
        return SpaceClipSamples([entry], root, recipe.cache_hw, recipe.augment, model, progress)


def test_nyu_views_are_whole_images_with_truth_as_stored(tmp_path):
    write_nyu_list(tmp_path)
    entry = SetConfig('nyudepthv2_train_files_with_gt.txt')
    batch = opened(NYU, tmp_path, entry).batch(
        [Pick(0, 0), Pick(0, 1)], torch.Generator().manual_seed(0)
    )
    assert batch.view.shape == (2, 3, 224, 224) and batch.truth_m.shape == (2, 1, 480, 640)
    assert [set(m.unique().tolist()) for m in batch.truth_m] == [{0.0, 2.0}, {0.0, 3.0}]
    assert torch.equal(batch.valid, batch.truth_m > 0) and batch.valid.float().mean() > 0.97


def test_kitti_views_are_crops_of_the_frame_and_far_truth_stays_for_ssim(tmp_path):
    write_kitti(tmp_path, numbers=(5, 90))  # 5 m and 90 m everywhere
    (tmp_path / 'list.txt').write_text('\n'.join(kitti_lines(5, 90)))
    entry = SetConfig('list.txt', max_depth_m=80.0, format='bts_kitti')
    batch = opened(KITTI, tmp_path, entry).batch(
        [Pick(0, 0), Pick(0, 1)], torch.Generator().manual_seed(0)
    )
    assert batch.truth_m.shape == (2, 1, 352, 704) and batch.view.shape == (2, 3, 224, 224)
    assert batch.truth_m[1].max() == 90 and not batch.valid[1].any()
    assert batch.valid[0].float().mean() > 0.9


@pytest.mark.parametrize('recipe', [NYU, MENDED], ids=['exact', 'mended'])
def test_recipe_runs_from_images_to_weights_on_a_tiny_tower(recipe, tmp_path, monkeypatch):
    """Two steps on two pictures in the published layout; the tower stays as it was."""
    monkeypatch.setattr(Backbone, 'load_published', lambda self, tag: None)
    write_nyu_list(tmp_path)
    entry = {'folder': 'nyudepthv2_train_files_with_gt.txt'}
    model = recipe.model | {'tower': 'tiny-vit', 'pretrained': towers.TAG, 'input_hw': [64, 64]}
    (stage,) = recipe.stages
    count = {'epochs': 2, 'steps': None} if recipe is NYU else {'steps': 2}
    config = replace(
        recipe, model=model, sets=(entry,), select=entry, batch=2, stages=({**stage, **count},)
    )
    metrics = train(config, tmp_path, tmp_path / 'out.safetensors')
    card = read_card(tmp_path / 'out.safetensors')
    assert math.isfinite(metrics['abs_rel']) and not card.tower_embedded
    assert card.training['views'] == recipe.views and card.licence == recipe.licence
