"""What is known beside the image: where the camera sits, and what another sensor measured."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TYPE_CHECKING

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import LaserScan, PointCloud2, Range
from std_msgs.msg import Header
from vlm_depth_ros.core.errors import DependencyError, InputError, reason_of
from vlm_depth_ros.core.mounting import base_from_optical, base_from_sensor, inverse_of
from vlm_depth_ros.core.scale import NOTHING_NEW
from vlm_depth_ros.core.scale_ranges import points_of_cloud, points_of_range, points_of_scan
from vlm_depth_ros.core.texts import quoted
from vlm_depth_ros.ros.clouds import cloud_to_xyz
from vlm_depth_ros.ros.node_params import NodeParams

if TYPE_CHECKING:
    from rclpy.node import Node

MAX_APART_S = 0.5
"""A range that was taken longer than this before or after the image does not speak for it."""
MOST_OF_TF = 300
"""Characters of its own words, in which frame_ids of messages stand whole."""
RANGE_TOPICS = {'ranges/scan': LaserScan, 'ranges/points': PointCloud2, 'ranges/range': Range}


class Surroundings:
    """Poses from parameters or tf, and the newest message of whatever measures ranges."""

    def __init__(self, node: 'Node', params: NodeParams):
        """Listen to tf if `pose_source` says so; ranges are subscribed by `follow`.

        Raises:
            DependencyError: If tf is asked for and tf2_ros is not installed.
        """
        self._node = node
        self._tf = TransformTree(node) if params.pose_source == 'tf' else None
        self._subscriptions: list = []
        self._newest: Any = None
        self._measured: dict[int, Any] = {}
        """What each camera was measured by last."""

    def follow(self, params: NodeParams) -> None:
        """Subscribe to ranges while `scale_source` asks for them."""
        wanted = params.scale_source == 'ranges'
        if wanted and not self._subscriptions:
            self._subscriptions = [
                self._node.create_subscription(
                    kind,
                    topic,
                    self._on_range,
                    qos_profile_sensor_data,
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
                for topic, kind in RANGE_TOPICS.items()
            ]
        elif self._subscriptions and not wanted:
            self.unsubscribe()

    def unsubscribe(self) -> None:
        """Stop receiving ranges."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions, self._newest, self._measured = [], None, {}

    def destroy(self) -> None:
        """Stop receiving anything."""
        self.unsubscribe()
        if self._tf is not None:
            self._tf.close()

    def base_from_optical(self, index: int, header: Header, params: NodeParams) -> np.ndarray:
        """Pose (4, 4) of the optical frame of a camera, by its place in `cameras`.

        Raises:
            InputError: If tf does not know it.
        """
        if self._tf is not None:
            return self._tf.a_from_b(params.base_frame, header.frame_id)
        return _mounted(params.camera_pose(index))

    def range_points(self, index: int, header: Header, params: NodeParams) -> np.ndarray:
        """Points (N, 3) in the optical frame of a camera from the newest range message.

        A camera gets each message once: a scan that lasts for many frames is one measurement.

        Raises:
            InputError: If none has come, it is too old, tf does not know where its sensor sits, or
                it is damaged; `NOTHING_NEW` between two messages.
        """
        message = self._newest
        if message is None:
            names = ', '.join(map(self._node.resolve_topic_name, RANGE_TOPICS))
            raise InputError(f'no range has come on {names}')
        apart_s = abs(_stamp_s(header) - _stamp_s(message.header))
        is_known = self._measured.get(index) is message
        if is_known and apart_s <= params.scale_lost_after_s:
            raise InputError(NOTHING_NEW)
        if is_known or apart_s > MAX_APART_S:
            raise InputError(
                f'the newest range is {apart_s:.1f} s apart from the image, over {MAX_APART_S} s'
            )
        sensor = message.header.frame_id
        if self._tf is not None:
            optical_from_sensor = self._tf.a_from_b(header.frame_id, sensor)
        else:
            camera = self.base_from_optical(index, header, params)
            optical_from_sensor = inverse_of(camera) @ base_from_sensor(
                params.ranges_in_base, 'ranges_in_base'
            )
        self._measured[index] = message
        try:
            return READERS[type(message)](message, optical_from_sensor)
        except InputError:
            raise
        except Exception as err:  # Whatever a sensor sends, the frame goes on.
            raise InputError(f'the range message cannot be read: {reason_of(err)}') from err

    def _on_range(self, message: Any) -> None:
        self._newest = message


class TransformTree:
    """The newest transforms of tf; needs tf2_ros, which comes with a ROS installation only."""

    def __init__(self, node: 'Node'):
        """Listen to /tf and /tf_static; raises DependencyError without tf2_ros."""
        try:
            from tf2_ros import Buffer, TransformListener
        except ImportError as err:
            raise DependencyError(
                f"pose_source is 'tf', but tf2_ros cannot be imported ({err}). Install "
                "ros-$ROS_DISTRO-tf2-ros, or set pose_source to 'parameters' and camera_in_base."
            ) from err
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, node)

    def a_from_b(self, a: str, b: str) -> np.ndarray:
        """Newest transform (4, 4) of points of frame `b` into frame `a`.

        Raises:
            InputError: If tf does not connect the two.
        """
        try:
            transform = self._buffer.lookup_transform(a, b, Time()).transform
        except Exception as err:  # tf2's own types, which exist only where it is installed.
            raise InputError(
                f'tf does not lead from {quoted(b)} to {quoted(a)}: {str(err)[:MOST_OF_TF]}'
            ) from err
        return matrix_of(transform)

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()


def matrix_of(transform: Any) -> np.ndarray:
    """(4, 4) of a geometry_msgs/Transform."""
    t, q = transform.translation, transform.rotation
    x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / np.linalg.norm([q.x, q.y, q.z, q.w])
    matrix = np.eye(4)
    matrix[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


def _of_scan(scan: LaserScan, optical_from_sensor: np.ndarray) -> np.ndarray:
    return points_of_scan(
        np.asarray(scan.ranges), scan.angle_min, scan.angle_increment,
        scan.range_min, scan.range_max, optical_from_sensor,
    )  # fmt: skip


def _of_range(found: Range, optical_from_sensor: np.ndarray) -> np.ndarray:
    return points_of_range(
        found.range, found.field_of_view, found.min_range, found.max_range, optical_from_sensor
    )


def _of_cloud(cloud: PointCloud2, optical_from_sensor: np.ndarray) -> np.ndarray:
    return points_of_cloud(cloud_to_xyz(cloud), optical_from_sensor)


READERS: dict[type, Callable[[Any, np.ndarray], np.ndarray]] = {
    LaserScan: _of_scan,
    PointCloud2: _of_cloud,
    Range: _of_range,
}


def _stamp_s(header: Header) -> float:
    return header.stamp.sec + header.stamp.nanosec * 1e-9


@lru_cache(maxsize=16)
def _mounted(pose: tuple[float, ...]) -> np.ndarray:
    return base_from_optical(pose)
