"""What ROS messages hold, as arrays and cameras; for any object with a message's fields."""

from typing import Any

import numpy as np
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.errors import InputError

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINT_CLOUD = 'sensor_msgs/msg/PointCloud2'
# encoding: element type, channels, order in which stored channels become RGB (None: one channel)
_ENCODINGS = {
    'rgb8': ('u1', 3, (0, 1, 2)),
    'bgr8': ('u1', 3, (2, 1, 0)),
    'rgba8': ('u1', 4, (0, 1, 2)),
    'bgra8': ('u1', 4, (2, 1, 0)),
    '8UC3': ('u1', 3, (2, 1, 0)),  # OpenCV's own name, and OpenCV's order
    'mono8': ('u1', 1, None),
    '8UC1': ('u1', 1, None),
    'mono16': ('u2', 1, None),
    '16UC1': ('u2', 1, None),
    '32FC1': ('f4', 1, None),
}
PICTURE_ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'bgra8', '8UC3', 'mono8', '8UC1')
"""Encodings of `image_array` that are 8-bit pictures."""
DEPTH_ENCODINGS = ('32FC1', '16UC1', 'mono16')
"""Encodings that a depth image has: metres, or millimetres in 16 bits (REP-118)."""
# sensor_msgs/PointField.datatype
_POINT_TYPES = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 8: 'f8'}


def image_array(msg: Any) -> np.ndarray:
    """Give the pixels of a sensor_msgs/Image; row padding and byte order are dealt with.

    Returns:
        (H, W, 3) uint8 RGB for the colour encodings, (H, W) uint8, uint16 or float32 for the
        others; always an array of its own.

    Raises:
        InputError: If the encoding is another, or the data is shorter than the sizes promise.
    """
    if msg.encoding not in _ENCODINGS:
        raise InputError(
            f'image encoding {msg.encoding!r}: expected one of {", ".join(_ENCODINGS)}. '
            'Record a topic that is already decoded, as image_proc publishes it.'
        )
    form, channels, order = _ENCODINGS[msg.encoding]
    dtype = np.dtype(('>' if msg.is_bigendian else '<') + form)
    row_bytes = msg.width * channels * dtype.itemsize
    data = np.asarray(msg.data, np.uint8)
    is_whole = msg.step >= row_bytes and data.size >= msg.height * msg.step
    if msg.height < 1 or msg.width < 1 or not is_whole:
        raise InputError(
            f'image of {msg.height} x {msg.width} {msg.encoding}: step {msg.step} and {data.size} '
            f'bytes; expected a step of at least {row_bytes} and {msg.height} rows of it.'
        )
    rows = data[: msg.height * msg.step].reshape(msg.height, msg.step)[:, :row_bytes]
    pixels = np.ascontiguousarray(rows).view(dtype)
    if order is None:
        return pixels.astype(dtype.newbyteorder('='))
    return pixels.reshape(msg.height, msg.width, channels)[..., order].copy()


def cloud_xyzrgb(msg: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Give the points of a sensor_msgs/PointCloud2 by field names, at whatever offsets they lie.

    Returns:
        (N, 3) float32 metres, row by row with NaN kept, N = height x width; and (N, 3) uint8 RGB
        from the packed field ``rgb`` or ``rgba``, or None where there is neither.

    Raises:
        InputError: If x, y or z is missing, or the data is shorter than the sizes promise.
    """
    fields = {f.name: f for f in msg.fields}
    if not {'x', 'y', 'z'} <= fields.keys():
        raise InputError(f'cloud with fields {", ".join(fields) or "none"}: expected x, y and z.')
    order = '>' if msg.is_bigendian else '<'
    colour = next((n for n in ('rgb', 'rgba') if n in fields), None)
    names = ['x', 'y', 'z'] + ([colour] if colour else [])
    # A packed colour is 32 bits whatever type is declared: as a float it could be a NaN.
    forms = [_POINT_TYPES.get(fields[n].datatype, '') if n != colour else 'u4' for n in names]
    data = np.asarray(msg.data, np.uint8)
    used = msg.width * msg.point_step
    if msg.row_step < used or data.size < msg.height * msg.row_step:
        raise InputError(
            f'cloud of {msg.height} x {msg.width} points: row step {msg.row_step} and {data.size} '
            f'bytes; expected a row step of at least {used} and {msg.height} rows of it.'
        )
    try:
        record = np.dtype(
            {
                'names': names,
                'formats': [order + f for f in forms],
                'offsets': [fields[n].offset for n in names],
                'itemsize': msg.point_step,
            }
        )
    except (TypeError, ValueError) as err:
        raise InputError(f'cloud fields do not fit a point of {msg.point_step} bytes.') from err
    rows = data[: msg.height * msg.row_step].reshape(msg.height, msg.row_step)[:, :used]
    points = np.ascontiguousarray(rows).reshape(-1).view(record)
    xyz = np.stack([points[n] for n in 'xyz'], axis=1).astype(np.float32)
    if colour is None:
        return xyz, None
    packed = points[colour].astype(np.uint32)
    return xyz, np.stack([packed >> shift & 0xFF for shift in (16, 8, 0)], 1).astype(np.uint8)


def depth_array_m(msg: Any) -> np.ndarray:
    """Give a depth image as (H, W) float32 metres; NaN where it has no finite positive number.

    Raises:
        InputError: If the encoding is none of `DEPTH_ENCODINGS`, or the data is too short.
    """
    if msg.encoding not in DEPTH_ENCODINGS:
        raise InputError(
            f'depth encoding {msg.encoding!r}: expected one of {", ".join(DEPTH_ENCODINGS)}.'
        )
    stored = image_array(msg)
    depth_m = stored.astype(np.float32)
    if stored.dtype == np.uint16:
        depth_m *= np.float32(0.001)
    depth_m[~((depth_m > 0) & (depth_m < np.inf))] = np.nan
    return depth_m


def stamp_ns(msg: Any) -> int:
    """Give the header's stamp in nanoseconds."""
    return int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)


def camera_model(msg: Any) -> CameraModel:
    """Give the camera that a sensor_msgs/CameraInfo describes.

    Raises:
        InputError: If it describes none, as that of an uncalibrated camera.
    """
    roi = msg.roi
    return CameraModel(
        width_px=msg.width,
        height_px=msg.height,
        distortion_model=msg.distortion_model,
        d=tuple(msg.d),
        k=tuple(msg.k),
        r=tuple(msg.r),
        p=tuple(msg.p),
        binning_x=msg.binning_x,
        binning_y=msg.binning_y,
        roi=(roi.x_offset, roi.y_offset, roi.height, roi.width, roi.do_rectify),
    )
