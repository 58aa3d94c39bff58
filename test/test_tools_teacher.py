"""What teaches a tower of our own: an ONNX network, and a guide that learned depth on its maps."""

from dataclasses import replace
import math
import shutil

from desk_sets import MODEL, write_four
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import towers
from vlm_depth_ros.core.config import from_mapping, ModelConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, load_model
from vlm_depth_ros.tools.objective import loss_terms
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig
from vlm_depth_ros.tools.stage import Stage
from vlm_depth_ros.tools.teacher import FeatureTeacher, TeacherTower
from vlm_depth_ros.tools.train import train
from vlm_depth_ros.tools.training_state import resume_path

pytest.importorskip('onnxruntime')
from onnx_file import STRIDES, write_pools  # noqa: E402

GUIDE = {'name': 'guide', 'is_guide': True, 'steps': 4, 'lr': 0.002}
LEARN = {'name': 'tower', 'frozen_tower': False, 'steps': 4, 'lr': 0.002, 'teacher_weight': 1.0,
         'guide_weight': 5.0, 'mixed': 0.5}  # fmt: skip
FEATURES = {'name': 'features', 'frozen_tower': False, 'only_features': True, 'steps': 4,
            'lr': 0.002, 'teacher_weight': 1.0, 'mixed': 0.5}  # fmt: skip
HEAD = {'name': 'head', 'steps': 4, 'lr': 0.001, 'guide_weight': 5.0}
RECIPE = TrainConfig(
    name='tiny', model=MODEL | {'head': MODEL['head'] | {'confidence': True, 'start_m': 2.0}},
    sets=({'folder': 'set', 'rows': ((0, 3),)},), select={'folder': 'set', 'rows': ((3, 4),)},
    stages=(GUIDE, FEATURES, LEARN, HEAD), teacher='pools.onnx', batch=2, cache_hw=(48, 64),
    check_every=2, ema=0.5, seed=7, confidence={'steps': 3, 'augment': {'min_crop': 0.5}},
)  # fmt: skip

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_four(root / 'set')
    write_pools(root / 'pools.onnx')
    return root


@pytest.fixture(scope='module')
def unbroken(data):
    """(weights file, state after each check, guide after each) of one run."""
    states, guides, write = [], [], Stage._write_resume

    def write_and_keep(self):
        write(self)
        states.append(shutil.copy(resume_path(self.job.out), data / f'{len(states)}.resume'))
        guides.append({k: v.clone() for k, v in self.job.guide.head.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, '_write_resume', write_and_keep)
        train(RECIPE, data, data / 'out.safetensors')
    return data / 'out.safetensors', states, guides


def test_teacher_answers_as_a_frozen_hierarchical_tower_does(data):
    tower, image = TeacherTower(data / 'pools.onnx'), torch.randn(2, 3, 64, 96)
    assert tower.spec.strides == STRIDES and tower.spec.widths == (3,) * 5
    features = tower(image, (0, 2))
    for layer, stride in ((0, 2), (2, 8)):
        assert torch.allclose(features.maps[layer], F.avg_pool2d(image, stride), atol=1e-6)
    assert torch.allclose(features.pooled, image.mean((2, 3)), atol=1e-6)
    assert not list(tower.parameters())


def test_student_learns_the_maps_and_the_teacher_does_not(data):
    teacher = TeacherTower(data / 'pools.onnx')
    student = towers.build('pocket-tower', (64, 64))
    taught = FeatureTeacher(teacher.spec, student.spec)
    image = towers.picture((64, 64), 2)
    loss = taught(teacher(image, taught.teacher_layers), student(image, taught.layers))
    loss.backward()
    assert 0 <= loss.item() <= 2
    assert all(p.grad is not None for p in taught.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_guide_learns_in_its_stage_only_and_is_not_in_the_file(unbroken):
    path, _, guides = unbroken
    changed = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(guides, guides[1:])]
    assert len(changed) == 7 and changed[0]
    assert not any(changed[2:])  # changed[1]: its best state was put back in the end
    assert {k.split('.')[0] for k in load_model(path).state_dict()} == {'backbone', 'head'}


def test_guide_says_depth_where_nothing_was_measured():
    stage = from_mapping(StageConfig, LEARN, 'stage')
    head = build_head(MODEL['head'], towers.shared('pocket-tower', (64, 64)).spec)
    found = HeadOutput(torch.full((1, 1, 8, 8), 3.0))
    nothing = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    guide_m = torch.full((1, 1, 4, 4), 2.0)
    terms = loss_terms(RECIPE, stage, head, found, torch.full((1, 1, 8, 8), torch.nan), nothing,
                       guide_m)  # fmt: skip
    assert terms['guide'].item() == pytest.approx(5.0 * math.log(1.5), rel=1e-5)
    assert sum(terms.values()).item() == pytest.approx(terms['guide'].item(), abs=0.01)


@pytest.mark.parametrize('check', range(8))
def test_guided_run_resumed_at_any_check_ends_the_same(check, data, tmp_path, unbroken):
    path, states, _ = unbroken
    out = tmp_path / 'out.safetensors'
    shutil.copy(states[check], resume_path(out))
    train(RECIPE, data, out, resume=True)
    expected, found = load_model(path).state_dict(), load_model(out).state_dict()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_features_alone_move_the_tower_and_leave_the_head(unbroken):
    _, states, _ = unbroken
    before, after = (torch.load(states[i], weights_only=True)['model'] for i in (2, 3))
    moved = {k.split('.')[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {'backbone'}
    metrics = torch.load(states[3], weights_only=True)['best_metrics']
    assert metrics.keys() == {'feature_error'} and 0 < metrics['feature_error'] < 2


def test_confidence_is_trained_and_calibrated(unbroken):
    head = load_model(unbroken[0]).head
    assert head.confidence_head.gain != 1 and head.confidence_head.shift != 0
    estimator = DepthEstimator(load_model(unbroken[0]))
    confidence = estimator(np.zeros((48, 64, 3), np.uint8)).confidence
    assert confidence.shape == (48, 64) and (confidence >= 0).all() and (confidence <= 1).all()


@pytest.mark.parametrize('change, message', [
    ({'teacher': None}, 'stage guide: no teacher is named'),
    ({'stages': (LEARN,)}, 'guide_weight = 5.0, but no earlier stage trains the guide'),
    ({'stages': (GUIDE,)}, 'all stages are guides, none trains the model'),
    ({'stages': ({**GUIDE, 'frozen_tower': False},)}, 'the teacher itself does not learn'),
    ({'stages': ({'name': 'a', 'steps': 1, 'lr': 1.0, 'mixed': 0.5},)},
     'nobody knows the truth of blended views'),
    ({'stages': ({**LEARN, 'mixed': 1.5},)}, 'mixed = 1.5, expected 0 to 1'),
    ({'model': MODEL}, 'confidence is given, but head space_clip has none'),
    ({'confidence': None}, 'confidence is not given, but head space_clip has one'),
    ({'confidence': {'steps': 0}}, 'confidence: steps = 0, expected at least 1'),
    ({'confidence': {'stps': 3}}, "'stps'"),
    ({'stages': ({**FEATURES, 'teacher_weight': 0.0, 'mixed': 0.0},)},
     'only_features, but teacher_weight = 0.0'),
    ({'stages': (GUIDE, HEAD)}, 'would be frozen with random weights'),
])  # fmt: skip
def test_stages_that_cannot_be_taught_are_refused(change, message, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(replace(RECIPE, **change), data, tmp_path / 'x.safetensors')


@pytest.mark.parametrize('who', ['teacher', 'tower'])
def test_towers_without_the_strides_are_named(who, data, tmp_path):
    short = TeacherTower(write_pools(tmp_path / 'short.onnx', (2, 4, 8))).spec
    whole = TeacherTower(data / 'pools.onnx').spec
    pair = (short, whole) if who == 'teacher' else (whole, short)
    with pytest.raises(InputError, match=f"{who} 'short' has strides .2, 4, 8., expected"):
        FeatureTeacher(*pair)


def test_guide_is_a_depth_model_like_any_other(data):
    model = DepthModel(ModelConfig.from_dict(MODEL), TeacherTower(data / 'pools.onnx'))
    depth_m = model(torch.zeros(1, 3, 64, 64)).depth_m
    assert depth_m.shape == (1, 1, 32, 32) and (depth_m > 0).all()
