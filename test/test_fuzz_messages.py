"""Whatever a camera sends becomes an answer or one clear line: thousands of malformed messages.

With VLM_DEPTH_FUZZ=1 they are 10^5. Each has a number: `malformed.malformed(kind, number)` makes
the one again that a failure names.
"""

from dataclasses import replace
import os
from pathlib import Path
import re
import struct
import sys
import time
import types

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='cameras are tried on an estimator')
from malformed import (  # noqa: E402
    bomb_by_claim,
    bomb_of_scans,
    BOMBS,
    good_cloud,
    good_compressed,
    good_image,
    good_info,
    good_range,
    good_scan,
    HEIGHT_PX,
    IS_FULL,
    malformed,
    WIDTH_PX,
)
from picture_files import encoded, FORMS, picture  # noqa: E402
from ros_graph import StandInModel  # noqa: E402
from sensor_msgs.msg import (  # noqa: E402
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    Range,
)
from vlm_depth_ros.core.config import RuntimeConfig  # noqa: E402
from vlm_depth_ros.core.errors import InputError  # noqa: E402
from vlm_depth_ros.core.estimator import DepthEstimator, Frame  # noqa: E402
from vlm_depth_ros.core.geometry import CameraIntrinsics  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402
from vlm_depth_ros.core.scale_ranges import measure_ranges, RangeOptions  # noqa: E402
from vlm_depth_ros.files.bag_arrays import camera_model  # noqa: E402
from vlm_depth_ros.ros.inputs import CameraInput  # noqa: E402
from vlm_depth_ros.ros.messages import (  # noqa: E402
    byte_array,
    compressed_to_rgb,
    image_to_rgb,
)
from vlm_depth_ros.ros.surroundings import READERS  # noqa: E402

pytestmark = pytest.mark.filterwarnings('error')
COUNTS = {Image: 1500, CompressedImage: 1500, CameraInfo: 1500}
if IS_FULL:
    COUNTS = {Image: 40_000, CompressedImage: 30_000, CameraInfo: 30_000}
COUNTS |= dict.fromkeys((LaserScan, PointCloud2, Range), 10_000 if IS_FULL else 600)
LONGEST_S = 1.0
"""No message takes more, in CPU time: other programs shall not decide."""
LONGEST_LINE = 1000
"""Characters that are still one line of a log."""
GROWTH_BYTES = 32_000_000
"""What the allocator keeps after the largest message; 10^4 small frames that leak are 90 MB."""
GOOD_EVERY = 50


def resident_bytes() -> int:
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def answer_to_image(message):
    rgb = image_to_rgb(message)
    assert rgb.shape == (message.height, message.width, 3) and rgb.dtype == np.uint8
    return rgb


def answer_to_compressed(message):
    rgb = compressed_to_rgb(message)
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8
    return rgb


def answer_to_info(message):
    """Where each pixel of the rectified image is taken from in the raw one."""
    node = types.SimpleNamespace(resolve_topic_name=lambda name: f'/{name}')
    source = CameraInput(node, '', 'raw')
    source._on_info(message)
    camera = source.camera_for('camera_optical_frame', (HEIGHT_PX, WIDTH_PX))
    for rectified in (False, True):
        pinhole = camera.intrinsics(rectified)
        assert pinhole.image_hw == (HEIGHT_PX, WIDTH_PX)
        assert all(np.isfinite(ray).all() for ray in pinhole.axis_rays())
    source_px = camera.rectify_map()
    assert source_px.shape == (HEIGHT_PX, WIDTH_PX, 2) and np.isfinite(source_px).all()
    return source_px


CAMERA = CameraIntrinsics(64.0, 64.0, 31.5, 23.5, WIDTH_PX, HEIGHT_PX)
DEPTH_M = np.full((HEIGHT_PX, WIDTH_PX), 1.4, np.float32)
LOOKS_ALONG_X = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
"""(4, 4) of the points of a sensor into the optical frame of a camera beside it."""


def answer_to_ranges(message):
    """The points that are compared with depth, whatever comes of that."""
    points = READERS[type(message)](message, LOOKS_ALONG_X)
    assert points.ndim == 2 and points.shape[1] == 3 and np.isfinite(points).all()
    found = measure_ranges(DEPTH_M, CAMERA, points, RangeOptions())
    assert found.reason.isprintable() and len(found.reason) <= LONGEST_LINE
    assert found.reason or (np.isfinite(found.spread) and 0 < found.factor < np.inf)
    return points


KINDS = {
    # Answer, a good message, and the least and greatest share that is refused.
    Image: (answer_to_image, good_image, 0.2, 0.8),
    CompressedImage: (answer_to_compressed, good_compressed, 0.2, 0.8),
    CameraInfo: (answer_to_info, good_info, 0.2, 0.8),
    LaserScan: (answer_to_ranges, good_scan, 0.05, 0.5),
    PointCloud2: (answer_to_ranges, good_cloud, 0.2, 0.9),
    Range: (answer_to_ranges, good_range, 0.2, 0.8),
}


def outcome(act, message):
    """An answer, or the one line that refuses the message."""
    try:
        return act(message)
    except InputError as err:
        line = str(err)
        assert line.isprintable() and 20 < len(line) <= LONGEST_LINE, repr(line[:2000])
        return line


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
def test_a_malformed_message_gets_an_answer_or_one_line_in_time_and_no_memory(kind):
    act, good, least, most = KINDS[kind]
    expected = outcome(act, good())
    assert isinstance(expected, np.ndarray)
    refused, slowest = 0, (0.0, None)
    for number in range(COUNTS[kind]):
        message = malformed(kind, number)
        start_s = time.process_time()
        try:
            found = outcome(act, message)
        except Exception as err:
            raise AssertionError(f'malformed({kind.__name__}, {number})') from err
        slowest = max(slowest, (time.process_time() - start_s, number))
        refused += isinstance(found, str)
        if number % GOOD_EVERY == 0:
            np.testing.assert_array_equal(outcome(act, good()), expected)
        if number == COUNTS[kind] // 5:
            before_bytes = resident_bytes()
    grown_mb = (resident_bytes() - before_bytes) / 1e6
    print(
        f'{kind.__name__}: {COUNTS[kind]} messages, {refused} refused; slowest {slowest[0]:.3f} s '
        f'(number {slowest[1]}); resident memory {before_bytes / 1e6:.0f} MB, {grown_mb:+.1f} MB'
    )
    assert least < refused / COUNTS[kind] < most
    assert slowest[0] < LONGEST_S, slowest
    assert grown_mb * 1e6 < GROWTH_BYTES


def with_fields(**fields) -> CameraInfo:
    message = good_info()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def compressed(data: bytes) -> CompressedImage:
    return CompressedImage(format='jpeg', data=byte_array(np.frombuffer(data, np.uint8)))


def tiff_of_two_widths() -> bytes:
    """Its directory says 40000 x 20000 before it says what is there."""
    tiff = encoded(*FORMS['plain tiff'])
    (at,) = struct.unpack_from('<I', tiff, 4)
    (count,) = struct.unpack_from('<H', tiff, at)
    claims = struct.pack('<HHII', 256, 4, 1, 40_000) + struct.pack('<HHII', 257, 4, 1, 20_000)
    entries = claims + tiff[at + 2 : at + 2 + 12 * count] + bytes(4)
    moved = tiff[:4] + struct.pack('<I', len(tiff)) + tiff[8:]
    return moved + struct.pack('<H', count + 2) + entries


K = good_info().k.tolist()


def cloud_with_field(**change) -> PointCloud2:
    message = good_cloud()
    for name, value in change.items():
        setattr(message.fields[0], name, value)
    return message


@pytest.mark.parametrize(
    ('message', 'says'),
    [
        (Image(height=1, width=1, encoding='a\nb', step=1), r"1 x 1 'a\\nb': the encoding is"),
        (Image(height=1, width=1, encoding='x' * 999, step=1), r'\.\.\. \(999 characters\): the'),
        (CompressedImage(format='compressedDepth' * 9), r'\.\.\. \(135 characters\): expected a'),
        (compressed(bomb_of_scans()), r'the JPEG has 20\d\d\d scans, expected at most 100'),
        (compressed(bomb_by_claim()), '60000 x 60000 pixels; at most 25 megapixels'),
        (compressed(tiff_of_two_widths()), '40000 x 20000 pixels; at most 25 megapixels'),
        (with_fields(distortion_model='y' * 99), r'\.\.\. \(99 characters\): expected'),
        (with_fields(d=[0.0] * 101), '101 distortion coefficients: no lens model has more'),
        (with_fields(k=[1e-9, *K[1:]]), r'K has focal lengths \(1e-09, 64\).*expected.*1/1000'),
        (with_fields(k=[*K[:2], 1e9, *K[3:]]), r'centre \(1e\+09, 23.5\).*within 1000 sides'),
        (with_fields(p=[1e300, 0.0, 0.0, 0.0, 0.0, 64.0] + [0.0] * 6), r'P has focal.*1e\+300'),
        (with_fields(r=[1e300] * 9), 'is no rotation'),
        (cloud_with_field(name='N' * 999), r"N'\.\.\. \(1003 characters\): expected x, y and z"),
        (cloud_with_field(datatype=4), 'expected x, y and z as FLOAT32 or FLOAT64'),
        (cloud_with_field(offset=11), 'expected unpadded rows and 2700 bytes'),
        (LaserScan(angle_increment=float('nan')), 'steps by nan: expected finite angles'),
        (Range(field_of_view=4.0), 'field of view of 4.0 rad: expected above 0 and below pi'),
    ],
)
def test_a_refusal_says_what_came_and_what_was_expected(message, says):
    act = KINDS[type(message)][0]
    assert re.search(says, outcome(act, message))


@pytest.mark.parametrize('bomb', BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_costs_less_than_a_second(bomb):
    message = CompressedImage(format='png', data=byte_array(np.frombuffer(bomb(), np.uint8)))
    start_s = time.process_time()
    outcome(answer_to_compressed, message)
    assert time.process_time() - start_s < LONGEST_S


def test_what_cv_bridge_gets_is_whole(monkeypatch):
    """A stand-in for it: it is not on PyPI."""

    class CvBridge:
        def imgmsg_to_cv2(self, message, encoding):
            if message.height * message.width > 1e6 or message.encoding.startswith(('A', '\x1b')):
                raise RuntimeError('error: (-215)\n> no such\n> conversion')
            return np.zeros((message.height, message.width, 3), np.uint8)

    monkeypatch.setitem(sys.modules, 'cv_bridge', types.SimpleNamespace(CvBridge=CvBridge))
    for number in range(COUNTS[Image] // 3):
        try:
            outcome(answer_to_image, malformed(Image, number))
        except Exception as err:
            raise AssertionError(f'malformed(Image, {number})') from err


@pytest.mark.parametrize('size_by_focal', [0.0, 0.5])
def test_every_camera_that_is_accepted_gives_depth_and_points_that_are_true(
    size_by_focal, one_thread
):
    model = StandInModel()
    model.config = replace(model.config, size_by_focal=size_by_focal)
    estimator = DepthEstimator(model, RuntimeConfig(device='cpu'))
    low_m, high_m = estimator.range_m(OutputOptions())
    rgb, answered = picture(), 0
    for number in range(COUNTS[CameraInfo] // 4):
        try:
            camera = camera_model(malformed(CameraInfo, number))
        except InputError:
            continue
        if camera.expected_image_hw != (HEIGHT_PX, WIDTH_PX):
            continue
        frame = Frame(rgb, camera, wants=frozenset({'depth', 'points', 'color'}))
        try:
            (output,) = estimator.process([frame], OutputOptions())
        except Exception as err:
            raise AssertionError(f'malformed(CameraInfo, {number})') from err
        depth_m = np.frombuffer(output.depth.data, '<f4')
        finite = depth_m[np.isfinite(depth_m)]
        assert ((finite >= low_m) & (finite <= high_m)).all(), number
        if output.points is None:
            assert not (depth_m.reshape(HEIGHT_PX, WIDTH_PX)[::2, ::2] > 0).any(), number
        else:
            points = np.frombuffer(output.points.data, '<f4').reshape(-1, 4)[:, :3]
            assert output.points.is_dense == np.isfinite(points).all(), number
        answered += 1
    assert answered > COUNTS[CameraInfo] / 20
