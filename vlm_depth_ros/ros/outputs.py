"""What one camera's frames become: publishers, who listens to them, and one frame's messages."""

from typing import TYPE_CHECKING

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from vlm_depth_ros.ros.messages import camera_info_message, cloud_message, image_message

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode
    from vlm_depth_ros.core.estimator import FrameOutput

OUTPUT_DEPTH = 2
"""Messages that a publisher keeps for slow readers; old depth is worth nothing to a robot."""
TOPICS = {
    # Output of the estimator: topic, message type, what to compute for it, how to wrap it.
    'depth': ('depth/image_rect', Image, 'depth', image_message),
    'confidence': ('depth/confidence', Image, 'confidence', image_message),
    'camera_info': ('depth/camera_info', CameraInfo, 'depth', camera_info_message),
    'points': ('points', PointCloud2, 'points', cloud_message),
    'color': ('depth/image_color', Image, 'color', image_message),
    'embedding': ('embedding', Image, 'embedding', image_message),
}


class CameraOutput:
    """The publishers of one camera; they exist while the node is configured."""

    def __init__(self, node: 'LifecycleNode', prefix: str):
        """Create the publishers; `prefix` stands before each topic name."""
        self._node = node
        qos = QoSProfile(depth=OUTPUT_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = {
            name: node.create_lifecycle_publisher(
                kind,
                prefix + topic,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for name, (topic, kind, _, _) in TOPICS.items()
        }

    def wants(self) -> frozenset[str]:
        """Return what somebody subscribes to, in the estimator's words."""
        return frozenset(
            TOPICS[name][2]
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
        )

    def publish(self, output: 'FrameOutput', header: Header) -> None:
        """Publish what was computed and somebody still wants, with the input's own header."""
        for name, publisher in self._publishers.items():
            packed = getattr(output, name, None)
            if packed is not None and publisher.get_subscription_count() > 0:
                wrap = TOPICS[name][3]
                publisher.publish(wrap(packed, header))

    def destroy(self) -> None:
        """Withdraw the topics."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}
