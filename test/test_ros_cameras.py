"""Several cameras on one model: fair, batched, of any size, and independent of one another."""

from dataclasses import dataclass
import gc
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from known_head import known_weights  # noqa: E402
import ros_graph  # noqa: E402
from ros_graph import Graph, image_message, info_message, wait_for  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.ros.depth_node import load_estimator  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402


def sized(message, width, height, encoding='rgb8', channels=3):
    """An image message of another size and encoding."""
    message.width, message.height, message.encoding = width, height, encoding
    message.step = width * channels
    message.data = byte_array(np.full(height * message.step, 90, np.uint8))
    return message


@pytest.mark.alone
def test_a_fast_camera_does_not_starve_a_slow_one():
    with Graph(cameras=['fast', 'slow'], latency_s=0.05) as graph:
        fast, slow = (graph.listen(f'{name}/depth/image_rect') for name in ('fast', 'slow'))
        graph.publish('fast/image', image_message())
        sent_slow = 0
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            for _ in range(20):  # some 100 Hz, ten times what the network can do
                graph.publish('fast/image', image_message())
                time.sleep(0.01)
            graph.publish('slow/image', image_message())
            sent_slow += 1
        wait_for(lambda: len(slow) == sent_slow, 'every frame of the slow camera')
        assert len(fast) > 2 * sent_slow
        assert graph.node.statistics[1].dropped == 0


@pytest.mark.alone
def test_a_lost_camera_stalls_nobody_and_is_told():
    with Graph(cameras=['kept', 'lost']) as graph:
        kept = graph.listen('kept/depth/image_rect')
        graph.listen('lost/depth/image_rect')
        reports = graph.listen('/diagnostics', DiagnosticArray)
        for name in ('kept', 'lost'):
            graph.publish(f'{name}/camera_info', info_message())
            graph.publish(f'{name}/image', image_message())
        wait_for(lambda: kept, 'the first answer')
        count, start_s = len(kept), time.monotonic()
        while time.monotonic() < start_s + 2.5:
            graph.publish('kept/image', image_message())
            time.sleep(0.05)
        assert len(kept) - count > 30
        found = {status.name.split(': ')[1]: status for status in reports[-1].status}
    assert found['kept'].level == DiagnosticStatus.OK
    assert found['lost'].level == DiagnosticStatus.ERROR
    assert 'no image for' in found['lost'].message


def test_sizes_and_encodings_may_differ_in_one_batch():
    images = {
        'a': sized(image_message(), 80, 60),
        'b': sized(image_message(), 33, 21, 'bgra8', 4),
        'c': sized(image_message(), 128, 16, 'mono8', 1),
    }
    with Graph(cameras=list(images), latency_s=0.2) as graph:
        got = {name: graph.listen(f'{name}/depth/image_rect') for name in images}

        def all_three():
            for name, image in images.items():
                graph.publish(f'{name}/image', image)
            return 3 in graph.model.batch_sizes and all(got.values())

        wait_for(all_three, 'a network call for all three')
    for name, image in images.items():
        assert (got[name][-1].width, got[name][-1].height) == (image.width, image.height)


@pytest.mark.alone
def test_a_network_that_hangs_is_an_error_within_two_seconds():
    with Graph(latency_s=4.0) as graph:
        graph.listen('depth/image_rect')
        reports = graph.listen('/diagnostics', DiagnosticArray)
        graph.publish('image', image_message())
        wait_for(lambda: graph.calls, 'a network call')
        start_s = time.monotonic()
        wait_for(
            lambda: graph.publish('image', image_message())
            or (reports and 'no answer' in reports[-1].status[0].message),
            'an error',
        )
        assert time.monotonic() - start_s < 2.3
        assert reports[-1].status[0].level == DiagnosticStatus.ERROR


@pytest.mark.parametrize(
    ('frame_id', 'times'), [('', 1), ('base_link', 1), ('a_optical_frame', 0)]
)
def test_a_frame_that_is_not_optical_is_warned_about_once(frame_id, times, capfd):
    with Graph() as graph:
        depths = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message(frame_id=frame_id))
        for count in range(1, 4):
            graph.publish('image', image_message(frame_id=frame_id))
            wait_for(lambda n=count: len(depths) >= n, 'an answer')
    assert capfd.readouterr().err.count('expected the optical frame') == times


def test_diagnostics_say_which_weights_run_where():
    with Graph() as graph:
        reports = graph.listen('/diagnostics', DiagnosticArray)
        wait_for(lambda: reports, 'diagnostics')
        values = {v.key: v.value for v in reports[0].status[0].values}
    assert float(values['device memory (MB)']) > 50  # This process holds PyTorch.
    assert 'weights SHA-256' in values and values['weights'] == 'pocket'


def test_the_frustum_for_stvl_is_told_once_for_each_camera(capfd):
    with Graph() as graph:
        depths = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        for count in range(1, 4):
            graph.publish('image', image_message())
            wait_for(lambda n=count: len(depths) >= n, 'an answer')
    assert capfd.readouterr().err.count('For STVL: vertical_fov_angle 0.718') == 1


def test_a_camera_that_zooms_is_not_told_its_frustum_with_every_frame(capfd):
    with Graph() as graph:
        depths = graph.listen('depth/image_rect')
        for count in range(1, 6):
            info = info_message()
            info.k[0] = info.p[0] = 64.0 + count
            graph.publish('camera_info', info)
            graph.publish('image', image_message())
            wait_for(lambda n=count: len(depths) >= n, 'an answer')
    assert capfd.readouterr().err.count('For STVL') == 1


@dataclass
class Held:
    """What a process holds while a node runs, in bytes."""

    parameters: int
    others: int
    """Any other tensor."""


def held_bytes() -> Held:
    """Of every tensor that lives, each storage once."""
    gc.collect()
    found = {True: {}, False: {}}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):  # Others hold no memory.
            storage = thing.untyped_storage()
            is_parameter = isinstance(thing, torch.nn.Parameter)
            found[is_parameter][storage.data_ptr()] = storage.nbytes()
    return Held(*(sum(found[which].values()) for which in (True, False)))


def held_with(cameras, path) -> Held:
    """What a node with so many cameras adds, once each of them has its answer."""
    before, names = held_bytes(), [f'camera{i}' for i in range(cameras)]
    with Graph(weights=str(path), device='cpu', cameras=names) as graph:
        got = [graph.listen(f'{name}/depth/image_rect') for name in names]
        for name in names:
            graph.publish(f'{name}/image', image_message())
        for name, messages in zip(names, got):
            wait_for(
                lambda n=name, m=messages: graph.publish(f'{n}/image', image_message()) or m,
                f'depth of {name}',
            )
        wait_for(lambda: not any(s.busy_since_s for s in graph.node.statistics), 'the last one')
        after = held_bytes()
    return Held(after.parameters - before.parameters, after.others - before.others)


def test_more_cameras_share_one_model_and_add_what_their_images_need(tmp_path, monkeypatch):
    monkeypatch.setattr(ros_graph, 'Factory', lambda _: load_estimator)
    path = known_weights(tmp_path / 'known.safetensors')
    one, four = held_with(1, path), held_with(4, path)
    assert one.parameters == four.parameters > 10_000
    picture_bytes = 48 * 64 * 3 * 4
    assert four.others - one.others < 4 * picture_bytes


def test_all_cameras_are_answered_by_one_network_call():
    names = [f'camera{i}' for i in range(4)]
    with Graph(cameras=names, latency_s=0.2) as graph:
        got = [graph.listen(f'{name}/depth/image_rect') for name in names]

        def all_of_them():
            for name in names:
                graph.publish(f'{name}/image', image_message())
            return 4 in graph.model.batch_sizes and all(got)

        wait_for(all_of_them, 'a network call for all four')
        assert len(graph.factory.made) == 1
        assert max(graph.model.batch_sizes) == 4
