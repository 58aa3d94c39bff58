"""``vlm-depth evaluate``: its JSON and report, and judgements worked out by hand."""

import json
import math
import re
from xml.etree import ElementTree

from desk_sets import CAMERA, frame, MODEL, write_set, write_weights
import numpy as np
import pytest
from safetensors.torch import save_file
import torch
from towers import TAG
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.estimator import DepthPrediction
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.registry import HEADS
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.files.images import load_rgb
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools import blind, judging
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.judging import predicted
from vlm_depth_ros.tools.metrics import METRICS, PROTOCOLS
from vlm_depth_ros.tools.rows import open_rows

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


def fit_blind(folder, protocol=FULL):
    return blind.fit_blind(open_rows(folder), protocol, {})


def judge(guess, rows, protocol=FULL, blind_rows=None, **how):
    fitted = blind.fit_blind(blind_rows or rows, protocol, {})
    return judging.judge(guess, rows, protocol, fitted, **how).as_dict()


def name_scenes(folder, names, column='scene'):
    lines = (folder / 'pairs.csv').read_text().splitlines()
    table = [f'{line},{name}' for line, name in zip(lines, [column, *names])]
    (folder / 'pairs.csv').write_text('\n'.join(table) + '\n')


def test_blind_rows_equal_values_by_hand(tmp_path):
    top, bottom = slice(0, 24), slice(24, 48)
    images = [2.0, 8.0, with_hole(8.0, bottom)]
    fitted = fit_blind(write_set(tmp_path / 'set', images))
    assert fitted.constant_m == 8.0  # medians 2 8 8
    guesses = fitted.predictions((48, 64))
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
    fitted = fit_blind(write_set(tmp_path / 'set', images))
    guesses = fitted.predictions((48, 64))
    assert all(g[:19] == pytest.approx(3.0) for g in guesses.values())


def test_blind_rows_without_any_depth_are_refused(tmp_path):
    with pytest.raises(InputError, match='no depth was measured'):
        fit_blind(write_set(tmp_path / 'set', [np.nan]))


def test_judgement_equals_values_by_hand(tmp_path):
    rows = open_rows(write_set(tmp_path / 'set', [2.0, 8.0, 4.0, 1.0]))
    guess = Guess(2.0)
    found = judge(guess, rows[2:], blind_rows=rows[:2])
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
    rows = open_rows(write_set(tmp_path / 'set', [2.0, 8.0, 30.0, 4.0]))
    found = judge(Guess(2.0), rows[3:], PROTOCOLS['nyu'], rows[:3])['blind']
    # 30 m lies beyond the protocol's 10 m and is no part of the fit.
    assert {name: row['abs_rel'] for name, row in found.items()} == pytest.approx(
        {'constant': 1 / 4, 'arithmetic_mean': 1 / 4, 'geometric_mean': 0.0}, abs=1e-6
    )


def test_image_without_truth_is_left_out_and_named(tmp_path):
    found = judge(Guess(2.0), open_rows(write_set(tmp_path / 'set', [2.0, np.nan])))
    assert found['images'] == 1
    (entry,) = found['failed']
    assert entry['image'].endswith('rgb/00001.png')
    assert 'depth/00001.png: no pixel inside the crop' in entry['reason']


def test_nothing_to_judge_is_refused(tmp_path):
    rows = open_rows(write_set(tmp_path / 'set', [np.nan, 2.0]))
    with pytest.raises(InputError, match='none of the 1 images .* the first: .*00000.png: no pix'):
        judge(Guess(2.0), rows[:1], blind_rows=rows)


def test_flip_averages_with_the_mirrored_image_and_mirrors_the_camera():
    class Columns(Guess):
        def __call__(self, rgb, intrinsics):
            self.cameras.append(intrinsics)
            assert rgb.flags['C_CONTIGUOUS']
            depth = rgb[..., 0].astype(np.float32)  # what it sees, not where
            depth[:, 1] = np.nan
            sure = 1 - rgb[..., 0].astype(np.float32) / 100 - np.float32([0, 0, 0, 0.2])
            return DepthPrediction(depth + np.arange(4, dtype=np.float32), sure, None, 1.0)

    rgb = np.repeat(np.array([[10, 20, 30, 40]], np.uint8)[..., None], 3, axis=2)
    camera, guess = CameraIntrinsics(4, 4, 1.0, 0, 4, 1), Columns(0)
    shown = SourceFrame(rgb, intrinsics=camera)
    # Straight 10 - 32 43, mirrored 40 - 22 13 turned back 13 22 - 40.
    found = predicted(guess, shown, flip=True)
    assert found.depth_m.tolist() == [[11.5, 22.0, 32.0, 41.5]]
    # The same with the confidence: 0.2 less in the last column of what is seen.
    assert found.confidence[0] == pytest.approx([0.8, 0.8, 0.7, 0.5])
    assert [c.cx_px for c in guess.cameras] == [1.0, 2.0]


def test_scenes_are_those_of_the_column_else_the_folder(tmp_path):
    folder = write_set(tmp_path / 'house', [2.0, 4.0, 8.0])
    assert [row.scene for row in open_rows(folder)] == ['house'] * 3
    for column in ('sequence', 'scene'):  # the scene counts, where both are there
        name_scenes(folder, [f'{column} a', f'{column} b', f'{column} a'], column)
        rows = open_rows(folder / 'pairs.csv')
        assert [row.scene for row in rows] == [f'{column} a', f'{column} b', f'{column} a']
    found = judge(Guess(2.0), rows, blind_rows=rows[1:2])['by_scene']
    # Blind is 4 m everywhere: errors 1 and 1/2 in the first scene, 0 in the second.
    assert found['scene a'] == pytest.approx(found['scene a'] | {
        'images': 2, 'abs_rel': (0 + 6 / 8) / 2, 'rmse': 3.0, 'delta1': 0.5,
        'blind_abs_rel': (2 / 2 + 4 / 8) / 2,
    })  # fmt: skip
    assert found['scene b']['images'] == 1 and found['scene b']['abs_rel'] == pytest.approx(0.5)


def test_frames_of_a_sequence_are_compared_with_the_next(tmp_path):
    stamps_s = [0.0, 0.25, 2.0, 2.1, 2.1]
    frames = [frame(z, i, stamp_s=stamps_s[i]) for i, z in enumerate([2.0, 4.0, 8.0, 2.0, 1.0])]
    write_pairs(tmp_path / 'walk', frames)
    found = judge(Guess(2.0), open_rows(tmp_path / 'walk'))['temporal']
    # 2 to 4 m and 8 to 2 m; not after a gap of 1.75 s, not where no time passed.
    true = (math.log(2) + math.log(4)) / 2
    assert found == pytest.approx({
        'frame_pairs': 2, 'predicted': 0.0, 'true': true, 'excess': -true, 'flicker': true,
    })  # fmt: skip
    name_scenes(tmp_path / 'walk', ['a', 'b', 'c', 'd', 'e'])
    assert judge(Guess(2.0), open_rows(tmp_path / 'walk'))['temporal'] is None


def test_error_by_depth_has_the_blind_error_beside_it(tmp_path):
    rows = open_rows(write_set(tmp_path / 'set', [0.5, 4.0]))
    found = judge(Guess(1.0), rows[:1], blind_rows=rows[1:])
    assert found['by_depth'] == [{
        'from_m': 0.0, 'to_m': 1.0, 'pixels': 48 * 64, 'abs_rel': 1.0, 'bias': 1.0, 'rmse': 0.5,
        'delta1': 0.0, 'blind_abs_rel': pytest.approx(7.0),
    }]  # fmt: skip
    assert found['edges'] is None and found['ground'] is None and found['temporal'] is None


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
        'weights', 'data', 'rows', 'flip', 'blind_fitted_on', 'best_blind', 'by_depth',
        'by_scene', 'edges', 'ground', 'temporal', 'per_image', 'failed', 'confidence',
    }  # fmt: skip
    assert [(i['row'], i['image']) for i in found['per_image']] == [
        (1, 'rgb/00001.png'), (2, 'rgb/00002.png'), (4, 'rgb/00004.png'),
    ]  # fmt: skip
    assert found['unscaled']['abs_rel'] == pytest.approx(
        np.mean([i['abs_rel'] for i in found['per_image']])
    )
    assert found['failed'] == [] and found['best_blind'] in BLIND
    assert found['confidence'] is None  # this head has none
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


def test_flip_changes_the_figures_and_is_said(files, tmp_path, capsys):
    found = []
    for flags in ((), ('--flip',)):
        assert run(files, '--rows', '1:3', *flags, '--json', str(tmp_path / 'r.json')) == 0
        found.append(json.loads((tmp_path / 'r.json').read_text()))
    assert [f['flip'] for f in found] == [False, True]
    assert found[0]['unscaled'] != found[1]['unscaled']
    assert 'averaged with the mirrored image' in capsys.readouterr().out


def test_bad_rows_are_left_out_counted_named_and_fail(files, tmp_path, caplog):
    folder, out = write_set(tmp_path / 'set', [1.0, 2.0, 3.0, 4.0]), tmp_path / 'result.json'
    (folder / 'depth' / '00000.png').unlink()  # one that the blind rows are fitted on
    whole = (folder / 'rgb' / '00002.png').read_bytes()
    (folder / 'rgb' / '00002.png').write_bytes(whole[: len(whole) // 2])
    flags = ('--rows', '1:4', '--blind-from', str(folder), '--json', str(out))
    assert run((folder, files[1]), *flags) == 1
    found = json.loads(out.read_text())
    assert found['images'] == 2 and [i['row'] for i in found['per_image']] == [1, 3]
    assert [entry['image'] for entry in found['failed']] == [
        str(folder / 'rgb' / f'0000{i}.png') for i in (0, 2)
    ]
    said = [r.message for r in caplog.records if r.message.startswith('left out: ')]
    assert '00000.png: does not exist' in said[0] and '00002.png' in said[1]
    assert 'cut off' in said[1] and len(said) == 2


def test_report_holds_everything_and_needs_nothing(files, tmp_path):
    folder = write_set(tmp_path / 'set', [1.0, 2.0, 4.0])
    name_scenes(folder, ['<i>attic</i>', '<i>attic</i>', 'cellar'])
    (folder / 'depth' / '00001.png').unlink()
    assert run((folder, files[1]), '--html', str(tmp_path / 'out')) == 1
    page = (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    assert '&lt;i&gt;attic&lt;/i&gt;' in page and '<i>' not in page
    for text in ('By distance', 'cellar', 'The worst 2', 'Around the median', 'Left out (1)'):
        assert text in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 2 and all(s.startswith('data:image/jpeg;base64,') for s in sources)
    charts = re.findall(r'<svg.*?</svg>', page, re.DOTALL)
    assert len(charts) == 3 and all(ElementTree.fromstring(chart) is not None for chart in charts)
    assert not (tmp_path / 'out' / 'confidence.png').exists() and 'Confidence' not in page
    worst = load_rgb(tmp_path / 'out' / 'worst.png')
    assert worst.shape[1] > 1000 and worst.shape[0] > 2 * 200
    assert run((folder, files[1]), '--rows', '0:1', '--html', str(tmp_path / 'one.html')) == 1
    assert (tmp_path / 'one.html').is_file()


class HalfSure(LinearHead):
    """2 m everywhere, sure of it on the left and not on the right."""

    def forward(self, features):
        depth_m = torch.full((len(features.pooled), 1, 8, 8), 2.0)
        confidence = torch.full_like(depth_m, 0.95)
        confidence[..., 4:] = 0.25
        return HeadOutput(depth_m, confidence)


def test_head_with_a_known_confidence_is_judged_by_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HEADS, 'half_sure', HalfSure)
    camera = {'fx_per_width': CAMERA.fx_px / 64, 'fy_per_height': CAMERA.fy_px / 48}
    options = MODEL | {'head': {'name': 'half_sure'}, 'camera': camera}
    model = DepthModel(ModelConfig.from_dict(options))
    weights, out = tmp_path / 'w.safetensors', tmp_path / 'out'
    save_model(weights, model, name='half sure', embed_tower=True)
    truth_m = np.full((48, 64), 2.0, np.float32)
    truth_m[:, 32:] = 4.0  # it is right where it is sure
    files = write_set(tmp_path / 'set', [truth_m, truth_m]), weights
    assert run(files, '--json', str(tmp_path / 'r.json'), '--html', str(out)) == 0
    found = json.loads((tmp_path / 'r.json').read_text())['confidence']
    assert found.keys() == {
        'dropped', 'abs_rel_by_confidence', 'abs_rel_by_nearness', 'abs_rel_by_farness',
        'abs_rel_by_oracle', 'gain_at_20_percent', 'calibration', 'calibration_error',
    }  # fmt: skip
    expected = [0.5 * (0.5 - share) / (1 - share) for share in found['dropped']]
    for order in ('confidence', 'oracle'):
        assert found[f'abs_rel_by_{order}'] == pytest.approx(expected, abs=1e-3)
    for order in ('nearness', 'farness'):  # one depth everywhere: dropping by it says nothing
        assert found[f'abs_rel_by_{order}'] == pytest.approx([0.25] * 6, abs=1e-3)
    assert found['gain_at_20_percent'] == pytest.approx(0.25, abs=2e-3)
    # Between the halves the confidence is blended; most pixels lie in these two tenths.
    low, high = (found['calibration'][i] for i in (0, -1))
    assert (low['confidence'], low['within_1.25']) == (pytest.approx(0.25, abs=0.01), 0.0)
    assert (high['confidence'], high['within_1.25']) == (pytest.approx(0.95, abs=0.01), 1.0)
    assert sum(row['pixels'] for row in found['calibration']) == 2 * 48 * 64
    assert found['calibration_error'] == pytest.approx((0.25 + 0.05) / 2, abs=0.05)
    said = capsys.readouterr().out
    assert 'the least confident 20 % of the pixels abs_rel falls by 25.0%, to 0.18' in said
    page = (out / 'report.html').read_text(encoding='utf-8')
    assert '<h2>Confidence</h2>' in page and page.count('data:image/jpeg') == 3
    assert load_rgb(out / 'confidence.png').shape[1] > 1000


@pytest.mark.parametrize('verb', ['evaluate', 'predict'])
def test_tower_may_lie_in_a_file_of_its_own(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path / 'towers'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    model = DepthModel(ModelConfig('tiny-vit', {'name': 'linear'}, TAG, (64, 64)))
    save_model(tmp_path / 'lean.safetensors', model, name='lean', embed_tower=False)
    tower = {f'visual.{k}': v for k, v in model.backbone.tower.state_dict().items()}
    save_file(tower, tmp_path / 'tower.safetensors')
    folder = str(write_set(tmp_path / 'set', [2.0]))
    places = ['--data', folder] if verb == 'evaluate' else [folder, str(tmp_path / 'out')]
    call = [verb, *places, '--weights', str(tmp_path / 'lean.safetensors')]
    assert main(call) == 1 and 'Copy' in capsys.readouterr().err
    assert main([*call, '--tower-weights', str(tmp_path / 'tower.safetensors')]) == 0
    assert main([*call, '--tower-weights', str(tmp_path / 'none.bin')]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert 'none.bin: no such file' in lines[-1]


@pytest.mark.parametrize('flags, message', [
    (('--rows', '3:6'), 'rows 3:6 do not exist: the set has 5 rows'),
    (('--rows', '3'), 'expected A:B'),
    (('--data', 'nowhere'), 'does not exist'),
    (('--weights', 'nowhere.safetensors'), 'neither a file nor a shipped name'),
    (('--device', 'tpu'), "device = 'tpu'"),
    (('--blind-from', 'nowhere'), 'does not exist'),
    (('--format', 'tumm'), "format 'tumm' is unknown"),
    (('--format', 'tum'), 'rgb.txt'),
])  # fmt: skip
def test_user_mistake_is_one_line_and_exit_code_1(files, flags, message, capsys):
    assert run(files, *flags) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
