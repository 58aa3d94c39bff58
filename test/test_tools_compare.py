"""One command trains several heads alike, judges and measures them: the real loop on tiny sets."""

import json
import statistics

from desk_sets import MODEL, write_four, write_weights
import pytest
import torch
from vlm_depth_ros.core.model import load_model
from vlm_depth_ros.tools import compare
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.head_costs import head_costs, peak_bytes
import yaml

HEADS = {
    'one': {'name': 'linear'},
    'two': {'name': 'linear_bins', 'num_bins': 8, 'depth_range_m': [0.1, 10.0]},
}

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A set, a tower and two recipes of it that differ in the head."""
    root = tmp_path_factory.mktemp('data')
    write_four(root / 'set')
    donor = write_weights(root / 'donor.safetensors')
    (root / 'recipes').mkdir()
    for name, head in HEADS.items():
        (root / 'recipes' / f'{name}.yaml').write_text(yaml.safe_dump(recipe(name, head, donor)))
    return root


def recipe(name, head, donor, **change):
    return {
        'name': name,
        'model': MODEL | {'head': head},
        'tower_from': str(donor),
        'sets': [{'folder': 'set', 'rows': [[0, 2]]}],
        'select': {'folder': 'set', 'rows': [[2, 3]]},
        'stages': [{'name': 'head', 'steps': 2, 'lr': 0.001}],
        'batch': 2, 'cache_hw': [48, 64], 'feature_views': 1, 'seed': 5,
    } | change  # fmt: skip


@pytest.fixture(scope='module')
def out(data):
    """What the command leaves behind."""
    folder = data / 'heads'
    assert main(call(data, folder)) == 0
    return folder


def call(data, folder, *more):
    return [
        'compare', str(folder), '--recipes', str(data / 'recipes'), '--seeds', '1,2',
        '--data', str(data), '--judge', str(data / 'set'), '--rows', '3:4',
        '--json', str(folder.with_suffix('.json')), '--device', 'cpu', *more,
    ]  # fmt: skip


def found(out):
    return json.loads(out.with_suffix('.json').read_text())


def test_every_head_is_trained_with_every_seed_and_has_a_row(out):
    names = {f'{n}-seed{s}.safetensors' for n in HEADS for s in (1, 2)}
    assert {p.name for p in out.glob('*.safetensors')} == names
    rows = {row['name']: row for row in found(out)['heads']}
    assert {name: row['runs'][0]['head']['name'] for name, row in rows.items()} == {
        'one': 'linear', 'two': 'linear_bins'
    }  # fmt: skip
    for row in rows.values():
        errors = [run['unscaled']['abs_rel'] for run in row['runs']]
        assert [run['seed'] for run in row['runs']] == [1, 2] and errors[0] != errors[1]
        assert row['unscaled']['abs_rel'] == pytest.approx(statistics.mean(errors))
        assert row['unscaled_deviation']['abs_rel'] == pytest.approx(statistics.stdev(errors))
        assert 0 < row['runs'][0]['selection']['abs_rel']


def test_runs_of_one_seed_share_their_features_where_they_read_the_same_maps(out):
    assert len(list((out / 'features').iterdir())) == 2 * len(HEADS)


def test_the_table_says_what_json_says(out):
    result = found(out)
    head, rule, *rows, blank, foot = (out / 'table.md').read_text().splitlines()
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in (head, rule, *rows)]
    assert {len(row) for row in cells} == {12} and blank == ''
    assert [row[0] for row in cells[4:]] == [f'blind: {n.replace("_", " ")}' for n in
                                             result['blind']]  # fmt: skip
    heads = sorted(result['heads'], key=lambda row: row['unscaled']['abs_rel'])
    for row, said in zip(cells[2:4], heads):
        error, deviation = said['unscaled']['abs_rel'], said['unscaled_deviation']['abs_rel']
        assert row[:2] == [f'`{said["name"]}`', f'{error:.4f} ± {deviation:.4f}']
        assert row[6] == f'{said["costs"]["parameters"]:,}'
    assert foot.startswith('1 images, rows 3:4 of set, protocol full')
    assert '2 steps of 2 images, seeds 1, 2;' in foot


def test_errors_and_blind_rows_are_those_of_evaluate(out, data, tmp_path):
    written = tmp_path / 'one.json'
    weights = out / 'one-seed1.safetensors'
    assert main(['evaluate', '--weights', str(weights), '--data', str(data / 'set'),
                 '--rows', '3:4', '--device', 'cpu', '--json', str(written)]) == 0  # fmt: skip
    judged, (row, _) = json.loads(written.read_text()), found(out)['heads']
    assert row['runs'][0]['unscaled'] == judged['unscaled']
    assert row['runs'][0]['median_scaled'] == judged['median_scaled']
    assert found(out)['blind'] == judged['blind']


def test_what_is_trained_is_left_alone_and_what_broke_goes_on(out, data, monkeypatch, capsys):
    before, asked = found(out), []
    weights = out / 'two-seed2.safetensors'
    whole = weights.read_bytes()
    weights.unlink()
    state = out / 'two-seed2.safetensors.resume'
    state.write_bytes(b'')
    monkeypatch.setattr(
        compare, 'train',
        lambda config, data, out, resume, device: (
            asked.append((config.name, config.seed, resume)), out.write_bytes(whole)
        ),
    )  # fmt: skip
    assert main(call(data, out)) == 0
    state.unlink()
    assert asked == [('two', 2, True)]
    capsys.readouterr()
    assert [row['unscaled'] for row in found(out)['heads']] == [
        row['unscaled'] for row in before['heads']
    ]


def test_one_seed_has_no_deviation(data, out):
    result = found(out)
    for row in result['heads']:
        row |= {'unscaled_deviation': None, 'median_scaled_deviation': None}
        row['runs'] = row['runs'][:1]
    text = compare.table(result)
    assert '±' not in text.split('\n\n')[0] and 'seeds 1;' in text


BAD = {
    'no recipe': (['--recipes', '{root}/set'], 'no recipe (*.yaml) in it. Name recipes or'),
    'not alike': (['--recipes', '{root}/recipes', '{root}/longer.yaml'],
                  'other stages. A table compares heads that are trained alike'),
    'another tower size': (['--recipes', '{root}/recipes', '{root}/wide.yaml'],
                           'other model.input_hw. A table compares'),
    'one name twice': (['--recipes', '{root}/recipes', '{root}/recipes/one.yaml'],
                       "two recipes have the name 'one'"),
    'seeds': (['--seeds', '1,x'], "seeds '1,x': expected different numbers from 0"),
    'a seed twice': (['--seeds', '1,1'], "seeds '1,1': expected different numbers from 0"),
    'rows that train': (['--rows', '1:4'], '1 of the 3 images that judge also train, the first'),
    'all rows': (['--rows', '0:4'], 'none is left to fit the blind rows on'),
    'no such rows': (['--rows', '3:9'], 'rows 3:9 do not exist: the set has 4 rows'),
    'made otherwise': (['--recipes', '{root}/longer.yaml', '--seeds', '1'],
                       'was made by another recipe (other stages). Delete it'),
}  # fmt: skip


@pytest.mark.parametrize(('more', 'message'), BAD.values(), ids=BAD)
def test_a_bad_input_gets_one_line(more, message, data, out, capsys):
    donor = data / 'donor.safetensors'
    longer = recipe('one', HEADS['one'], donor, stages=[{'name': 'a', 'steps': 3, 'lr': 0.001}])
    (data / 'longer.yaml').write_text(yaml.safe_dump(longer))
    wide = recipe('wide', HEADS['one'], donor)
    wide['model'] = wide['model'] | {'input_hw': [64, 96]}
    (data / 'wide.yaml').write_text(yaml.safe_dump(wide))
    assert main(call(data, out, *(part.format(root=data) for part in more))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('vlm-depth compare: ') and message in line


def test_a_file_in_place_of_the_folder_is_refused(data, capsys):
    assert main(call(data, data / 'donor.safetensors')) == 1
    assert 'is a file; name the folder to keep the weights in' in capsys.readouterr().err


# --- costs --------------------------------------------------------------------------------------


def test_costs_of_a_linear_head_are_those_of_its_two_products(out):
    (cost,) = head_costs([load_model(out / 'one-seed1.safetensors')], rounds=2)
    spec = load_model(out / 'one-seed1.safetensors').backbone.spec
    width, cells = spec.widths[-1], 2 * 2
    assert cost.parameters == width + 1 + spec.pooled_width
    assert cost.head_flops == 2 * (width * cells + spec.pooled_width)
    assert cost.flops > cost.head_flops and cost.ms > cost.head_ms > 0
    # Score, pooled part, their sum and its softplus: four maps of a few floats.
    assert 0 < cost.head_bytes < 4 * 4 * 4 * cells


def test_threads_are_set_back(out):
    threads = torch.get_num_threads()
    head_costs([load_model(out / 'one-seed1.safetensors')], rounds=1)
    assert torch.get_num_threads() == threads


@torch.inference_mode()
@pytest.mark.parametrize(('call', 'floats'), [
    (lambda a: a + 1, 100),
    (lambda a: (a + 1) + 1 + 1, 200),  # the first is gone when the third comes
    (lambda a: [a + i for i in range(5)], 500),
    (lambda a: a.view(10, 10).t(), 0),
    (lambda a: a.add_(1), 0),
])  # fmt: skip
def test_memory_counts_what_is_alive_at_once(call, floats):
    a = torch.zeros(100)
    assert peak_bytes(lambda: call(a)) == 4 * floats
