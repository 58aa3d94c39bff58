"""Training, with the real loop on a tiny recipe: two stages of four steps on four pictures."""

from dataclasses import replace
from pathlib import Path
import shutil

from desk_sets import MODEL, write_four
import numpy as np
import pytest
import torch
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import load_model
from vlm_depth_ros.tools import stage
from vlm_depth_ros.tools import train as training
from vlm_depth_ros.tools.augment import AugmentConfig
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.optimiser import build_optimiser
from vlm_depth_ros.tools.recipe import read_recipe, StageConfig
from vlm_depth_ros.tools.stage import Stage
from vlm_depth_ros.tools.training_state import resume_path
import yaml

POCKET = Path(__file__).parent.parent / 'config' / 'train' / 'pocket.yaml'
RECIPE = {
    'name': 'tiny',
    'model': MODEL,  # with dropout, so that the order of random draws matters
    'sets': [{'folder': 'set', 'rows': [[0, 3]]}],
    'select': {'folder': 'set', 'rows': [[3, 4]]},
    'stages': [
        {'name': 'tower', 'frozen_tower': False, 'steps': 4, 'lr': 0.002},
        {'name': 'head', 'frozen_tower': True, 'steps': 4, 'lr': 0.001},
    ],
    'batch': 2,
    'cache_hw': [48, 64],
    'check_every': 2,
    'ema': 0.5,
    'seed': 7,
    'licence': 'for tests',
}
CHECKS = 4
TOWER, HEAD = 'backbone.tower.', 'head.'

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_four(root / 'set')
    return root


@pytest.fixture(scope='module')
def recipe(data):
    path = data / 'tiny.yaml'
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope='module')
def unbroken(data, recipe):
    """(weights file, state after each check) of a run from start to end."""
    states = []
    write = Stage._write_resume

    def write_and_keep(self):
        write(self)
        states.append(shutil.copy(resume_path(self.job.out), data / f'{len(states)}.resume'))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, '_write_resume', write_and_keep)
        training.train(read_recipe(recipe), data, data / 'unbroken.safetensors')
    return data / 'unbroken.safetensors', states


def state_at(unbroken, check):
    return torch.load(unbroken[1][check], weights_only=True)


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def tensors(path):
    return load_model(path).state_dict()


def test_training_writes_a_file_that_loads_and_predicts(unbroken, data):
    estimator = DepthEstimator.from_weights(unbroken[0])
    depth_m = estimator(np.full((48, 64, 3), 99, np.uint8)).depth_m
    assert depth_m.shape == (48, 64) and np.isfinite(depth_m).all()
    card = load_model(unbroken[0]).card
    assert card.name == 'tiny' and card.licence == 'for tests' and card.tower_embedded
    assert card.training['seed'] == 7 and card.training['selection']['abs_rel'] > 0
    assert not list(data.glob('unbroken*.resume'))  # nothing is left to go on from


def test_another_head_learns_on_the_tower_of_a_weights_file(unbroken, data, recipe, tmp_path):
    config = read_recipe(recipe)
    only_head = {'name': 'head', 'steps': 2, 'lr': 0.002}
    config = replace(
        config, name='other', tower_from=str(unbroken[0]), stages=(only_head,),
        model=config.model | {'head': {'name': 'linear'}}, aux_weights=(),
    )  # fmt: skip
    out = tmp_path / 'other.safetensors'
    training.train(config, data, out)
    donor, found = load_model(unbroken[0]), load_model(out)
    assert found.head.name == 'linear' and found.card.tower_embedded
    assert found.card.tower_sha256 == donor.card.tower_sha256
    larger = replace(config, model=config.model | {'input_hw': [96, 96]})
    with pytest.raises(ConfigError, match=r'model.input_hw = \(96, 96\), but tower_from: .* has'):
        training.train(larger, data, out)
    assert load_model(out).card.name == 'other'


def test_both_stages_learn(unbroken):
    first, second = state_at(unbroken, 0)['model'], state_at(unbroken, 1)['model']
    for prefix in (TOWER, HEAD):
        assert state_sha256(part(first, prefix)) != state_sha256(part(second, prefix))
    third, fourth = state_at(unbroken, 2)['model'], state_at(unbroken, 3)['model']
    assert state_sha256(part(third, HEAD)) != state_sha256(part(fourth, HEAD))


def test_frozen_stage_leaves_the_tower_bit_for_bit(unbroken):
    chosen = state_sha256(part(state_at(unbroken, 1)['best_state'], TOWER))
    for check in (2, 3):
        state = state_at(unbroken, check)
        assert state_sha256(part(state['model'], TOWER)) == chosen
        assert state_sha256(part(state['best_state'], TOWER)) == chosen
    assert load_model(unbroken[0]).card.tower_sha256 == chosen


def test_file_holds_the_best_state_of_the_last_stage(unbroken):
    best = state_at(unbroken, 3)['best_state']
    found = tensors(unbroken[0])
    assert all(torch.equal(found[k], v) for k, v in best.items() if not k.startswith('head.aux_'))
    assert not any('aux' in k for k in found)


def test_frozen_stage_starts_from_a_fresh_head(data, recipe, monkeypatch):
    starts = []

    def stop_at_once(self):
        head = self.job.model.head
        starts.append({k: v.clone() for k, v in head.state_dict().items()})
        head.load_state_dict({k: v + 1 for k, v in starts[-1].items()})
        return {}

    monkeypatch.setattr(Stage, 'run', stop_at_once)
    training.train(read_recipe(recipe), data, data / 'fresh.safetensors')
    spec = load_model(data / 'fresh.safetensors').backbone.spec
    torch.manual_seed(RECIPE['seed'] + 1)
    fresh = build_head(MODEL['head'], spec).state_dict()
    assert all(torch.equal(starts[1][k], v) for k, v in fresh.items())
    assert any(not torch.equal(starts[0][k], v) for k, v in fresh.items())


@pytest.mark.parametrize('check', range(CHECKS))
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(check, unbroken, data, recipe):
    out = data / f'resumed{check}.safetensors'
    shutil.copy(unbroken[1][check], resume_path(out))
    torch.rand(7)  # the state of the global generator at the start has no say
    training.train(read_recipe(recipe), data, out, resume=True)
    expected, found = tensors(unbroken[0]), tensors(out)
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_interrupted_run_leaves_a_state_and_no_weights(data, recipe, monkeypatch, capsys):
    out = data / 'killed.safetensors'
    monkeypatch.setattr(Stage, '_write_resume', _kill_after(1))
    assert run(recipe, out, data) == 130
    assert not out.exists() and resume_path(out).is_file()
    assert capsys.readouterr().err.endswith('train: stopped.\n')


def _kill_after(count, write=Stage._write_resume):
    left = [count]

    def write_and_die(self):
        write(self)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return write_and_die


def poison(monkeypatch, kind, steps):
    """Spoil these steps of the first stage."""
    terms = Stage._terms

    def poisoned(self, batch):
        if self.index or self.step not in steps:
            return terms(self, batch)
        if kind == 'forward':
            return terms(self, replace(batch, view=batch.view * torch.nan))
        found = terms(self, batch)
        if kind == 'loss':
            return found | {'poison': found['silog'] * torch.inf}
        found['silog'].register_hook(lambda gradient: gradient * torch.nan)
        return found

    monkeypatch.setattr(Stage, '_terms', poisoned)


@pytest.mark.parametrize('kind', ['loss', 'forward', 'gradient'])
def test_step_that_is_not_finite_is_left_out(kind, data, recipe, monkeypatch, caplog):
    one_step, seen = Stage._one_step, {}

    def watched(self, batch):
        before = {k: v.clone() for k, v in self.job.model.named_parameters()}
        answer = one_step(self, batch)
        if not self.index and self.step == 1:
            now = self.job.model.named_parameters()
            seen['changed'] = [k for k, v in now if not torch.equal(v, before[k])]
        return answer

    poison(monkeypatch, kind, steps=[1])
    monkeypatch.setattr(Stage, '_one_step', watched)
    config = read_recipe(recipe)
    config = replace(config, check_every=4, stages=config.stages[:1])
    training.train(config, data, data / 'poisoned.safetensors')
    assert seen['changed'] == []
    assert [r.message for r in caplog.records if 'the step is left out' in r.message]
    assert all(torch.isfinite(v).all() for v in tensors(data / 'poisoned.safetensors').values())


def test_losses_that_stay_infinite_end_the_run_and_leave_its_last_state(
    data, recipe, monkeypatch, caplog, capsys
):
    monkeypatch.setattr(stage, 'MOST_LEFT_OUT', 2)
    poison(monkeypatch, 'loss', steps=[2, 3])
    out = data / 'lost.safetensors'
    assert run(recipe, out, data) == 1
    message = mistake(capsys)
    assert 'stage tower, step 3: 2 steps in a row had no finite loss (the last: inf)' in message
    assert 'Lower lr' in message and resume_path(out).is_file() and not out.exists()
    assert sum('the step is left out' in r.message for r in caplog.records) == 2


def test_tower_that_moves_while_frozen_ends_the_run(data, recipe, monkeypatch):
    check = Stage._check

    def meddle(self, curves):
        if self.index:
            next(self.job.model.backbone.parameters()).data += 1
        return check(self, curves)

    monkeypatch.setattr(Stage, '_check', meddle)
    with pytest.raises(WeightsError, match='stage head: the frozen tower changed'):
        training.train(read_recipe(recipe), data, data / 'moved.safetensors')
    assert not (data / 'moved.safetensors').exists()


def test_pretrained_tower_is_loaded_and_never_trained(data, recipe, monkeypatch, tmp_path):
    model = RECIPE['model'] | {'tower': 'ViT-B-32', 'pretrained': 'openai'}
    config = replace(read_recipe(recipe), model=model)
    monkeypatch.setattr(training, 'DepthModel', _unbuilt)
    with pytest.raises(ConfigError, match="stage tower: .*'ViT-B-32'.*published weights 'openai'"):
        training.train(config, data, tmp_path / 'x.safetensors')
    config = replace(config, stages=config.stages[1:])
    with pytest.raises(WeightsError, match='asked for openai'):
        training.train(config, data, tmp_path / 'x.safetensors')


class _unbuilt(torch.nn.Module):
    """In place of a large network that is refused before it is used."""

    def __init__(self, config, tower):
        super().__init__()
        self.config, self.backbone = config, self

    def load_published(self, tag):
        raise WeightsError(f'asked for {tag}')


def run(recipe, out, data, *flags):
    return main(['train', str(recipe), str(out), '--data', str(data), '--device', 'cpu', *flags])


def mistake(capsys):
    """The one line that a user is told."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('vlm-depth train: ')
    return lines[0]


@pytest.mark.parametrize('change, message', [
    ({'stepz': 1}, "'stepz' is not an option"),
    ({'gradient_wait': 1}, "Did you mean 'gradient_weight'"),
    ({'stages': [{'name': 'a', 'frozen_tower': True, 'stepz': 4, 'lr': 1}]}, "mean 'steps'"),
    ({'stages': [{'name': 'a', 'frozen_tower': True, 'steps': 0, 'lr': 1}]}, 'steps = 0'),
    ({'stages': [{'name': 'a', 'frozen_tower': True, 'steps': 1, 'lr': 1, 'teacher_weight': 1}]},
     'a frozen tower cannot follow a teacher'),
    ({'stages': []}, 'stages is empty'),
    ({'sets': []}, 'sets is empty'),
    ({'batch': 0}, 'batch = 0'),
    ({'check_every': 0}, 'check_every = 0'),
    ({'augment': {'rol_deg': 3}}, "Did you mean 'roll_deg'"),
    ({'sets': [{'folder': 'set', 'rowz': []}]}, "Did you mean 'rows'"),
    ({'model': MODEL | {'head': {'name': 'space_clap'}}}, 'head.name'),
    ({'model': MODEL | {'head': {'name': 'linear_bins', 'depth_range_m': [0.5, 3.0]}}},
     'head linear_bins answers (0.5, 3.0) m, but depth_range_m of the model is'),
    ({'sets': [{'folder': 'nowhere'}]}, 'nowhere'),
    ({'sets': [{'folder': 'set', 'rows': [[2, 9]]}]}, 'rows 2:9 do not exist'),
])  # fmt: skip
def test_wrong_recipe_is_refused_in_one_line(change, message, data, tmp_path, capsys):
    path = tmp_path / 'wrong.yaml'
    path.write_text(yaml.safe_dump(RECIPE | change))
    assert run(path, tmp_path / 'out.safetensors', data) == 1
    assert message in mistake(capsys)


def test_a_head_with_nothing_to_learn_is_refused_in_one_line():
    nothing = torch.nn.Conv2d(1, 1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match="stage 'head' has nothing to train"):
        build_optimiser(nothing, StageConfig('head', lr=0.1, steps=1))


@pytest.mark.parametrize('content', [
    b'', b'name: [', b'\xff\xfe\x00\x81', b'- a list', b'name: x\n', b'a: b: c',
], ids=['empty', 'open bracket', 'binary', 'list', 'keys missing', 'colons'])  # fmt: skip
def test_damaged_recipe_is_refused_in_one_line(content, tmp_path, capsys):
    path = tmp_path / 'damaged.yaml'
    path.write_bytes(content)
    assert run(path, tmp_path / 'out.safetensors', tmp_path) == 1
    assert 'damaged.yaml' in mistake(capsys)


def test_missing_recipe_or_impossible_output_is_refused(recipe, tmp_path, capsys):
    assert run(tmp_path / 'none.yaml', tmp_path / 'out.safetensors', tmp_path) == 1
    assert 'none.yaml' in mistake(capsys)
    assert run(recipe, tmp_path, tmp_path) == 1
    assert 'is a folder' in mistake(capsys)


def test_nothing_to_resume_is_said(recipe, data, tmp_path, capsys):
    assert run(recipe, tmp_path / 'out.safetensors', data, '--resume') == 1
    assert 'nothing to resume' in mistake(capsys)


def test_damaged_training_state_is_refused(recipe, data, tmp_path, capsys, unbroken):
    path = tmp_path / 'out.safetensors.resume'
    path.write_bytes(Path(unbroken[1][0]).read_bytes()[:5000])
    assert run(recipe, tmp_path / 'out.safetensors', data, '--resume') == 1
    assert 'not a readable training state' in mistake(capsys)


def test_training_state_of_another_recipe_is_refused(recipe, data, tmp_path, unbroken):
    shutil.copy(unbroken[1][0], tmp_path / 'out.safetensors.resume')
    other = replace(read_recipe(recipe), seed=8)
    with pytest.raises(ConfigError, match='written by another recipe .other seed'):
        training.train(other, data, tmp_path / 'out.safetensors', resume=True)


def test_missing_teacher_is_named(recipe, data, tmp_path):
    pytest.importorskip('onnxruntime')
    config = read_recipe(recipe)
    stages = ({**config.stages[0], 'teacher_weight': 1.0},)
    with pytest.raises(ConfigError, match='stage tower: no teacher is named'):
        training.train(replace(config, stages=stages), data, tmp_path / 'x.safetensors')
    with pytest.raises(InputError, match='none.onnx: no such file'):
        training.train(
            replace(config, stages=stages, teacher='none.onnx'), data, tmp_path / 'x.safetensors'
        )
    (data / 'broken.onnx').write_bytes(b'no network')
    with pytest.raises(InputError, match='broken.onnx: not a readable ONNX file'):
        training.train(
            replace(config, stages=stages, teacher='broken.onnx'), data, tmp_path / 'x.safetensors'
        )


def test_pocket_recipe_reads_and_keeps_the_data_rules():
    """Rows that judge or choose never train; the sets from elsewhere never do."""
    config = read_recipe(POCKET)
    stages = [from_mapping(StageConfig, entry, 'stages') for entry in config.stages]
    from_mapping(AugmentConfig, config.augment, 'augment')
    learners = [stage for stage in stages if not stage.is_guide]
    assert not learners[0].frozen_tower and learners[-1].frozen_tower
    select = from_mapping(SetConfig, config.select, 'select')
    assert (select.folder, select.rows) == ('nyu_train795', ((159, 238),))
    taken = {}
    for entry in (from_mapping(SetConfig, s, 'sets') for s in config.sets):
        rows = {i for a, b in entry.rows for i in range(a, b)}
        taken[entry.folder] = taken.get(entry.folder, set()) | rows
    assert taken['nyu_train795'] and not taken['nyu_train795'] & set(range(159, 318))
    kitchen = taken.get('7scenes_redkitchen', set())
    assert not kitchen & set(range(100, 200)) and '7scenes_redkitchen' not in {
        s['folder'] for s in config.sets if not s.get('rows')
    }
    assert not {'tum_fr1_rpy', 'kitti_street'} & taken.keys()


def test_pocket_free_is_the_same_recipe_with_another_head_and_without_a_photograph():
    free, pocket = read_recipe(POCKET.with_name('pocket_free.yaml')), read_recipe(POCKET)
    assert {s['folder'] for s in (*free.sets, free.select)} == {'../../synthetic'}
    assert {s['folder'] for s in free.held_out} == {
        'nyu_train795', '7scenes_redkitchen', 'tum_fr1_rpy', 'kitti_street'
    }  # fmt: skip
    rows = [{i for a, b in s['rows'] for i in range(a, b)} for s in (*free.sets, free.select)]
    assert all(rows) and not rows[0] & rows[1]
    assert 'Apache' in free.licence
    assert free.model['head']['name'] == 'space_clip'
    assert pocket == replace(
        free, name=pocket.name, model=free.model | {'head': pocket.model['head']},
        sets=pocket.sets, select=pocket.select, held_out=pocket.held_out,
        licence=pocket.licence, notice=pocket.notice,
    )  # fmt: skip
