"""The executable ``camera_player``: any recording that `files` can read, as a camera on topics."""

from collections.abc import Iterator
from dataclasses import dataclass
import math
import queue
import sys
import threading
import time
from typing import Any

import cv2
import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError, VlmDepthError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.source import ACCEPTED, open_source, Source, SourceFrame
from vlm_depth_ros.ros.messages import byte_array
from vlm_depth_ros.ros.process import one_line, run, Stop

DEFAULT_RATE_HZ = 10.0
"""Rate of a source without stamps."""
AHEAD = 8
"""Frames that are decoded before their time."""
JPEG_QUALITY = 90
PARAMETERS = {
    'source': ('', f'What to play: {ACCEPTED}.'),
    'rate_hz': (
        0.0,
        "Frames per second; 0 keeps the source's own times, or 10 where it has none.",
    ),
    'loop': (False, 'Start again at the end.'),
    'count': (0, 'Stop after so many frames; 0 plays all.'),
    'frame_id': ('camera_optical_frame', 'Frame of the images: x right, y down, z forward.'),
    'stamp': ('now', "now: time of publication; source: the source's own stamps."),
    'image_transport': ('raw', 'raw publishes image; compressed image/compressed (JPEG).'),
    'wait_for_subscribers': (0, 'Do not start before so many have subscribed to the images.'),
    'start_delay_s': (0.0, 'Wait so long before the first frame (after the subscribers).'),
    'distortion': (
        [0.0] * 5,
        'D of the camera_info: k1 k2 p1 p2 k3 (plumb_bob) or eight (rational_polynomial).',
    ),
    'horizontal_fov_deg': (
        0.0,
        'Camera for a source that does not know its own; 0 publishes no camera_info then.',
    ),
}
"""Name: default and description."""


@dataclass(frozen=True)
class Prepared:
    """A frame with everything computed that can be before its time."""

    index: int
    stamp_s: float | None
    image: Image | CompressedImage
    camera_info: CameraInfo | None
    depth: np.ndarray | None


class CameraPlayer(Node):
    """Publishes ``image`` or ``image/compressed``, ``camera_info`` and ``ground_truth/depth``."""

    def __init__(self, stop: Stop, **kwargs: Any):
        """Open the source and start playing.

        Args:
            stop: Asked for when everything is played, or at the first error with exit code 1.
            kwargs: For `Node`.

        Raises:
            VlmDepthError: If the source cannot be opened or a parameter is refused.
        """
        self._stop = stop
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        # After the attributes: the context destroys this node too if what follows fails.
        super().__init__('camera_player', **kwargs)
        for name, (default, description) in PARAMETERS.items():
            descriptor = ParameterDescriptor(description=description, read_only=True)
            self.declare_parameter(name, default, descriptor)
        self._check_parameters()
        self._source: Source = open_source(self._value('source'))
        self._compressed = self._value('image_transport') == 'compressed'
        self._image_publisher = self._publisher(
            *((CompressedImage, 'image/compressed') if self._compressed else (Image, 'image'))
        )
        self._info_publisher = self._publisher(CameraInfo, 'camera_info')
        self._truth_publisher = self._publisher(Image, 'ground_truth/depth')
        self._ahead: queue.Queue[Prepared | Exception | None] = queue.Queue(AHEAD)
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._prepare, self._play)
        ]
        for thread in self._threads:
            thread.start()

    def destroy_node(self) -> None:
        """Stop playing and destroy the node."""
        self._closing.set()
        for thread in self._threads:
            thread.join(1.0)
        super().destroy_node()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self) -> None:
        require(self._value('source') != '', f"source = '': expected {ACCEPTED}.")
        choices_of = {'stamp': ('now', 'source'), 'image_transport': ('raw', 'compressed')}
        for name, choices in choices_of.items():
            value = self._value(name)
            require(value in choices, f'{name} = {value!r}: expected one of {", ".join(choices)}.')
        limits = {
            'rate_hz': 1000.0, 'start_delay_s': 3600.0, 'count': math.inf,
            'wait_for_subscribers': 100,
        }  # fmt: skip
        for name, high in limits.items():
            value = self._value(name)
            require(0 <= value <= high, f'{name} = {value}: expected 0 to {high:g}.')
        fov_deg, d = self._value('horizontal_fov_deg'), self._value('distortion')
        require(0 <= fov_deg < 180, f'horizontal_fov_deg = {fov_deg}: expected 0 to below 180.')
        require(len(d) in (5, 8), f'distortion has {len(d)} numbers: expected 5 or 8.')

    def _publisher(self, kind: type, topic: str) -> Any:
        qos = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
        overrides = QoSOverridingOptions.with_default_policies()
        return self.create_publisher(kind, topic, qos, qos_overriding_options=overrides)

    # Decoding ahead, in a thread of its own.

    def _prepare(self) -> None:
        try:
            for index, frame in enumerate(self._frames()):
                self._hand_over(self._prepared(index, frame))
                if self._closing.is_set():
                    return
            self._hand_over(None)
        except Exception as err:
            self._hand_over(err)

    def _frames(self) -> Iterator[SourceFrame]:
        count = self._value('count')
        played = 0
        while True:
            before = played
            for index in range(len(self._source)):
                try:
                    frame = self._source[index]
                except InputError as err:
                    self.get_logger().warning(f'Frame passed over: {err}')
                    continue
                except IndexError:  # A video may hold fewer frames than it says.
                    break
                yield frame
                played += 1
                if played == count:
                    return
            if played == before:
                raise InputError(f'{self._value("source")}: no frame of it can be read.')
            if not self._value('loop'):
                return

    def _prepared(self, index: int, frame: SourceFrame) -> Prepared:
        height, width = frame.rgb.shape[:2]
        if self._compressed:
            bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
            _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            image = CompressedImage(format='rgb8; jpeg compressed bgr8', data=byte_array(data))
        else:
            image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
            image.data = byte_array(frame.rgb)
        intrinsics = frame.intrinsics or self._assumed_camera(width, height)
        info = self._camera_info(intrinsics) if intrinsics else None
        return Prepared(index, frame.stamp_s, image, info, frame.depth_m)

    def _assumed_camera(self, width: int, height: int) -> CameraIntrinsics | None:
        fov_deg = self._value('horizontal_fov_deg')
        return CameraIntrinsics.from_fov(fov_deg, (height, width)) if fov_deg else None

    def _camera_info(self, camera: CameraIntrinsics) -> CameraInfo:
        info = CameraInfo(height=camera.height_px, width=camera.width_px)
        d = list(self._value('distortion'))
        info.distortion_model = 'plumb_bob' if len(d) == 5 else 'rational_polynomial'
        k = camera.matrix.ravel().tolist()
        info.d, info.k, info.r = d, k, np.eye(3).ravel().tolist()
        info.p = [*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0]
        return info

    def _hand_over(self, item: Prepared | Exception | None) -> None:
        while not self._closing.is_set():
            try:
                return self._ahead.put(item, timeout=0.2)
            except queue.Full:
                pass

    # Publishing on time, in a thread of its own.

    def _play(self) -> None:
        try:
            first = self._next()
            wanted = self._value('wait_for_subscribers')
            while self._image_publisher.get_subscription_count() < wanted:
                if self._closing.wait(0.05):
                    return
            if not self._closing.wait(self._value('start_delay_s')):
                self._play_from(first)
                self._stop.request()
        except VlmDepthError as err:
            self.get_logger().fatal(one_line(err))
            self._stop.request(exit_code=1)
        except Exception as err:
            if not self._closing.is_set():
                self.get_logger().fatal(f'Stopped playing: {one_line(err)}')
                self._stop.request(exit_code=1)

    def _next(self) -> Prepared | None:
        while not self._closing.is_set():
            try:
                item = self._ahead.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def _play_from(self, item: Prepared | None) -> None:
        start_s = due_s = time.monotonic()
        published, latest_s, previous = 0, 0.0, None
        while item is not None:
            due_s += self._interval_s(previous, item)
            if self._closing.wait(max(0.0, due_s - time.monotonic())):
                break
            late_s = time.monotonic() - due_s
            if late_s > 1.0:  # No burst after a pause: the schedule moves.
                due_s += late_s
            latest_s = max(latest_s, late_s)
            self._publish(item)
            published += 1
            previous, item = item, self._next()
        lasted_s = max(time.monotonic() - start_s, 1e-9)
        for publisher in (self._image_publisher, self._info_publisher):
            publisher.wait_for_all_acked(Duration(seconds=1))
        self.get_logger().info(
            f'Published {published} frames in {lasted_s:.1f} s '
            f'({max(published - 1, 0) / lasted_s:.1f} Hz, at most {latest_s * 1e3:.0f} ms late).'
        )

    def _interval_s(self, previous: Prepared | None, item: Prepared) -> float:
        """Time from one frame to the next."""
        if previous is None:
            return 0.0
        if self._value('rate_hz') > 0:
            return 1 / self._value('rate_hz')
        if None in (previous.stamp_s, item.stamp_s) or item.stamp_s <= previous.stamp_s:
            return 1 / DEFAULT_RATE_HZ
        return item.stamp_s - previous.stamp_s

    def _publish(self, item: Prepared) -> None:
        header = Header(frame_id=self._value('frame_id'))
        if self._value('stamp') == 'source' and item.stamp_s is not None:
            stamp_ns = round(item.stamp_s * 1e9)
            header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 10**9)
        else:
            header.stamp = self.get_clock().now().to_msg()
        item.image.header = header
        if item.camera_info is not None:
            item.camera_info.header = header
            self._info_publisher.publish(item.camera_info)
        if item.depth is not None and self._truth_publisher.get_subscription_count() > 0:
            self._truth_publisher.publish(_depth_image(item.depth, header))
        self._image_publisher.publish(item.image)


def _depth_image(depth_m: np.ndarray, header: Header) -> Image:
    height, width = depth_m.shape
    message = Image(header=header, height=height, width=width, encoding='32FC1', step=4 * width)
    message.data = byte_array(np.ascontiguousarray(depth_m, np.float32))
    return message


def main(args: list[str] | None = None) -> int:
    """Play until the end or a signal; the exit code."""
    return run(CameraPlayer, args)


if __name__ == '__main__':
    sys.exit(main())
