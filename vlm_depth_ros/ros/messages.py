"""ROS messages to arrays and cameras, and packed outputs to messages.

Byte layouts are not decided here: `core.packing` has them, and these functions only wrap.
"""

import array
import re
from typing import TYPE_CHECKING

import numpy as np
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
)
from std_msgs.msg import Header
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.texts import quoted
from vlm_depth_ros.files.images import decode_rgb
from vlm_depth_ros.ros.encodings import decode, LAYOUTS, StoredImage, tight_rows

if TYPE_CHECKING:
    from vlm_depth_ros.core.compressed_depth import PackedCompressedImage
    from vlm_depth_ros.core.packing import PackedCameraInfo, PackedCloud, PackedImage
    from vlm_depth_ros.core.scan import PackedScan

MAX_MEGAPIXELS = 25
"""Of a compressed image; decoding more takes longer than a second, and other cameras wait."""
_SIXTEEN_BIT = {'rgb16': 3, 'bgr16': 3, 'rgba16': 4, 'bgra16': 4}
_OPENCV_NAME = re.compile(r'(8|16|32|64)([USF])C([1-9][0-9]{0,2})?')


def image_to_rgb(message: Image) -> np.ndarray:
    """Return the (height, width, 3) uint8 RGB of an image message; it may share its memory.

    Raises:
        InputError: If the message is damaged, or its encoding is neither in our table nor known to
            cv_bridge, or that is not installed.
    """
    stored = StoredImage(
        message.encoding, message.height, message.width, message.step,
        bool(message.is_bigendian), message.data,
    )  # fmt: skip
    if message.encoding not in LAYOUTS:
        rgb = _through_cv_bridge(message, stored)
        if rgb is not None:
            return rgb
    return decode(stored)


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """Return the (height, width, 3) uint8 RGB of a JPEG or PNG message.

    Raises:
        InputError: If it holds depth, or is cut off, absurd in size or no picture.
    """
    if 'compressedDepth' in message.format:
        raise InputError(
            f'compressed image has format {quoted(message.format)}: expected a colour picture '
            '(jpeg or png). Subscribe to the compressed topic of the colour image.'
        )
    return decode_rgb(message.data, 'compressed image', max_megapixels=MAX_MEGAPIXELS)


def image_message(packed: 'PackedImage', header: Header) -> Image:
    """Wrap a packed image; the header is taken as it is."""
    message = Image(header=header)
    message.height, message.width = packed.height, packed.width
    message.encoding, message.step = packed.encoding, packed.step
    _append(message.data, packed.data)
    return message


def camera_info_message(packed: 'PackedCameraInfo', header: Header) -> CameraInfo:
    """Wrap a packed camera_info; the header is taken as it is."""
    message = CameraInfo(header=header)
    message.height, message.width = packed.height, packed.width
    message.distortion_model = packed.distortion_model
    message.d, message.k = list(packed.d), list(packed.k)
    message.r, message.p = list(packed.r), list(packed.p)
    return message


def cloud_message(packed: 'PackedCloud', header: Header) -> PointCloud2:
    """Wrap a packed cloud; the header is taken as it is."""
    message = PointCloud2(header=header)
    message.height, message.width = packed.height, packed.width
    message.fields = _point_fields()
    message.point_step, message.row_step = packed.point_step, packed.row_step
    message.is_dense = packed.is_dense
    _append(message.data, packed.data)
    return message


def scan_message(packed: 'PackedScan', header: Header) -> LaserScan:
    """Wrap a packed scan; the header names the frame of its angles, not the camera's."""
    message = LaserScan(header=header)
    message.angle_min, message.angle_max = packed.angle_min, packed.angle_max
    message.angle_increment = packed.angle_increment
    message.range_min, message.range_max = packed.range_min, packed.range_max
    ranges = array.array('f')
    ranges.frombytes(packed.ranges.tobytes())
    message.ranges = ranges
    return message


def compressed_message(packed: 'PackedCompressedImage', header: Header) -> CompressedImage:
    """Wrap a packed compressed image; the header is taken as it is."""
    message = CompressedImage(header=header, format=packed.format)
    _append(message.data, packed.data)
    return message


def byte_array(data: np.ndarray) -> array.array:
    """Return bytes in the one form that every distribution's message setter takes without a loop.

    Assigning ``bytes``, an ndarray or a memoryview costs 30 to 300 ms for an image.
    """
    values = array.array('B')
    _append(values, data)
    return values


def _append(values: array.array, data: np.ndarray) -> None:
    """Append bytes; to the empty field of a new message, since its setter would copy once more."""
    values.frombytes(memoryview(np.ascontiguousarray(data)).cast('B'))


def _point_fields() -> list[PointField]:
    from vlm_depth_ros.core.packing import POINT_FIELDS  # Needs torch, which may be missing.

    return [PointField(name=n, offset=o, datatype=t, count=1) for n, o, t in POINT_FIELDS]


def _through_cv_bridge(message: Image, stored: StoredImage) -> np.ndarray | None:
    """RGB by cv_bridge, or None where it is not installed or does not load."""
    try:
        from cv_bridge import CvBridge
    except Exception:  # Released binaries also fail in other ways beside NumPy 2.
        return None
    layout = _layout_of(message.encoding)
    if layout is not None:
        # It reads padded rows wrongly, and under NumPy 2 fails on big-endian ones.
        rows = tight_rows(stored, *layout)
        tight = Image(header=message.header, height=message.height, width=message.width)
        tight.encoding, tight.step = message.encoding, rows.strides[0]
        tight.data = byte_array(rows.view(np.uint8).ravel())
        message = tight
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, 'rgb8'))
    except Exception as err:
        reason = ' '.join(str(err).split())
        raise InputError(f'{stored}: cv_bridge cannot turn it into rgb8 ({reason}).') from err


def _layout_of(encoding: str) -> tuple[int, type] | None:
    """Channels and type of an encoding that is not in our table."""
    if encoding in _SIXTEEN_BIT:
        return _SIXTEEN_BIT[encoding], np.uint16
    if encoding.startswith('bayer_') and encoding.endswith('16'):
        return 1, np.uint16
    match = _OPENCV_NAME.fullmatch(encoding)
    if match is None:
        return None
    bits, kind, channels = match.groups()
    name = {'U': 'uint', 'S': 'int', 'F': 'float'}[kind] + bits
    return (int(channels or 1), np.dtype(name).type) if name != 'float8' else None
