"""The topic `depth/confidence` on a real graph, with real weights files."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from known_head import known_weights, NO_DEPTH_PX  # noqa: E402
import ros_graph  # noqa: E402
from ros_graph import Graph, image_message, info_message, wait_for  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.core import outputs  # noqa: E402
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera  # noqa: E402
from vlm_depth_ros.core.model import DepthModel, save_model  # noqa: E402
from vlm_depth_ros.ros.depth_node import load_estimator  # noqa: E402

TOPIC = 'depth/confidence'
NO_CONFIDENCE = 'No confidence: the head of'


@pytest.fixture(scope='module')
def sure(tmp_path_factory):
    """Weights whose head answers a confidence of a quarter."""
    return known_weights(tmp_path_factory.mktemp('sure') / 'sure.safetensors', confidence=0.25)


@pytest.fixture(scope='module')
def silent(tmp_path_factory):
    """Weights whose head has no confidence."""
    return known_weights(tmp_path_factory.mktemp('silent') / 'silent.safetensors')


@pytest.fixture(autouse=True)
def real_weights(monkeypatch):
    """The graph loads what its parameter `weights` names, instead of the stand-in."""
    monkeypatch.setattr(ros_graph, 'Factory', lambda _: load_estimator)


@pytest.fixture(scope='module')
def space_clip(tmp_path_factory):
    """Weights of the head that can learn a confidence, with it; nothing trained."""
    torch.manual_seed(0)
    head = {'name': 'space_clip', 'confidence': True}
    config = ModelConfig('tiny-vit', head, input_hw=(48, 64), camera=TrainingCamera(1.0, 4 / 3))
    path = tmp_path_factory.mktemp('space_clip') / 'space_clip.safetensors'
    save_model(path, DepthModel(config), name=path.stem, embed_tower=True)
    return path


def graph_on(path, **parameters):
    """The node with these weights, active."""
    return Graph(weights=str(path), device='cpu', **parameters)


def values_of(message):
    """(H, W) of a 32FC1 message."""
    assert (message.encoding, message.is_bigendian) == ('32FC1', 0)
    assert message.step == 4 * message.width
    return np.frombuffer(message.data, '<f4').reshape(message.height, message.width)


@pytest.mark.parametrize('divisor', [1, 2])
def test_confidence_has_the_header_and_size_of_depth_and_its_holes(sure, divisor):
    with graph_on(sure, depth_divisor=divisor) as graph:
        depth, confidence = graph.listen('depth/image_rect'), graph.listen(TOPIC, Image)
        image = image_message(stamp_s=1234567890.123456789, frame_id='a_camera_optical_frame')
        graph.publish('image', image)
        wait_for(lambda: depth and confidence, 'both')
    assert confidence[0].header == depth[0].header == image.header
    depth_m, said = values_of(depth[0]), values_of(confidence[0])
    assert said.shape == depth_m.shape == (48 // divisor, 64 // divisor)
    missing = np.isnan(depth_m)
    assert missing[:, : NO_DEPTH_PX // divisor].all() and not missing.all()
    np.testing.assert_array_equal(np.isnan(said), missing)
    assert (said[~missing] == 0.25).all()


def test_space_clip_says_how_sure_it_is_of_each_pixel(space_clip):
    with graph_on(space_clip) as graph:
        depth, confidence = graph.listen('depth/image_rect'), graph.listen(TOPIC, Image)
        graph.publish('image', image_message())
        wait_for(lambda: depth and confidence, 'both')
    depth_m, said = values_of(depth[0]), values_of(confidence[0])
    np.testing.assert_array_equal(np.isnan(said), np.isnan(depth_m))
    found = said[~np.isnan(said)]
    assert 0 <= found.min() < found.max() <= 1


def test_depth_beyond_range_keeps_its_confidence(sure):
    with graph_on(sure, max_depth_m=1.5) as graph:  # The head answers 2 m.
        depth, confidence = graph.listen('depth/image_rect'), graph.listen(TOPIC, Image)
        graph.publish('image', image_message())
        wait_for(lambda: depth and confidence, 'both')
    beyond = np.isposinf(values_of(depth[0]))
    assert beyond.any() and (values_of(confidence[0])[beyond] == 0.25).all()


def test_confidence_is_packed_only_while_somebody_subscribes(sure, monkeypatch):
    packed = []
    pack = outputs.pack_confidence
    monkeypatch.setattr(outputs, 'pack_confidence', lambda *a: packed.append(1) or pack(*a))
    with graph_on(sure) as graph:
        depth = graph.listen('depth/image_rect')
        wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
        assert not packed
        confidence = graph.listen(TOPIC, Image)
        wait_for(lambda: graph.publish('image', image_message()) or confidence, 'confidence')
        assert packed


def test_confidence_alone_publishes_no_depth(sure):
    with graph_on(sure) as graph:
        confidence = graph.listen(TOPIC, Image)
        wait_for(lambda: graph.publish('image', image_message()) or confidence, 'confidence')
        assert graph.node._outputs[0].wants(says_pose=True) == {'confidence'}


def test_a_model_without_confidence_warns_its_reader_and_gives_depth_unharmed(silent, capfd):
    with graph_on(silent) as graph:
        depth, clouds = graph.listen('depth/image_rect'), graph.listen('points')
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        wait_for(lambda: depth and clouds, 'depth before')
        assert NO_CONFIDENCE not in capfd.readouterr().err
        confidence = graph.listen(TOPIC, Image)
        depth.clear(), clouds.clear()
        wait_for(
            lambda: graph.publish('image', image_message()) or min(len(depth), len(clouds)) >= 4,
            'depth beside it',
        )
        assert not confidence and graph.node.statistics[0].failed == 0
    warnings = [w for w in capfd.readouterr().err.splitlines() if NO_CONFIDENCE in w]
    assert len(warnings) == 1 and 'WARN' in warnings[0]
    assert 'confidence: true' in warnings[0] and 'Depth goes on.' in warnings[0]


def test_a_reader_of_the_confidence_alone_is_warned_and_costs_nothing(silent, capfd):
    with graph_on(silent) as graph:
        graph.listen(TOPIC, Image)
        statistics = graph.node.statistics[0]
        wait_for(lambda: graph.publish('image', image_message()) or statistics.unwanted, 'a frame')
        assert statistics.failed == statistics.published == 0
    assert capfd.readouterr().err.count(NO_CONFIDENCE) == 1
