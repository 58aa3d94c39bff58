"""Engines answer what eager fp32 answers, or eager goes on and says so once."""

import logging
import sys

import numpy as np
import pytest
import torch
from towers import picture
from vlm_depth_ros.core import engines, graph_cache
from vlm_depth_ros.core.agreement import difference_of
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.engines import CONVERTED, Engine, engine_of
from vlm_depth_ros.core.errors import ConfigError, DependencyError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported
from vlm_depth_ros.core.model import DepthModel

CPU = torch.device('cpu')
SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
TINY = ModelConfig('tiny-vit', SLIM, input_hw=(64, 96), camera=TrainingCamera(0.8, 1.1))
BOUND = 1e-5
"""Closer than what is accepted at start; both libraries are at 1e-6 here."""


def made(config=TINY, seed=0):
    """A network of random weights, as the estimator gets it."""
    torch.manual_seed(seed)
    model = DepthModel(config).eval()
    model.freeze_tower()
    return model.requires_grad_(False)


def runtime(engine, **options):
    return RuntimeConfig(device='cpu', engine=engine, **options)


@pytest.fixture(scope='module')
def tiny():
    return made()


@pytest.fixture(scope='module')
def tiny_graph(tiny):
    return exported(tiny)


@pytest.fixture(scope='module')
def on_openvino(tiny, tiny_graph):
    """An estimator whose network OpenVINO runs, converted and checked at its start."""
    pytest.importorskip('openvino')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, 'exported', lambda model: tiny_graph)
        estimator = DepthEstimator(tiny, runtime('openvino'))
    assert isinstance(estimator.ways.at_hand.network, Engine)
    return estimator


@pytest.fixture(scope='module')
def on_onnxruntime(tiny):
    for library in ('onnxruntime', 'onnx', 'onnxscript'):
        pytest.importorskip(library)
    engine = engine_of(tiny, runtime('onnxruntime'), 'fp32', CPU)
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def graph_of_none(monkeypatch, tmp_path):
    """Spares the conversion where the test does not look at its result."""
    monkeypatch.setattr(engines, 'exported', lambda model: None)
    monkeypatch.setattr(graph_cache, 'keep', lambda program, slot: program)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


# --- the same answer ----------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['on_openvino', 'on_onnxruntime'])
def test_engine_answers_every_batch_as_eager_does(name, tiny, request):
    engine = request.getfixturevalue(name)
    if name == 'on_openvino':
        engine = engine.ways.at_hand.network
    for count in (1, 3, 2):
        image = picture((64, 96), count, seed=count)
        with torch.inference_mode():
            expected, found = tiny(image), engine(image)
        assert found.depth_m.shape == expected.depth_m.shape
        assert difference_of(expected, found, 0.01) < BOUND


def test_an_answer_outlives_the_next_one(on_openvino):
    network = on_openvino.ways.at_hand.network
    first = network(picture((64, 96), seed=1)).depth_m
    kept = first.clone()
    network(picture((64, 96), seed=2))
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_depth_is_that_of_eager_for_every_camera(on_openvino, tiny):
    rgb = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    cameras = [CameraIntrinsics.from_fov(fov, (48, 64)) for fov in (50, 90)]
    eager = DepthEstimator(tiny)
    for found, expected in zip(on_openvino(list(rgb), cameras), eager(list(rgb), cameras)):
        np.testing.assert_allclose(found.depth_m, expected.depth_m, rtol=1e-4)


def test_where_an_embedding_is_asked_for_eager_answers(on_openvino, tiny, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    calls = []
    network = on_openvino.ways.at_hand.network
    monkeypatch.setattr(network, '_run', lambda batch: calls.append(batch))
    asked = on_openvino(image, want_embedding=True)
    expected = DepthEstimator(tiny)(image, want_embedding=True)
    np.testing.assert_array_equal(asked.embedding, expected.embedding)
    np.testing.assert_array_equal(asked.depth_m, expected.depth_m)
    assert calls == []


# --- the check at start -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('make', 'said'),
    [
        (lambda source, precision: lambda image: [np.full((len(image), 1, 64, 96), 9.0)],
         'engine openvino in fp32 differs from eager fp32 by'),
        (lambda source, precision: lambda image: [np.full((len(image), 1, 64, 96), np.nan)],
         'differs from eager fp32 by inf of the depth'),
        (lambda source, precision: lambda image: [np.full((1, 1, 32, 48), 1.0)],
         'engine openvino cannot run this network'),
        (lambda source, precision: 1 / 0, 'cannot run this network (division by zero)'),
    ],
    ids=['wrong depth', 'NaN', 'wrong size', 'conversion fails'],
)  # fmt: skip
def test_an_engine_that_answers_something_else_leaves_eager_in_charge(
    make, said, tiny, graph_of_none, monkeypatch, caplog
):
    monkeypatch.setitem(CONVERTED, 'openvino', make)
    monkeypatch.setattr(engines, '_library', lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert engine_of(tiny, runtime('openvino'), 'fp32', CPU) is tiny
    (record,) = caplog.records
    assert said in record.getMessage() and record.getMessage().endswith('eager goes on.')
    assert '\n' not in record.getMessage()


@pytest.mark.parametrize('where', ['head', 'backbone'])
def test_weights_of_nan_are_refused(where, graph_of_none, monkeypatch):
    model = made()
    for parameter in getattr(model, where).parameters():
        parameter.fill_(torch.nan)
    monkeypatch.setitem(CONVERTED, 'openvino', lambda source, precision: nothing)
    monkeypatch.setattr(engines, '_library', lambda name: None)

    def nothing(image):
        return [np.full((len(image), 1, 64, 96), np.nan, np.float32)]

    with pytest.raises(WeightsError, match='the network answers no finite depth'):
        engine_of(model, runtime('openvino'), 'fp32', CPU)


def test_a_difference_counts_where_it_is_largest():
    depth_m = torch.full((1, 1, 4, 4), 2.0)
    other = depth_m.clone()
    other[0, 0, 1, 2] = 2.2
    sure, unsure = torch.full_like(depth_m, 0.9), torch.full_like(depth_m, 0.5)
    assert difference_of(HeadOutput(depth_m), HeadOutput(other), 0.1) == pytest.approx(0.1)
    assert difference_of(HeadOutput(depth_m), HeadOutput(other), 20.0) == pytest.approx(0.01)
    assert difference_of(
        HeadOutput(depth_m, sure), HeadOutput(depth_m, unsure), 0.1
    ) == pytest.approx(0.4)
    assert difference_of(HeadOutput(depth_m, sure), HeadOutput(depth_m), 0.1) == float('inf')


# --- what is chosen, and what is refused --------------------------------------------------------


def test_auto_is_eager(tiny):
    for options in ({}, {'engine': 'eager'}, {'compile': 'off'}):
        assert engine_of(tiny, RuntimeConfig(device='cpu', **options), 'fp32', CPU) is tiny


def test_both_words_for_torch_compile_mean_one_engine():
    for options in ({'compile': 'on'}, {'engine': 'compiled'}):
        assert RuntimeConfig(**options).engine_name == 'compiled'


def test_compiled_network_runs(tiny, monkeypatch):
    real, asked = torch.compile, []

    def without_a_compiler(model):
        asked.append(model)
        return real(model, backend='eager')

    monkeypatch.setattr(torch, 'compile', without_a_compiler)
    engine = engine_of(tiny, RuntimeConfig(device='cpu', compile='on'), 'fp32', CPU)
    assert asked == [tiny] and engine is not tiny


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'engine': 'tensorrt'}, "engine = 'tensorrt': expected one of ('auto', 'eager'"),
        ({'engine': 'openvino', 'compile': 'on'},
         "engine = 'openvino' with compile = 'on': they contradict"),
        ({'engine': 'compiled', 'compile': 'off'},
         "engine = 'compiled' with compile = 'off': they contradict"),
    ],
)  # fmt: skip
def test_choice_is_refused(options, said):
    with pytest.raises(ConfigError) as refused:
        RuntimeConfig(**options)
    assert said in str(refused.value)


@pytest.mark.parametrize('name', CONVERTED)
def test_missing_library_is_one_line(name, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError) as missing:
        engine_of(tiny, runtime(name), 'fp32', CPU)
    assert str(missing.value).startswith(f'engine = {name!r}: ')
    assert "pip install 'vlm_depth_ros[engines]'" in str(missing.value)
    assert '\n' not in str(missing.value)


def test_missing_onnxscript_is_one_line(tiny, tiny_graph, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(engines, 'exported', lambda model: tiny_graph)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(DependencyError, match='ONNX is written by onnx and onnxscript'):
        engine_of(tiny, runtime('onnxruntime'), 'fp32', CPU)


@pytest.mark.parametrize(('name', 'precision'), [('openvino', 'fp16'), ('onnxruntime', 'bf16')])
def test_precision_that_an_engine_lacks_is_refused(name, precision, tiny, graph_of_none):
    pytest.importorskip(name)
    with pytest.raises(ConfigError) as refused:
        engine_of(tiny, runtime(name, precision=precision), precision, CPU)
    assert str(refused.value).startswith(f'precision = {precision!r}: engine {name} takes one of')


def test_only_engines_that_know_the_precision_are_worth_a_conversion(monkeypatch):
    monkeypatch.setattr(engines, '_is_installed', lambda name: True)
    assert engines.convertible('fp32') == ['openvino', 'onnxruntime']
    assert engines.convertible('bf16') == ['openvino'] and engines.convertible('fp16') == []
    monkeypatch.setattr(engines, '_is_installed', lambda name: name != 'onnxscript')
    assert engines.convertible('fp32') == []


def test_engine_of_the_cpu_is_refused_on_another_device(tiny):
    with pytest.raises(ConfigError, match="engine = 'openvino' runs on the CPU, but the device"):
        engine_of(tiny, RuntimeConfig(engine='openvino'), 'fp16', torch.device('cuda:0'))
