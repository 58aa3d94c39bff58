"""Messages that no driver should send, each from its number alone: the same in every run."""

from collections.abc import Callable
from functools import cache
import os
import struct
import zlib

import cv2
import numpy as np
from picture_files import encoded, FORMS, picture
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
    Range,
)
from vlm_depth_ros.ros.encodings import LAYOUTS
from vlm_depth_ros.ros.messages import byte_array

IS_FULL = bool(os.environ.get('VLM_DEPTH_FUZZ'))
"""Asked for the long run: 10^5 messages and 1,000 sets of parameters."""
HEIGHT_PX, WIDTH_PX = 48, 64
"""Of every good message."""
SIDES = (0, 1, 2, 3, 31, 47, 49, 63, 65, 640, 16384, 16385, 65535, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, -64.0, 1e-3, 0.5, 1e4, 1e9, -1e9, 1e30, -1e30, 1e-30, 5e-324, 1e300,
    -1e300, 1.7e308, float('nan'), float('inf'), float('-inf'),
)  # fmt: skip
ENCODINGS = (
    '', ' ', 'RGB8', 'Rgb8', 'rgb8 ', ' rgb8', 'rgb8\n', 'rgb8\n[WARN] [depth_node]: all is well',
    'rgb8\x00', '\x1b[2Jrgb8', 'r g b 8', 'farbig\u00e4', '\u5f69\u8272', '\u202ergb8', '\ufffd',
    '8UC', '8UC0', '8UC2', '8UC4', '8UC999999999', '8UC' + '9' * 5000, '8UC\u0663', '8SC1', '8FC1',
    '16UC1', '16FC1', '32SC3', '32FC1', '64FC4', '32U', 'rgb16', 'bgra16', 'bayer_rggb16',
    'bayer_', 'bayer_x16', 'jpeg', 'rgb8; jpeg compressed bgr8', 'A' * 100_000, *LAYOUTS,
)  # fmt: skip
FORMATS = (
    '', 'jpeg', 'png', 'JPEG', 'rgb8; jpeg compressed bgr8', '16UC1; compressedDepth', '\n\n',
    'compressedDepth' * 5000, '\u5f69\u8272', 'jpeg\x00',
)  # fmt: skip
LENSES = (
    '', 'pinhole', 'plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye', 'PLUMB_BOB',
    'plumb_bob ', 'kaleidoscope', 'thin_prism', '\u5f69\u8272', 'lens\nlens', 'L' * 100_000,
)  # fmt: skip


FRAMES = ('', ' ', '/', 'a\nb', '\u5f69', 'F' * 100_000)


def malformed(kind: type, number: int) -> object:
    """The `number`-th malformed message of a type; a few of them happen to be right."""
    rng = np.random.default_rng([number, len(kind.__name__)])
    return {
        Image: malformed_image,
        CompressedImage: malformed_compressed,
        CameraInfo: malformed_info,
        LaserScan: malformed_scan,
        PointCloud2: malformed_cloud,
        Range: malformed_range,
    }[kind](rng)


def good_image() -> Image:
    """The picture as rgb8."""
    message = Image(height=HEIGHT_PX, width=WIDTH_PX, encoding='rgb8', step=3 * WIDTH_PX)
    message.header.frame_id = 'camera_optical_frame'
    message.data = byte_array(picture())
    return message


def good_compressed() -> CompressedImage:
    """The picture as a PNG, which loses nothing."""
    message = CompressedImage(format='png', data=byte_array(_bytes(FORMS['png'])))
    message.header.frame_id = 'camera_optical_frame'
    return message


def good_info() -> CameraInfo:
    """A distorted camera."""
    f, cx, cy = float(WIDTH_PX), (WIDTH_PX - 1) / 2, (HEIGHT_PX - 1) / 2
    message = CameraInfo(height=HEIGHT_PX, width=WIDTH_PX, distortion_model='plumb_bob')
    message.header.frame_id = 'camera_optical_frame'
    message.d = [-0.1, 0.01, 0.0, 0.0, 0.0]
    message.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def good_scan() -> LaserScan:
    """A wall 2 m ahead, square to the scanner."""
    message = LaserScan(angle_min=-0.4, angle_increment=0.01, range_min=0.1, range_max=30.0)
    message.header.frame_id = 'laser'
    message.ranges = (2 / np.cos(-0.4 + 0.01 * np.arange(81))).astype(np.float32).tolist()
    return message


def good_cloud() -> PointCloud2:
    """Points of such a wall."""
    y, z = np.meshgrid(np.linspace(-0.8, 0.8, 15), np.linspace(-0.6, 0.6, 15))
    points = np.stack([np.full_like(y, 2.0), y, z], axis=-1).reshape(-1, 3).astype('<f4')
    message = PointCloud2(height=1, width=len(points), point_step=12, row_step=12 * len(points))
    message.header.frame_id = 'laser'
    message.fields = [
        PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, n in enumerate('xyz')
    ]
    message.data = byte_array(points.view(np.uint8).reshape(-1))
    return message


def good_range() -> Range:
    """Such a wall in a cone."""
    message = Range(field_of_view=0.3, min_range=0.05, max_range=10.0, range=2.0)
    message.header.frame_id = 'sonar'
    return message


def malformed_scan(rng: np.random.Generator) -> LaserScan:
    """One to three fields of a good scan made wrong."""
    message = good_scan()
    _some_of(rng, message, _SCAN_DAMAGE)
    return message


def malformed_cloud(rng: np.random.Generator) -> PointCloud2:
    """One to three fields of a good cloud made wrong."""
    message = good_cloud()
    _some_of(rng, message, _CLOUD_DAMAGE)
    return message


def malformed_range(rng: np.random.Generator) -> Range:
    """One to three numbers of a good range made wrong."""
    message = good_range()
    for _ in range(rng.integers(1, 4)):
        names = ('field_of_view', 'min_range', 'max_range', 'range')
        setattr(message, _pick(rng, names), _float32(_pick(rng, NUMBERS)))
    return message


def malformed_image(rng: np.random.Generator) -> Image:
    """One to three fields of a good image made wrong."""
    message = good_image()
    if rng.random() < 0.7:
        _as_encoding(rng, message, _pick(rng, list(LAYOUTS)))
    _some_of(rng, message, _IMAGE_DAMAGE)
    return message


def malformed_compressed(rng: np.random.Generator) -> CompressedImage:
    """A picture file cut off, with bits turned, bytes moved, another size claimed, or a bomb."""
    message = CompressedImage(format=_pick(rng, FORMATS) if rng.random() < 0.2 else 'jpeg')
    if rng.random() < 0.001:
        data = _pick(rng, BOMBS)()
    else:
        data = _bytes(_pick(rng, list(FORMS.values())))
        for _ in range(rng.integers(1, 3)):
            data = _pick(rng, _FILE_DAMAGE)(rng, data)
    message.data = byte_array(np.frombuffer(data, np.uint8))
    return message


def malformed_info(rng: np.random.Generator) -> CameraInfo:
    """One to three fields of a good camera_info made wrong."""
    message = good_info()
    _some_of(rng, message, _INFO_DAMAGE)
    return message


def _some_of(rng: np.random.Generator, message: object, damage: list[Callable]) -> None:
    for _ in range(rng.integers(1, 4)):
        _pick(rng, damage)(rng, message)


def _pick(rng: np.random.Generator, choices):
    return choices[rng.integers(len(choices))]


# Images.


def _as_encoding(rng, message, encoding) -> None:
    """A message of this encoding, with random bytes, whose sizes go together."""
    layout = LAYOUTS[encoding]
    message.encoding = encoding
    message.step = message.width * layout.channels * np.dtype(layout.dtype).itemsize
    rows = int(message.height * layout.row_share)
    message.data = byte_array(rng.integers(0, 256, rows * message.step, np.uint8))


def _tiny(rng, message) -> None:
    message.height, message.width = (int(n) for n in rng.integers(1, 5, 2))
    if message.encoding in LAYOUTS:
        _as_encoding(rng, message, message.encoding)


def _side(rng, message) -> None:
    setattr(message, _pick(rng, ('height', 'width')), _pick(rng, SIDES))


def _step(rng, message) -> None:
    row = message.step
    message.step = _pick(rng, (0, 1, row - 1, row + 1, row // 2, 2 * row, 2**32 - 1)) % 2**32


def _encoding(rng, message) -> None:
    message.encoding = _pick(rng, ENCODINGS)


def _byte_order(rng, message) -> None:
    message.is_bigendian = _pick(rng, (0, 1, 2, 255))


def _length(rng, message) -> None:
    size = len(message.data)
    kept = message.data[: _pick(rng, (0, 1, size // 2, max(0, size - 1), size))]
    kept.extend(bytes(_pick(rng, (0, 1, 1000, 100_000))))
    message.data = kept


_IMAGE_DAMAGE = [_tiny, _side, _step, _encoding, _byte_order, _length]


# Picture files.


@cache
def _bytes(form: tuple) -> bytes:
    return encoded(*form)


def _cut(rng, data) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _turn_bits(rng, data) -> bytes:
    damaged = np.frombuffer(data, np.uint8).copy()
    # Headers decide what is allocated: half of the damage goes there.
    end = min(len(data), 200) if rng.random() < 0.5 else len(data)
    for _ in range(rng.integers(1, 12)):
        if end:
            damaged[rng.integers(end)] ^= 1 << rng.integers(8)
    return damaged.tobytes()


def _overwrite(rng, data) -> bytes:
    at = int(rng.integers(len(data) + 1))
    value = _pick(rng, (bytes(4), b'\xff' * 4, b'\x7f\xff\xff\xff', b'\xff\xd9\xff\xda'))
    return data[:at] + value + data[at + len(value) :]


def _insert(rng, data) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 50))) + data[at:]


def _repeat_a_part(rng, data) -> bytes:
    start, end = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _other_start(rng, data) -> bytes:
    return _pick(rng, [_bytes(f)[:12] for f in FORMS.values()]) + data[12:]


def _rubbish(rng, data) -> bytes:
    return _pick(rng, (b'', b'\xff', b'\xff\xd8\xff', data[::-1], rng.bytes(1000), bytes(1000)))


_FILE_DAMAGE = [
    _cut, _turn_bits, _turn_bits, _overwrite, _insert, _repeat_a_part, _other_start, _rubbish,
]  # fmt: skip


def bomb_by_claim() -> bytes:
    """A small PNG whose header says 60000 x 60000."""
    return _png_of_size(60_000, 60_000)


def bomb_under_the_limit() -> bytes:
    """A PNG of 57 bytes that says 24 megapixels, and ends at once."""
    return _png_of_size(4_800, 5_000)


def bomb_of_zeros() -> bytes:
    """A PNG of 15 KB that is black, and decodes to 16 megabytes."""
    black = np.zeros((2300, 2300, 3), np.uint8)
    return cv2.imencode('.png', black, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def bomb_of_scans() -> bytes:
    """A progressive JPEG whose last scan is there 20,000 times: each costs a pass over it."""
    data = _bytes(FORMS['progressive jpeg'])
    last = data.rindex(b'\xff\xda')
    size = data.index(b'\xff\xc2') + 5
    data = data[:size] + struct.pack('>HH', 4000, 4000) + data[size + 4 :]
    return data[:last] + data[last:-2] * 20_000 + data[-2:]


BOMBS = [bomb_by_claim, bomb_under_the_limit, bomb_of_zeros, bomb_of_scans]


def _png_of_size(height: int, width: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', crc)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IEND', b'')


# Cameras.


def _matrix_entry(rng, message) -> None:
    matrix = getattr(message, _pick(rng, ('k', 'k', 'p', 'r')))
    matrix[rng.integers(len(matrix))] = _pick(rng, NUMBERS)


def _focal(rng, message) -> None:
    factor = _pick(rng, (0.0, -1.0, 1e-9, 1e-3, 0.05, 30.0, 1e4, 1e12, 1e200, float('nan')))
    for matrix, places in ((message.k, (0, 4)), (message.p, (0, 5))):
        if rng.random() < 0.7:
            for place in places:
                matrix[place] = float(matrix[place]) * factor


def _matrix(rng, message) -> None:
    name = _pick(rng, ('k', 'p', 'r'))
    size = len(getattr(message, name))
    filled = (np.zeros(size), np.full(size, np.nan), np.ones(size), rng.normal(0, 100, size))
    setattr(message, name, _pick(rng, filled))


def _lens(rng, message) -> None:
    message.distortion_model = _pick(rng, LENSES)


_LENS_COUNTS = (
    ('plumb_bob', 4), ('plumb_bob', 5), ('equidistant', 4), ('rational_polynomial', 8),
    ('rational_polynomial', 12), ('rational_polynomial', 14),
)  # fmt: skip


def _coefficients(rng, message) -> None:
    count = int(_pick(rng, (*range(17), 100_000)))
    if rng.random() < 0.6:
        message.distortion_model, count = _pick(rng, _LENS_COUNTS)
    scale = _pick(rng, (0.0, 0.1, 3.0, 1e3, 1e30, 1e300))
    message.d = (rng.normal(0, 1, count) * scale).tolist()
    if count and rng.random() < 0.3:
        message.d[rng.integers(count)] = _pick(rng, NUMBERS)


def _camera_side(rng, message) -> None:
    setattr(message, _pick(rng, ('height', 'width')), _pick(rng, SIDES))


def _binning(rng, message) -> None:
    setattr(message, _pick(rng, ('binning_x', 'binning_y')), _pick(rng, (0, 1, 2, 7, *SIDES)))


def _window(rng, message) -> None:
    for name in ('x_offset', 'y_offset', 'height', 'width'):
        if rng.random() < 0.5:
            setattr(message.roi, name, _pick(rng, (8, 16, 32, *SIDES)))
    message.roi.do_rectify = bool(rng.integers(2))


def _frame(rng, message) -> None:
    message.header.frame_id = _pick(rng, FRAMES)


_INFO_DAMAGE = [
    _matrix_entry, _matrix_entry, _focal, _matrix, _lens, _coefficients, _coefficients,
    _camera_side, _binning, _window, _frame,
]  # fmt: skip


# Ranges.


def _float32(number: float) -> float:
    """As a float32 field takes it: beyond its range there is infinity."""
    with np.errstate(over='ignore'):
        return float(np.float32(number))


def _limits_of_scan(rng, message) -> None:
    names = ('angle_min', 'angle_max', 'angle_increment', 'range_min', 'range_max', 'scan_time')
    setattr(message, _pick(rng, names), _float32(_pick(rng, NUMBERS)))


def _returns(rng, message) -> None:
    ranges = np.array(message.ranges, np.float32)
    if len(ranges):
        chosen = rng.random(len(ranges)) < _pick(rng, (0.02, 0.5, 1.0))
        ranges[chosen] = _float32(_pick(rng, NUMBERS))
    message.ranges = ranges.tolist()


def _count_of_returns(rng, message) -> None:
    count = _pick(rng, (0, 1, 19, 80, 1000, 1000, 1000, 300_000))
    message.ranges = np.resize(np.array([2.0, 0.0, np.nan], np.float32), count).tolist()
    message.intensities = [0.0] * int(rng.integers(3))


_SCAN_DAMAGE = [_limits_of_scan, _limits_of_scan, _returns, _count_of_returns, _frame]


def _points(rng, message) -> None:
    values = np.frombuffer(bytes(message.data), '<f4', len(message.data) // 4).copy()
    if len(values):
        chosen = rng.random(len(values)) < _pick(rng, (0.02, 0.5, 1.0))
        values[chosen] = _float32(_pick(rng, NUMBERS))
    message.data = byte_array(values.view(np.uint8))


def _doubles(rng, message) -> None:
    """True FLOAT64, of any size."""
    points = rng.normal(0, 1, (message.width % 1000, 3)) * _pick(rng, (1.0, 1e30, 1e300))
    for i, field in enumerate(message.fields[:3]):
        field.datatype, field.offset = PointField.FLOAT64, 8 * i
    message.point_step, message.height, message.width = 24, 1, len(points)
    message.row_step = 24 * len(points)
    message.data = byte_array(points.astype('<f8').view(np.uint8).reshape(-1))


def _field(rng, message) -> None:
    field = message.fields[rng.integers(len(message.fields))] if message.fields else PointField()
    change = _pick(rng, ('name', 'offset', 'datatype', 'count'))
    value = {
        'name': ('', 'x', 'y', 'rgb', 'a\nb', 'N' * 100_000),
        'offset': (0, 1, 3, 8, 11, 12, 2**31, 2**32 - 1),
        'datatype': (0, 1, 6, 7, 8, 9, 255),
        'count': (0, 1, 2, 2**32 - 1),
    }[change]
    setattr(field, change, _pick(rng, value))


def _fields(rng, message) -> None:
    kept = list(message.fields)[: rng.integers(len(message.fields) + 1)]
    message.fields = kept * int(_pick(rng, (0, 1, 2, 1000)))


def _steps(rng, message) -> None:
    sides = (*SIDES, 12, 24, 12 * 225)
    setattr(message, _pick(rng, ('point_step', 'row_step')), _pick(rng, sides))


def _byte_order_of_cloud(rng, message) -> None:
    message.is_bigendian = not message.is_bigendian


_CLOUD_DAMAGE = [
    _points, _points, _doubles, _field, _field, _fields, _steps, _side, _length,
    _byte_order_of_cloud, _frame,
]  # fmt: skip
