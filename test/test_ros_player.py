"""The camera player as a process: what it plays, how it starts and how it ends."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the graph of the tests needs it')
import rclpy  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from ros_graph import Spinner, stamp_ns, wait_for  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from vlm_depth_ros.ros.messages import compressed_to_rgb, image_to_rgb  # noqa: E402

PLAYER = [sys.executable, '-m', 'vlm_depth_ros.ros.camera_player']
HEIGHT, WIDTH, FRAMES = 48, 64, 6


@pytest.fixture(scope='module')
def recording(tmp_path_factory) -> Path:
    """A folder with pairs.csv: six frames, ever brighter, 50 ms apart, depth in millimetres."""
    folder = tmp_path_factory.mktemp('recording')
    rows = ['rgb,depth,depth_units_per_metre,fx,fy,cx,cy,stamp_s']
    for i in range(FRAMES):
        cv2.imwrite(str(folder / f'{i}.png'), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))
        depth = np.full((HEIGHT, WIDTH), 1000 * (i + 1), np.uint16)
        depth[0] = 0
        cv2.imwrite(str(folder / f'd{i}.png'), depth)
        rows.append(f'{i}.png,d{i}.png,1000,60,61,31.5,23.5,{1000 + 0.05 * i:.2f}')
    (folder / 'pairs.csv').write_text('\n'.join(rows) + '\n')
    return folder


@pytest.fixture
def listener():
    spinner = Spinner(lambda context: rclpy.create_node('listener', context=context))
    yield spinner.node
    spinner.close()


def listen(node, topic: str, kind: type) -> list:
    """Collect what comes on a topic."""
    got: list = []
    node.create_subscription(kind, topic, got.append, QoSProfile(depth=10))
    return got


def start(source: Path, **parameters: object) -> subprocess.Popen:
    """Start a player that waits for a subscriber."""
    parameters = {'source': source, 'wait_for_subscribers': 1, 'start_delay_s': 1.5} | parameters
    arguments = [a for k, v in parameters.items() for a in ('-p', f'{k}:={v}')]
    return subprocess.Popen([*PLAYER, '--ros-args', *arguments], stderr=subprocess.PIPE, text=True)


def finish(player: subprocess.Popen) -> str:
    """Wait for its good end; what it logged."""
    _, log = player.communicate(timeout=120)
    assert player.returncode == 0, log
    return log


@pytest.mark.alone
def test_player_plays_images_cameras_and_truth_once(recording, listener):
    images = listen(listener, 'image', Image)
    infos = listen(listener, 'camera_info', CameraInfo)
    truth = listen(listener, 'ground_truth/depth', Image)
    before_ns = time.time_ns()
    log = finish(start(recording, rate_hz=20.0))
    assert f'Published {FRAMES} frames' in log
    assert [image_to_rgb(m)[0, 0, 0] for m in images] == [40 * i for i in range(FRAMES)]
    stamps_ns = [stamp_ns(m) for m in images]
    assert before_ns < stamps_ns[0] and stamps_ns == sorted(set(stamps_ns))
    assert 0.03 < np.median(np.diff(stamps_ns)) / 1e9 < 0.08
    assert [m.header for m in infos] == [m.header for m in truth] == [m.header for m in images]
    assert {m.header.frame_id for m in images} == {'camera_optical_frame'}
    assert (infos[0].k[0], infos[0].k[4], infos[0].p[2], list(infos[0].d)) == (
        60.0, 61.0, 31.5, [0.0] * 5,
    )  # fmt: skip
    depth_m = np.frombuffer(truth[2].data, '<f4').reshape(HEIGHT, WIDTH)
    assert np.isnan(depth_m[0]).all() and (depth_m[1:] == 3.0).all()


@pytest.mark.alone
def test_player_loops_and_stops_after_count_with_the_stamps_of_the_source(recording, listener):
    images = listen(listener, 'image', Image)
    finish(start(recording, stamp='source', loop=True, count=FRAMES + 2, frame_id='optical'))
    seconds = [round(stamp_ns(m) / 1e9, 3) for m in images]
    once = [round(1000 + 0.05 * i, 3) for i in range(FRAMES)]
    assert seconds == once + once[:2]
    assert {m.header.frame_id for m in images} == {'optical'}


@pytest.mark.alone
def test_player_compresses_and_invents_a_camera_if_asked(recording, listener, tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes((recording / f'{i}.png').read_bytes())
    images = listen(listener, 'image/compressed', CompressedImage)
    infos = listen(listener, 'camera_info', CameraInfo)
    distortion = '[0.1, 0.0, 0.0, 0.0, 0.0]'
    finish(
        start(
            tmp_path, rate_hz=20.0, image_transport='compressed', horizontal_fov_deg=90.0,
            distortion=distortion,
        )
    )  # fmt: skip
    assert [int(compressed_to_rgb(m).mean().round()) for m in images] == [0, 40, 80]
    assert infos[0].k[0] == pytest.approx(WIDTH / 2) and infos[0].d[0] == 0.1
    assert infos[0].distortion_model == 'plumb_bob'


@pytest.mark.alone
def test_player_passes_over_a_damaged_frame(recording, listener, tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes((recording / f'{i}.png').read_bytes())
    (tmp_path / '1.png').write_bytes(b'no picture')
    images = listen(listener, 'image', Image)
    log = finish(start(tmp_path, rate_hz=20.0))
    assert len(images) == 2 and 'Frame passed over' in log and '1.png' in log


@pytest.mark.parametrize(
    ('parameters', 'says'),
    [
        ({'source': '/no/such/place'}, '/no/such/place: does not exist. Accepted: a folder'),
        ({'source': "''"}, "source = ''"),
        ({'stamp': 'never'}, "stamp = 'never': expected one of now, source"),
        ({'distortion': '[0.1]'}, 'distortion has 1 numbers: expected 5 or 8'),
        ({'rate_hz': -1.0}, 'rate_hz = -1.0: expected 0 to 1000'),
    ],
)
def test_player_ends_with_one_line_at_a_mistake(recording, parameters, says):
    player = start(**{'source': recording} | parameters)
    _, log = player.communicate(timeout=120)
    lines = log.splitlines()
    assert player.returncode == 1 and len(lines) == 1 and says in lines[0], log


def test_player_ends_with_code_1_if_nothing_can_be_read(tmp_path):
    (tmp_path / '1.png').write_bytes(b'no picture')
    player = start(tmp_path, wait_for_subscribers=0)
    _, log = player.communicate(timeout=120)
    assert player.returncode == 1 and 'no frame of it can be read' in log
    assert 'Traceback' not in log


@pytest.mark.alone
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_player_within_2_s(recording, listener, number):
    images = listen(listener, 'image', Image)
    player = start(recording, loop=True)
    wait_for(lambda: images, 'the first image', 120)
    start_s = time.monotonic()
    os.kill(player.pid, number)
    _, log = player.communicate(timeout=10)
    assert player.returncode == 0 and 'Traceback' not in log, log
    assert time.monotonic() - start_s < 2
