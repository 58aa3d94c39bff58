"""Depth as the compressedDepth transport of ROS carries it, and back.

The layout is that of the C++ plugin compressed_depth_image_transport (src/codec.cpp): twelve
bytes of configuration, then a 16-bit image of inverse depth as PNG or RVL. ``code = A / depth +
B``, cut to an integer, with ``A = q (q + 1)`` and ``B = 1 - A / depth_max``: near depth gets fine
steps, the step at depth z is z^2 / A, and code 0 is "no depth".

It differs from the plugin in two ways, on purpose, and every decoder reads both. What overflows
the plugin's 16 bits (-Inf, 0, negative and very near depth), and comes out as an obstacle or a
wall somewhere, is code 0 here. And an RVL image that is mostly unknown gets zeros behind its end,
since the plugin's own decoder drops an image of more than five pixels per byte.
"""

from dataclasses import dataclass
from numbers import Integral
import struct
from typing import Any, ClassVar

import cv2
import numpy as np
from vlm_depth_ros.core.config import require, require_within
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.rvl import decode_rvl, encode_rvl

FORMATS = ('png', 'rvl')
MAX_PIXELS = 1 << 25
"""Of an image to decode, 8K: a damaged size must not take the memory of the machine."""

# compression_common.hpp, ConfigHeader: an enum (0 is INV_DEPTH), then A and B.
_CONFIG = struct.Struct('<iff')
_INV_DEPTH = 0
_RVL_SIZE = struct.Struct('<II')
"""Width, then height."""
_RVL_PIXELS_PER_BYTE = 5
"""decodeCompressedDepthImage refuses an RVL image with more, its two numbers of size included."""
_PNG_START = b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR'
_PNG_SIZE = struct.Struct('>IIBB')
"""Width, height, bits, colour type; behind `_PNG_START`."""
_GREY16 = (16, 0)


@dataclass(frozen=True)
class CompressedDepthOptions:
    """The parameters of the C++ plugin, with its defaults and bounds."""

    format: str = 'png'
    """``png``, or ``rvl``: half the time and mostly larger; ROS 2 before Jazzy cannot read it."""
    png_level: int = 3
    """zlib's: 0 is fast and large, 9 slow and small."""
    depth_max_m: float = 10.0
    """Depth from here on is lost."""
    depth_quantization: float = 100.0
    """Depth in metres at which one step is about 1 m. More of it: finer, but `nearest_m` grows."""

    BOUNDS: ClassVar = {'depth_max_m': (1.0, 100.0), 'depth_quantization': (1.0, 150.0)}

    def __post_init__(self):
        """Check every bound."""
        require(
            self.format in FORMATS,
            f'compressedDepth format = {self.format!r}: expected one of {FORMATS}.',
        )
        require(
            isinstance(self.png_level, Integral) and 0 <= self.png_level <= 9,
            f'png_level = {self.png_level!r}: expected an integer from 0 to 9.',
        )
        require_within(self, self.BOUNDS)

    @property
    def nearest_m(self) -> float:
        """Depth up to here is lost: its code would not fit into 16 bits."""
        a, b = _quantisation(self)
        return float(a / (np.float32(1 << 16) - b))


@dataclass(frozen=True, eq=False)
class PackedCompressedImage:
    """The content of a sensor_msgs/CompressedImage, without its header."""

    format: str
    data: np.ndarray
    """Flat, contiguous uint8."""
    beyond_px: int
    """Finite pixels lost because they are not nearer than `depth_max_m`."""
    too_near_px: int
    """Finite pixels lost because they are not farther than `nearest_m`."""


def compress_depth(depth: Any, options: CompressedDepthOptions) -> PackedCompressedImage:
    """Encode gated depth for a ``compressedDepth`` topic.

    Args:
        depth: (H, W) float32 in metres, an array or a tensor on any device. What is not finite and
            positive is unknown, and decodes as NaN.
        options: What the plugin's parameters would be.

    Raises:
        InputError: If `depth` is of another type or form, or has no pixel.
    """
    if hasattr(depth, 'detach'):
        depth = depth.detach().cpu().numpy()
    if depth.dtype != np.float32 or depth.ndim != 2 or not depth.size:
        raise InputError(
            f'depth is {depth.dtype} {tuple(depth.shape)}: expected float32 (height, width) in '
            'metres with at least one pixel.'
        )
    a, b = _quantisation(options)
    # float32 at every step, as the plugin computes: its bytes depend on the rounding.
    with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
        exact = a / depth + b
        is_depth = (depth > 0) & (depth < np.inf)
        is_near = is_depth & (exact >= 1 << 16)
        is_kept = is_depth & ~is_near & (depth < np.float32(options.depth_max_m))
    codes = np.where(is_kept, exact, 0).astype(np.uint16)
    too_near_px = np.count_nonzero(is_near)
    # Depth a rounding error before depth_max may get code 0 too, so codes are what is counted.
    beyond_px = np.count_nonzero(is_depth) - too_near_px - np.count_nonzero(codes)

    image = _to_png(codes, options.png_level) if options.format == 'png' else _to_rvl(codes)
    config = np.frombuffer(_CONFIG.pack(_INV_DEPTH, a, b), np.uint8)
    return PackedCompressedImage(
        f'32FC1; compressedDepth {options.format}',
        np.concatenate([config, image]),
        beyond_px,
        too_near_px,
    )


def decompress_depth(format: str, data: Any) -> np.ndarray:
    """Decode the content of a message of a ``compressedDepth`` topic.

    Args:
        format: Of the message: ``32FC1; compressedDepth png`` or ``... rvl``, the older
            ``32FC1; compressedDepth`` (png), and the same with ``16UC1``, which is depth in
            millimetres as it came from the sensor.
        data: Of the message; any buffer of bytes.

    Returns:
        (H, W) float32 in metres, NaN where there is none.

    Raises:
        InputError: If the format is another one, or the data is cut off, damaged, without pixels,
            too large, or something else.
    """
    encoding, image_format = _parse(format)
    data = bytes(data)
    if len(data) <= _CONFIG.size:
        raise InputError(
            f'compressedDepth data has {len(data)} bytes: expected {_CONFIG.size} of '
            'configuration and an image behind them. The message is empty or was cut off.'
        )
    _, a, b = _CONFIG.unpack_from(data)
    codes = (_from_png if image_format == 'png' else _from_rvl)(data[_CONFIG.size :])
    if encoding == '32FC1':
        depth = _dequantise(codes, np.float32(a), np.float32(b))
    else:
        depth = codes.astype(np.float32) / np.float32(1000)
    depth[codes == 0] = np.nan
    return depth


def _quantisation(options: CompressedDepthOptions) -> tuple[np.float32, np.float32]:
    q = np.float32(options.depth_quantization)
    a = q * (q + np.float32(1))
    return a, np.float32(1) - a / np.float32(options.depth_max_m)


def _dequantise(codes: np.ndarray, a: np.float32, b: np.float32) -> np.ndarray:
    with np.errstate(all='ignore'):
        nearest, farthest = a / (np.float32([65535, 1]) - b)
        if not 0 < nearest <= farthest < np.inf:
            raise InputError(
                f'compressedDepth configuration A = {a:g}, B = {b:g} gives no depths: expected '
                'A > 0 and B < 1. The data is damaged, or its sender had no depth_quantization.'
            )
        return a / (codes.astype(np.float32) - b)


def _parse(format: str) -> tuple[str, str]:
    """Encoding of the depth image and format of its 16-bit form, by the rules of the plugin."""
    encoding, semicolon, ending = format.partition(';')
    _, transport, named = ending.partition('compressedDepth')
    image_format = next((name for name in FORMATS if named.startswith(f' {name}')), None)
    # Before RVL there was nothing to name, and nothing was named.
    if not semicolon or (transport and not named.startswith(' ')):
        image_format = 'png'
    if image_format is None or encoding not in ('32FC1', '16UC1', 'mono16'):
        raise InputError(
            f"compressed image has format {format!r}: expected '32FC1; compressedDepth png' or "
            "'... rvl', or the same with 16UC1. Name the compressedDepth topic of a depth image."
        )
    return encoding, image_format


def _check_size(height: int, width: int) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise InputError(
            f'compressedDepth image claims {width} x {height} pixels: expected 1 to {MAX_PIXELS} '
            'of them. The data is damaged.'
        )


def _to_png(codes: np.ndarray, level: int) -> np.ndarray:
    _, png = cv2.imencode('.png', codes, [cv2.IMWRITE_PNG_COMPRESSION, int(level)])
    return png.reshape(-1)


def _from_png(data: bytes) -> np.ndarray:
    size_at = len(_PNG_START)
    if not data.startswith(_PNG_START) or len(data) < size_at + _PNG_SIZE.size:
        raise InputError(
            f'compressedDepth image starts with {data[:8]!r}: expected a PNG. The data is '
            'damaged, or in another format than the message says.'
        )
    width, height, *kind = _PNG_SIZE.unpack_from(data, size_at)
    _check_size(height, width)
    codes = None
    if tuple(kind) == _GREY16 and _is_whole(data):
        try:
            codes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:  # Some versions raise where others answer None.
            codes = None
    if codes is None or codes.shape != (height, width) or codes.dtype != np.uint16:
        raise InputError(
            f'compressedDepth PNG of {width} x {height} pixels, {len(data)} bytes, does not '
            'decode as one channel of 16 bits. It is damaged, cut off or of another kind.'
        )
    return codes


def _is_whole(png: bytes) -> bool:
    """Whether the chunks reach the end: OpenCV takes the memory a damaged length says, 2 GB."""
    at = 8
    while at + 12 <= len(png):
        length, kind = struct.unpack_from('>I4s', png, at)
        at += 12 + length
        if kind == b'IEND':
            return at <= len(png)
    return False


def _to_rvl(codes: np.ndarray) -> np.ndarray:
    height, width = codes.shape
    size = np.frombuffer(_RVL_SIZE.pack(width, height), np.uint8)
    stream = encode_rvl(codes.reshape(-1))
    least = 4 * -(-codes.size // (4 * _RVL_PIXELS_PER_BYTE))
    filling = np.zeros(max(0, least - size.size - stream.size), np.uint8)
    return np.concatenate([size, stream, filling])


def _from_rvl(data: bytes) -> np.ndarray:
    if len(data) < _RVL_SIZE.size:
        raise InputError(
            f'compressedDepth RVL image has {len(data)} bytes: expected {_RVL_SIZE.size} of size '
            'and a stream behind them. The data was cut off.'
        )
    width, height = _RVL_SIZE.unpack_from(data)
    _check_size(height, width)
    stream = np.frombuffer(data, np.uint8, offset=_RVL_SIZE.size)
    return decode_rvl(stream, height * width).reshape(height, width)
