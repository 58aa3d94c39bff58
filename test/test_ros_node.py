"""The depth node on a real graph: what it publishes, when it computes, and its lifecycle."""

import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
import cv2  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import ReliabilityPolicy  # noqa: E402
from ros_graph import (  # noqa: E402
    Graph,
    image_message,
    info_message,
    stamp_ns,
    wait_for,
)
from sensor_msgs.msg import CompressedImage  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from vlm_depth_ros.core.config import RuntimeConfig  # noqa: E402
from vlm_depth_ros.core.errors import DependencyError  # noqa: E402
from vlm_depth_ros.ros.depth_node import load_estimator  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402


def change_state(graph: Graph, transition: int) -> bool:
    """Ask for a transition as ``ros2 lifecycle set`` does; whether it succeeded."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return graph.call(ChangeState, '/depth_node/change_state', request).success


def distorted_info(**kwargs):
    """A camera_info with a strong barrel distortion: a rectified image has empty corners."""
    info = info_message(**kwargs)
    info.d = [0.3, 0.0, 0.0, 0.0, 0.0]
    return info


def depth_of(message) -> np.ndarray:
    """Values of a 32FC1 message."""
    return np.frombuffer(message.data, '<f4').reshape(message.height, message.width)


@pytest.fixture
def graph():
    with Graph() as graph:
        yield graph


def test_outputs_carry_the_header_of_the_image_bit_for_bit(graph):
    topics = ('depth/image_rect', 'depth/camera_info', 'depth/image_color', 'points')
    got = [graph.listen(topic) for topic in topics]
    image = image_message(stamp_s=1234567890.123456789, frame_id='a_camera_optical_frame')
    graph.publish('camera_info', info_message(frame_id='a_camera_optical_frame'))
    graph.publish('image', image)
    wait_for(lambda: all(got), 'all outputs')
    assert all(messages[0].header == image.header for messages in got)
    depth, info, color, cloud = (messages[0] for messages in got)
    assert (depth.height, depth.width, depth.encoding) == (48, 64, '32FC1')
    np.testing.assert_allclose(depth_of(depth), 2.0, rtol=1e-6)
    assert (info.height, info.width, info.k[0], list(info.d)) == (48, 64, 64.0, [0.0] * 5)
    assert color.encoding == 'bgr8'
    points = np.frombuffer(cloud.data, '<f4').reshape(-1, 4)
    np.testing.assert_allclose(points[0, :3], [-31.5 * 2 / 64, -23.5 * 2 / 64, 2], atol=1e-5)


def binned(info):
    """The image is a 2 x 2 mean of the sensor."""
    info.height, info.width = 2 * info.height, 2 * info.width
    info.binning_x = info.binning_y = 2
    info.k[:] *= 2
    info.k[8], info.p[:] = 1.0, 0.0
    return info


def windowed(info):
    """The image is a window of a larger sensor."""
    info.roi.x_offset, info.roi.y_offset = 20, 10
    info.roi.height, info.roi.width = info.height, info.width
    info.height, info.width = 100, 200
    return info


def distorted(info):
    """The image is distorted, and P is another camera than K."""
    info.d[0], info.p[0], info.p[2] = -0.05, 60.0, 30.0
    return info


@pytest.mark.parametrize('camera', [binned, windowed, distorted])
@pytest.mark.parametrize('divisor', [1, 2])
def test_points_are_what_depth_image_proc_makes_of_depth_and_camera_info(camera, divisor):
    with Graph(cloud_organized=True, cloud_stride=1, depth_divisor=divisor) as graph:
        depth, infos, clouds = (
            graph.listen(topic) for topic in ('depth/image_rect', 'depth/camera_info', 'points')
        )
        graph.publish('camera_info', camera(info_message()))
        graph.publish('image', image_message())
        wait_for(lambda: depth and infos and clouds, 'all outputs')
    z, info = depth_of(depth[0]), infos[0]
    assert z.shape == (info.height, info.width) == (48 // divisor, 64 // divisor)
    v, u = np.mgrid[: info.height, : info.width]
    fx, cx, fy, cy = info.p[0], info.p[2], info.p[5], info.p[6]
    expected = np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z], -1)
    points = np.frombuffer(clouds[0].data, '<f4').reshape(*z.shape, 4)[..., :3]
    assert np.isfinite(points).all(axis=-1).sum() > 0.8 * z.size
    np.testing.assert_allclose(points, expected, atol=1e-4)


def test_outputs_take_qos_overrides_as_usual():
    with Graph(**{'qos_overrides./points.publisher.reliability': 'best_effort'}) as graph:
        clouds = graph.listen('points', reliable=False)
        (offered,) = graph.tester.get_publishers_info_by_topic('points')
        assert offered.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        graph.publish('camera_info', info_message())
        wait_for(lambda: graph.publish('image', image_message()) or clouds, 'a cloud')


def test_nothing_is_computed_for_nobody(graph):
    graph.publish('camera_info', info_message())
    for _ in range(5):
        graph.publish('image', image_message())
        time.sleep(0.05)
    wait_for(lambda: graph.node.statistics[0].unwanted > 0, 'a frame to be passed over')
    assert graph.calls == 0
    graph.listen('depth/camera_info')
    graph.publish('image', image_message())
    wait_for(lambda: graph.calls == 1, 'a network call')


def test_points_alone_publish_no_depth(graph):
    clouds = graph.listen('points')
    graph.publish('camera_info', info_message())
    graph.publish('image', image_message())
    wait_for(lambda: clouds, 'a cloud')
    depth = graph.listen('depth/image_rect')
    time.sleep(0.3)
    assert not depth


@pytest.mark.parametrize('camera_reliable', [True, False])
@pytest.mark.parametrize('reader_reliable', [True, False])
def test_every_combination_of_reliability_meets(camera_reliable, reader_reliable):
    with Graph() as graph:
        depth = graph.listen('depth/image_rect', reliable=reader_reliable)

        def play():
            graph.publish('image', image_message(), reliable=camera_reliable)
            time.sleep(0.05)
            return len(depth) > 5

        wait_for(play, 'depth')


def test_input_is_reliable_exactly_while_every_publisher_offers_it(graph):
    camera = graph.node._inputs[0]
    assert camera.reliability == 'best_effort'
    depth = graph.listen('depth/image_rect')
    graph.publish('image', image_message(), reliable=True)
    wait_for(lambda: camera.reliability == 'reliable', 'a reliable subscription')
    graph.stop_publishing('image')
    graph.publish('image', image_message(), reliable=False)
    wait_for(lambda: camera.reliability == 'best_effort', 'a best-effort subscription')
    depth.clear()
    wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')


def test_input_reliability_can_be_set_live_and_overridden_as_usual(graph):
    camera = graph.node._inputs[0]
    graph.node.set_parameters([Parameter('input_reliability', value='reliable')])
    wait_for(lambda: camera.reliability == 'reliable', 'a reliable subscription')
    override = {'qos_overrides./image.subscription.reliability': 'best_effort'}
    with Graph(input_reliability='reliable', **override) as other:
        assert other.node._inputs[0].reliability == 'best_effort'


def test_compressed_images_are_decoded():
    with Graph(image_transport='compressed') as graph:
        depth = graph.listen('depth/image_rect')
        _, data = cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))
        message = CompressedImage(format='jpeg', data=byte_array(data))
        message.header = image_message().header
        graph.publish('image/compressed', message)
        wait_for(lambda: depth, 'depth')
        assert (depth[0].height, depth[0].width) == (48, 64)


def test_cameras_share_one_network_call():
    with Graph(cameras=['front', 'rear'], latency_s=0.1) as graph:
        front, rear = (graph.listen(f'{name}/points') for name in ('front', 'rear'))
        graph.publish('front/camera_info', info_message())
        graph.publish('rear/camera_info', info_message(24, 32))
        graph.publish('front/image', image_message())
        graph.publish('rear/image', image_message(24, 32))

        def play():
            graph.publish('front/image', image_message())
            graph.publish('rear/image', image_message(24, 32))
            return front and rear and 2 in graph.model.batch_sizes

        wait_for(play, 'both clouds, and a call for both')
        assert (front[0].width, rear[0].width) == (24 * 32, 12 * 16)


@pytest.mark.alone
def test_output_is_never_older_than_one_inference_and_one_period():
    """60 Hz in, 100 ms for an inference.

    The bound is made of the longest inference and period that really happened: a busy machine
    stretches both. The very last image is left out: no newer one replaces it while it waits for
    the inference that is running when the camera stops.
    """
    period_s, inference_s, frames = 1 / 60, 0.1, 180
    with Graph(latency_s=inference_s) as graph:
        age_s, published_s = {}, []

        def receive(message):
            age_s[stamp_ns(message)] = (time.time_ns() - stamp_ns(message)) / 1e9

        graph.tester.create_subscription(type(image_message()), 'depth/image_rect', receive, 1)
        time.sleep(0.5)
        graph.publish('image', image_message())
        time.sleep(0.5)
        age_s.clear()
        graph.model.took_s.clear()
        statistics = graph.node.statistics[0]
        before = statistics.received
        start_s = time.monotonic()
        for i in range(frames):
            time.sleep(max(0.0, start_s + i * period_s - time.monotonic()))
            published_s.append(time.monotonic())
            last = image_message()
            graph.publish('image', last)
        time.sleep(0.5)
        age_s.pop(stamp_ns(last), None)
        ages_s = sorted(age_s.values())
        assert len(ages_s) >= 0.8 * frames * period_s / inference_s
        longest_s = max(graph.model.took_s) + max(np.diff(published_s))
        assert ages_s[-1] < longest_s + 0.025, np.round(ages_s[-5:], 3)
        assert np.median(ages_s) < inference_s + period_s + 0.025
        s = statistics
        assert 0.95 * frames <= s.received - before <= frames
        assert s.received == s.published + s.dropped + s.unwanted
        assert s.dropped >= 0.7 * frames


def test_enable_switches_the_computing(graph):
    depth = graph.listen('depth/image_rect')
    graph.publish('image', image_message())
    wait_for(lambda: depth, 'depth')
    assert graph.call(SetBool, '/depth_node/enable', SetBool.Request(data=False)).success
    calls = graph.calls
    for _ in range(5):
        graph.publish('image', image_message())
        time.sleep(0.05)
    assert graph.calls == calls
    graph.call(SetBool, '/depth_node/enable', SetBool.Request(data=True))
    depth.clear()
    wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')


def test_two_full_lifecycle_cycles_work():
    with Graph(active=False) as graph:
        for _ in range(2):
            assert graph.state == 'unconfigured'
            assert change_state(graph, Transition.TRANSITION_CONFIGURE)
            assert change_state(graph, Transition.TRANSITION_ACTIVATE)
            depth = graph.listen('depth/image_rect')
            graph.publish('image', image_message())
            wait_for(lambda got=depth: graph.publish('image', image_message()) or got, 'depth')
            assert change_state(graph, Transition.TRANSITION_DEACTIVATE)
            assert graph.call(GetState, '/depth_node/get_state', GetState.Request())
            time.sleep(0.2)
            depth.clear()
            graph.publish('image', image_message())
            time.sleep(0.2)
            assert not depth and not graph.node._worker.is_running()
            assert change_state(graph, Transition.TRANSITION_CLEANUP)
            wait_for(lambda: graph.tester.count_publishers('points') == 0, 'outputs to go')
        assert len(graph.factory.made) == 2
        assert change_state(graph, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        assert graph.state == 'finalized'


def test_shutdown_works_while_active(graph):
    assert change_state(graph, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert graph.state == 'finalized' and graph.node._worker is None


def test_configure_gives_the_estimator_what_the_parameters_say():
    with Graph(weights='mine', device='cpu', precision='fp32', compile='off') as graph:
        assert graph.factory.made == [('mine', RuntimeConfig('cpu', 'fp32', 'off'))]


def test_an_unforeseen_error_is_logged_and_the_node_can_be_configured_again(capfd):
    with Graph(active=False) as graph:
        graph.model.depth_m = 'nonsense'
        assert not change_state(graph, Transition.TRANSITION_CONFIGURE)
        assert graph.state == 'unconfigured'
        graph.model.depth_m = 2.0
        assert change_state(graph, Transition.TRANSITION_CONFIGURE)
    assert 'Cannot configure: TypeError' in capfd.readouterr().err


def test_a_missing_torch_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'vlm_depth_ros.core.estimator', None)
    with pytest.raises(DependencyError, match=f'torch and open_clip_torch in {sys.executable}'):
        load_estimator('pocket', RuntimeConfig())


def test_use_sim_time_needs_no_clock_to_run():
    with Graph(use_sim_time=True) as graph:
        depth = graph.listen('depth/image_rect')
        graph.publish('image', image_message(stamp_s=5.0))
        wait_for(lambda: graph.publish('image', image_message(stamp_s=5.0)) or depth, 'depth')
        assert stamp_ns(depth[0]) == 5 * 10**9


@pytest.mark.parametrize(
    ('topic', 'rectify', 'undistorted'),
    [
        ('/image', 'auto', True),
        ('/image', 'off', False),
        ('/cam/image_rect', 'auto', False),
        ('/cam/image_rect_color', 'auto', False),
        ('/cam/image_rect', 'on', True),
        ('/direct/image_raw', 'auto', True),
    ],
)
def test_images_are_rectified_unless_they_are_already(topic, rectify, undistorted):
    """A strong pincushion needs pixels from outside the image: depth is unknown there."""
    with Graph(rectify=rectify, cli_args=['--ros-args', '-r', f'image:={topic}']) as graph:
        depth, clouds = graph.listen('depth/image_rect'), graph.listen('points')
        graph.publish('camera_info', distorted_info())
        wait_for(lambda: graph.publish(topic, image_message()) or (depth and clouds), 'outputs')
        assert np.isnan(depth_of(depth[-1])).any() == undistorted
        assert np.isfinite(depth_of(depth[-1])[24, 32])


@pytest.mark.alone
def test_diagnostics_tell_rates_and_silence(graph):
    got = graph.listen('/diagnostics', DiagnosticArray)
    graph.listen('depth/image_rect')
    graph.publish('camera_info', info_message())
    end_s = time.monotonic() + 2.5
    while time.monotonic() < end_s:
        graph.publish('image', image_message())
        time.sleep(0.05)
    (status,) = got[-1].status
    assert (status.name, status.level) == ('depth_node: camera', DiagnosticStatus.OK)
    values = {v.key: v.value for v in status.values}
    assert 10 < float(values['input rate (Hz)']) < 22
    assert 10 < float(values['output rate (Hz)']) < 22
    assert values['camera_info'] == 'fits'
    wait_for(lambda: got[-1].status[0].level == DiagnosticStatus.ERROR, 'an error', 5)
    assert 'no image for' in got[-1].status[0].message


@pytest.mark.alone
def test_deactivating_during_an_inference_publishes_nothing_more():
    with Graph(latency_s=0.5) as graph:
        depth = graph.listen('depth/image_rect')
        graph.publish('image', image_message())
        wait_for(lambda: graph.publish('image', image_message()) or graph.calls, 'a call')
        assert change_state(graph, Transition.TRANSITION_DEACTIVATE)
        time.sleep(0.7)
        assert not depth and graph.calls == 1
