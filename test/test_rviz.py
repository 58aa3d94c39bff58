"""config/depth.rviz shows what the node publishes, by its names, with a QoS that receives it."""

import importlib
from pathlib import Path

import pytest
import yaml

CONFIG = Path(__file__).resolve().parent.parent / 'config' / 'depth.rviz'


@pytest.fixture(scope='module')
def manager():
    """The part of the file that RViz calls Visualization Manager."""
    return yaml.safe_load(CONFIG.read_text(encoding='utf-8'))['Visualization Manager']


@pytest.fixture(scope='module')
def subscriptions(manager):
    """Topic -> (class of the display, its Topic block)."""
    return {
        display['Topic']['Value']: (display['Class'], display['Topic'])
        for display in manager['Displays']
        if 'Topic' in display
    }


@pytest.fixture(scope='module')
def outputs():
    """Topic -> message class, from the node."""
    pytest.importorskip('rclpy', reason='no ROS here')
    module = importlib.import_module('vlm_depth_ros.ros.outputs')
    return {topic.name: topic.kind for topic in module.TOPICS}


def test_image_depth_and_cloud_are_shown(manager, subscriptions):
    assert set(subscriptions) == {'image', 'depth/image_rect', 'points'}
    assert all(display['Enabled'] for display in manager['Displays'])


def test_topics_are_relative_so_that_a_namespace_applies(subscriptions):
    assert not [topic for topic in subscriptions if topic.startswith(('/', '~'))]


def test_displays_take_the_messages_that_the_node_publishes(subscriptions, outputs):
    for topic, (display, _) in subscriptions.items():
        if topic != 'image':
            assert display == f'rviz_default_plugins/{outputs[topic].__name__}'


def test_outputs_are_read_reliably_and_the_camera_as_it_offers(subscriptions, outputs):
    # The node's outputs are reliable; a camera may offer best effort only.
    for topic, (_, block) in subscriptions.items():
        expected = 'Reliable' if topic in outputs else 'Best Effort'
        assert block['Reliability Policy'] == expected
        assert block['Durability Policy'] == 'Volatile'
        assert block['History Policy'] == 'Keep Last'
        assert block['Depth'] == 1


def test_fixed_frame_is_the_players_frame(manager):
    pytest.importorskip('rclpy', reason='no ROS here')
    player = importlib.import_module('vlm_depth_ros.ros.camera_player')
    assert manager['Global Options']['Fixed Frame'] == player.PARAMETERS['frame_id'][0]


def test_cloud_is_coloured_by_its_own_rgb(manager):
    (cloud,) = [d for d in manager['Displays'] if d['Class'].endswith('PointCloud2')]
    assert cloud['Color Transformer'] == 'RGB8'
    assert cloud['Position Transformer'] == 'XYZ'


def test_depth_has_a_fixed_range_because_infinity_is_a_value(manager):
    (depth,) = [d for d in manager['Displays'] if d['Name'] == 'Depth']
    assert depth['Normalize Range'] is False
    assert depth['Min Value'] == 0
    assert depth['Max Value'] == 10
