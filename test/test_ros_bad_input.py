"""What cameras do wrong, one test each: the node says so once, counts it, and goes on."""

import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, info_message, stamp_ns, wait_for  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage  # noqa: E402
from vlm_depth_ros.ros.depth_node import load_estimator  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402


def jpeg_message() -> CompressedImage:
    """A 64 x 48 JPEG."""
    _, data = cv2.imencode('.jpg', np.full((48, 64, 3), 90, np.uint8))
    message = CompressedImage(format='jpeg', data=byte_array(data))
    message.header = image_message().header
    return message


def zero_sized():
    message = image_message()
    message.height = message.width = message.step = 0
    message.data = byte_array(np.zeros(0))
    return message


def too_short():
    message = image_message()
    message.data = message.data[:-1]
    return message


def wrong_step():
    message = image_message()
    message.step = 100
    return message


def unknown_encoding():
    message = image_message()
    message.encoding = 'plaid8'
    return message


def absurd_size():
    message = image_message()
    message.height = message.width = 100_000
    message.step = 300_000
    return message


def jpeg_of_absurd_size():
    message = jpeg_message()
    data = bytearray(message.data)
    size = data.index(b'\xff\xc0') + 5
    data[size : size + 4] = b'\xff\xff\xff\xff'
    message.data = byte_array(np.frombuffer(bytes(data), np.uint8))
    return message


def half_a_jpeg():
    message = jpeg_message()
    message.data = message.data[: len(message.data) // 2]
    return message


def empty_jpeg():
    message = jpeg_message()
    message.data = byte_array(np.zeros(0))
    return message


@pytest.mark.parametrize(
    ('bad', 'says'),
    [
        (zero_sized, '0 x 0 rgb8: expected 1 to 16384 pixels'),
        (too_short, 'has 9215 bytes: expected 9216'),
        (wrong_step, 'step of 100 bytes: expected at least 192'),
        (unknown_encoding, 'plaid8: the encoding is unknown; expected one of rgb8'),
        (absurd_size, '100000 x 100000 rgb8: expected 1 to 16384'),
        (jpeg_of_absurd_size, '65535 x 65535 pixels'),
        (half_a_jpeg, 'cut off'),
        (empty_jpeg, 'is empty'),
    ],
)
def test_a_damaged_image_is_reported_once_and_the_next_one_works(bad, says, capfd):
    compressed = isinstance(bad(), CompressedImage)
    topic = 'image/compressed' if compressed else 'image'
    with Graph(image_transport='compressed' if compressed else 'raw') as graph:
        depth = graph.listen('depth/image_rect')
        statistics = graph.node.statistics[0]
        wait_for(
            lambda: graph.publish(topic, bad()) or statistics.failed >= 3,
            'bad frames to be counted',
        )
        assert graph.calls == 0 and not depth
        assert says in statistics.last_error
        good = jpeg_message() if compressed else image_message()
        wait_for(lambda: graph.publish(topic, good) or depth, 'depth of a good image')
    warnings = [line for line in capfd.readouterr().err.splitlines() if says in line]
    assert len(warnings) == 1 and 'WARN' in warnings[0]


def other_size():
    return info_message(96, 128)


def zero_focal():
    info = info_message()
    info.k[0] = info.k[4] = 0.0
    return info


def other_frame():
    return info_message(frame_id='another_camera')


def unknown_lens():
    info = info_message()
    info.distortion_model, info.d = 'kaleidoscope', [0.1] * 5
    return info


def nothing():
    return None


@pytest.mark.parametrize(
    ('bad', 'says'),
    [
        (nothing, 'no camera_info has come on /camera_info'),
        (other_size, 'is for images of 128 x 96 and the image has 64 x 48 pixels'),
        (other_frame, "is for frame 'another_camera' and the image for 'camera_optical_frame'"),
        (zero_focal, 'K has focal lengths (0.0, 0.0)'),
        (unknown_lens, "distortion_model 'kaleidoscope'"),
        (CameraInfo, 'focal lengths'),
    ],
)
def test_without_a_fitting_camera_info_depth_flows_and_points_wait(bad, says, capfd):
    with Graph() as graph:
        depth, clouds = graph.listen('depth/image_rect'), graph.listen('points')
        infos = graph.listen('depth/camera_info')
        for _ in range(6):
            if bad() is not None:
                graph.publish('camera_info', bad())
            graph.publish('image', image_message())
            time.sleep(0.05)
        wait_for(lambda: depth, 'depth')
        assert not clouds and not infos
        assert graph.node.statistics[0].failed == 0
        for _ in range(3):
            graph.publish('camera_info', info_message())
            time.sleep(0.05)
        wait_for(lambda: graph.publish('image', image_message()) or clouds, 'points')
    warnings = [line for line in capfd.readouterr().err.splitlines() if says in line]
    assert len(warnings) == 1 and 'Points and depth/camera_info wait' in warnings[0]


def test_a_bad_image_of_one_camera_does_not_hold_up_the_other():
    with Graph(cameras=['front', 'rear'], latency_s=0.05) as graph:
        rear = graph.listen('rear/depth/image_rect')
        graph.listen('front/depth/image_rect')
        front_statistics, rear_statistics = graph.node.statistics

        def play():
            graph.publish('front/image', too_short())
            graph.publish('rear/image', image_message())
            return front_statistics.failed > 0 and len(rear) >= 3

        wait_for(play, 'a bad image in front and depth of the rear')
        assert rear_statistics.failed == 0


def test_a_failing_network_is_counted_and_the_next_frame_tried(graph_of_one, capfd):
    graph = graph_of_one
    depth = graph.listen('depth/image_rect')
    graph.model.depth_m = 'nonsense'
    wait_for(
        lambda: graph.publish('image', image_message()) or graph.node.statistics[0].failed,
        'failing',
    )
    graph.model.depth_m = 2.0
    wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
    assert 'Frame dropped' in capfd.readouterr().err


@pytest.fixture
def graph_of_one():
    with Graph() as graph:
        yield graph


def test_time_that_jumps_back_is_noted_and_nothing_else(graph_of_one, capfd):
    graph = graph_of_one
    depth = graph.listen('depth/image_rect')
    for stamp_s in (100.0, 100.1, 5.0, 5.1):
        count = len(depth)
        graph.publish('image', image_message(stamp_s=stamp_s))
        wait_for(lambda n=count: len(depth) > n, f'depth of {stamp_s}')
    assert [stamp_ns(m) / 1e9 for m in depth] == [100.0, 100.1, 5.0, 5.1]
    assert graph.node.statistics[0].time_jumps == 1
    assert 'Stamps went back by 95.100 s' in capfd.readouterr().err


def test_a_camera_may_stop_and_return_as_another_publisher(graph_of_one):
    graph = graph_of_one
    depth = graph.listen('depth/image_rect')
    wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
    graph.stop_publishing('image')
    time.sleep(0.6)
    depth.clear()
    wait_for(
        lambda: graph.publish('image', image_message(), reliable=False) or depth, 'depth again'
    )


@pytest.mark.parametrize('kind', ['missing', 'truncated', 'foreign'])
def test_bad_weights_fail_configure_and_good_ones_succeed_later(kind, tmp_path, capfd):
    path = tmp_path / f'{kind}.safetensors'
    if kind == 'truncated':
        path.write_bytes((1000).to_bytes(8, 'little') + b'{"a": ')
    elif kind == 'foreign':
        from safetensors.torch import save_file
        import torch

        save_file({'weight': torch.zeros(3)}, path)
    with Graph(active=False, weights=str(path)) as graph:
        stand_in = graph.factory
        graph.node._estimator_factory = lambda weights, runtime: (
            stand_in if weights == 'good' else load_estimator
        )(weights, runtime)
        configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        assert not graph.call(ChangeState, '/depth_node/change_state', configure, 60).success
        assert graph.state == 'unconfigured'
        lines = [n for n in capfd.readouterr().err.splitlines() if 'Cannot configure' in n]
        assert len(lines) == 1 and str(path) in lines[0] and 'Error:' not in lines[0]
        assert graph.node.set_parameters([Parameter('weights', value='good')])[0].successful
        assert graph.call(ChangeState, '/depth_node/change_state', configure).success
        assert graph.state == 'inactive'
