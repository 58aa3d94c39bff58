"""Bags: what goes in comes out, one whole file or none, and any damage is named."""

import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.packing import camera_info_of, pack_cloud, pack_depth, PackedImage
from vlm_depth_ros.files.bag_messages import write_frames
from vlm_depth_ros.files.bags import (
    BagReader,
    BagWriter,
    cloud_xyzrgb,
    image_array,
    read_messages,
)
from vlm_depth_ros.files.source import open_source, SourceFrame

rosbag2 = pytest.importorskip('rosbags.rosbag2')
from rosbags.typesys import get_typestore, Stores  # noqa: E402

CAMERA = CameraIntrinsics(60.5, 61.0, 31.5, 23.5, 64, 48)
IMAGE, INFO = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CameraInfo'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
STORE = get_typestore(Stores.ROS2_KILTED)
T = STORE.types


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def depth(seed=0):
    depth_m = np.random.default_rng(seed).uniform(0.5, 9, (48, 64)).astype(np.float32)
    depth_m[:5] = np.nan
    return depth_m


def frames(count=3):
    return [SourceFrame(picture(i), 10 + i / 4, CAMERA, depth(i), f'{i}') for i in range(count)]


def header(stamp_ns=0, frame_id='cam'):
    time = T['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
    return T['std_msgs/msg/Header'](time, frame_id)


def image_message(pixels, encoding, stamp_ns=0, frame_id='cam', pad=0, is_bigendian=0):
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, pad)), constant_values=99)
    hw = pixels.shape[:2]
    data = rows.reshape(-1)
    return T[IMAGE](header(stamp_ns, frame_id), *hw, encoding, is_bigendian, rows.shape[1], data)


def info_message(k=(60.5, 0, 31.5, 0, 61, 23.5, 0, 0, 1), d=(0,) * 5, hw=(48, 64), p=(0,) * 12):
    arrays = (np.array(d, float), np.array(k, float), np.eye(3).ravel(), np.array(p, float))
    roi = T['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return T[INFO](header(), *hw, 'plumb_bob', *arrays, 0, 0, roi)


def compressed_message(rgb, stamp_ns=0, form='.png', said='rgb8; png compressed bgr8'):
    data = cv2.imencode(form, rgb[..., ::-1])[1].reshape(-1)
    return T[COMPRESSED](header(stamp_ns), said, data)


def write_bag(path, *messages, store=STORE):
    """Write (topic, message, log time) triples."""
    with BagWriter(path) as bag:
        for topic, message, log_ns in messages:
            bag.add(
                topic,
                message.__msgtype__,
                store.serialize_cdr(message, message.__msgtype__),
                log_ns,
            )
    return path


# ---- one file, whole or not at all


def test_frames_come_back_from_one_file(tmp_path):
    assert write_frames(tmp_path / 'new' / 'a.mcap', frames()) == 3
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['a.mcap']
    source = open_source(tmp_path / 'new' / 'a.mcap')
    assert len(source) == 3 and source.topic == '/image'
    assert source.depth_topic == '/depth/image_rect'
    for _ in range(2):
        for wanted, frame in zip(frames(), source, strict=True):
            assert np.array_equal(frame.rgb, wanted.rgb) and frame.stamp_s == wanted.stamp_s
            assert np.array_equal(frame.depth_m, wanted.depth_m, equal_nan=True)
            assert frame.intrinsics == CAMERA
    assert source[1].name == '/image#1' and np.array_equal(source[-1].rgb, picture(2))


def test_compression_makes_a_smaller_bag_of_the_same_frames(tmp_path):
    even = [SourceFrame(np.full((48, 64, 3), 9, np.uint8), 1.0, CAMERA, depth())]
    for name, compress in (('plain', False), ('small', True)):
        write_frames(tmp_path / f'{name}.mcap', even, compress=compress)
    plain, small = (tmp_path / f'{n}.mcap' for n in ('plain', 'small'))
    assert small.stat().st_size < 0.8 * plain.stat().st_size
    assert np.array_equal(open_source(small)[0].depth_m, depth(), equal_nan=True)


def test_desk_bag_has_the_layouts_of_the_node(tmp_path):
    write_frames(tmp_path / 'a.mcap', frames(1), frame_id='optical', stride=2, organized=True)
    found = {topic: (log, msg) for topic, log, msg in read_messages(tmp_path / 'a.mcap')}
    assert sorted(found) == [
        '/camera_info',
        '/depth/camera_info',
        '/depth/image_rect',
        '/image',
        '/points',
    ]
    gated = torch.tensor(depth())
    packed = pack_cloud(gated, CAMERA, torch.tensor(picture()), 2, organized=True)
    log, cloud = found['/points']
    assert (
        log == 10 * 10**9 and cloud.header.stamp.sec == 10 and cloud.header.frame_id == 'optical'
    )
    assert bytes(cloud.data) == packed.data.tobytes() and cloud.is_dense == packed.is_dense
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (24, 32, 16, 512)
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        ('x', 0, 7, 1), ('y', 4, 7, 1), ('z', 8, 7, 1), ('rgb', 12, 7, 1)]  # fmt: skip
    image = found['/depth/image_rect'][1]
    assert image.encoding == '32FC1' and image.step == 256 and not image.is_bigendian
    assert bytes(image.data) == pack_depth(gated).data.tobytes()
    info, wanted = found['/depth/camera_info'][1], camera_info_of(CAMERA)
    assert tuple(info.k) == wanted.k and tuple(info.p) == wanted.p and tuple(info.d) == wanted.d
    assert info.distortion_model == 'plumb_bob' and (info.height, info.width) == (48, 64)


def test_frames_without_depth_camera_or_stamp_are_written(tmp_path):
    plain = [SourceFrame(picture(i)) for i in range(3)]
    write_frames(tmp_path / 'a.mcap', plain, rate_hz=5)
    source = open_source(tmp_path / 'a.mcap')
    assert [f.stamp_s for f in source] == [0.0, 0.2, 0.4]
    assert source.camera is None and source[0].depth_m is None and source[0].intrinsics is None


def test_depth_of_zero_never_reaches_a_bag(tmp_path):
    zeros = np.zeros((48, 64), np.float32)
    write_frames(tmp_path / 'a.mcap', [SourceFrame(picture(), 1.0, CAMERA, zeros)])
    for topic, _, msg in read_messages(tmp_path / 'a.mcap', ['/depth/image_rect', '/points']):
        assert np.isnan(image_array(msg)).all() if 'depth' in topic else msg.width == 0


@pytest.mark.parametrize('distro', ['humble', 'jazzy', 'kilted'])
def test_messages_of_every_distribution_are_written_and_read(tmp_path, distro):
    store = get_typestore(Stores[f'ROS2_{distro.upper()}'])
    message = image_message(picture(), 'rgb8', 5)
    with BagWriter(tmp_path / 'a.mcap', distro=distro) as bag:
        bag.add('/image', IMAGE, store.serialize_cdr(message, IMAGE), 7)
        diagnostics = store.types['diagnostic_msgs/msg/DiagnosticArray'](header(), [])
        name = 'diagnostic_msgs/msg/DiagnosticArray'
        bag.add('/diagnostics', name, store.serialize_cdr(diagnostics, name), 8)
    messages = list(read_messages(tmp_path / 'a.mcap'))
    assert [(t, n) for t, n, _ in messages] == [('/image', 7), ('/diagnostics', 8)]
    assert np.array_equal(image_array(messages[0][2]), picture())


def test_raw_bytes_log_times_and_qos_are_kept(tmp_path):
    cdr = bytes(STORE.serialize_cdr(image_message(picture(), 'rgb8', 5), IMAGE))
    with BagWriter(tmp_path / 'a.mcap') as bag:
        bag.add('/late', IMAGE, cdr, 900, reliable=False)
        bag.add('/early', IMAGE, memoryview(cdr), 100, latched=True)
        assert bag.message_count == 2
    with BagReader(tmp_path / 'a.mcap') as bag:
        assert list(bag.raw()) == [('/early', 100, IMAGE, cdr), ('/late', 900, IMAGE, cdr)]
        assert {t.name: t.count for t in bag.topics} == {'/late': 1, '/early': 1}
    with rosbag2.Reader(tmp_path / 'a.mcap') as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    assert (
        qos['/late'].reliability.name == 'BEST_EFFORT'
        and qos['/late'].durability.name == 'VOLATILE'
    )
    assert qos['/early'].reliability.name == 'RELIABLE'
    assert qos['/early'].durability.name == 'TRANSIENT_LOCAL'


def test_the_official_mcap_library_reads_it(tmp_path):
    mcap = pytest.importorskip('mcap.reader', reason='the library mcap is not installed')
    write_frames(tmp_path / 'a.mcap', frames(2))
    with (tmp_path / 'a.mcap').open('rb') as file:
        reader = mcap.make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert reader.get_header().profile == 'ros2'
        assert summary.statistics.message_count == 10
        assert {s.name for s in summary.schemas.values()} == {
            IMAGE,
            INFO,
            'sensor_msgs/msg/PointCloud2',
        }
        assert len(list(reader.iter_messages(topics=['/points']))) == 2
        metadata = {m.name: m.metadata for m in reader.iter_metadata()}
    # `ros2 bag info a.mcap` and play look the file up under this name.
    assert '- a.mcap' in metadata['rosbag2']['serialized_metadata']


def test_interrupted_recording_leaves_the_old_bag(tmp_path):
    write_frames(tmp_path / 'a.mcap', frames(1))
    with pytest.raises(KeyboardInterrupt), BagWriter(tmp_path / 'a.mcap') as bag:
        bag.add_packed('/image', PackedImage(1, 1, 'mono8', 1, np.zeros(1, np.uint8)), 1, 'f')
        raise KeyboardInterrupt
    assert len(open_source(tmp_path / 'a.mcap')) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['a.mcap']
    write_frames(tmp_path / 'a.mcap', frames(2))
    assert len(open_source(tmp_path / 'a.mcap')) == 2


@pytest.mark.parametrize('limit', [400_000, 1_200_000, 2_150_000])
def test_full_disk_is_named_and_leaves_the_old_bag(tmp_path, limit):
    resource = pytest.importorskip('resource')
    write_frames(tmp_path / 'a.mcap', frames(1))
    pixels = np.zeros((1, 200_000), np.uint8)
    packed = PackedImage(1, 200_000, 'mono8', 200_000, pixels.reshape(-1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # as a full disk: write fails
    try:
        with pytest.raises(InputError, match=r'a\.mcap: could not be written .*unchanged'):
            with BagWriter(tmp_path / 'a.mcap') as bag:
                for stamp in range(12):
                    bag.add_packed('/image', packed, stamp, 'f')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(open_source(tmp_path / 'a.mcap')) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['a.mcap']


def test_recording_nothing_is_an_error_and_leaves_the_old_bag(tmp_path):
    write_frames(tmp_path / 'a.mcap', frames(1))
    with pytest.raises(InputError, match=r'a\.mcap: no message came, so no bag was written'):
        write_frames(tmp_path / 'a.mcap', [])
    assert len(open_source(tmp_path / 'a.mcap')) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['a.mcap']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('/t', IMAGE, b'', 1), r"/t: b'' does not start a message in CDR"),
        (('/t', IMAGE, b'\7\7\7\7data', 1), 'does not start a message in CDR'),
        (('/t', 'my_msgs/msg/Own', b'\0\1\0\0', 1), "message type 'my_msgs/msg/Own' is unknown"),
        (('/t', IMAGE, b'\0\1\0\0', -1), 'stamp -1 ns; expected a time since 1970'),
        (('/t', IMAGE, b'\0\1\0\0', 2**63), 'expected a time since 1970'),
    ],
)
def test_what_is_no_message_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message), BagWriter(tmp_path / 'a.mcap') as bag:
        bag.add(*arguments)
    assert not list(tmp_path.iterdir())


def test_wrong_names_places_and_uses_are_refused(tmp_path):
    with pytest.raises(InputError, match=r'a\.bag: expected a file name that ends in \.mcap'):
        BagWriter(tmp_path / 'a.bag')
    with pytest.raises(InputError, match="distro 'foxy': expected one of humble, jazzy, kilted"):
        BagWriter(tmp_path / 'a.mcap', distro='foxy')
    with pytest.raises(InputError, match=r'a\.mcap: is not open; use `with BagWriter'):
        BagWriter(tmp_path / 'a.mcap').add('/t', IMAGE, b'\0\1\0\0', 1)
    (tmp_path / 'dir.mcap').mkdir()
    with pytest.raises(InputError, match=r'dir\.mcap: is not a regular file'):
        write_frames(tmp_path / 'dir.mcap', frames(1))
    (tmp_path / 'file').write_text('x')
    with pytest.raises(InputError, match=r'a\.mcap: could not be written'):
        write_frames(tmp_path / 'file' / 'a.mcap', frames(1))
    with (
        pytest.raises(InputError, match='int: expected a PackedImage'),
        BagWriter(tmp_path / 'a.mcap') as bag,
    ):
        bag.add_packed('/t', 3, 1, 'f')


# ---- reading


def other_forms(path, plugin, messages, compress=None):
    """Write a rosbag2 folder."""
    with rosbag2.Writer(path, version=9, storage_plugin=plugin) as writer:
        for topic, message, log_ns in messages:
            known = {c.topic: c for c in writer.connections}
            connection = known.get(topic) or writer.add_connection(
                topic, message.__msgtype__, typestore=STORE
            )
            writer.write(connection, log_ns, STORE.serialize_cdr(message, message.__msgtype__))
    return path


@pytest.mark.parametrize('plugin', list(rosbag2.StoragePlugin))
def test_folders_and_databases_are_read(tmp_path, plugin):
    messages = [
        ('/c/image_raw', image_message(picture(i), 'rgb8', i * 10**8), i) for i in range(3)
    ]
    messages.insert(0, ('/c/camera_info', info_message(), 0))
    folder = other_forms(tmp_path / 'bag', plugin, messages)
    inside = next(p for p in folder.iterdir() if p.name != 'metadata.yaml')
    for path in (folder, inside):
        source = open_source(path)
        assert len(source) == 3 and source[2].stamp_s == pytest.approx(0.2)
        assert source[0].intrinsics == CAMERA
        assert [np.array_equal(f.rgb, picture(i)) for i, f in enumerate(source)] == [True] * 3


def test_folder_of_a_recorder_that_died_is_read(tmp_path):
    write_frames(tmp_path / 'bag' / 'bag_0.mcap', frames(2))
    assert len(open_source(tmp_path / 'bag')) == 2


def test_a_cut_off_bag_is_refused_at_every_length(tmp_path):
    data = write_frames_bytes(tmp_path / 'a.mcap')
    cut = tmp_path / 'cut.mcap'
    for length in [*range(0, 60, 7), *range(60, len(data), len(data) // 40), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match=r'cut\.mcap: cannot be read as a ROS 2 bag'):
            open_source(cut)


def write_frames_bytes(path):
    write_frames(path, frames(1))
    return path.read_bytes()


def test_random_damage_gives_frames_or_one_clear_error(tmp_path):
    data = write_frames_bytes(tmp_path / 'a.mcap')
    rng, bad = np.random.default_rng(0), tmp_path / 'bad.mcap'
    for attempt in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        start = 0 if attempt % 2 else len(data) - 3000  # the headers, and the index
        spots = start + rng.integers(0, 3000, 3)
        damaged[spots] = rng.integers(0, 256, 3)
        bad.write_bytes(damaged.tobytes())
        try:
            for frame in open_source(bad):
                assert frame.rgb.ndim == 3
            list(read_messages(bad))
        except InputError as err:
            assert str(err)


@pytest.mark.parametrize('name', ['a.mcap', 'a.db3'])
@pytest.mark.parametrize('data', [b'', b'no bag', b'\x89MCAP0\r\n', bytes(5000)])
def test_foreign_files_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf'{name}: cannot be read as a ROS 2 bag'):
        open_source(tmp_path / name)


def test_damaged_folder_is_refused(tmp_path):
    for text in ('', 'a: b', ': : :', 'rosbag2_bagfile_information: {version: 99}'):
        (tmp_path / 'metadata.yaml').write_text(text)
        with pytest.raises(InputError, match='cannot be read as a ROS 2 bag'):
            open_source(tmp_path)


def test_missing_bag_and_topics_are_named(tmp_path):
    with pytest.raises(InputError, match=r'none\.mcap: does not exist'):
        list(read_messages(tmp_path / 'none.mcap'))
    write_frames(tmp_path / 'a.mcap', frames(1))
    with pytest.raises(
        InputError, match='has no topic /b; it has /camera_info, /depth/camera_info'
    ):
        list(read_messages(tmp_path / 'a.mcap', ['/b', '/image']))
    with pytest.raises(
        InputError, match=r'no images on /b; image topics: /image \(rgb8\), /depth'
    ):
        open_source(tmp_path / 'a.mcap', topic='/b')
    with pytest.raises(
        InputError, match='/image is no depth image topic; there are /depth/image_rect'
    ):
        open_source(tmp_path / 'a.mcap', depth_topic='/image')


def test_files_are_closed_after_a_pass(tmp_path):
    if not os.path.isdir('/proc/self/fd'):
        pytest.skip('needs /proc to see open files')
    path = tmp_path / 'a.mcap'

    def is_open():
        links = (os.path.join('/proc/self/fd', n) for n in os.listdir('/proc/self/fd'))
        return any(os.path.exists(n) and os.path.realpath(n) == str(path.resolve()) for n in links)

    write_frames(path, frames(2))
    source = open_source(path)
    assert not is_open()
    list(source)
    list(read_messages(path))
    assert not is_open()
    with source:
        source[0]
        assert is_open()
    assert not is_open()


def run_python(code, *arguments):
    command = [sys.executable, '-c', code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_reading_a_bag_needs_no_torch_and_pictures_no_bag_library(tmp_path):
    write_frames(tmp_path / 'a.mcap', frames(1))
    code = (
        'import sys\n'
        'from vlm_depth_ros.files import clouds, images, pairs, source, video\n'
        'assert "rosbags" not in sys.modules\n'
        'assert len(list(source.open_source(sys.argv[1]))) == 1\n'
        'assert "rosbags" in sys.modules and "torch" not in sys.modules\n'
    )
    done = run_python(code, tmp_path / 'a.mcap')
    assert done.returncode == 0, done.stderr


def test_missing_bag_library_says_what_to_install(tmp_path):
    (tmp_path / 'a.mcap').write_bytes(b'')
    code = (
        'import sys\n'
        'sys.modules["rosbags.interfaces"] = None\n'
        'from vlm_depth_ros.files.source import open_source\n'
        'open_source(sys.argv[1])\n'
    )
    done = run_python(code, tmp_path / 'a.mcap')
    assert 'DependencyError: bags need the library rosbags' in done.stderr
    assert 'pip install rosbags' in done.stderr


# ---- which topics make a source


def test_depth_topics_are_not_taken_for_pictures(tmp_path):
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/depth/image_color', image_message(picture(5), 'bgr8'), 0),
        ('/depth/confidence', image_message(depth(), '32FC1'), 1),
        ('/depth/image_rect', image_message(depth(), '32FC1'), 2),
        (
            '/depth/image_rect/compressedDepth',
            compressed_message(picture(), said='32FC1; compressedDepth'),
            3,
        ),
        ('/cam/image_raw', image_message(picture(1), 'rgb8'), 4),
    )
    source = open_source(path)
    assert source.topic == '/cam/image_raw' and source.depth_topic == '/depth/image_rect'
    assert np.array_equal(source[0].rgb, picture(1))
    assert np.array_equal(source[0].depth_m, depth(), equal_nan=True)
    assert open_source(path, depth_topic='')[0].depth_m is None
    assert np.array_equal(
        open_source(path, topic='/depth/image_color')[0].rgb, picture(5)[..., ::-1]
    )


def test_bag_with_depth_only_or_unknown_encoding_says_what_it_has(tmp_path):
    bayer = image_message(picture()[..., 0], 'bayer_rggb8')
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/depth', image_message(depth(), '32FC1'), 0),
        ('/raw', bayer, 0),
        ('/info', info_message(), 0),
    )
    with pytest.raises(
        InputError, match=r'no picture topic; image topics: /depth \(32FC1\), /raw \(ba'
    ):
        open_source(path)
    with pytest.raises(
        InputError, match="/raw: image encoding 'bayer_rggb8': expected one of rgb8"
    ):
        open_source(path, topic='/raw')
    with pytest.raises(InputError, match="/depth: encoding '32FC1' is no 8-bit picture"):
        open_source(path, topic='/depth')
    infos = write_bag(tmp_path / 'b.mcap', ('/camera_info', info_message(), 0))
    with pytest.raises(InputError, match='no picture topic; image topics: none at all'):
        open_source(infos)


def test_compressed_images_use_the_camera_of_their_base_topic(tmp_path):
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/cam/image_raw/compressed', compressed_message(picture(), 3 * 10**9), 0),
        ('/cam/camera_info', info_message(), 1),
    )
    frame = open_source(path)[0]
    assert (
        np.array_equal(frame.rgb, picture()) and frame.stamp_s == 3 and frame.intrinsics == CAMERA
    )


def test_depth_recorded_later_is_matched_by_stamp(tmp_path):
    """As our own node's: depth arrives when two newer pictures are already in the bag."""
    messages = []
    for i in range(6):
        stamp = i * 10**8
        messages.append(('/image', image_message(picture(i), 'rgb8', stamp), stamp))
        if i != 2:
            late = image_message(depth(i), '32FC1', stamp + 15 * 10**6)
            messages.append(('/depth/image', late, stamp + 25 * 10**7))
    source = open_source(write_bag(tmp_path / 'a.mcap', *messages))
    for i, frame in enumerate(source):
        if i == 2:
            assert frame.depth_m is None
        else:
            assert np.array_equal(frame.depth_m, depth(i), equal_nan=True)
    for i in (5, 1, 4):
        assert np.array_equal(source[i].depth_m, depth(i), equal_nan=True)


def test_millimetres_become_metres_and_nothing_becomes_nan(tmp_path):
    stored = np.full((48, 64), 1500, np.uint16)
    stored[0] = 0
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/image', image_message(picture(), 'rgb8'), 0),
        ('/depth/image_raw', image_message(stored, '16UC1'), 0),
    )
    depth_m = open_source(path)[0].depth_m
    assert np.isnan(depth_m[0]).all() and np.allclose(depth_m[1:], 1.5)


def test_depth_of_another_view_or_size_is_not_taken(tmp_path):
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/image', image_message(picture(), 'rgb8'), 0),
        ('/depth/image_raw', image_message(depth(), '32FC1', frame_id='infrared'), 0),
        ('/depth/small', image_message(depth()[::2, ::2], '32FC1'), 0),
    )
    source = open_source(path)
    assert source.depth_topic is None and source[0].depth_m is None
    assert open_source(path, depth_topic='/depth/image_raw')[0].depth_m is not None


@pytest.mark.parametrize(
    ('info', 'message'),
    [
        (info_message(k=(0,) * 9), 'camera_info: .*not calibrated'),
        (info_message(hw=(480, 640)), r'is for images of \(480, 640\), but /image has \(48, 64\)'),
    ],
)
def test_unusable_camera_info_is_warned_of_and_left_out(tmp_path, caplog, info, message):
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/image', image_message(picture(), 'rgb8'), 0),
        ('/camera_info', info, 0),
    )
    with caplog.at_level(logging.WARNING):
        source = open_source(path)
    assert re.search(message, caplog.text)
    assert source.camera is None and source[0].intrinsics is None


def test_raw_images_take_k_and_rectified_ones_p(tmp_path, caplog):
    p = (50, 0, 30, 0, 0, 51, 20, 0, 0, 0, 1, 0)
    info = info_message(d=(0.1, 0, 0, 0, 0), p=p)
    for topic, fx_px in (('/c/image_raw', 60.5), ('/c/image_rect_color', 50)):
        path = write_bag(
            tmp_path / f'{fx_px:.0f}.mcap',
            (topic, image_message(picture(), 'rgb8'), 0),
            ('/c/camera_info', info, 0),
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = open_source(path)
        assert source[0].intrinsics.fx_px == fx_px and source.camera.is_distorted
        assert ('distorted' in caplog.text) == (fx_px == 60.5)


def test_damaged_message_is_named_when_reached_and_can_be_passed(tmp_path):
    broken = compressed_message(picture(1), 10**8)
    broken.data = broken.data[:200]
    path = write_bag(
        tmp_path / 'a.mcap',
        ('/image/compressed', compressed_message(picture(0)), 0),
        ('/image/compressed', broken, 10**8),
        ('/image/compressed', compressed_message(picture(2), 2 * 10**8), 2 * 10**8),
    )
    source = open_source(path)
    with pytest.raises(InputError, match=r'a\.mcap, /image/compressed#1: the PNG .* is cut off'):
        list(source)
    assert np.array_equal(source[0].rgb, picture(0)) and np.array_equal(source[2].rgb, picture(2))


def test_damage_within_the_bag_is_an_error_at_every_frame_behind_it(tmp_path):
    write_frames(
        tmp_path / 'a.mcap', [SourceFrame(np.repeat(picture(i), 80, 0)) for i in range(5)]
    )
    source = open_source(tmp_path / 'a.mcap')
    data = bytearray((tmp_path / 'a.mcap').read_bytes())
    half, index = len(data) // 2, len(data) - 10_000
    data[half:index] = bytes(index - half)
    (tmp_path / 'a.mcap').write_bytes(data)
    assert source[0].rgb.shape == (48 * 80, 64, 3)
    for frame in (3, 4):
        with pytest.raises(InputError, match=r'a\.mcap: '):
            source[frame]
    assert source[1].rgb.shape == (48 * 80, 64, 3)


# ---- messages as arrays


@pytest.mark.parametrize('pad', [0, 8])
@pytest.mark.parametrize(
    ('encoding', 'stored', 'wanted'),
    [
        ('rgb8', picture(), picture()),
        ('bgr8', picture()[..., ::-1], picture()),
        ('rgba8', np.dstack([picture(), picture()[..., :1]]), picture()),
        ('bgra8', np.dstack([picture()[..., ::-1], picture()[..., :1]]), picture()),
        ('mono8', picture()[..., 0], picture()[..., 0]),
        ('32FC1', depth(), depth()),
        ('16UC1', np.arange(48 * 64, dtype=np.uint16).reshape(48, 64), None),
    ],
)
def test_image_encodings_become_arrays(encoding, stored, wanted, pad):
    wanted = stored if wanted is None else wanted
    array = image_array(image_message(stored, encoding, pad=pad))
    assert array.dtype == wanted.dtype and array.flags.c_contiguous and array.flags.writeable
    assert np.array_equal(array, wanted, equal_nan=encoding == '32FC1')


@pytest.mark.parametrize('encoding', ['32FC1', '16UC1'])
def test_big_endian_images_are_turned(encoding):
    pixels = np.arange(12).reshape(3, 4).astype({'32FC1': '>f4', '16UC1': '>u2'}[encoding])
    array = image_array(image_message(pixels, encoding, is_bigendian=1))
    assert array.dtype.isnative and np.array_equal(array, pixels)


@pytest.mark.parametrize(
    'change', [{'step': 10}, {'height': 49}, {'height': 0}, {'data': np.zeros(3, 'u1')}]
)
def test_image_whose_sizes_lie_is_refused(change):
    message = image_message(picture(), 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(InputError, match='expected a step of at least'):
        image_array(message)


@pytest.mark.parametrize('organized', [False, True])
def test_cloud_gives_points_and_colours(tmp_path, organized):
    write_frames(tmp_path / 'a.mcap', frames(1), stride=1, organized=organized)
    _, _, message = next(read_messages(tmp_path / 'a.mcap', ['/points']))
    xyz, rgb = cloud_xyzrgb(message)
    points = depth_to_points(depth(), CAMERA).reshape(-1, 3)
    kept = np.isfinite(points[:, 2]) if not organized else slice(None)
    np.testing.assert_allclose(xyz, points[kept], rtol=1e-6)
    assert np.array_equal(rgb, picture().reshape(-1, 3)[kept])


def cloud(fields, data, width, point_step, is_bigendian=False):
    fields = [SimpleNamespace(name=n, offset=o, datatype=t, count=1) for n, o, t in fields]
    return SimpleNamespace(
        height=1, width=width, fields=fields, is_bigendian=is_bigendian, point_step=point_step,
        row_step=width * point_step, data=np.frombuffer(data, np.uint8), is_dense=True,
    )  # fmt: skip


def test_clouds_of_other_layouts_are_read():
    record = np.dtype({'names': ['z', 'x', 'y', 'rgba'], 'formats': ['>f8', '>f8', '>f8', '>u4'],
                       'offsets': [0, 8, 16, 28], 'itemsize': 32})  # fmt: skip
    points = np.zeros(2, record)
    points['x'], points['y'], points['z'] = [1, 2], [3, 4], [5, 6]
    points['rgba'] = 0xFF0A0B0C
    fields = [('z', 0, 8), ('x', 8, 8), ('y', 16, 8), ('rgba', 28, 6)]
    xyz, rgb = cloud_xyzrgb(cloud(fields, points.tobytes(), 2, 32, is_bigendian=True))
    assert xyz.tolist() == [[1, 3, 5], [2, 4, 6]] and rgb.tolist() == [[10, 11, 12]] * 2
    plain = [('x', 0, 7), ('y', 4, 7), ('z', 8, 7)]
    xyz, rgb = cloud_xyzrgb(cloud(plain, np.arange(6, dtype='<f4').tobytes(), 2, 12))
    assert xyz.tolist() == [[0, 1, 2], [3, 4, 5]] and rgb is None


@pytest.mark.parametrize(
    ('message', 'text'),
    [
        (cloud([('x', 0, 7)], bytes(12), 1, 12), 'cloud with fields x: expected x, y and z'),
        (
            cloud([('x', 0, 7), ('y', 4, 7), ('z', 8, 7)], bytes(12), 5, 12),
            '12 bytes; expected a row',
        ),
        (
            cloud([('x', 0, 7), ('y', 4, 7), ('z', 8, 8)], bytes(12), 1, 12),
            'do not fit a point of 12',
        ),
        (cloud([('x', 0, 7), ('y', 4, 7), ('z', 8, 77)], bytes(12), 1, 12), 'do not fit a point'),
    ],
)
def test_cloud_that_does_not_fit_itself_is_refused(message, text):
    with pytest.raises(InputError, match=text):
        cloud_xyzrgb(message)
