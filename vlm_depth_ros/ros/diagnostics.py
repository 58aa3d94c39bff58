"""What the node says about itself on /diagnostics, once a second."""

from collections.abc import Mapping, Sequence
import time
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from vlm_depth_ros.ros.worker import Statistics

if TYPE_CHECKING:
    from rclpy.node import Node

SILENT_S = 2.0
"""A camera that sent nothing for so long is reported."""


class Diagnostics:
    """Turns counters into one status for each camera."""

    def __init__(self, node: 'Node', cameras: Sequence[str], hardware: str):
        """Create the publisher.

        Args:
            node: The node that is reported on.
            cameras: Their names, ``''`` for the only one.
            hardware: The device that the network runs on.
        """
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 1)
        self._names = [f'{node.get_name()}: {camera or "camera"}' for camera in cameras]
        self._hardware = hardware
        self._before: list[tuple[float, int, int, int]] = []

    def publish(
        self,
        statistics: Sequence[Statistics],
        reliabilities: Sequence[str],
        enabled: bool,
        model: Mapping[str, str],
    ) -> None:
        """Publish the rates since the last call and the totals.

        Args:
            statistics: Of each camera.
            reliabilities: How the images of each camera are subscribed.
            enabled: Whether images are let in at all.
            model: What there is to say of the model; ``last loading`` says why one failed.
        """
        now_s = time.monotonic()
        counts = [(now_s, s.received, s.published, s.failed) for s in statistics]
        # Without a call before there is no interval to count in.
        before = self._before or counts
        self._before = counts
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        for i, (s, old, new) in enumerate(zip(statistics, before, counts)):
            level, text = DiagnosticStatus.OK, 'disabled by ~/enable'
            if enabled:
                level, text = _judge(s, now_s, failed=new[3] > old[3])
            if level == DiagnosticStatus.OK and model['last loading']:
                level, text = DiagnosticStatus.WARN, model['last loading']
            interval_s = max(new[0] - old[0], 1e-9)
            values = {
                'input rate (Hz)': f'{(new[1] - old[1]) / interval_s:.1f}',
                'output rate (Hz)': f'{(new[2] - old[2]) / interval_s:.1f}',
                'latency (ms)': f'{s.last_latency_ms:.1f}',
                'frames received': s.received,
                'frames published': s.published,
                'frames dropped for newer ones': s.dropped,
                'frames nobody subscribed to': s.unwanted,
                'frames failed': s.failed,
                'times that stamps went back': s.time_jumps,
                'last error': s.last_error,
                'camera_info': s.camera_trouble or 'fits',
                'valid share of depth': f'{s.valid_share:.3f}',
                'scale': f'{s.scale.factor:.4f}',
                'scale status': s.scale.status,
                'scale uncertainty': f'{s.scale.uncertainty:.4f}',
                'scale trouble': s.scale.reason,
                'scale measurements accepted': s.scale.accepted,
                'scale measurements refused': s.scale.refused,
                'input reliability': reliabilities[i],
                **model,
            }
            status = DiagnosticStatus(level=level, name=self._names[i], message=text)
            status.hardware_id = self._hardware
            status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
            message.status.append(status)
        self._publisher.publish(message)

    def forget(self) -> None:
        """Start rates anew, after a pause or a jump of time."""
        self._before = []

    def destroy(self) -> None:
        """Withdraw the publisher."""
        self._node.destroy_publisher(self._publisher)


def _judge(s: Statistics, now_s: float, failed: bool) -> tuple[bytes, str]:
    if not s.last_received_s:
        return DiagnosticStatus.WARN, 'no image has come yet'
    silent_s = now_s - s.last_received_s
    if silent_s > SILENT_S:
        return DiagnosticStatus.ERROR, f'no image for {silent_s:.0f} s'
    if failed:
        return DiagnosticStatus.WARN, f'frames fail: {s.last_error}'
    if s.camera_trouble:
        return DiagnosticStatus.WARN, 'no points: camera_info does not fit'
    if s.valid_share == 0:
        return DiagnosticStatus.WARN, 'no depth in the whole image'
    if s.scale.status == 'frozen':
        return DiagnosticStatus.WARN, f'the depth scale is frozen: {s.scale.reason}'
    if s.scale.status == 'waiting':
        return DiagnosticStatus.WARN, f'the depth scale is not measured yet: {s.scale.reason}'
    return DiagnosticStatus.OK, 'running'
