"""CPU time by stage: real node, player and reader, and a table whose parts are the whole."""

import json
import os
import subprocess
import sys
import threading
import time

from desk_sets import write_set
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from vlm_depth_ros.ros import profile_path  # noqa: E402
from vlm_depth_ros.ros.meter import Meter  # noqa: E402
from vlm_depth_ros.ros.pipeline import DepthPipeline  # noqa: E402

FRAMES = 20
DOMAIN = str(os.getpid() % 90 + 110)


def run(*arguments: object) -> subprocess.CompletedProcess:
    """Run it as a user does."""
    environment = os.environ | {'ROS_DOMAIN_ID': DOMAIN}
    command = [sys.executable, '-m', 'vlm_depth_ros.ros.profile_path', *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_the_stages_add_up_to_what_the_process_took(tmp_path):
    source, file = write_set(tmp_path / 'set', [1.5, 2.0, 2.5]), tmp_path / 'path.json'
    done = run('--source', source, '--frames', FRAMES, '--rate-hz', '20', '--json', file)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    stages_ms, whole_ms = result['stages_ms'], result['process_ms']
    assert result['frames'] >= FRAMES and result['received'] >= result['frames'] - 1
    asked_for = {'take (DDS to Python)', 'to RGB', 'preprocess', profile_path.NETWORK,
                 'pack depth', 'pack points', 'fill messages',
                 'publish (serialise, hand to DDS)'}  # fmt: skip
    assert asked_for <= stages_ms.keys()
    assert 'pack scan' not in stages_ms, 'nobody asked for it'
    assert all(ms > 0 for ms in (stages_ms[stage] for stage in asked_for))
    assert min(stages_ms.values()) > -0.01 * whole_ms
    assert sum(stages_ms.values()) + result['unexplained_ms'] == pytest.approx(whole_ms)
    assert abs(result['unexplained_ms']) < 0.1 * whole_ms
    rows = [line for line in done.stdout.splitlines() if line.startswith('| ')]
    names = [row.split(' | ')[0].removeprefix('| ') for row in rows]
    assert names == [
        'stage', *stages_ms, 'everything but the network', 'not explained', 'whole process'
    ]


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--listen', 'cloud'], '--listen cloud: expected any of depth/image_rect, '),
        (['--param', 'weights:=nothing.safetensors'], 'the node refuses its parameters'),
        (['--frames', '0'], '--frames 0: expected at least 1'),
        (['--rate-hz', '0'], '--rate-hz 0: expected more than 0'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)
    # What is metered stays so to the end of a process, and here the next test needs it as it was.
    monkeypatch.setattr(profile_path, 'meter_stages', lambda meter: [])
    monkeypatch.setattr(DepthPipeline, '__call__', DepthPipeline.__call__)
    source = write_set(tmp_path / 'set', [2.0])
    assert profile_path.main(['--source', str(source), *arguments]) == 1
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith('profile_path: ')]
    assert len(lines) == 1 and says in lines[0]


def burn(seconds: float) -> None:
    """Use the CPU for so long."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def test_an_inner_stage_is_not_counted_in_the_outer_one_and_waiting_in_none():
    meter = Meter()
    inner = meter.metered('inner', lambda: burn(0.03))

    def work() -> None:
        burn(0.01)
        inner()
        inner()
        time.sleep(0.1)

    meter.metered('outer', work)()
    assert meter.spent_ns['outer'] / 1e9 == pytest.approx(0.01, abs=0.008)
    assert meter.spent_ns['inner'] / 1e9 == pytest.approx(0.06, abs=0.015)


def test_the_work_of_helpers_counts_for_the_thread_they_help_and_for_no_other():
    """As the threads of OpenMP work for the one that runs the network, beside the executor's."""
    meter, begin, burnt, end = Meter(), threading.Event(), threading.Event(), threading.Event()

    def help() -> None:
        begin.wait()
        burn(0.05)
        burnt.set()
        end.wait()

    helper = threading.Thread(target=help)
    helper.start()
    meter.follow(threading.get_native_id(), [helper.native_id])
    other = threading.Thread(target=meter.metered('of another thread', burnt.wait))
    other.start()
    begin.set()
    meter.metered('helped', burnt.wait)()
    other.join()
    end.set()
    helper.join()
    assert meter.spent_ns['helped'] / 1e9 == pytest.approx(0.05, abs=0.015)
    assert meter.spent_ns['of another thread'] / 1e9 < 0.02
