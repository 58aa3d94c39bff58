"""Messages to arrays and back: encodings, damage, camera_info, and what building them costs."""

import sys
import time
import types

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
import sensor_msgs.msg  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from vlm_depth_ros.core.errors import InputError  # noqa: E402
from vlm_depth_ros.core.geometry import CameraIntrinsics  # noqa: E402
from vlm_depth_ros.files.bag_arrays import camera_model  # noqa: E402
from vlm_depth_ros.ros.encodings import LAYOUTS, MAX_SIDE_PX  # noqa: E402
from vlm_depth_ros.ros.messages import (  # noqa: E402
    byte_array,
    camera_info_message,
    cloud_message,
    compressed_to_rgb,
    image_message,
    image_to_rgb,
)

COLOURS = ((200, 30, 60), (20, 180, 90), (40, 70, 220), (128, 128, 128))
"""Of four squares: red over blue, green over grey."""


def squares(side: int = 16) -> np.ndarray:
    """An RGB image of four plain squares, so that shared chroma stays inside one of them."""
    top = np.repeat(np.array([[COLOURS[0], COLOURS[1]]], np.uint8), side, 1)
    bottom = np.repeat(np.array([[COLOURS[2], COLOURS[3]]], np.uint8), side, 1)
    return np.repeat(np.concatenate([top, bottom]), side, 0)


def yuv(rgb: np.ndarray) -> np.ndarray:
    """BT.601, limited range."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return np.stack([y, u, v], -1).round().astype(np.uint8)


def stored(encoding: str, rgb: np.ndarray) -> np.ndarray:
    """The rows that a camera with this encoding sends."""
    y, u, v = np.moveaxis(yuv(rgb), -1, 0)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if encoding in ('mono8', '8UC1'):
        return grey
    if encoding == 'mono16':
        return grey.astype('<u2') * 257
    if encoding in ('rgb8', 'bgr8', '8UC3'):
        return rgb if encoding == 'rgb8' else rgb[..., ::-1]
    if encoding in ('rgba8', 'bgra8'):
        alpha = np.full_like(rgb[..., :1], 7)
        return np.concatenate([rgb if encoding == 'rgba8' else rgb[..., ::-1], alpha], -1)
    if encoding in ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'):
        chroma = np.where(np.arange(rgb.shape[1]) % 2, v, u)
        luma_first = encoding in ('yuv422_yuy2', 'yuyv')
        return np.stack([y, chroma] if luma_first else [chroma, y], -1)
    if encoding in ('nv12', 'nv21'):
        pair = (u, v) if encoding == 'nv12' else (v, u)
        chroma = np.stack([plane[::2, ::2] for plane in pair], -1)
        return np.concatenate([y, chroma.reshape(rgb.shape[0] // 2, -1)])
    assert encoding.startswith('bayer_')
    mosaic = np.empty(rgb.shape[:2], np.uint8)
    for place, letter in enumerate(encoding[6:10]):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        mosaic[rows, columns] = rgb[rows, columns, 'rgb'.index(letter)]
    return mosaic


def message_of(encoding: str, rgb: np.ndarray, padding: int = 0, bigendian: bool = False) -> Image:
    """An image message of `rgb`, with `padding` bytes of rubbish after each row."""
    rows = np.ascontiguousarray(stored(encoding, rgb))
    if bigendian:
        rows = rows.astype(rows.dtype.newbyteorder('>'))
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    raw = np.pad(raw, ((0, 0), (0, padding)), constant_values=99)
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding=encoding)
    message.step, message.is_bigendian, message.data = raw.shape[1], bigendian, byte_array(raw)
    return message


def at_centres(rgb: np.ndarray) -> np.ndarray:
    """Colours at the centres of the four squares, away from interpolation."""
    side = len(rgb) // 2
    return rgb[side // 2 :: side, side // 2 :: side].reshape(4, 3).astype(int)


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('encoding', LAYOUTS)
def test_image_to_rgb_gives_the_colours_that_the_camera_saw(encoding, padding):
    rgb = image_to_rgb(message_of(encoding, squares(), padding))
    assert rgb.shape == (32, 32, 3) and rgb.dtype == np.uint8
    expected = np.array(COLOURS)
    if encoding in ('mono8', '8UC1', 'mono16'):
        grey = cv2.cvtColor(squares(), cv2.COLOR_RGB2GRAY)
        expected = at_centres(np.repeat(grey[..., None], 3, -1))
    tolerance = 4 if encoding.startswith(('yuv', 'uyvy', 'yuyv', 'nv')) else 0
    assert np.abs(at_centres(rgb) - expected).max() <= tolerance


@pytest.mark.parametrize('bigendian', [False, True])
def test_image_to_rgb_honours_the_byte_order_of_16_bits(bigendian):
    rgb = image_to_rgb(message_of('mono16', squares(), padding=4, bigendian=bigendian))
    grey = cv2.cvtColor(squares(), cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, -1))


def test_image_to_rgb_ignores_the_byte_order_of_8_bits():
    message = message_of('bgr8', squares())
    message.is_bigendian = True
    np.testing.assert_array_equal(image_to_rgb(message), squares())


@pytest.mark.parametrize(
    ('encoding', 'change', 'says'),
    [
        ('rgb8', {'height': 0}, r'32 x 0 rgb8: expected 1 to'),
        ('rgb8', {'width': 0}, r'0 x 32 rgb8: expected 1 to'),
        ('rgb8', {'width': MAX_SIDE_PX + 1}, rf'expected 1 to {MAX_SIDE_PX} pixels'),
        ('rgb8', {'height': 4_000_000_000}, r'expected 1 to'),
        ('rgb8', {'step': 95}, r'step of 95 bytes: expected at least 96'),
        ('rgb8', {'step': 0}, r'step of 0 bytes'),
        ('rgb8', {'height': 33}, r'has 3072 bytes: expected 3168. The message was cut off'),
        ('mono16', {'step': 32}, r'expected at least 64'),
        ('nv12', {'height': 34}, r'expected 1632'),
        ('nv12', {'height': 31}, r'even'),
        ('yuv422', {'width': 31}, r'even'),
    ],
)
def test_image_to_rgb_refuses_a_damaged_message(encoding, change, says):
    message = message_of(encoding, squares())
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(InputError, match=says):
        image_to_rgb(message)


def test_image_to_rgb_names_the_encodings_it_knows(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    message = Image(height=2, width=2, encoding='32FC7', step=56)
    with pytest.raises(InputError, match='32FC7.*expected one of rgb8, bgr8.*cv_bridge'):
        image_to_rgb(message)


def test_image_to_rgb_asks_cv_bridge_for_other_encodings(monkeypatch):
    """It gets tight little-endian rows: padded or big-endian ones it reads wrongly."""
    seen = []

    class CvBridge:
        def imgmsg_to_cv2(self, message, encoding):
            seen.append((message, encoding))
            return np.zeros((message.height, message.width, 3), np.uint8)

    monkeypatch.setitem(sys.modules, 'cv_bridge', types.SimpleNamespace(CvBridge=CvBridge))
    values = np.arange(12, dtype='>u2').reshape(2, 2, 3)
    raw = np.pad(values.view(np.uint8).reshape(2, 12), ((0, 0), (0, 5)))
    message = Image(height=2, width=2, encoding='bgr16', step=17, is_bigendian=True)
    message.data = byte_array(raw)
    assert image_to_rgb(message).shape == (2, 2, 3)
    ((given, encoding),) = seen
    assert (encoding, given.step, given.is_bigendian) == ('rgb8', 12, 0)
    np.testing.assert_array_equal(np.frombuffer(given.data, '<u2'), values.ravel())


def test_image_to_rgb_turns_errors_of_cv_bridge_into_its_own(monkeypatch):
    class CvBridge:
        def imgmsg_to_cv2(self, message, encoding):
            raise RuntimeError('no such conversion')

    monkeypatch.setitem(sys.modules, 'cv_bridge', types.SimpleNamespace(CvBridge=CvBridge))
    message = Image(height=1, width=1, encoding='odd', step=1, data=byte_array(np.zeros(1)))
    with pytest.raises(InputError, match='odd: cv_bridge cannot.*no such conversion'):
        image_to_rgb(message)


def compressed(suffix: str = '.jpg', format: str = 'rgb8; jpeg compressed bgr8'):
    """A compressed image message of the squares."""
    _, data = cv2.imencode(suffix, cv2.cvtColor(squares(), cv2.COLOR_RGB2BGR))
    return CompressedImage(format=format, data=byte_array(data))


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_compressed_to_rgb_gives_the_colours_that_the_camera_saw(suffix):
    rgb = compressed_to_rgb(compressed(suffix))
    assert np.abs(at_centres(rgb) - np.array(COLOURS)).max() <= 12


def test_compressed_to_rgb_refuses_half_a_jpeg():
    message = compressed()
    message.data = message.data[: len(message.data) // 2]
    with pytest.raises(InputError, match='cut off'):
        compressed_to_rgb(message)


def test_compressed_to_rgb_refuses_an_absurd_size_before_decoding():
    message = compressed()
    data = bytearray(message.data)
    frame = data.index(b'\xff\xc0')  # Start of frame: length, precision, height, width.
    data[frame + 5 : frame + 9] = b'\xff\xff\xff\xff'
    message.data = byte_array(np.frombuffer(bytes(data), np.uint8))
    with pytest.raises(InputError, match='65535 x 65535'):
        compressed_to_rgb(message)


def test_compressed_to_rgb_refuses_depth():
    with pytest.raises(InputError, match='compressedDepth.*colour picture'):
        compressed_to_rgb(compressed('.png', '32FC1; compressedDepth png'))


def test_camera_model_of_takes_every_field():
    message = CameraInfo(height=480, width=640, distortion_model='plumb_bob')
    message.d = [0.1, -0.2, 0.01, 0.02, 0.3]
    message.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [400.0, 0.0, 310.0, 0.0, 0.0, 410.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.binning_x, message.binning_y = 2, 4
    message.roi.x_offset, message.roi.y_offset = 10, 20
    message.roi.width, message.roi.height, message.roi.do_rectify = 320, 240, True
    camera = camera_model(message)
    assert camera.d == (0.1, -0.2, 0.01, 0.02, 0.3) and camera.distortion_model == 'plumb_bob'
    assert camera.k == tuple(message.k) and camera.p == tuple(message.p)
    assert camera.expected_image_hw == (60, 160)
    assert camera.roi == (10, 20, 240, 320, True)


def test_camera_model_of_refuses_a_zero_focal_length():
    with pytest.raises(InputError, match='focal lengths'):
        camera_model(CameraInfo(height=480, width=640))


@pytest.fixture(scope='module')
def packed():
    """Everything that is made of one 640 x 480 frame, the cloud at stride 1."""
    torch = pytest.importorskip('torch')
    from vlm_depth_ros.core import packing

    camera = CameraIntrinsics(500.0, 500.0, 319.5, 239.5, 640, 480)
    depth = torch.linspace(1, 5, 640 * 480).reshape(480, 640)
    return (
        packing.pack_depth(depth),
        packing.camera_info_of(camera),
        packing.pack_cloud(depth, camera),
    )


def test_messages_say_what_was_packed(packed):
    header = Header(frame_id='optical')
    header.stamp.sec, header.stamp.nanosec = 12, 345
    depth, info, cloud = (
        wrap(part, header)
        for wrap, part in zip((image_message, camera_info_message, cloud_message), packed)
    )
    assert depth.header == info.header == cloud.header == header
    assert (depth.encoding, depth.step, depth.is_bigendian) == ('32FC1', 2560, 0)
    values = np.frombuffer(depth.data, '<f4').reshape(depth.height, depth.width)
    assert values[0, 0] == 1 and values[-1, -1] == 5
    assert (info.height, info.width, list(info.d)) == (480, 640, [0.0] * 5)
    assert camera_model(info).intrinsics(rectified=True).fx_px == 500.0
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        ('x', 0, 7, 1), ('y', 4, 7, 1), ('z', 8, 7, 1), ('rgb', 12, 7, 1),
    ]  # fmt: skip
    assert (cloud.height, cloud.width, cloud.point_step) == (1, 640 * 480, 16)
    assert cloud.row_step == len(cloud.data) == 640 * 480 * 16 and cloud.is_dense
    np.testing.assert_array_equal(np.frombuffer(cloud.data, '<f4')[2::4], values.ravel())


@pytest.mark.alone
@pytest.mark.parametrize('check_fields', ['', '1'])
def test_building_all_messages_takes_under_3_ms(packed, check_fields, monkeypatch):
    """With rclpy's field checks too: always on in Humble, since Jazzy on demand."""
    for name in ('_image', '_camera_info', '_point_cloud2'):
        module = getattr(sensor_msgs.msg, name)
        monkeypatch.setattr(module, 'ros_python_check_fields', check_fields, raising=False)
    header = Header(frame_id='optical')
    took_ms = []
    for _ in range(30):
        start_s = time.perf_counter()
        image_message(packed[0], header)
        camera_info_message(packed[1], header)
        cloud_message(packed[2], header)
        took_ms.append((time.perf_counter() - start_s) * 1e3)
    assert np.median(took_ms) < 3, f'median {np.median(took_ms):.2f} ms'
