"""The pictures of a bag as a source: an image topic with its camera_info and its depth, if any."""

from collections.abc import Iterator
from dataclasses import dataclass
import logging
from pathlib import Path
from typing import Any

import numpy as np
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files import bags
from vlm_depth_ros.files.bag_arrays import (
    camera_model,
    COMPRESSED_IMAGE,
    depth_array_m,
    DEPTH_ENCODINGS,
    IMAGE,
    image_array,
    PICTURE_ENCODINGS,
    stamp_ns,
)
from vlm_depth_ros.files.images import decode_rgb
from vlm_depth_ros.files.source import EndedEarly, Source, SourceFrame

MATCH_TOLERANCE_S = 0.02
"""Depth belongs to a picture if their stamps differ by no more; as TUM's associate.py."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ImageTopic:
    """An image topic and what its first message tells."""

    name: str
    count: int
    is_compressed: bool
    encoding: str
    frame_id: str
    first: Any

    @property
    def is_depth(self) -> bool:
        """Whether the pixels are distances (or a confidence), not a picture."""
        return self.encoding.startswith(DEPTH_ENCODINGS) or 'compressedDepth' in self.encoding

    @property
    def sounds_like_depth(self) -> bool:
        """Whether the name places it beside depth images, as ``depth/image_color`` is."""
        return any('depth' in part.lower() for part in self.name.split('/')[-3:])

    @property
    def is_picture(self) -> bool:
        """Whether it can be shown as RGB."""
        return not self.is_depth and (self.is_compressed or self.encoding in PICTURE_ENCODINGS)

    def rgb(self, message: Any, where: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        if self.is_compressed:
            return decode_rgb(message.data, where)
        try:
            pixels = image_array(message)
        except InputError as err:
            raise InputError(f'{where}: {err}') from err
        if pixels.dtype != np.uint8:
            raise InputError(f'{where}: encoding {message.encoding!r} is no 8-bit picture.')
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


class BagSource(Source):
    """Pictures of one topic in the order of the recording.

    `camera` is the model from the first camera_info of the sibling topic (last name replaced by
    ``camera_info``, the rule of image_transport), None where there is none or the camera is not
    calibrated. Pictures stay as recorded: `SourceFrame.intrinsics` of a distorted one are its K.
    """

    def __init__(self, path: str | Path, topic: str | None = None, depth_topic: str | None = None):
        """Choose the topics; see `vlm_depth_ros.files.source.open_source`.

        Raises:
            InputError: If the bag cannot be read, lacks a named topic, or has no picture.
        """
        self.path = Path(path)
        self._open: list[bags.BagReader] = []
        self._messages: Iterator | None = None
        self._depths: _DepthTrack | None = None
        self._next = 0
        self._last: tuple[str, bytes] | None = None
        with bags.BagReader(self.path) as bag:
            found = _image_topics(bag)
            self._image = _choose(self.path, found, topic)
            rgb = self._image.rgb(self._image.first, f'{self.path}, {self._image.name}')
            self._image_hw = rgb.shape[:2]
            self.camera = self._read_camera(bag)
            self.depth_topic = self._choose_depth(found, depth_topic)
        self.topic = self._image.name
        self._intrinsics = self._delivered_intrinsics()

    def __len__(self) -> int:
        """Count the messages of the image topic."""
        return self._image.count

    def _frame(self, index: int) -> SourceFrame:
        msgtype, cdr = self._raw(index)
        name = f'{self.topic}#{index}'
        message = self._open[0].decode(msgtype, cdr)
        rgb = self._image.rgb(message, f'{self.path}, {name}')
        stamp = stamp_ns(message)
        depth_m = self._depths.nearest(stamp, rgb.shape[:2]) if self._depths else None
        fits = self._intrinsics is not None and self._intrinsics.image_hw == rgb.shape[:2]
        return SourceFrame(
            rgb=rgb,
            stamp_s=stamp * 1e-9,
            intrinsics=self._intrinsics if fits else None,
            depth_m=depth_m,
            name=name,
        )

    def _raw(self, index: int) -> tuple[str, bytes]:
        """Message `index` undecoded, so that a damaged one does not end the pass."""
        if self._last is not None and index == self._next - 1:
            return self._last
        if self._messages is None or index < self._next:
            self._restart()
        while self._next <= index:
            try:
                item = next(self._messages, None)
            except InputError:
                self.close()  # the generator is finished; a later frame shall fail in the same way
                raise
            if item is None:
                raise EndedEarly(
                    f'{self.path}: {self.topic} ends after {self._next} of {len(self)} messages.'
                )
            self._next += 1
            self._last = item[2:]
        return self._last

    def _restart(self) -> None:
        self.close()
        # A reader of its own for each topic: depth may be recorded long after its picture, and one
        # file handle cannot stand at two places.
        self._open.append(bags.BagReader(self.path))
        if self.depth_topic:
            self._open.append(bags.BagReader(self.path))
            self._depths = _DepthTrack(self._open[1], self.depth_topic)
        self._messages = self._open[0].raw([self.topic])

    def close(self) -> None:
        """Close the bag; a later frame opens it again."""
        for reader in self._open:
            reader.close()
        self._open.clear()
        self._messages = self._depths = self._last = None
        self._next = 0

    def _read_camera(self, bag: bags.BagReader) -> CameraModel | None:
        base = self._image.name
        if self._image.is_compressed:
            base = base.rpartition('/')[0]  # image/compressed belongs to image
        sibling = base.rpartition('/')[0] + '/camera_info'
        if not any(t.name == sibling and t.count for t in bag.topics):
            _log.info('%s: no %s, so the camera is unknown.', self.path, sibling)
            return None
        try:
            camera = camera_model(bag.first(sibling))
        except InputError as err:
            _log.warning('%s, %s: %s Going on without a camera.', self.path, sibling, err)
            return None
        if camera.expected_image_hw != self._image_hw:
            _log.warning(
                '%s: %s is for images of %s, but %s has %s (height, width); going on without it.',
                self.path,
                sibling,
                camera.expected_image_hw,
                self._image.name,
                self._image_hw,
            )
            return None
        return camera

    def _delivered_intrinsics(self) -> CameraIntrinsics | None:
        if self.camera is None:
            return None
        is_rectified = 'rect' in self.topic
        if self.camera.is_distorted and not is_rectified:
            _log.warning(
                '%s: %s is distorted by its lens; its intrinsics hold near the centre only.',
                self.path,
                self.topic,
            )
        return self.camera.intrinsics(rectified=is_rectified)

    def _choose_depth(self, found: list[_ImageTopic], wanted: str | None) -> str | None:
        if wanted == '':
            return None
        depths = [t for t in found if t.encoding in DEPTH_ENCODINGS and not t.is_compressed]
        if wanted is not None:
            if not any(t.name == wanted for t in depths):
                raise InputError(
                    f'{self.path}: {wanted} is no depth image topic; there '
                    f'{"are " + ", ".join(t.name for t in depths) if depths else "is none"}.'
                )
            return wanted
        for topic in depths:
            size = (topic.first.height, topic.first.width)
            is_named = topic.sounds_like_depth and 'confidence' not in topic.name
            same_view = not topic.frame_id or topic.frame_id == self._image.frame_id
            if is_named and same_view and size == self._image_hw:
                return topic.name
        if depths:
            _log.info('%s: no depth topic has the size and frame of the image.', self.path)
        return None


class _DepthTrack:
    """Walks a depth topic beside the pictures, both by ascending stamps."""

    def __init__(self, bag: bags.BagReader, topic: str):
        self._bag = bag
        self._topic = topic
        self._messages = bag.raw([topic])
        self._around: list[Any] = []  # the newest at or before the asked stamp, and the one after
        self._pull()

    def nearest(self, stamp: int, image_hw: tuple[int, int]) -> np.ndarray | None:
        """Depth in metres for a stamp in ns, or None where none is near or it has another size."""
        while self._around and stamp_ns(self._around[-1]) <= stamp and self._pull():
            pass
        matches = [m for m in self._around if abs(stamp_ns(m) - stamp) <= MATCH_TOLERANCE_S * 1e9]
        if not matches:
            return None
        message = min(matches, key=lambda m: abs(stamp_ns(m) - stamp))
        try:
            depth_m = depth_array_m(message)
        except InputError as err:
            raise InputError(f'{self._topic}: {err}') from err
        return depth_m if depth_m.shape == image_hw else None

    def _pull(self) -> bool:
        item = next(self._messages, None)
        if item is None:
            return False
        self._around = [*self._around[-1:], self._bag.decode(*item[2:])]
        return True


def _image_topics(bag: bags.BagReader) -> list[_ImageTopic]:
    topics = []
    for topic in bag.topics:
        if topic.msgtype not in (IMAGE, COMPRESSED_IMAGE) or not topic.count:
            continue
        first = bag.first(topic.name)
        is_compressed = topic.msgtype == COMPRESSED_IMAGE
        encoding = first.format if is_compressed else first.encoding
        if is_compressed and topic.name.endswith('/compressedDepth'):
            encoding = 'compressedDepth'
        topics.append(
            _ImageTopic(
                topic.name, topic.count, is_compressed, encoding, first.header.frame_id, first
            )
        )
    return topics


def _choose(path: Path, found: list[_ImageTopic], wanted: str | None) -> _ImageTopic:
    """The image topic; a name that sounds like depth comes last."""
    listed = ', '.join(f'{t.name} ({t.encoding})' for t in found) or 'none at all'
    if wanted is not None:
        for topic in found:
            if topic.name == wanted:
                return topic
        raise InputError(f'{path}: has no images on {wanted}; image topics: {listed}.')
    pictures = sorted((t for t in found if t.is_picture), key=lambda t: t.sounds_like_depth)
    if not pictures:
        raise InputError(
            f'{path}: has no picture topic; image topics: {listed}. Expected sensor_msgs/Image '
            f'({", ".join(PICTURE_ENCODINGS)}) or CompressedImage.'
        )
    return pictures[0]
