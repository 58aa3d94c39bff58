"""``train --check`` reads everything first and names every file that would spoil the training."""

from pathlib import Path

from desk_sets import CAMERA, MODEL, write_set
import numpy as np
from published_sets import write_nyu_list, write_tum
import pytest
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import InputError, VlmDepthError
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.tools import train as training
from vlm_depth_ros.tools.check_data import check_recipe, KINDS, require_held_out
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.recipe import read_recipe, TrainConfig
import yaml

RECIPE = {
    'name': 'tiny',
    'model': MODEL,
    'sets': [{'folder': 'set', 'rows': [[0, 3]]}],
    'select': {'folder': 'set', 'rows': [[3, 4]]},
    'stages': [{'name': 'head', 'frozen_tower': True, 'steps': 1, 'lr': 0.001}],
}
TRAINABLE = RECIPE | {
    'stages': [{'name': 'tower', 'frozen_tower': False, 'steps': 1, 'lr': 0.001}]
}
RECIPES = sorted((Path(__file__).parent.parent / 'config' / 'train').glob('*.yaml'))


@pytest.fixture
def data(tmp_path):
    """A sound set of four."""
    write_set(tmp_path / 'set', [1.0, 2.0, 3.0, 4.0])
    return tmp_path


def found(data, **change):
    """(kind, text) of every problem, over all sets."""
    config = from_mapping(TrainConfig, RECIPE | change, 'tiny')
    return [tuple(p) for report in check_recipe(config, data) for p in report.problems]


def store_depth(data, row, depth_m):
    stored = np.rint(np.broadcast_to(depth_m, (48, 64)) * 1000).astype(np.uint16)
    save_png(data / 'set' / 'depth' / f'{row:05d}.png', stored)


def rewrite_pairs(data, old, new):
    path = data / 'set' / 'pairs.csv'
    path.write_text(path.read_text().replace(old, new))


def test_sound_sets_have_no_problems(data):
    write_nyu_list(data / 'nyu')
    write_tum(data / 'tum')
    sets = [*RECIPE['sets'], {'folder': 'nyu/nyudepthv2_train_files_with_gt.txt'},
            {'folder': 'tum', 'format': 'tum'}]  # fmt: skip
    assert found(data, sets=sets) == []


def test_every_damaged_file_is_named(data):
    folder = data / 'set'
    image = folder / 'rgb' / '00000.png'
    image.write_bytes(image.read_bytes()[:-40])
    (folder / 'rgb' / '00003.png').write_bytes(b'')
    (folder / 'depth' / '00001.png').unlink()
    damaged = bytearray((folder / 'depth' / '00002.png').read_bytes())
    damaged[45:60] = bytes(15)
    (folder / 'depth' / '00002.png').write_bytes(damaged)
    kinds, texts = zip(*found(data))
    assert kinds == ('image', 'depth', 'depth', 'image')
    for text, message in zip(texts, (
        'rgb/00000.png: the PNG of 64 x 48 pixels is cut off',
        'depth/00001.png: does not exist',
        'depth/00002.png: this PNG cannot be decoded',
        'rgb/00003.png: is empty (0 bytes)',
    )):  # fmt: skip
        assert f'{folder}/{message}' in text


@pytest.mark.parametrize('spoil, kind, message', [
    (lambda d: store_depth(d, 1, 0), 'empty', 'depth/00001.png: nothing was measured'),
    (lambda d: store_depth(d, 1, 20), 'empty', 'depth/00001.png: no depth up to max_depth_m = 10'),
    (lambda d: store_depth(d, 1, 0.003), 'unit', '00001.png: median 0.0030 m: metres as millim'),
    (lambda d: save_png(d / 'set/depth/00001.png', np.full((24, 32), 900, np.uint16)), 'size',
     'depth/00001.png: 32 x 24 pixels, but the image is 64 x 48 pixels'),
    (lambda d: save_png(d / 'set/depth/00001.png', np.full((48, 64, 3), 9, np.uint8)), 'depth',
     'depth/00001.png: uint8 (48, 64, 3); a depth image has one channel'),
])  # fmt: skip
def test_every_kind_of_bad_depth_is_named(spoil, kind, message, data):
    spoil(data)
    ((found_kind, text),) = found(data)
    assert found_kind == kind and message in text


def test_millimetres_read_as_metres_are_noticed_in_every_file(data):
    rewrite_pairs(data, ',1000,', ',1,')
    problems = found(data)
    assert [kind for kind, _ in problems] == ['unit'] * 4
    assert 'depth/00000.png: median 1000 m: millimetres as metres?' in problems[0][1]


def test_camera_of_another_size_is_named(data):
    write_tum(data / 'tum')
    save_png(data / 'tum/rgb/1.000000.png', np.full((240, 320, 3), 9, np.uint8))
    save_png(data / 'tum/depth/1.010000.png', np.full((240, 320), 9000, np.uint16))
    ((kind, text),) = found(data, sets=[{'folder': 'tum'}])
    assert kind == 'camera' and '1.000000.png: is 320 x 240 pixels, but its camera is for 640' in (
        text
    )
    rewrite_pairs(data, f',{CAMERA.cx_px:g},', f',{2 * CAMERA.cx_px + 0.5:g},')
    problems = found(data)
    assert [kind for kind, _ in problems] == ['camera'] * 4
    assert 'rgb/00000.png: is 64 x 48 pixels, but its principal point is (63.5, 23.5)' in (
        problems[0][1]
    )


@pytest.mark.parametrize('select', [
    {'folder': 'set', 'rows': [[2, 4]]}, {'folder': '../{name}/set', 'rows': [[2, 4]]},
])  # fmt: skip
def test_file_that_trains_and_judges_is_named(select, data):
    select = select | {'folder': select['folder'].format(name=data.name)}
    ((kind, text),) = found(data, select=select)
    assert kind == 'shared'
    assert text == f'{data}/set/rgb/00002.png: trains, and also chooses the checkpoint.'


@pytest.mark.parametrize('change, rows, first', [
    ({'held_out': [{'folder': 'set', 'rows': [[1, 3]]}]}, 2, 1),
    ({'held_out': [{'folder': 'set', 'rows': [[3, 4]]}]}, 1, 3),  # chooses the checkpoint
    ({'held_out': [{'folder': 'set', 'rows': [[2, 3]]}], 'sets': [{'folder': '../{name}/set'}],
      'select': {'folder': 'other'}}, 1, 2),
])  # fmt: skip
def test_held_out_rows_that_train_or_choose_end_check_and_training(change, rows, first, data):
    write_set(data / 'other', [1.0])
    change = yaml.safe_load(yaml.safe_dump(change).format(name=data.name))
    ((kind, text),) = [problem for problem in found(data, **change) if problem[0] != 'shared']
    assert kind == 'held out' and f'set: {rows} of its rows train or choose' in text
    assert f'rgb/{first:05d}.png. Take them out of sets' in text and '\n' not in text
    config = from_mapping(TrainConfig, TRAINABLE | change, 'tiny')
    with pytest.raises(InputError) as refused:
        training.train(config, data, data / 'out.safetensors')
    assert str(refused.value) == text and not list(data.glob('out.*'))


def test_held_out_rows_of_their_own_are_fine_also_where_they_do_not_lie_here(data, caplog):
    write_set(data / 'other', [1.0, 2.0])
    change = {'held_out': [{'folder': 'other', 'rows': [[1, 2]]}, {'folder': 'elsewhere'}]}
    assert found(data, **change) == []
    require_held_out(from_mapping(TrainConfig, RECIPE | change, 'tiny'), data)
    lines = [record.message for record in caplog.records]
    assert lines == [f'{data}/elsewhere: is held out, but does not lie here.'] * 2


@pytest.mark.parametrize('entry, message', [
    ({'folder': 'set', 'rows': [[3, 9]]}, 'rows 3:9 do not exist: the set has 4 rows'),
    ({'folder': 'set', 'row': [[3, 4]]}, 'row'),
])  # fmt: skip
def test_held_out_rows_that_do_not_exist_are_refused(entry, message, data):
    config = from_mapping(TrainConfig, RECIPE | {'held_out': [entry]}, 'tiny')
    for look in (check_recipe, require_held_out):
        with pytest.raises(VlmDepthError, match=message):
            look(config, data)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_committed_recipe_on_nyu_train795_holds_out_its_judging_rows(path):
    config = read_recipe(path)
    if all(entry['folder'] != 'nyu_train795' for entry in config.sets):
        pytest.skip('does not train on nyu_train795')
    assert {'folder': 'nyu_train795', 'rows': [[238, 318]]} in config.held_out


@pytest.mark.parametrize('entry, message', [
    ({'folder': 'nowhere'}, 'nowhere: does not exist'),
    ({'folder': 'set', 'rows': [[2, 9]]}, 'set: rows 2:9 do not exist: the set has 4 rows'),
    ({'folder': 'empty'}, 'empty/pairs.csv: has no rows'),
    ({'folder': 'list.txt'}, 'list.txt: has no row with depth'),
])  # fmt: skip
def test_set_that_cannot_be_opened_does_not_end_the_check(entry, message, data):
    (data / 'empty').mkdir()
    header = (data / 'set' / 'pairs.csv').read_text().splitlines()[0]
    (data / 'empty' / 'pairs.csv').write_text(header + '\n')
    (data / 'list.txt').write_text('a/b/image_02/data/1.png None 721.5377\n')
    store_depth(data, 0, 0)
    problems = found(data, sets=[entry, *RECIPE['sets']])
    assert [kind for kind, _ in problems] == ['set', 'empty'] and message in problems[0][1]


def check(data, *flags):
    """Exit code of the verb, whose training is replaced by a note in a file."""
    (data / 'recipe.yaml').write_text(yaml.safe_dump(RECIPE))
    paths = str(data / 'recipe.yaml'), str(data / 'out.safetensors')
    return main(['train', *paths, '--data', str(data), '--check', *flags])


@pytest.fixture
def trained(monkeypatch):
    """Calls of the training itself."""
    calls = []
    monkeypatch.setattr(training, 'train', lambda *given: calls.append(given))
    return calls


def test_verb_lists_the_problems_in_one_table_and_does_not_train(data, trained, capsys):
    store_depth(data, 1, 0)
    (data / 'set' / 'rgb' / '00002.png').unlink()
    assert check(data) == 1 and not trained
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'empty: {data}/set/depth/00001.png')
    assert lines[1].startswith(f'image: {data}/set/rgb/00002.png')
    assert sum('images' in line for line in lines) == 1
    assert not any(KINDS['unit'] in line for line in lines)


def test_verb_trains_on_sound_data(data, trained, capsys):
    assert check(data) == 0 and len(trained) == 1
    assert 'nothing is wrong' in capsys.readouterr().out


def test_other_processes_of_a_team_leave_the_check_to_the_first(data, trained, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    store_depth(data, 1, 0)
    assert check(data) == 0 and len(trained) == 1
