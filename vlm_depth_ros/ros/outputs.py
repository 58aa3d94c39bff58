"""What one camera's frames become: publishers, who listens to them, and one frame's messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2
from std_msgs.msg import Header
from vlm_depth_ros.ros.messages import (
    camera_info_message,
    cloud_message,
    compressed_message,
    image_message,
    scan_message,
)

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode
    from vlm_depth_ros.core.estimator import FrameOutput

OUTPUT_DEPTH = 2
"""Messages that a publisher keeps for slow readers; old depth is worth nothing to a robot."""


@dataclass(frozen=True)
class Topic:
    """One output of a camera."""

    name: str
    """Relative, behind the camera's prefix."""
    kind: type
    wants: str
    """What to compute for it, in the words of `core.frames.Frame.wants`."""
    field: str
    """Where the estimator's answer holds it."""
    wrap: Callable[[Any, Header], Any]
    in_base: bool = False
    """Whether its header names the robot's frame instead of the camera's."""


TOPICS = (
    Topic('depth/image_rect', Image, 'depth', 'depth', image_message),
    Topic('depth/camera_info', CameraInfo, 'depth', 'camera_info', camera_info_message),
    Topic(
        'depth/image_rect/compressedDepth',
        CompressedImage, 'compressed', 'compressed', compressed_message,
    ),
    Topic('depth/confidence', Image, 'confidence', 'confidence', image_message),
    Topic('depth/image_color', Image, 'color', 'color', image_message),
    Topic('rgb/image_rect', Image, 'rgb', 'rgb', image_message),
    Topic('rgb/camera_info', CameraInfo, 'rgb', 'camera_info', camera_info_message),
    Topic('points', PointCloud2, 'points', 'points', cloud_message),
    Topic('points_clearing', PointCloud2, 'clearing', 'clearing', cloud_message),
    Topic('scan', LaserScan, 'scan', 'scan', scan_message, in_base=True),
    Topic('embedding', Image, 'embedding', 'embedding', image_message),
)  # fmt: skip


class CameraOutput:
    """The publishers of one camera; they exist while the node is configured."""

    def __init__(self, node: 'LifecycleNode', prefix: str):
        """Create the publishers; `prefix` stands before each topic name."""
        self._node = node
        qos = QoSProfile(depth=OUTPUT_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = {
            topic: node.create_lifecycle_publisher(
                topic.kind,
                prefix + topic.name,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic in TOPICS
        }
        self._warned: set[str] = set()

    def wants(self, says_pose: bool) -> frozenset[str]:
        """Return what somebody subscribes to and may have, in the estimator's words.

        Args:
            says_pose: Whether the place of the camera in the robot was ever said.
        """
        return frozenset(
            topic.wants
            for topic, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
            and (not topic.in_base or self._may_speak_for_base(publisher.topic_name, says_pose))
        )

    def _may_speak_for_base(self, topic_name: str, says_pose: bool) -> bool:
        """Whether what is about the robot would be true; warns where not, or where others talk.

        `scan` is what most lidars call theirs, so a reader that never heard of this node asks for
        it. What that gets must not be guessed; if both talk, somebody is told.
        """
        if not says_pose:
            self._warn_once(
                'pose',
                f'Somebody reads {topic_name}, which stays silent: camera_in_base is all zeros, '
                'and a scan from there would be wrong. Set camera_in_base to the pose of the '
                'camera in base_frame (1.0e-6 for one of the six if they truly are zeros), or '
                'pose_source to tf. If that is the topic of a lidar, '
                'rename this one: --ros-args -r scan:=depth/scan',
            )
            return False
        if self._node.count_publishers(topic_name) > 1:
            self._warn_once(
                'foreign',
                f'Another node publishes {topic_name} too, so readers get two scans as if they '
                'were one. Rename this one: --ros-args -r scan:=depth/scan',
            )
        return True

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._node.get_logger().warning(text)

    def publish(self, output: 'FrameOutput', header: Header, base_frame: str) -> None:
        """Publish what was computed and somebody still wants, with the input's own header."""
        in_base = Header(stamp=header.stamp, frame_id=base_frame)
        for topic, publisher in self._publishers.items():
            packed = getattr(output, topic.field, None)
            if packed is not None and publisher.get_subscription_count() > 0:
                publisher.publish(topic.wrap(packed, in_base if topic.in_base else header))

    def destroy(self) -> None:
        """Withdraw the topics."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}
