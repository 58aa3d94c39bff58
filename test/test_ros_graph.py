"""The eyes of the other tests: depth that must not be published is seen by those who read it."""

import math

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import (  # noqa: E402
    DepthLimits,
    DepthWatch,
    Graph,
    image_message,
    info_message,
    STAND_IN_LIMITS,
    wait_for,
)
from sensor_msgs.msg import Image  # noqa: E402
from vlm_depth_ros.core import refine  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402

FORBIDDEN = 'neither unknown nor in range'


def depth_message(*depth_m):
    values = np.array(depth_m, '<f4')
    return Image(
        height=1, width=values.size, encoding='32FC1', step=4 * values.size,
        data=byte_array(values.view(np.uint8)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ('options', 'allowed', 'forbidden'),
    [
        ({}, (0.001, 5.0, 10.0, math.nan, math.inf), (0.0, -1.0, 10.001, -math.inf)),
        ({'min_depth_m': 0.3, 'max_depth_m': 4.0}, (0.3, 4.0, math.inf), (0.29, 4.001, 9.0)),
        ({'near_is_neg_inf': True}, (2.0, -math.inf), (1e-4, 11.0)),
        ({'max_depth_m': 50.0}, (10.0,), (20.0,)),
    ],
)
def test_a_reader_knows_what_the_options_allow(options, allowed, forbidden):
    limits = DepthLimits.of((0.001, 10.0), OutputOptions(**options))
    watch = DepthWatch()
    watch.look(depth_message(*allowed), [limits])
    watch.check()
    for value in forbidden:
        watch = DepthWatch()
        watch.look(depth_message(2.0, value), [limits])
        with pytest.raises(AssertionError, match=FORBIDDEN):
            watch.check()


def test_a_reader_of_another_process_expects_the_range_of_the_stand_in():
    watch = DepthWatch()
    watch.look(depth_message(2.0, math.nan, math.inf))
    watch.check()
    watch.look(depth_message(2.0, STAND_IN_LIMITS.high_m + 0.1))
    with pytest.raises(AssertionError, match=FORBIDDEN):
        watch.check()


def wrong_gate(by):
    """The range as it is, and one pixel that is not."""
    gate = refine.gate_depth

    def gated(*args):
        depth = gate(*args)
        depth[0, 0] = by
        return depth

    return gated


@pytest.mark.parametrize(
    ('parameters', 'planted'),
    [
        ({}, 10.5),
        ({}, -math.inf),
        ({'max_depth_m': 4.0}, 5.0),
        ({'min_depth_m': 0.5}, 0.4),
        ({'near_is_neg_inf': True}, 0.0),
    ],
)
def test_a_graph_fails_that_hears_a_forbidden_value(parameters, planted, monkeypatch):
    monkeypatch.setattr(refine, 'gate_depth', wrong_gate(planted))
    with pytest.raises(AssertionError, match=FORBIDDEN):
        hear_one(**parameters)


def hear_one(**parameters):
    with Graph(**parameters) as graph:
        depths = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        wait_for(lambda: depths, 'a depth image')


def test_a_reader_of_another_process_fails_too():
    """A node that is not ours publishes where a test listens."""

    def hear(depth_m):
        with Graph(active=False) as graph:
            publisher = graph.tester.create_publisher(Image, 'depth/image_rect', 5)
            depths = graph.listen('depth/image_rect')
            wait_for(lambda: publisher.publish(depth_message(depth_m)) or depths, 'depth')

    hear(2.0)
    with pytest.raises(AssertionError, match=FORBIDDEN):
        hear(0.0)


def test_limits_are_those_of_the_moment(monkeypatch):
    """Within the range of the parameters before, and of those after, each at its own time."""
    with Graph(depth_m=5.0) as graph:
        depths = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        wait_for(lambda: depths, 'a depth image')
        graph.watch.check()
        graph.node.set_parameters([Parameter('max_depth_m', value=4.0)])
        graph.publish('image', image_message())
        wait_for(lambda: len(depths) > 1, 'a depth image')
        assert np.isposinf(np.frombuffer(depths[-1].data, '<f4')).all()
        graph.watch.check()
        monkeypatch.setattr(refine, 'gate_depth', wrong_gate(5.0))
        graph.publish('image', image_message())
        wait_for(lambda: graph.watch.forbidden, 'the planted value')
        assert set(graph.watch.forbidden) == {5.0}
        graph.watch.forbidden.clear()
