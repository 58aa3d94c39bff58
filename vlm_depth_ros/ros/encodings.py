"""Pixels of a sensor_msgs/Image, in any encoding that cameras use, to RGB.

Nothing here needs ROS. `messages` asks cv_bridge for encodings outside our table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import re
from typing import NamedTuple

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.texts import quoted

MAX_SIDE_PX = 16384
"""A longer side is taken for a damaged message; the largest sensors have about 14,000."""


@dataclass(frozen=True)
class Layout:
    """How an encoding stores an image of `height` x `width` pixels."""

    to_rgb: Callable[[np.ndarray], np.ndarray]
    """Tight rows -> (height, width, 3) uint8."""
    channels: int = 1
    """Values of one pixel within a row."""
    dtype: type = np.uint8
    row_share: float = 1.0
    """Rows stored for each row of the image: 1.5 with chroma planes below the luma."""
    even_height: bool = False
    even_width: bool = False


def _cv(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: cv2.cvtColor(rows, code)


def _high_byte(rows: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((rows >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)


_BGR = Layout(_cv(cv2.COLOR_BGR2RGB), channels=3)
_MONO = Layout(_cv(cv2.COLOR_GRAY2RGB))
_UYVY = Layout(_cv(cv2.COLOR_YUV2RGB_UYVY), channels=2, even_width=True)
_YUYV = Layout(_cv(cv2.COLOR_YUV2RGB_YUY2), channels=2, even_width=True)
LAYOUTS: dict[str, Layout] = {
    'rgb8': Layout(lambda rows: rows, channels=3),
    'bgr8': _BGR,
    'rgba8': Layout(_cv(cv2.COLOR_RGBA2RGB), channels=4),
    'bgra8': Layout(_cv(cv2.COLOR_BGRA2RGB), channels=4),
    'mono8': _MONO,
    'mono16': Layout(_high_byte, dtype=np.uint16),
    'yuv422': _UYVY,
    'uyvy': _UYVY,
    'yuv422_yuy2': _YUYV,
    'yuyv': _YUYV,
    'nv12': Layout(_cv(cv2.COLOR_YUV2RGB_NV12), row_share=1.5, even_height=True, even_width=True),
    'nv21': Layout(_cv(cv2.COLOR_YUV2RGB_NV21), row_share=1.5, even_height=True, even_width=True),
    # OpenCV names a pattern by its second row, from the second pixel on.
    'bayer_rggb8': Layout(_cv(cv2.COLOR_BayerBG2RGB)),
    'bayer_bggr8': Layout(_cv(cv2.COLOR_BayerRG2RGB)),
    'bayer_gbrg8': Layout(_cv(cv2.COLOR_BayerGR2RGB)),
    'bayer_grbg8': Layout(_cv(cv2.COLOR_BayerGB2RGB)),
    '8UC1': _MONO,
    '8UC3': _BGR,
}
"""What is decoded without help; 8UC3 is OpenCV's order, blue first."""


class StoredImage(NamedTuple):
    """The fields of a sensor_msgs/Image."""

    encoding: str
    height: int
    width: int
    step: int
    """Bytes from one row to the next."""
    is_bigendian: bool
    data: Sequence[int]
    """Anything with a buffer of bytes; more than the rows need is ignored."""

    def __str__(self) -> str:
        """How messages call it."""
        is_plain = re.fullmatch(r'\w{1,30}', self.encoding, re.ASCII)
        encoding = self.encoding if is_plain else quoted(self.encoding)
        return f'image of {self.width} x {self.height} {encoding}'


def decode(image: StoredImage) -> np.ndarray:
    """Return an image as (height, width, 3) uint8 RGB; it may share memory with `image.data`.

    Raises:
        InputError: If the encoding is not in `LAYOUTS`, or sizes and data do not go together.
    """
    layout = LAYOUTS.get(image.encoding)
    if layout is None:
        raise InputError(
            f'{image}: the encoding is unknown; expected one of {", ".join(LAYOUTS)}. Install '
            'cv_bridge for others, or convert the image upstream (image_proc).'
        )
    odd_height, odd_width = image.height % 2, image.width % 2
    if (layout.even_height and odd_height) or (layout.even_width and odd_width):
        raise InputError(f'{image}: expected even sides, since neighbours share their colour.')
    return layout.to_rgb(tight_rows(image, layout.channels, layout.dtype, layout.row_share))


def tight_rows(
    image: StoredImage, channels: int, dtype: type, row_share: float = 1.0
) -> np.ndarray:
    """Return the stored rows without padding and in this machine's byte order.

    Args:
        image: What came.
        channels: Values of one pixel within a row.
        dtype: Type of a value.
        row_share: Stored rows for each row of the image.

    Returns:
        (rows, width) or (rows, width, channels) of `dtype`; a view of the data if that is tight.

    Raises:
        InputError: If the size is absurd, `step` shorter than a row, or the data shorter than all.
    """
    if not (1 <= image.height <= MAX_SIDE_PX and 1 <= image.width <= MAX_SIDE_PX):
        raise InputError(
            f'{image}: expected 1 to {MAX_SIDE_PX} pixels on each side. The driver fills the '
            'message wrongly.'
        )
    stored = np.dtype(dtype).newbyteorder('>' if image.is_bigendian else '<')
    row_bytes = image.width * channels * stored.itemsize
    if image.step < row_bytes:
        raise InputError(
            f'{image} has a step of {image.step} bytes: expected at least {row_bytes}, the bytes '
            'of one row. The driver fills the message wrongly.'
        )
    rows = int(image.height * row_share)
    if len(image.data) < image.step * rows:
        raise InputError(
            f'{image} with a step of {image.step} has {len(image.data)} bytes: expected '
            f'{image.step * rows}. The message was cut off, or its size is wrong.'
        )
    padded = np.frombuffer(image.data, np.uint8, count=image.step * rows)
    tight = np.ascontiguousarray(padded.reshape(rows, image.step)[:, :row_bytes])
    values = tight.view(stored).astype(dtype, copy=False)
    return values if channels == 1 else values.reshape(rows, image.width, channels)
