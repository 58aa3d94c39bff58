"""The soak reads what it says, and its verdict is about a node that answers."""

import pytest
import yaml

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, image_message, info_message, Spinner, wait_for  # noqa: E402
from vlm_depth_ros.ros.outputs import TOPICS  # noqa: E402
from vlm_depth_ros.ros.soak import MOUNTED, reader  # noqa: E402

NOT_OF_THE_STAND_IN = {'depth/confidence', 'embedding'}
"""Its head has no confidence, and its tower no projection."""


def test_the_soak_subscribes_to_every_output_and_each_that_the_model_has_comes():
    with Graph(camera_in_base=yaml.safe_load(MOUNTED.partition(':=')[2])) as graph:
        recorder = Spinner(lambda context: reader(context=context))
        try:
            (output,) = graph.node._outputs
            publishers = output._publishers.values()
            wait_for(
                lambda: all(p.get_subscription_count() for p in publishers), 'a reader of each'
            )
            graph.publish('camera_info', info_message())
            counts = recorder.node.counts
            wait_for(
                lambda: graph.publish('image', image_message())
                or set(counts) == {topic.name for topic in TOPICS} - NOT_OF_THE_STAND_IN,
                'every output',
            )
            assert recorder.node.kept_count == 0
        finally:
            recorder.close()
