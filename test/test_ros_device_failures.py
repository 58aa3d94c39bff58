"""A GPU that is full or gone, as the node meets it: the network raises what PyTorch would."""

import time

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, wait_for  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
import torch  # noqa: E402

FULL = torch.cuda.OutOfMemoryError(
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB.\nIf '
)
GONE = 'CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously ...'


class Trouble:
    """Stands before the network of a graph and raises where `err_for` finds a reason."""

    def __init__(self, graph, err_for):
        self._answer = graph.model.forward
        self.err_for = err_for
        self.attempts = []
        graph.model.forward = self

    def __call__(self, image):
        """Answer as the network does, or fail."""
        self.attempts.append(len(image))
        err = self.err_for(image)
        if err is not None:
            raise err
        return self._answer(image)


def lines_of(capfd, says):
    return [line for line in capfd.readouterr().err.splitlines() if says in line]


def change_state(graph, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    return graph.call(ChangeState, 'depth_node/change_state', request, 30).success


def test_cameras_that_do_not_fit_together_are_answered_one_by_one(capfd):
    with Graph(cameras=['left', 'right'], latency_s=0.2) as graph:
        trouble = Trouble(graph, lambda image: FULL if len(image) > 1 else None)
        depth = {name: graph.listen(f'{name}/depth/image_rect') for name in ('left', 'right')}
        for name in depth:
            graph.publish(f'{name}/image', image_message())

        def both_failed_together():
            for name in depth:  # While the network runs on one, both wait for the next call.
                graph.publish(f'{name}/image', image_message())
            time.sleep(0.05)
            return trouble.attempts.count(2) > 1

        wait_for(both_failed_together, 'two batches that do not fit')
        counts = [len(messages) for messages in depth.values()]
        wait_for(lambda: all(len(m) > n for m, n in zip(depth.values(), counts)), 'depth of both')
        assert [s.failed for s in graph.node.statistics] == [0, 0]
    assert not lines_of(capfd, 'Frame dropped')


def test_a_frame_that_does_not_fit_is_dropped_with_advice(capfd):
    with Graph() as graph:
        trouble = Trouble(graph, lambda image: FULL)
        depth, statistics = graph.listen('depth/image_rect'), graph.node.statistics[0]
        wait_for(
            lambda: graph.publish('image', image_message()) or statistics.failed > 2, 'failures'
        )
        trouble.err_for = lambda image: None
        wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
        assert statistics.last_error.startswith('device cpu is out of memory (it tried')
    (line,) = lines_of(capfd, 'Frame dropped')
    assert 'WARN' in line and 'use fewer cameras, a smaller network, or precision: fp16' in line


@pytest.fixture
def lost(capfd):
    """A graph of two cameras whose device is gone, and what stands before its network."""
    with Graph(cameras=['left', 'right']) as graph:
        graph.reports = graph.listen('/diagnostics', DiagnosticArray)
        graph.depth = graph.listen('left/depth/image_rect')
        trouble = Trouble(graph, lambda image: RuntimeError(GONE))
        feed(graph, lambda: graph.node.statistics[0].failed > 2, 'failed frames')
        yield graph, trouble


def feed(graph, condition, what):
    """Send images to both cameras until the condition holds."""

    def is_so():
        for name in ('left', 'right'):
            graph.publish(f'{name}/image', image_message())
        time.sleep(0.02)
        return condition()

    wait_for(is_so, what, 30)


def test_a_lost_device_is_told_once_and_not_touched_again(lost, capfd):
    graph, trouble = lost
    feed(graph, lambda: graph.node.statistics[0].failed > 8, 'more')
    assert len(trouble.attempts) == 1
    graph.reports.clear()
    feed(graph, lambda: graph.reports, 'a report')
    for status in graph.reports[-1].status:
        values = {v.key: v.value for v in status.values}
        assert status.level == DiagnosticStatus.ERROR
        assert 'is gone (CUDA error: device-side assert triggered): restart' in status.message
        assert values['device trouble'] == status.message
        assert values['device memory (MB)'] == ''
    assert graph.state == 'active' and not graph.depth
    (answer,) = graph.node.set_parameters([Parameter('max_depth_m', value=5.0)])
    assert answer.successful
    lines = lines_of(capfd, 'device-side assert')
    assert len(lines) == 1 and 'ERROR' in lines[0] and 'restart the node' in lines[0]


def test_loading_weights_tries_the_device_again(lost):
    graph, trouble = lost
    for err, loads in ((RuntimeError(GONE), False), (None, True)):
        trouble.err_for = lambda image, err=err: err
        assert graph.call(Trigger, 'depth_node/load_weights', Trigger.Request()).success
        wait_for(lambda: graph.node._model._loading is None, 'the end of loading', 30)
        assert bool(graph.node._model.trouble) is not loads
        assert bool(graph.node._model.estimator.guard.loss) is not loads
        assert graph.state == 'active'
    feed(graph, lambda: graph.depth, 'depth')


def test_configuring_anew_tries_the_device_again(lost):
    graph, trouble = lost
    assert change_state(graph, Transition.TRANSITION_DEACTIVATE)
    assert change_state(graph, Transition.TRANSITION_CLEANUP)
    assert not change_state(graph, Transition.TRANSITION_CONFIGURE)
    trouble.err_for = lambda image: None
    assert change_state(graph, Transition.TRANSITION_CONFIGURE)
    assert change_state(graph, Transition.TRANSITION_ACTIVATE)
    feed(graph, lambda: graph.depth, 'depth')
