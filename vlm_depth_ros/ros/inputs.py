"""What one camera sends: its subscriptions, and the camera_info that fits an image."""

from collections.abc import Callable
import re
from typing import TYPE_CHECKING

import numpy as np
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.texts import quoted
from vlm_depth_ros.files.bag_arrays import camera_model
from vlm_depth_ros.ros.messages import compressed_to_rgb, image_to_rgb

if TYPE_CHECKING:
    from rclpy.node import Node

_RELIABILITIES = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}


class CameraInput:
    """The subscriptions of one camera and its newest camera_info."""

    def __init__(self, node: 'Node', prefix: str, transport: str):
        """Resolve names; nothing is subscribed yet.

        Args:
            node: Owner of the subscriptions.
            prefix: ``''`` or ``'front/'``, before each topic name.
            transport: ``raw`` or ``compressed``.
        """
        self._node = node
        self._image = f'{prefix}image' + ('/compressed' if transport == 'compressed' else '')
        self._info = f'{prefix}camera_info'
        self._type, self._to_rgb = Image, image_to_rgb
        if transport == 'compressed':
            self._type, self._to_rgb = CompressedImage, compressed_to_rgb
        self.image_topic = node.resolve_topic_name(self._image)
        self.info_topic = node.resolve_topic_name(self._info)
        self.is_rectified_by_name = _is_rectified_name(self.image_topic)
        self._override = f'qos_overrides.{self.image_topic}.subscription.reliability'
        self._subscriptions: list = []
        self._reliability = ''
        self._on_image: Callable[[object], None] = lambda message: None
        self._newest_info: CameraInfo | None = None
        self._known_info: CameraInfo | None = None
        self._known_model: CameraModel | InputError | None = None

    def subscribe(self, reliability: str, on_image: Callable[[object], None]) -> None:
        """Start receiving.

        Args:
            reliability: The parameter `input_reliability`.
            on_image: Called in the executor with each message.
        """
        # rclpy's own override parameter would pin the reliability that the first look-up chose.
        if not self._node.has_parameter(self._override):
            self._node.declare_parameter(self._override, 'system_default')
        self._on_image = on_image
        self._newest_info = None
        self._reliability = ''
        self._reliability = self._choose(reliability)
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        info = self._node.create_subscription(
            CameraInfo,
            self._info,
            self._on_info,
            best_effort,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions = [info, self._subscribe_image()]

    def follow_publishers(self, reliability: str) -> None:
        """Subscribe anew if the publishers that are there now ask for another reliability."""
        chosen = self._choose(reliability)
        if self._subscriptions and chosen != self._reliability:
            self._reliability = chosen
            self._node.destroy_subscription(self._subscriptions.pop())
            self._subscriptions.append(self._subscribe_image())

    def unsubscribe(self) -> None:
        """Stop receiving."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    @property
    def reliability(self) -> str:
        """How the images are subscribed now: ``reliable`` or ``best_effort``."""
        return self._reliability

    def to_rgb(self, message: object) -> np.ndarray:
        """Decode one image message of this camera.

        Raises:
            InputError: If the message is damaged or its encoding unknown.
        """
        return self._to_rgb(message)

    def camera_for(self, frame_id: str, image_hw: tuple[int, int]) -> CameraModel:
        """Return the camera of a frame from the newest camera_info.

        Raises:
            InputError: If there is none, or it belongs to another size or frame, or is invalid.
        """
        info = self._newest_info
        if info is None:
            raise InputError(f'no camera_info has come on {self.info_topic}.')
        if info.header.frame_id != frame_id and info.header.frame_id and frame_id:
            raise InputError(
                f'camera_info on {self.info_topic} is for frame {quoted(info.header.frame_id)} '
                f'and the image for {quoted(frame_id)}: expected one frame. Remap camera_info to '
                'the sibling of the image.'
            )
        model = self._model_of(info)
        if model.expected_image_hw != tuple(image_hw):
            height, width = model.expected_image_hw
            raise InputError(
                f'camera_info on {self.info_topic} is for images of {width} x {height} and the '
                f'image has {image_hw[1]} x {image_hw[0]} pixels: expected one size. Calibrate at '
                'this size, or publish the camera_info of the resized image.'
            )
        return model

    def _model_of(self, info: CameraInfo) -> CameraModel:
        """Keep one model object while the content stays, so that what is cached by it stays."""
        if self._known_info is None or not _same_camera(info, self._known_info):
            self._known_info = info
            try:
                self._known_model = camera_model(info)
            except InputError as err:
                self._known_model = err
        if isinstance(self._known_model, InputError):
            raise self._known_model
        return self._known_model

    def _on_info(self, message: CameraInfo) -> None:
        self._newest_info = message

    def _subscribe_image(self) -> object:
        qos = QoSProfile(
            depth=1, history=HistoryPolicy.KEEP_LAST, reliability=_RELIABILITIES[self._reliability]
        )
        return self._node.create_subscription(
            self._type,
            self._image,
            self._on_image,
            qos,
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)
            ),
        )

    def _choose(self, reliability: str) -> str:
        overridden = self._node.get_parameter(self._override).value
        if overridden in _RELIABILITIES:
            return overridden
        if reliability != 'auto':
            return reliability
        offered = [
            publisher.qos_profile.reliability
            for publisher in self._node.get_publishers_info_by_topic(self.image_topic)
        ]
        if not offered:
            # Best effort matches every publisher; a camera that went may come back as it was.
            return self._reliability or 'best_effort'
        all_reliable = all(o == ReliabilityPolicy.RELIABLE for o in offered)
        return 'reliable' if all_reliable else 'best_effort'


def _is_rectified_name(topic: str) -> bool:
    """Whether a topic is named for rectified images, as image_proc names them."""
    tokens = topic.split('/')
    last = tokens[-2] if tokens[-1] == 'compressed' and len(tokens) > 1 else tokens[-1]
    return re.search(r'(^|_)rect', last) is not None


def _same_camera(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two camera_infos differ in their header at most."""
    return a is b or (
        (a.height, a.width, a.distortion_model) == (b.height, b.width, b.distortion_model)
        and (a.binning_x, a.binning_y, a.roi) == (b.binning_x, b.binning_y, b.roi)
        and a.d == b.d
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ('k', 'r', 'p'))
    )
