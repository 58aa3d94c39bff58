"""Features of the frozen tower, kept on disk: the same training, without running the tower."""

from dataclasses import replace
import shutil

from desk_sets import MODEL, write_set
import numpy as np
import pytest
from rich.progress import Progress
import torch
import towers
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.model import DepthModel, load_model
from vlm_depth_ros.tools import feature_cache
from vlm_depth_ros.tools.augment import AugmentConfig
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.feature_cache import CachedFeatures
from vlm_depth_ros.tools.recipe import TrainConfig
from vlm_depth_ros.tools.samples import CameraSamples, Pick
from vlm_depth_ros.tools.team import Team
from vlm_depth_ros.tools.train import train

TOWER = MODEL | {'tower': 'tiny-vit', 'pretrained': towers.TAG}
STILL = {
    name: 1.0 if name == 'min_crop' else 0.0 for name in AugmentConfig.__dataclass_fields__
} | {'flip': False}
RECIPE = TrainConfig(
    name='tiny', model=TOWER, sets=({'folder': 'set'},), select={'folder': 'set'},
    stages=({'name': 'head', 'steps': 3, 'lr': 0.001},),
    batch=4, precision='fp32', cache_hw=(48, 64), feature_views=2, check_every=3, seed=7,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded_tower(monkeypatch):
    """The same random weights in every tower."""

    def fill(self, tag, file=''):
        torch.manual_seed(1)
        for parameter in self.tower.parameters():
            torch.nn.init.normal_(parameter, std=0.05)

    monkeypatch.setattr(Backbone, 'load_published', fill)


@pytest.fixture
def data(tmp_path):
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(tmp_path / 'set', [slope, slope[:, ::-1].copy(), 2.0])
    return tmp_path


def network():
    model = DepthModel(ModelConfig.from_dict(TOWER))
    model.backbone.load_published(towers.TAG)
    model.freeze_tower()
    return model


def computed(data, model, config=RECIPE):
    with Progress(disable=True) as progress:
        samples = CameraSamples(
            [SetConfig('set')], data, config.cache_hw, config.augment, model.config, progress
        )
        return samples, CachedFeatures.compute(
            samples, model, config, data / 'out.safetensors', Team(), progress
        )


def folders(data):
    return sorted((data / 'features').iterdir())


def test_features_are_those_of_the_tower_on_the_same_view(data):
    model = network()
    samples, cache = computed(data, model, replace(RECIPE, augment=STILL))
    picks = [Pick(0, i) for i in (2, 0, 1)]
    kept = cache.batch(picks, torch.Generator().manual_seed(0))
    fresh = samples.batch(picks, torch.Generator().manual_seed(0))
    spec = model.backbone.spec
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    features = model.backbone((fresh.view - mean) / std, model.head.layers)
    assert kept.features.maps.keys() == set(model.head.layers)
    for k, m in features.maps.items():
        assert torch.allclose(kept.features.maps[k], m, atol=1e-5)
        assert torch.allclose(kept.features.class_tokens[k], features.class_tokens[k], atol=1e-5)
    assert torch.allclose(kept.features.pooled, features.pooled, atol=1e-5)
    assert torch.equal(kept.truth_m.nan_to_num(-1), fresh.truth_m.nan_to_num(-1))
    assert torch.equal(kept.valid, fresh.valid)


def test_a_head_that_reads_class_tokens_trains_on_kept_ones(data):
    head = {'name': 'linear_bins', 'class_token': 'own', 'depth_range_m': (0.1, 10.0)}
    recipe = replace(RECIPE, model=TOWER | {'head': head})
    assert train(recipe, data, data / 'own.safetensors')['abs_rel'] > 0


def test_every_image_has_the_number_of_views_and_no_more(data):
    _, cache = computed(data, network())
    assert len(list(folders(data)[0].iterdir())) == 3 * 2
    rng = torch.Generator().manual_seed(0)
    seen = {cache.batch([Pick(0, 1)], rng).features.pooled.sum().item() for _ in range(20)}
    assert len(seen) == 2


def test_second_run_computes_nothing(data, monkeypatch):
    computed(data, network())
    monkeypatch.setattr(CachedFeatures, '_compute', None)
    computed(data, network())
    assert len(folders(data)) == 1


def test_interrupted_computation_goes_on_with_what_is_missing(data, monkeypatch):
    computed(data, network())
    before = {p: p.read_bytes() for p in folders(data)[0].iterdir()}
    gone = sorted(before)[2]
    gone.unlink()
    computed(data, network())
    assert {p: p.read_bytes() for p in folders(data)[0].iterdir()} == before


@pytest.mark.parametrize('change', ['tower', 'recipe', 'image', 'none'])
def test_what_features_depend_on_names_their_folder(change, data):
    computed(data, network())
    model, config = network(), replace(RECIPE, ema=0.9, feature_views=3)
    if change == 'tower':
        next(model.backbone.parameters()).data += 0.1
    if change == 'recipe':
        config = replace(config, augment={'min_crop': 0.9})
    if change == 'image':
        (data / 'set' / 'rgb' / '00001.png').touch()
    computed(data, model, config)
    assert len(folders(data)) == (1 if change == 'none' else 2)


def test_half_precision_takes_half_the_room(data):
    for precision in ('fp32', 'bf16'):
        computed(data, network(), replace(RECIPE, precision=precision))
    sizes = sorted(sum(p.stat().st_size for p in f.iterdir()) for f in folders(data))
    truth = 6 * 64 * 64 * 5
    assert sizes[0] - truth < 0.6 * (sizes[1] - truth)


def test_head_trains_on_kept_features_and_the_tower_runs_to_judge_only(data, monkeypatch):
    passes, forward = [], Backbone.forward

    def counted(self, image, layers, *args, **options):
        passes.append(len(image))
        return forward(self, image, layers, *args, **options)

    monkeypatch.setattr(Backbone, 'forward', counted)
    train(RECIPE, data, data / 'out.safetensors')
    assert sum(passes) == 3 * 2 + 2 * 3  # two views of three images; raw and averaged on three
    assert load_model(data / 'out.safetensors').card.training['feature_views'] == 2


def test_training_on_one_still_view_equals_training_without_keeping_it(data):
    """Up to the order of sums in the tower."""
    config = replace(RECIPE, augment=STILL, stages=({'name': 'a', 'epochs': 3, 'lr': 0.001},),
                     batch=3)  # fmt: skip
    heads = []
    for views in (0, 1):
        out = data / f'{views}.safetensors'
        train(replace(config, feature_views=views), data, out)
        heads.append(load_model(out).head.state_dict())
    for name, value in heads[0].items():
        assert torch.allclose(heads[1][name].float(), value.float(), atol=2e-4), name


@pytest.mark.parametrize('change, message', [
    ({'stages': ({'name': 'tower', 'steps': 1, 'lr': 1.0, 'frozen_tower': False},),
      'model': MODEL}, 'stage tower trains the tower, whose features change at every step'),
    ({'model': TOWER | {'head': {'name': 'moa_depthclip', 'context': 'none', 'after': [3]}}},
     'head moa_depthclip changes the tower inside, so its features cannot be kept'),
    ({'feature_views': -1}, 'feature_views = -1'),
], ids=['unfrozen', 'adapters', 'negative'])  # fmt: skip
def test_features_that_cannot_be_kept_are_refused(change, message, data):
    with pytest.raises(ConfigError, match=message):
        train(replace(RECIPE, **change), data, data / 'out.safetensors')


def test_full_disk_is_foreseen(data, monkeypatch):
    usage = shutil.disk_usage(data)._replace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(InputError, match='features of 6 views need 0.0 GB more, and 0.0 GB are'):
        computed(data, network())


def test_damaged_file_is_named(data):
    _, cache = computed(data, network())
    for path in folders(data)[0].iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r'_00\d.safetensors: not readable .* Delete it'):
        cache.batch([Pick(0, 0)], torch.Generator())
