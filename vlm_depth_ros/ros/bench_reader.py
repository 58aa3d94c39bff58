"""A process that reads what the depth node publishes and keeps times only, no payloads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
import struct
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

POINTS, DEPTH = 'points', 'depth/image_rect'
MEMORY = 'device memory (MB)'
ENGINE = 'engine'
"""As the node's diagnostics call them."""


@dataclass
class Clouds:
    """Clouds of one camera, in the order of their arrival; nanoseconds of the system clock."""

    stamps_ns: list[int] = field(default_factory=list)
    """When the player published the image."""
    arrivals_ns: list[int] = field(default_factory=list)


class BenchReader(Node):
    """Subscribes to depth and clouds of some cameras, as a consumer in another process does."""

    def __init__(self, cameras: Sequence[str], **kwargs: Any):
        """Subscribe.

        Args:
            cameras: Prefixes of the topics; one empty name for topics as they are.
            kwargs: For `Node`.
        """
        super().__init__('bench_reader', **kwargs)
        self.clouds = {camera: Clouds() for camera in cameras}
        self._since_ns = 0
        self.last_arrival_s = time.monotonic()
        self.message_bytes = {POINTS: 0, DEPTH: 0}
        """Size of the newest one, serialised."""
        self.hardware = ''
        """Device that the node reports."""
        self.device_memory_mb: float | None = None
        """What it holds there."""
        self.engine = ''
        """What runs its network at the moment."""
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for camera in cameras:
            prefix = f'{camera}/' if camera else ''
            self.create_subscription(
                PointCloud2, prefix + POINTS, lambda cdr, c=camera: self._on_cloud(c, cdr), qos,
                raw=True,
            )  # fmt: skip
            self.create_subscription(Image, prefix + DEPTH, self._on_depth, qos, raw=True)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 1)

    @property
    def count(self) -> int:
        """Clouds since `forget`."""
        return sum(len(clouds.stamps_ns) for clouds in self.clouds.values())

    def forget(self) -> None:
        """Start anew; clouds of images from before no longer count."""
        self._since_ns = time.time_ns()
        for camera in self.clouds:
            self.clouds[camera] = Clouds()

    def _on_cloud(self, camera: str, cdr: bytes) -> None:
        arrival_ns, published_ns = time.time_ns(), stamp_ns(cdr)
        if published_ns >= self._since_ns:
            self.last_arrival_s = time.monotonic()
            self.message_bytes[POINTS] = len(cdr)
            self.clouds[camera].stamps_ns.append(published_ns)
            self.clouds[camera].arrivals_ns.append(arrival_ns)

    def _on_depth(self, cdr: bytes) -> None:
        self.message_bytes[DEPTH] = len(cdr)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith('depth_node') and status.hardware_id:
                self.hardware = status.hardware_id
                values = {pair.key: pair.value for pair in status.values}
                self.device_memory_mb = float(values.get(MEMORY, 'nan'))
                self.engine = values.get(ENGINE, '')


def stamp_ns(cdr: bytes) -> int:
    """Stamp of a serialised message that begins with a header.

    CDR (OMG DDSI-RTPS 10): four bytes that name the encoding, an odd second one for little
    endian; then seconds and nanoseconds.
    """
    seconds, nanoseconds = struct.unpack_from('<iI' if cdr[1] & 1 else '>iI', cdr, 4)
    return seconds * 10**9 + nanoseconds
