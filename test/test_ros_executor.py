"""The parameter `executor`: what it chooses, what it falls back to, and how signals end it."""

from contextlib import ExitStack
import importlib.util
import signal
import sys
import time
import types

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from ros_graph import DOMAIN_ID, Graph, image_message, LOADS, wait_for  # noqa: E402
from ros_process import end_an_inference, StandIn, START_S  # noqa: E402
from vlm_depth_ros.core.errors import ConfigError  # noqa: E402
from vlm_depth_ros.ros import executors  # noqa: E402
from vlm_depth_ros.ros.executors import executor_for  # noqa: E402
from vlm_depth_ros.ros.node_params import NodeParams  # noqa: E402

pytestmark = pytest.mark.alone

EVENTS = ['--ros-args', '-p', 'executor:=events']
has_events = pytest.mark.skipif(
    importlib.util.find_spec('rclpy.experimental') is None,
    reason='this rclpy has no rclpy.experimental',
)


@pytest.fixture
def node():
    """A node with the parameter `executor`, which a test sets, in a context of its own."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = rclpy.create_node('tried', context=context)
    node.declare_parameter('executor', 'events')
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def calls_back(executor, node) -> bool:
    """Whether it calls a timer of the node, which it has to know."""
    ticks = []
    timer = node.create_timer(0.001, lambda: ticks.append(1))
    end_s = time.monotonic() + 5
    while not ticks and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)
    node.destroy_timer(timer)
    executor.remove_node(node)
    executor.shutdown(timeout_sec=1)
    return bool(ticks)


def test_the_single_threaded_executor_is_the_default(node):
    assert NodeParams().executor == 'single'
    node.set_parameters([rclpy.Parameter('executor', value='single')])
    executor, trouble = executor_for(node)
    assert isinstance(executor, SingleThreadedExecutor) and trouble == ''
    assert calls_back(executor, node)


def test_a_node_without_the_parameter_has_the_default_too(node):
    node.undeclare_parameter('executor')
    executor, trouble = executor_for(node)
    assert isinstance(executor, SingleThreadedExecutor) and trouble == ''
    assert calls_back(executor, node)


@has_events
def test_the_events_executor_is_used_where_it_ticks(node):
    executor, trouble = executor_for(node)
    assert trouble == '' and not isinstance(executor, SingleThreadedExecutor)
    assert executor.get_nodes() == [node], 'the node of the self-test is still there'
    assert calls_back(executor, node)


def test_where_rclpy_has_none_one_sentence_says_so(node, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rclpy.experimental', None)
    executor, trouble = executor_for(node)
    assert isinstance(executor, SingleThreadedExecutor)
    assert trouble == (
        'executor = events: this rclpy has no rclpy.experimental.EventsExecutor. The '
        'single-threaded one spins the node instead.'
    )
    assert calls_back(executor, node)


class Deaf(SingleThreadedExecutor):
    """Waits as long as it is told and calls nobody."""

    def spin_once(self, timeout_sec=None):
        """Wait."""
        time.sleep(timeout_sec)


class Broken(SingleThreadedExecutor):
    """Fails as the real one does where it meets what it does not support."""

    def spin_once(self, timeout_sec=None):
        """Fail."""
        raise RuntimeError('Guard conditions not supported')


@pytest.mark.parametrize(
    ('kind', 'says'),
    [(Deaf, 'it did not call a timer within'), (Broken, 'it fails (Guard conditions not')],
)
def test_one_that_fails_its_self_test_is_replaced_in_bounded_time(node, kind, says, monkeypatch):
    monkeypatch.setitem(
        sys.modules, 'rclpy.experimental', types.SimpleNamespace(EventsExecutor=kind)
    )
    start_s = time.monotonic()
    executor, trouble = executor_for(node)
    assert time.monotonic() - start_s < executors.SELF_TEST_S + 2
    assert type(executor) is SingleThreadedExecutor
    assert trouble.startswith('executor = events: ') and says in trouble
    assert '\n' not in trouble
    assert calls_back(executor, node)


def test_another_executor_is_refused_by_name():
    with pytest.raises(ConfigError, match="executor = 'multi': expected one of single, events"):
        NodeParams(executor='multi')


# The promises of test_ros_process, on the events executor.


@has_events
def test_a_node_on_it_answers_images_and_a_signal_ends_it_within_2_s(tmp_path):
    with Graph(active=False) as graph:
        arguments = ['0', '0', *EVENTS, '-r', 'image:=events/image']
        with StandIn(arguments, tmp_path / 'log') as node:
            wait_for(lambda: graph.tester.count_subscribers('events/image'), 'the node', START_S)
            depth = graph.listen('depth/image_rect')
            for _ in range(100):
                if depth:
                    break
                graph.publish('events/image', image_message())
                time.sleep(0.1)
            assert depth, node.output
            assert 'executor = events' not in node.output, 'it was not used'
            time.sleep(0.5)
            assert node.end_with(signal.SIGTERM) < 2


@has_events
def test_a_signal_ends_the_loading_of_weights_on_it_within_2_s(tmp_path):
    with StandIn(['0', '60', *EVENTS], tmp_path / 'log') as node:
        wait_for(lambda: LOADS in node.output, 'the loading', START_S)
        assert 'Subscribed' not in node.output
        assert node.end_with(signal.SIGINT) < 2
        assert 'Exception' not in node.output


@has_events
def test_a_signal_ends_a_running_inference_on_it_within_2_s(tmp_path):
    with ExitStack() as ending:

        def start(arguments: list[str]) -> StandIn:
            return ending.enter_context(StandIn(arguments, tmp_path / 'log'))

        assert end_an_inference(start, signal.SIGINT, *EVENTS[1:]) < 2
