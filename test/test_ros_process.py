"""The executables as processes: how they start, and how a signal ends them."""

from contextlib import ExitStack
from importlib import metadata
from itertools import count
import os
import signal
import subprocess
import sys
from xml.etree import ElementTree

import cv2
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, LOADS, wait_for  # noqa: E402
from ros_process import end_an_inference, Process, STAND_IN, StandIn, START_S  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from vlm_depth_ros.ros.node import one_thread_of_opencv  # noqa: E402
from vlm_depth_ros.ros.profile import (  # noqa: E402
    profile_path,
    profile_variable,
    SEGMENT_BYTES,
    use_large_segment,
    VARIABLES,
)

NODE = [sys.executable, '-m', 'vlm_depth_ros.ros.node']


@pytest.fixture
def start(tmp_path):
    """Start a process of a kind that ends with the test."""
    with ExitStack() as ending:
        logs = (tmp_path / f'log{i}' for i in count())
        yield lambda kind, command: ending.enter_context(kind(command, next(logs)))


def test_the_node_keeps_opencv_to_the_thread_that_calls():
    before = cv2.getNumThreads()
    try:
        one_thread_of_opencv()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


@pytest.mark.alone
@pytest.mark.parametrize(
    ('kind', 'command', 'number'),
    [(Process, [*STAND_IN, '0', '0'], signal.SIGINT), (StandIn, ['0', '0'], signal.SIGTERM)],
)
def test_a_signal_ends_the_idle_node_within_2_s(start, kind, command, number):
    node = start(kind, command)
    wait_for(lambda: 'Subscribed' in node.output, 'the node to be active', START_S)
    assert node.end_with(number) < 2


@pytest.mark.alone
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loading_of_weights_within_2_s(start, number):
    node = start(StandIn, ['0', '60'])
    wait_for(lambda: LOADS in node.output, 'the loading', START_S)
    assert 'Subscribed' not in node.output
    assert node.end_with(number) < 2


@pytest.mark.alone
def test_a_signal_ends_the_loading_of_another_model_within_2_s(start):
    node = start(StandIn, ['0', '0,60'])
    wait_for(lambda: 'Subscribed' in node.output, 'the node to be active', START_S)
    with Graph(cli_args=['--ros-args', '-r', '__node:=other']) as graph:
        request = Trigger.Request()
        assert graph.call(Trigger, '/depth_node/load_weights', request).success
        assert not graph.call(Trigger, '/depth_node/load_weights', request).success
    assert node.end_with(signal.SIGTERM) < 2


@pytest.mark.alone
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_running_inference_within_2_s(start, number):
    assert end_an_inference(lambda arguments: start(StandIn, arguments), number) < 2


def test_the_node_runs_as_a_module_and_says_what_is_wrong_with_its_weights(start, tmp_path):
    missing = tmp_path / 'missing.safetensors'
    node = start(Process, [*NODE, '--ros-args', '-p', f'weights:={missing}'])
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
