"""What a run leaves to look at: a picture, and curves where TensorBoard is installed."""

import logging
import sys
import time

from desk_sets import MODEL, write_set
import numpy as np
import pytest
from rich.progress import Progress
import torch
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.files.images import load_rgb
from vlm_depth_ros.files.pairs import read_pairs
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.metrics import depth_metrics, PROTOCOLS
from vlm_depth_ros.tools.samples import load_with_progress
from vlm_depth_ros.tools.selection import CELL_HW, Selection
from vlm_depth_ros.tools.training_log import TrainingLog


def selection(root, protocol='full', hw=(48, 64)):
    with Progress(disable=True) as progress:
        chosen = load_with_progress(SetConfig('set'), root, hw, progress)
    return Selection(chosen, protocol, torch.device('cpu'))


def network(**change):
    torch.manual_seed(0)
    return DepthModel(ModelConfig.from_dict(MODEL | change)).eval()


@pytest.mark.parametrize('camera', [MODEL['camera'], None], ids=['camera', 'no camera'])
def test_selection_judges_what_a_robot_would_get(camera, tmp_path, caplog):
    """Metres of the estimator, with its preprocessing and its focal correction."""
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(tmp_path / 'set', [slope, 2.0])
    model = network(camera=camera)
    judged = selection(tmp_path).judge(model)
    estimator, rows = DepthEstimator(model), []
    for pair in read_pairs(tmp_path / 'set'):
        frame = pair.load()
        prediction = estimator(frame.rgb, frame.intrinsics if camera else None)
        rows.append(depth_metrics(prediction.depth_m, frame.depth_m, PROTOCOLS['full']))
    for name, value in judged.metrics.items():
        assert value == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-5)
    assert not [r for r in caplog.records if 'which camera' in r.message]


def test_protocol_decides_which_pixels_judge(tmp_path):
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:8] = 9.0  # above Garg's crop
    write_set(tmp_path / 'set', [depth])
    full, kitti = (selection(tmp_path, p).judge(network()).metrics for p in ('full', 'kitti'))
    assert full['rmse'] > kitti['rmse']


def test_picture_shows_image_prediction_and_truth_of_six_fixed_rows(tmp_path):
    """Red image, truth in the colours of its metres; the first and the last row are among them."""
    write_set(tmp_path / 'set', [1.0 + i for i in range(8)])
    chosen = selection(tmp_path)
    judged = chosen.judge(network())
    assert len(judged.shown_m) == 6
    picture = chosen.picture(judged)
    height, width = CELL_HW
    assert picture.dtype == np.uint8 and picture.shape[1] == 3 * (width + 6)
    assert picture.shape[0] > 6 * height
    truths = picture[:, 2 * (width + 6) + width // 2]
    colours = {tuple(c) for c in truths[40 : 6 * height]} - {(255, 255, 255)}
    assert len(colours) >= 6
    assert np.array_equal(picture, chosen.picture(chosen.judge(network())))


def test_picture_lies_beside_the_weights_and_the_newest_stays(tmp_path):
    curves = TrainingLog(tmp_path / 'x.safetensors', 'head', 0)
    for value in (10, 200):
        curves.picture(np.full((8, 9, 3), value, np.uint8), value)
    curves.close()
    assert (load_rgb(tmp_path / 'x.safetensors.png') == 200).all()


def test_curves_can_be_read_by_tensorboard(tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    out = tmp_path / 'x.safetensors'
    first = TrainingLog(out, '0 a/b', 0)
    for step in (1, 2, 3):
        first.scalars({'loss': 10.0 * step, 'abs_rel/raw': 0.5}, step)
    first.close()
    time.sleep(1.1)  # files are read in the order of the seconds in their names
    # Resumed at the state of step 2: what was drawn behind it is drawn again.
    again = TrainingLog(out, '0 a/b', 2)
    again.scalars({'loss': 31.0}, 3)
    again.picture(np.zeros((8, 9, 3), np.uint8), 3)
    again.close()
    found = events.EventAccumulator(str(tmp_path / 'x.safetensors.tensorboard' / '0 a_b'))
    found.Reload()
    points = {e.step: e.value for e in found.Scalars('loss')}
    assert points == {1: 10.0, 2: 20.0, 3: 31.0}
    assert set(found.Tags()['scalars']) == {'loss', 'abs_rel/raw'}
    assert [e.step for e in found.Images('selection')] == [3]


def test_without_tensorboard_one_line_says_so_and_the_picture_stays(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with caplog.at_level(logging.INFO):
        curves = TrainingLog(tmp_path / 'x.safetensors', 'head', 0)
    assert [r.message for r in caplog.records] == [
        'No curves: TensorBoard is not installed (pip install tensorboard).'
    ]
    curves.scalars({'loss': 1.0}, 1)
    curves.picture(np.zeros((8, 9, 3), np.uint8), 1)
    curves.close()
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors.png']
