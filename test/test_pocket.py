"""What the cards of the shipped weights say is what comes out."""

import json
import os
from pathlib import Path
import re

from desk_sets import write_set
import numpy as np
import pytest
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.model import find_weights, read_card, shipped_weights
from vlm_depth_ros.tools import cli
from vlm_depth_ros.tools.scene import random_scene
from vlm_depth_ros.tools.viewpoints import random_camera

DATA = Path(os.environ.get('VLM_DEPTH_DATA', Path(__file__).parents[2] / 'shared' / 'data'))
HELD_OUT = DATA / 'nyu_train795'
FIGURES = ('abs_rel', 'rmse', 'log10', 'delta1', 'delta2', 'delta3')
HW = (240, 320)
WIDE_DEG, NARROW_DEG = 69.0, 54.0


@pytest.mark.parametrize('name', shipped_weights())
def test_evaluate_reproduces_the_card_to_the_third_digit(name, tmp_path):
    if not (HELD_OUT / 'pairs.csv').is_file():
        pytest.skip(f'{HELD_OUT} is not there; set VLM_DEPTH_DATA')
    said = find_weights(name).with_suffix('.md').read_text(encoding='utf-8')
    (row,) = re.findall(rf'^\| \*\*{name}\*\* \|(.*)\|$', said, re.MULTILINE)
    out = tmp_path / 'found.json'
    assert cli.main([
        'evaluate', '--weights', name, '--data', str(HELD_OUT), '--rows', '238:318',
        '--protocol', 'nyu', '--json', str(out),
        # The blind rows are none of the card's: one image instead of 715.
        '--blind-from', str(write_set(tmp_path / 'other', [2.0])),
    ]) == 0  # fmt: skip
    found = json.loads(out.read_text())['unscaled']
    # The last digit of a rounded figure may differ from one processor to the next.
    assert [found[k] for k in FIGURES] == pytest.approx(list(map(float, row.split('|'))), abs=1e-3)


def test_weights_say_their_terms_and_which_rows_they_never_saw():
    card = read_card(find_weights('pocket'))
    assert {'folder': 'nyu_train795', 'rows': [[238, 318]]} in card.training['held_out']
    assert 'research' in card.licence and card.notice


def test_free_weights_saw_rendered_rooms_alone():
    card = read_card(find_weights('pocket-free'))
    folders = [entry['folder'] for entry in (*card.training['sets'], card.training['select'])]
    assert folders == ['../../synthetic'] * 2
    assert 'Apache-2.0' in card.licence


def test_one_scene_through_two_lenses_is_equally_far():
    """Only with the correction for the focal length (Yin et al. 2023)."""
    pocket = DepthEstimator.from_weights('pocket')
    corrected, as_it_comes = [], []
    for seed in range(8):
        rng = np.random.default_rng([seed, 77])
        scene = random_scene(rng, 'room')
        pose, _ = random_camera(rng, scene, HW, (WIDE_DEG, WIDE_DEG))
        cameras = [CameraIntrinsics.from_fov(deg, HW) for deg in (WIDE_DEG, NARROW_DEG)]
        views = [scene.render(pose, c, np.random.default_rng(1))[:2] for c in cameras]
        # What the narrow view shows of the wide one.
        part = np.s_[_margin(cameras, HW[0]), _margin(cameras, HW[1])]

        def ratio(depths_m, part=part):
            return np.nanmedian(depths_m[1]) / np.nanmedian(depths_m[0][part])

        truth = ratio([depth_m for _, depth_m in views])
        corrected.append(ratio([pocket(v[0], c).depth_m for v, c in zip(views, cameras)]) / truth)
        as_it_comes.append(ratio([pocket(v[0]).depth_m for v in views]) / truth)
    off = abs(np.median(corrected) - 1)
    assert off < 0.05
    assert off < abs(np.median(as_it_comes) - 1)


def _margin(cameras, side_px: int) -> slice:
    wide, narrow = cameras
    cut = int(side_px * (1 - wide.fx_px / narrow.fx_px) / 2) + 1
    return slice(cut, side_px - cut)
