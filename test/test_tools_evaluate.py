"""``vlm-depth evaluate``: its JSON, and blind predictors worked out by hand."""

import json

from desk_sets import CAMERA, write_set, write_weights
import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.estimator import DepthPrediction
from vlm_depth_ros.files.pairs import read_pairs
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.evaluate import evaluate, fit_blind
from vlm_depth_ros.tools.metrics import METRICS, PROTOCOLS

FULL = PROTOCOLS['full']
BLIND = {'constant', 'arithmetic_mean', 'geometric_mean'}


class Guess:
    """In place of an estimator: the same depth for every picture, and what it was asked."""

    name = 'guess'

    def __init__(self, depth_m):
        self.depth_m, self.cameras = depth_m, []

    def __call__(self, rgb, intrinsics):
        self.cameras.append(intrinsics)
        depth = np.full(rgb.shape[:2], self.depth_m, np.float32)
        return DepthPrediction(depth, None, intrinsics, 1.0)


def with_hole(depth, rows):
    found = np.full((48, 64), depth, np.float32)
    found[rows] = np.nan
    return found


def test_blind_rows_equal_values_by_hand(tmp_path):
    top, bottom = slice(0, 24), slice(24, 48)
    images = [2.0, 8.0, with_hole(8.0, bottom)]
    blind = fit_blind(read_pairs(write_set(tmp_path / 'set', images)), FULL)
    assert blind.constant_m == 8.0  # medians 2 8 8
    guesses = blind.predictions((48, 64))
    assert guesses.keys() == BLIND
    assert (guesses['constant'] == 8.0).all()
    for name, above, below in (
        ('arithmetic_mean', (2 + 8 + 8) / 3, (2 + 8) / 2),
        ('geometric_mean', (2 * 8 * 8) ** (1 / 3), (2 * 8) ** 0.5),
    ):
        assert guesses[name].dtype == np.float32
        assert guesses[name][top][:-1] == pytest.approx(above)
        assert guesses[name][bottom][1:] == pytest.approx(below)


def test_pixel_never_measured_gets_the_constant(tmp_path):
    images = [with_hole(2.0, slice(0, 20)), with_hole(4.0, slice(0, 20))]
    blind = fit_blind(read_pairs(write_set(tmp_path / 'set', images)), FULL)
    guesses = blind.predictions((48, 64))
    assert all(g[:19] == pytest.approx(3.0) for g in guesses.values())


def test_blind_rows_without_any_depth_are_refused(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [np.nan]))
    with pytest.raises(InputError, match='no depth was measured'):
        fit_blind(pairs, FULL)


def test_judgement_equals_values_by_hand(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [2.0, 8.0, 4.0, 1.0]))
    guess = Guess(2.0)
    found = evaluate(guess, pairs[2:], FULL, pairs[:2])
    assert found['images'] == 2
    assert found['unscaled']['abs_rel'] == pytest.approx((2 / 4 + 1 / 1) / 2)
    assert found['unscaled']['rmse'] == pytest.approx((2 + 1) / 2)  # per image, then averaged
    assert found['median_scaled']['abs_rel'] == pytest.approx(0, abs=1e-6)
    # Fitted on 2 and 8: the constant and the arithmetic mean are 5, the geometric mean 4.
    assert {name: row['abs_rel'] for name, row in found['blind'].items()} == pytest.approx(
        {
            'constant': (1 / 4 + 4 / 1) / 2,
            'arithmetic_mean': (1 / 4 + 4 / 1) / 2,
            'geometric_mean': (0 + 3 / 1) / 2,
        }
    )
    assert guess.cameras == [CAMERA, CAMERA]  # the model may correct by the focal length


def test_blind_errors_equal_values_by_hand(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [2.0, 8.0, 30.0, 4.0]))
    blind = evaluate(Guess(2.0), pairs[3:], PROTOCOLS['nyu'], pairs[:3])['blind']
    # 30 m lies beyond the protocol's 10 m and is no part of the fit.
    assert {name: row['abs_rel'] for name, row in blind.items()} == pytest.approx(
        {'constant': 1 / 4, 'arithmetic_mean': 1 / 4, 'geometric_mean': 0.0}, abs=1e-6
    )


def test_image_without_truth_is_named(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [2.0, np.nan]))
    with pytest.raises(InputError, match='depth/00001.png: no pixel inside the crop'):
        evaluate(Guess(2.0), pairs, FULL, pairs)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder of five pictures and a weights file."""
    root = tmp_path_factory.mktemp('evaluate')
    folder = write_set(root / 'set', [1.0, 2.0, 3.0, 4.0, 5.0])
    return folder, write_weights(root / 'w.safetensors')


def run(files, *flags):
    return main(['evaluate', '--weights', str(files[1]), '--data', str(files[0]), *flags])


def test_json_has_the_documented_keys(files, tmp_path, capsys):
    out = tmp_path / 'new' / 'result.json'
    assert run(files, '--rows', '1:3,4:5', '--protocol', 'nyu', '--json', str(out)) == 0
    found = json.loads(out.read_text())
    assert found.keys() == {
        'images', 'protocol', 'unscaled', 'median_scaled', 'blind',
        'weights', 'data', 'rows', 'blind_fitted_on',
    }  # fmt: skip
    assert found['images'] == 3 and found['protocol'] == 'nyu' and found['rows'] == '1:3,4:5'
    assert found['blind'].keys() == BLIND
    for row in (found['unscaled'], found['median_scaled'], *found['blind'].values()):
        assert tuple(row) == METRICS and all(np.isfinite(v) for v in row.values())
    # Fitted on the rows that are not judged, 1 m and 4 m: constant 2.5 against 2, 3 and 5.
    assert found['blind_fitted_on'] == 'the other rows of the set'
    expected = (0.5 / 2 + 0.5 / 3 + 2.5 / 5) / 3
    assert found['blind']['constant']['abs_rel'] == pytest.approx(expected)
    said = capsys.readouterr().out
    assert 'of the best blind row' in said and 'unscaled' in said


def test_blind_rows_may_come_from_another_folder(files, tmp_path):
    other, out = write_set(tmp_path / 'other', [4.0]), tmp_path / 'result.json'
    flags = ('--rows', '1:2', '--blind-from', str(other), '--json', str(out))
    assert run(files, *flags, '--protocol', 'nyu') == 0
    found = json.loads(out.read_text())
    assert found['blind_fitted_on'] == str(other)
    assert found['blind']['constant']['abs_rel'] == pytest.approx(1.0)


def test_judging_everything_says_that_the_blind_rows_saw_it(files, tmp_path):
    out = tmp_path / 'result.json'
    assert run(files, '--json', str(out)) == 0
    assert 'in favour of the blind rows' in json.loads(out.read_text())['blind_fitted_on']



@pytest.mark.parametrize('flags, message', [
    (('--rows', '3:6'), 'rows 3:6 do not exist: the set has 5 rows'),
    (('--rows', '3'), 'expected A:B'),
    (('--data', 'nowhere'), 'does not exist'),
    (('--weights', 'nowhere.safetensors'), 'neither a file nor a shipped name'),
    (('--device', 'tpu'), "device = 'tpu'"),
    (('--blind-from', 'nowhere'), 'does not exist'),
])  # fmt: skip
def test_user_mistake_is_one_line_and_exit_code_1(files, flags, message, capsys):
    assert run(files, *flags) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
