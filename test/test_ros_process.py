"""The executables as processes: how they start, and how a signal ends them."""

from collections.abc import Callable
from importlib import metadata
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, image_message, wait_for  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from vlm_depth_ros.ros.profile import (  # noqa: E402
    profile_path,
    profile_variable,
    SEGMENT_BYTES,
    use_large_segment,
    VARIABLES,
)

pytestmark = pytest.mark.alone

START_S = 120
"""Importing PyTorch takes half a minute on a machine that trains beside the tests."""
NODE = [sys.executable, '-m', 'vlm_depth_ros.ros.node']
STAND_IN = [sys.executable, str(Path(__file__).with_name('ros_graph.py'))]


class Process:
    """A program whose output is read as it comes."""

    def __init__(self, command: list[str], log: Path):
        self._log = log
        self._segments_before = {str(p) for p in Path('/dev/shm').glob('fast*')}
        with log.open('wb') as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self) -> 'Process':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # Killed, it would leave its shared memory behind.
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def end_with(self, number: int) -> float:
        """Send a signal; the seconds until the process ended by itself with exit code 0.

        Everything it allocated in shared memory has to be gone.
        """
        maps = Path(f'/proc/{self._process.pid}/maps').read_text()
        segments = set(re.findall(r'/dev/shm/fast\w+', maps)) - self._segments_before
        start_s = time.monotonic()
        self._process.send_signal(number)
        code = self._process.wait(timeout=10)
        took_s = time.monotonic() - start_s
        assert code == 0, f'exit code {code}: {self.output}'
        assert 'Traceback' not in self.output and 'rror' not in self.output, self.output
        left = {s for s in segments if '_port' not in s and Path(s).exists()}
        assert segments and not left, left
        return took_s


@pytest.fixture
def start(tmp_path):
    """Start a process that ends with the test."""
    started = []

    def _start(command: list[str]) -> Process:
        started.append(Process(command, tmp_path / f'log{len(started)}'))
        return started[-1]

    yield _start
    for process in started:
        process.__exit__()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_idle_node_within_2_s(start, number):
    node = start([*STAND_IN, '0', '0'])
    wait_for(lambda: 'Subscribed' in node.output, 'the node to be active', START_S)
    assert node.end_with(number) < 2


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loading_of_weights_within_2_s(start, number):
    node = start([*STAND_IN, '0', '60', '--ros-args', '--log-level', 'debug'])
    wait_for(lambda: 'depth_node' in node.output, 'the node to start', START_S)
    time.sleep(0.5)
    assert 'Subscribed' not in node.output
    assert node.end_with(number) < 2


def test_a_signal_ends_the_loading_of_another_model_within_2_s(start):
    node = start([*STAND_IN, '0', '4'])
    wait_for(lambda: 'Subscribed' in node.output, 'the node to be active', START_S)
    with Graph(cli_args=['--ros-args', '-r', '__node:=other']) as graph:
        request = Trigger.Request()
        assert graph.call(Trigger, '/depth_node/load_weights', request).success
        assert not graph.call(Trigger, '/depth_node/load_weights', request).success
    assert node.end_with(signal.SIGTERM) < 2


def end_an_inference(start: Callable[[list[str]], Process], number: int, *ros_args) -> float:
    """End a node that has just begun an inference of 30 s; how long it took to end."""
    with Graph(active=False) as graph:
        node = start([*STAND_IN, '30', '0', '--ros-args', *ros_args, '-r', 'image:=busy/image'])
        wait_for(lambda: graph.tester.count_subscribers('busy/image'), 'the node', START_S)
        depth = graph.listen('depth/image_rect')
        for _ in range(5):
            graph.publish('busy/image', image_message())
            time.sleep(0.1)
        assert not depth
        return node.end_with(number)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_running_inference_within_2_s(start, number):
    assert end_an_inference(start, number) < 2


def test_the_node_runs_as_a_module_and_says_what_is_wrong_with_its_weights(start, tmp_path):
    missing = tmp_path / 'missing.safetensors'
    node = start([*NODE, '--ros-args', '-p', f'weights:={missing}'])
    wait_for(lambda: 'Waiting unconfigured' in node.output, 'the reason', START_S)
    lines = node.output.splitlines()
    assert len(lines) == 2 and 'Cannot configure' in lines[0] and str(missing) in lines[0]
    assert 'ros2 lifecycle set /depth_node configure' in lines[1]


def test_a_malformed_command_line_is_one_line_and_exit_code_1():
    done = subprocess.run([*NODE, '--ros-args', '-p', 'x'], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'command line is not understood' in done.stderr and 'Traceback' not in done.stderr


def test_the_profile_has_the_segment_that_is_checked_for():
    root = ElementTree.parse(profile_path()).getroot()
    space = root.tag.removesuffix('dds')
    sizes = [int(e.text) for e in root.iter(f'{space}segment_size')]
    assert sizes == [SEGMENT_BYTES]


def test_the_profile_is_used_unless_the_user_has_chosen():
    environ: dict[str, str] = {}
    assert use_large_segment(environ) == ''
    assert environ == {profile_variable(): profile_path()}
    for name in VARIABLES:
        environ = {name: 'mine.xml', 'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp'}
        assert use_large_segment(environ) == '' and profile_path() not in environ.values()
    environ = {'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}
    assert use_large_segment(environ) == '' and profile_path() not in environ.values()


@pytest.mark.parametrize(
    ('rclpy_version', 'variable'),
    [
        ('3.3.13', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('7.1.6', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('9.1.2', 'FASTDDS_DEFAULT_PROFILES_FILE'),
    ],
)
def test_the_profile_is_named_where_the_distribution_looks(rclpy_version, variable, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda name: rclpy_version)
    assert profile_variable() == variable


def test_the_profile_stays_off_where_the_segment_does_not_fit(monkeypatch):
    """Docker gives a container 64 MB by default: Fast DDS would lose shared memory altogether."""
    full = os.statvfs_result((4096, 4096, 16384, 100, 100, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, 'statvfs', lambda path: full)
    environ: dict[str, str] = {}
    assert '--ipc=host' in use_large_segment(environ)
    assert environ == {}
