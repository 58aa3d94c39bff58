"""Keeps what another process receives on topics, with the time of arrival, for a bag."""

from collections import Counter
from collections.abc import Mapping
import json
from pathlib import Path
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import String
from vlm_depth_ros.files.bags import BagWriter

TOPICS = {
    'image': Image,
    'camera_info': CameraInfo,
    'depth/image_rect': Image,
    'depth/camera_info': CameraInfo,
    'points': PointCloud2,
    'ground_truth/depth': Image,
}
"""What is recorded, and its type."""
RUN_TOPIC = '/demo/run'


class Recorder(Node):
    """Subscribes to topics, and keeps their messages in memory, unparsed, while `is_keeping`.

    Nothing is written while a run lasts: a disk would take time from the processes it measures.

    Args:
        topics: Their names and types.
        kwargs: For `Node`.
    """

    def __init__(self, topics: Mapping[str, type] = TOPICS, **kwargs: Any):
        super().__init__('recorder', **kwargs)
        self.topics = tuple(topics)
        self.counts: Counter[str] = Counter()
        """Messages seen of each topic, kept or not."""
        self.is_keeping = False
        self.last_arrival_s = time.monotonic()
        self.hardware = ''
        """Device that the depth node reports on /diagnostics."""
        self._kept: list[tuple[str, type, int, bytes]] = []
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for topic, kind in topics.items():
            self.create_subscription(
                kind,
                topic,
                lambda cdr, t=topic, k=kind: self._on_message(t, k, cdr),
                qos,
                raw=True,
            )
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 1)

    def _on_message(self, topic: str, kind: type, cdr: bytes) -> None:
        arrival_ns = time.time_ns()
        self.last_arrival_s = time.monotonic()
        self.counts[topic] += 1
        if self.is_keeping:
            self._kept.append((self.resolve_topic_name(topic), kind, arrival_ns, cdr))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith('depth_node') and status.hardware_id:
                self.hardware = status.hardware_id

    def write(self, path: Path, run: dict, tick=lambda: None) -> None:
        """Write everything kept as one compressed MCAP file, and forget it.

        Args:
            path: The file; an older one is replaced when the new one is complete.
            run: Facts about the run, stored as JSON on `RUN_TOPIC`.
            tick: Called after each message, for progress.

        Raises:
            InputError: If the file cannot be written.
        """
        note = serialize_message(String(data=json.dumps(run)))
        with BagWriter(path, compress=True) as bag:
            bag.add(RUN_TOPIC, 'std_msgs/msg/String', note, time.time_ns())
            for topic, kind, arrival_ns, cdr in self._kept:
                bag.add(topic, _type_name(kind), cdr, arrival_ns)
                tick()
        self._kept.clear()

    @property
    def kept_count(self) -> int:
        """Messages that `write` will write."""
        return len(self._kept)


def _type_name(kind: type) -> str:
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
