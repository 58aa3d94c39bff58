"""The node finds itself a faster engine while it answers, and nobody waits for it.

What converts is a stand-in here (`prepared_engine`), and so is the engine: it answers 3 m where
the network answers 2. The real program is in test_faster_engines.
"""

import logging
from pathlib import Path
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from known_head import known_weights  # noqa: E402
import ros_graph  # noqa: E402
from ros_graph import Graph, image_message, wait_for  # noqa: E402
from vlm_depth_ros.core import engines, trial  # noqa: E402
from vlm_depth_ros.core.devices import num_threads, use_threads  # noqa: E402
from vlm_depth_ros.ros import engine_search  # noqa: E402
from vlm_depth_ros.ros.loading import load_estimator  # noqa: E402

EAGER_M, ENGINE_M = 2, 3
STAND_IN = ros_graph.Factory
"""Makes a network that comes from no file."""


@pytest.fixture(scope='module')
def near(tmp_path_factory):
    return known_weights(tmp_path_factory.mktemp('near') / 'near.safetensors')


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """An engine and a program that cost nothing; a search that begins with the third frame."""

    def of_three_metres(graph, precision):
        assert (graph, precision) == (Path('graph.onnx'), 'fp32')
        return lambda image: [np.full((len(image), 1, 48, 64), ENGINE_M, np.float32)]

    monkeypatch.setitem(engines.CONVERTED, 'openvino', of_three_metres)
    monkeypatch.setattr(engines, 'convertible', lambda precision: ['openvino'])
    monkeypatch.setattr(engine_search, 'PROGRAM', 'prepared_engine')
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent))
    monkeypatch.setattr(engine_search, 'BUSY_LOOKS', 2)
    monkeypatch.setattr(ros_graph, 'Factory', lambda _: load_estimator)


@pytest.fixture
def graph_on(near, monkeypatch):
    """Start a node whose search ends as told; ``gain`` of 0 lets any engine win."""

    def start(program, gain=0.0, weights=near, **parameters):
        monkeypatch.setenv('ENGINE_PROGRAM', str(program))
        monkeypatch.setattr(trial, 'ENGINE_GAIN', gain)
        return Graph(weights=str(weights), device='cpu', **parameters)

    return start


def searches():
    return [t for t in threading.enumerate() if t.name == 'engine_search']


def metres(message):
    depth_m = np.frombuffer(message.data, '<f4')
    return np.unique(depth_m[~np.isnan(depth_m)].round(4)).tolist()


def publish_until(graph, condition, what):
    """Play images at some 50 Hz until `condition` holds."""

    def is_so():
        graph.publish('image', image_message())
        time.sleep(0.02)
        return condition()

    wait_for(is_so, what, 60)


def search_of(graph):
    return graph.node._model._search


def has_looked(graph):
    """Whether so many looks came by as would be needed."""
    looks = vars(graph).setdefault('looks', [])
    if not looks:
        real = search_of(graph).look
        search_of(graph).look = lambda n: looks.append(n) or real(n)
    return len(looks) > engine_search.BUSY_LOOKS + 2


def process_of(graph):
    """The program that runs beside the node, waited for."""
    publish_until(
        graph,
        lambda: search_of(graph)._preparation and search_of(graph)._preparation._process,
        'the search to begin',
    )
    return search_of(graph)._preparation._process


def test_a_faster_engine_takes_over_between_two_frames(graph_on, caplog):
    """Every frame before and after is answered; log and diagnostics tell."""
    with graph_on('ready') as graph, caplog.at_level(logging.INFO):
        depth = graph.listen('depth/image_rect')
        diagnostics = graph.listen('/diagnostics', DiagnosticArray)
        way = graph.node._model.estimator.ways
        publish_until(graph, lambda: way.at_hand.engine == 'openvino', 'the engine')
        depth.clear(), diagnostics.clear()
        publish_until(graph, lambda: len(depth) > 3 and len(diagnostics) > 1, 'more')
        assert metres(depth[-1]) == [ENGINE_M]
        values = {v.key: v.value for v in diagnostics[-1].status[0].values}
        assert values['engine'] == 'openvino' and values['last loading'] == ''
        assert graph.node.statistics[0].failed == 0 and not searches()
    lines = [r.getMessage() for r in caplog.records if 'openvino' in r.getMessage()]
    assert len(lines) == 1 and 'near' in lines[0] and 'answers from now on.' in lines[0]
    assert 'took eager' in lines[0] and ' ms; openvino' in lines[0]


def test_an_engine_that_is_not_faster_goes_again(graph_on, caplog):
    with graph_on('ready', gain=1e9) as graph, caplog.at_level(logging.INFO):
        depth = graph.listen('depth/image_rect')
        ways = graph.node._model.estimator.ways
        publish_until(
            graph, lambda: search_of(graph)._is_over and not ways.are_on_trial, 'the end of it'
        )
        assert 'openvino: ' in caplog.text
        depth.clear()
        publish_until(graph, lambda: len(depth) > 3, 'more')
        assert metres(depth[-1]) == [EAGER_M]
        assert search_of(graph)._is_over and search_of(graph)._preparation is None


@pytest.mark.parametrize(('program', 'says'), [
    ('trouble', 'engine openvino cannot run this network: eager goes on.'),
    ('crash', 'prepared_engine ended with 1: MemoryError: no memory'),
    ('other weights', 'was replaced since it was loaded. Load it again.'),
])  # fmt: skip
def test_a_failure_is_one_warning_and_eager_goes_on(program, says, graph_on, capfd):
    with graph_on(program) as graph:
        depth = graph.listen('depth/image_rect')
        publish_until(graph, lambda: search_of(graph)._is_over, 'the end of it')
        depth.clear()
        publish_until(graph, lambda: len(depth) > 3, 'more')
        assert metres(depth[-1]) == [EAGER_M] and not searches()
    lines = [n for n in capfd.readouterr().err.splitlines() if says in n]
    assert len(lines) == 1 and 'WARN' in lines[0]
    assert 'Looking for an engine faster than eager' in lines[0]


def test_pausing_in_between_loses_nothing(graph_on, tmp_path):
    with graph_on(tmp_path / 'go') as graph:
        graph.listen('depth/image_rect')
        process_of(graph)
        graph.node.trigger_deactivate()
        (tmp_path / 'go').touch()
        wait_for(lambda: not searches(), 'the program to be done')
        graph.node.trigger_activate()
        way = graph.node._model.estimator.ways
        publish_until(graph, lambda: way.at_hand.engine == 'openvino', 'the engine')


@pytest.mark.parametrize('end', ['clean up', 'shut down', 'destroy'])
def test_ending_in_between_ends_the_program_too(end, graph_on, tmp_path, capfd):
    with graph_on(tmp_path / 'never') as graph:
        graph.listen('depth/image_rect')
        process = process_of(graph)
        if end == 'clean up':
            graph.node.trigger_deactivate(), graph.node.trigger_cleanup()
            assert graph.node._model is None
        elif end == 'shut down':
            graph.node.trigger_shutdown()
            assert graph.state == 'finalized'
    wait_for(lambda: process.poll() is not None and not searches(), 'the end of both')
    lines = capfd.readouterr().err
    assert 'ERROR' not in lines and 'Looking for an engine' not in lines


def test_other_weights_in_between_are_searched_for_anew(graph_on, tmp_path, monkeypatch):
    """And begin with a trial of their own of how many threads they need."""
    other = known_weights(tmp_path / 'other.safetensors', depth_m=7.0)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    before = num_threads()
    with graph_on(tmp_path / 'never') as graph:
        graph.listen('depth/image_rect')
        process, model = process_of(graph), graph.node._model
        monkeypatch.setenv('ENGINE_PROGRAM', 'ready')
        model.begin(str(other), graph.node._params.runtime())
        wait_for(model.is_decided, 'the other model', 30)
        use_threads(2)
        assert model.take_successor(graph.node._params)
        use_threads(before)
        assert model.estimator.ways.are_on_trial and model.weights == str(other)
        wait_for(lambda: process.poll() is not None, 'the end of the program')
        ways = model.estimator.ways
        publish_until(graph, lambda: ways.at_hand.engine == 'openvino', 'the engine')


@pytest.mark.parametrize('why', ['eager is wanted', 'nobody listens', 'no file'])
def test_nothing_is_sought_where(why, graph_on, monkeypatch):
    if why == 'no file':
        monkeypatch.setattr(ros_graph, 'Factory', STAND_IN)
    with graph_on('ready', engine='eager' if why == 'eager is wanted' else 'auto') as graph:
        if why != 'nobody listens':
            graph.listen('depth/image_rect')
        count = graph.node.statistics[0]
        publish_until(graph, lambda: count.received > 20 and has_looked(graph), 'looks')
        assert search_of(graph)._preparation is None and not searches()
        assert graph.node._model.estimator.ways.at_hand.engine == 'eager'
