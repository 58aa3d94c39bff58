"""What the node says about itself on /diagnostics, once a second."""

from collections.abc import Mapping, Sequence
import math
import time
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from vlm_depth_ros.ros.worker import Statistics

if TYPE_CHECKING:
    from rclpy.node import Node

SILENT_S = 1.0
"""A camera that sent nothing, or a frame without an answer, for so long is an error: with a report
each second, it is told within two. Slow ones have `PERIODS` of their own."""
START_S = 1.5
"""A camera whose first image does not come for so long is one too, with the second report: one of
1 Hz is there by then. A driver that starts later ends the error with its first image."""
PERIODS = 3


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
        self._period_s = [0.0] * len(cameras)
        self._arrived_s: list[float]
        """When the newest image came that a report knew; 0 before the first."""
        self._listen_anew(time.monotonic())

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
            model: What there is to say of the model; ``last loading`` says why one failed,
                ``device trouble`` why its device is gone.
        """
        now_s = time.monotonic()
        counts = [(now_s, s.received, s.published, s.failed) for s in statistics]
        # Without a call before there is no interval to count in.
        before = self._before or counts
        self._before = counts
        if not enabled:
            self._listen_anew(now_s)
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        for i, (s, old, new) in enumerate(zip(statistics, before, counts)):
            interval_s = max(new[0] - old[0], 1e-9)
            arrived_s = self._arrived_s[i]
            if s.last_received_s > max(arrived_s, self._listening_since_s):
                if arrived_s:  # From one image to the next; the first has no period.
                    count = max(new[1] - old[1], 1)
                    self._period_s[i] = (s.last_received_s - arrived_s) / count
                self._arrived_s[i] = s.last_received_s
            level, text = DiagnosticStatus.OK, 'disabled by ~/enable'
            if enabled:
                patience_s = max(SILENT_S, PERIODS * self._period_s[i])
                silent_s = now_s - max(s.last_received_s, self._listening_since_s)
                level, text = _judge(s, now_s, silent_s, patience_s, failed=new[3] > old[3])
            if model['device trouble']:
                level, text = DiagnosticStatus.ERROR, model['device trouble']
            if level == DiagnosticStatus.OK and model['last loading']:
                level, text = DiagnosticStatus.WARN, model['last loading']
            values = {
                'input rate (Hz)': f'{(new[1] - old[1]) / interval_s:.1f}',
                'output rate (Hz)': f'{(new[2] - old[2]) / interval_s:.1f}',
                'latency (ms)': f'{s.last_latency_ms:.1f}',
                'age of the newest image (s)': f'{_age_s(s, now_s):.2f}',
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
        """Start rates and patience anew, after a pause."""
        self._before = []
        self._listen_anew(time.monotonic())

    def _listen_anew(self, now_s: float) -> None:
        self._listening_since_s = now_s
        self._arrived_s = [0.0] * len(self._names)  # A pause is no period.

    def destroy(self) -> None:
        """Withdraw the publisher."""
        self._node.destroy_publisher(self._publisher)


def _age_s(s: Statistics, now_s: float) -> float:
    return now_s - s.last_received_s if s.last_received_s else math.nan


def _judge(
    s: Statistics, now_s: float, silent_s: float, patience_s: float, failed: bool
) -> tuple[bytes, str]:
    if not s.last_received_s:
        if silent_s > START_S:
            return DiagnosticStatus.ERROR, f'no image has come in {silent_s:.1f} s'
        return DiagnosticStatus.WARN, 'no image has come yet'
    if silent_s > patience_s:
        return DiagnosticStatus.ERROR, f'no image for {silent_s:.1f} s'
    busy_since_s = s.busy_since_s  # The worker may be done the next moment.
    busy_s = now_s - busy_since_s if busy_since_s else 0.0
    if busy_s > max(SILENT_S, PERIODS * s.last_latency_ms / 1e3):
        return DiagnosticStatus.ERROR, f'no answer to an image for {busy_s:.1f} s'
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
