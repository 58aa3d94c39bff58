"""What one process prepares, another runs: the same depth, from another engine."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

for library in ('onnxruntime', 'onnx', 'onnxscript'):
    pytest.importorskip(library)
from known_head import known_weights  # noqa: E402
from test_graph_cache import TINY  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.core import engines, faster_engines, graph_cache  # noqa: E402
from vlm_depth_ros.core.config import RuntimeConfig  # noqa: E402
from vlm_depth_ros.core.errors import WeightsError  # noqa: E402
from vlm_depth_ros.core.estimator import DepthEstimator, Frame  # noqa: E402
from vlm_depth_ros.core.faster_engines import load, prepare, Prepared  # noqa: E402
from vlm_depth_ros.core.model import DepthModel, save_model  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A sound one, whose network is quick."""
    return known_weights(tmp_path_factory.mktemp('weights') / 'known.safetensors', depth_m=4.0)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """One whose network can be converted: that of test_graph_cache, which may have done it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
    save_model(path, DepthModel(TINY).eval(), name='tiny', embed_tower=True)
    return path


@pytest.fixture
def only_onnxruntime(monkeypatch):
    monkeypatch.setattr(faster_engines, 'convertible', lambda precision: ['onnxruntime'])


def test_what_is_prepared_answers_as_eager_does(tiny, only_onnxruntime):
    prepared = prepare(str(tiny), 'fp32', '')
    assert prepared.engines == ('onnxruntime',) and Path(prepared.graph).is_file()
    eager, ours = (DepthEstimator.from_weights(tiny, RuntimeConfig('cpu')) for _ in range(2))
    ours.ways.try_engines(load(prepared, ours))
    frame = Frame(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    (expected,) = eager.process([frame], OutputOptions())
    for _ in range(2):  # eager's turn, and the engine's
        (found,) = ours.process([frame], OutputOptions())
        np.testing.assert_allclose(
            found.depth.data.view(np.float32), expected.depth.data.view(np.float32), rtol=1e-5
        )


def test_other_weights_under_the_same_name_are_refused(file):
    estimator = DepthEstimator.from_weights(file, RuntimeConfig('cpu'))
    with pytest.raises(WeightsError, match='was replaced since it was loaded. Load it again'):
        load(Prepared('0' * 64, 'graph.onnx', ('onnxruntime',)), estimator)


def test_where_nothing_can_be_kept_nothing_is_prepared(
    file, only_onnxruntime, monkeypatch, tmp_path
):
    monkeypatch.setattr(engines, 'exported', lambda model: None)
    monkeypatch.setattr(graph_cache, 'keep', lambda program, slot: program)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setitem(engines.CONVERTED, 'onnxruntime', lambda source, precision: depth_of_four)
    with pytest.raises(WeightsError, match='the converted network could not be kept'):
        prepare(str(file), 'fp32', '')


def depth_of_four(image):
    depth_m = np.full((len(image), 1, 48, 64), 4.0, np.float32)
    depth_m[..., :8] = 0
    return [depth_m]


def test_the_program_says_in_one_line_what_is_wrong(tmp_path):
    program = (  # At its own low priority it would wait for the tests beside it.
        'import sys; from vlm_depth_ros.ros import prepare_engines as program; '
        'program.NICENESS = 0; sys.exit(program.main(sys.argv[1:]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(tmp_path / 'none.safetensors'), 'fp32', ''],
        env=os.environ | {'PYTHONPATH': str(ROOT)}, cwd=tmp_path, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert list(said) == ['trouble'] and 'none.safetensors' in said['trouble']
