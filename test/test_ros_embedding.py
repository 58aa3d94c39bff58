"""The topic `embedding` on a real graph, with real weights files."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
torch = pytest.importorskip('torch', reason='the node needs a network')
import ros_graph  # noqa: E402
from ros_graph import Graph, image_message, info_message, stamp_ns, wait_for  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
import towers  # noqa: E402, F401  registers tiny-vit
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera  # noqa: E402
from vlm_depth_ros.core.estimator import DepthEstimator  # noqa: E402
from vlm_depth_ros.core.model import DepthModel, save_model  # noqa: E402
from vlm_depth_ros.ros.depth_node import load_estimator  # noqa: E402

HEAD = {'name': 'linear'}
NO_PROJECTION = 'has no trained projection'


def weights_of(folder, tower, input_hw):
    """A self-contained file with a random network on `tower`."""
    torch.manual_seed(0)
    config = ModelConfig(tower, HEAD, input_hw=input_hw, camera=TrainingCamera(1.0, 4 / 3))
    path = folder / f'{tower}.safetensors'
    save_model(path, DepthModel(config), name=tower, embed_tower=True)
    return path


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """On a tower that embeds."""
    return weights_of(tmp_path_factory.mktemp('clip'), 'tiny-vit', (48, 64))


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """On the tower of `pocket`, which was never trained to embed."""
    return weights_of(tmp_path_factory.mktemp('plain'), 'pocket-tower', (64, 64))


@pytest.fixture(autouse=True)
def real_weights(monkeypatch):
    """The graph loads what its parameter `weights` names, instead of the stand-in."""
    monkeypatch.setattr(ros_graph, 'Factory', lambda _: load_estimator)


def graph_on(path, **parameters):
    """The node with these weights, active."""
    return Graph(weights=str(path), device='cpu', **parameters)


def vector_of(message):
    """Values of an embedding message."""
    assert (message.height, message.encoding, message.is_bigendian) == (1, '32FC1', 0)
    assert message.step == 4 * message.width == len(message.data)
    return np.frombuffer(message.data, '<f4')


def test_the_embedding_comes_beside_depth_from_the_same_image(clip):
    with graph_on(clip) as graph:
        depth, embeddings = graph.listen('depth/image_rect'), graph.listen('embedding', Image)
        image = image_message(stamp_s=1234567890.123456789, frame_id='a_camera_optical_frame')
        graph.publish('image', image)
        wait_for(lambda: depth and embeddings, 'both')
    assert embeddings[0].header == depth[0].header == image.header
    rgb = np.frombuffer(image.data, np.uint8).reshape(48, 64, 3)
    expected = DepthEstimator.from_weights(clip)(rgb, want_embedding=True)
    found = vector_of(embeddings[0])
    np.testing.assert_allclose(found, expected.embedding, atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        np.frombuffer(depth[0].data, '<f4').reshape(48, 64), expected.depth_m, rtol=1e-5
    )


def test_the_embedding_is_computed_only_while_somebody_subscribes(clip, monkeypatch):
    asked = []
    run = DepthEstimator._run

    def spy(estimator, images, views, way, want_embedding, want_depth=True):
        asked.append((want_embedding, want_depth))
        return run(estimator, images, views, way, want_embedding, want_depth)

    with graph_on(clip) as graph:
        monkeypatch.setattr(DepthEstimator, '_run', spy)
        depth = graph.listen('depth/image_rect')
        graph.publish('image', image_message())
        wait_for(lambda: depth, 'depth')
        assert set(asked) == {(False, True)}
        embeddings = graph.listen('embedding', Image)
        wait_for(lambda: graph.publish('image', image_message()) or embeddings, 'an embedding')
        assert asked[-1] == (True, True)


def test_the_embedding_alone_runs_no_head(clip, monkeypatch):
    """Nothing is computed that nobody subscribes to."""
    def fail(_):
        raise AssertionError('the head ran')

    with graph_on(clip) as graph:
        monkeypatch.setattr(graph.node._model.estimator.model.head, 'forward', fail)
        embeddings = graph.listen('embedding', Image)
        wait_for(lambda: graph.publish('image', image_message()) or embeddings, 'an embedding')
        assert graph.node.statistics[0].failed == 0


def test_each_camera_has_an_embedding_of_its_own(clip):
    with graph_on(clip, cameras=['front', 'rear']) as graph:
        front, rear = (graph.listen(f'{n}/embedding', Image) for n in ('front', 'rear'))
        dark = image_message()
        dark.data = ros_graph.byte_array(np.zeros(len(dark.data), np.uint8))

        def both():
            graph.publish('front/image', image_message())
            graph.publish('rear/image', dark)
            return front and rear

        wait_for(both, 'both')
    assert not np.allclose(vector_of(front[0]), vector_of(rear[0]), atol=1e-3)


def test_a_tower_without_projection_warns_its_reader_and_gives_depth_unharmed(plain, capfd):
    with graph_on(plain) as graph:
        depth, clouds = graph.listen('depth/image_rect'), graph.listen('points')
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        wait_for(lambda: depth and clouds, 'depth before')
        assert NO_PROJECTION not in capfd.readouterr().err
        embeddings = graph.listen('embedding', Image)
        depth.clear(), clouds.clear()
        stamps = set()

        def play():
            image = image_message()
            stamps.add(stamp_ns(image))
            graph.publish('image', image)
            return min(len(depth), len(clouds)) >= 4

        wait_for(play, 'depth beside it')
        assert {stamp_ns(m) for m in depth} <= stamps
        assert not embeddings and graph.node.statistics[0].failed == 0
    warnings = [w for w in capfd.readouterr().err.splitlines() if NO_PROJECTION in w]
    assert len(warnings) == 1 and 'WARN' in warnings[0]
    assert 'Use weights on a CLIP, SigLIP or MobileCLIP tower. Depth goes on.' in warnings[0]


def test_a_reader_of_the_embedding_alone_is_warned_and_costs_nothing(plain, capfd):
    with graph_on(plain) as graph:
        graph.listen('embedding', Image)
        statistics = graph.node.statistics[0]
        wait_for(lambda: graph.publish('image', image_message()) or statistics.unwanted, 'a frame')
        assert statistics.failed == statistics.published == 0
    assert capfd.readouterr().err.count(NO_PROJECTION) == 1
