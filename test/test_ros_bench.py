"""The node end to end as ``vlm-depth benchmark`` measures it: figures by hand, one real run."""

import json
import os
from pathlib import Path
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from vlm_depth_ros.ros.bench_figures import cpu_s, rate_hz, time_figures

MS = 10**6
DOMAIN = str(os.getpid() % 90 + 110)


def test_figures_are_those_of_pencil_and_paper():
    stamps = [i * 100 * MS for i in range(6)]
    arrivals = [s + latency * MS for s, latency in zip(stamps, (40, 50, 40, 60, 40, 50))]
    found = time_figures([(stamps, arrivals)], sent=8)
    assert (found['frames'], found['answered'], found['missed']) == (8, 6, 2)
    assert found['missed_share'] == 0.25
    assert found['latency_ms']['p50'] == 45 and found['latency_ms']['p100'] == 60
    # Intervals of 110, 90, 120, 80 and 110 ms.
    assert found['interval_ms']['p50'] == 110
    assert found['jitter_ms'] == pytest.approx(118 - 82)
    assert found['rate_hz'] == pytest.approx(5 / 0.51)


def test_of_several_cameras_only_the_time_counts_in_which_all_played():
    early = ([0, 100 * MS, 200 * MS], [900 * MS, 1000 * MS, 1100 * MS])
    late = ([980 * MS, 1080 * MS, 1180 * MS], [1000 * MS, 1100 * MS, 1200 * MS])
    found = time_figures([early, late], sent=6)
    assert found['answered'] == 6 and found['missed'] == 0
    assert found['latency_ms'] == {'p50': 460, 'p95': 900, 'p99': 900, 'p100': 900}
    assert found['interval_ms']['p100'] == 100


def test_a_camera_without_a_cloud_leaves_no_figures_but_its_losses():
    found = time_figures([([0], [5 * MS]), ([], [])], sent=4)
    assert found['missed'] == 3
    assert found['latency_ms'] is found['interval_ms'] is found['jitter_ms'] is None


def test_rate_needs_two_clouds():
    assert rate_hz([]) == rate_hz([5]) == rate_hz([5, 5]) == 0
    assert rate_hz([0, 250 * MS, 1000 * MS]) == 2


def test_cpu_time_of_a_process_grows_with_its_work():
    before_s = cpu_s(os.getpid())
    while cpu_s(os.getpid()) < before_s + 0.05:
        sum(range(100_000))
    assert cpu_s(os.getpid()) < before_s + 5


@pytest.mark.parametrize(('order', 'second'), [('<', 1), ('>', 0)])
def test_stamp_is_read_from_the_serialised_message(order, second):
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    from vlm_depth_ros.ros.bench_reader import stamp_ns

    cdr = bytes([0, second, 0, 0]) + struct.pack(f'{order}iI', 12, 34) + b'rest'
    assert stamp_ns(cdr) == 12_000_000_034


def test_verb_measures_the_node_through_real_processes(tmp_path, monkeypatch, capsys):
    """Two players, the node and the reader; every image gets a stamp of its own and a fate."""
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    pytest.importorskip('torch', reason='the node needs a network')
    from desk_sets import write_set, write_weights
    from vlm_depth_ros.tools import bench_floor
    from vlm_depth_ros.tools.cli import main

    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)
    monkeypatch.setitem(bench_floor.SIDE, 'cpu', 64)
    monkeypatch.setitem(bench_floor.COPIED_BYTES, 'cpu', 2**16)
    weights = write_weights(tmp_path / 'tiny.safetensors')
    source, out = write_set(tmp_path / 'set', [1.5, 2.0]), tmp_path / 'out'
    flags = {
        'weights': weights, 'source': source, 'device': 'cpu', 'engines': 'eager', 'runs': 1,
        'frames': 6, 'cameras': 2, 'param': 'cloud_stride:=1', 'json': tmp_path / 'found.json',
        'out': out,
    }  # fmt: skip
    # Clouds at a rate of their own: the search ends at its first step on every machine.
    slow = ['--param', 'cloud_rate_hz:=4.0', '--param', 'engine:=eager']
    given = (str(p) for k, v in flags.items() for p in (f'--{k}', v))
    assert main(['benchmark', *given, *slow]) == 0
    result = json.loads((tmp_path / 'found.json').read_text())
    assert result['not_measured'] == []
    (found,) = result['graph']
    assert found['cameras'] == 2 and found['frames'] == 12
    assert found['answered'] + found['missed'] == 12 and found['answered'] > 0
    assert found['frames_per_camera'] == 6
    assert found['not_of_record'] == ['fewer than 300 images of a camera']
    assert found['engine'].startswith('eager')
    assert found['is_saturated']
    assert [step['offered_hz'] for step in found['saturation_steps']] == [10.0]
    assert found['played_hz'] == pytest.approx(0.8 * found['saturation_hz'])
    assert found['node_resident_mb'] > 100 and found['gpu_memory_mb'] is None
    assert found['cpu_percent']['node'] > 0
    points, depth = (found['message_bytes'][t] for t in ('points', 'depth/image_rect'))
    assert points > 48 * 64 * 16 > depth > 48 * 64 * 4
    assert 'Publication to cloud, through DDS between processes' in capsys.readouterr().out
    assert (out / 'logs_2' / 'camera_player_camera1.log').is_file()


def test_images_are_offered_twice_as_fast_until_the_node_cannot_follow(monkeypatch):
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    from vlm_depth_ros.ros import bench

    answered_hz = {10.0: 9.9, 20.0: 18.5, 40.0: 26.0, 80.0: 25.0}
    monkeypatch.setattr(bench, '_answered_hz', lambda reader, args, cameras, hz: answered_hz[hz])
    found = bench._saturated(None, None, ['front', 'rear'])
    assert [step['offered_hz'] for step in found['saturation_steps']] == [10.0, 20.0, 40.0]
    assert found['saturation_hz'] == 26.0 and found['is_saturated']
    answered_hz |= {10.0 * 2**i: 9.9 * 2**i for i in range(9)}
    found = bench._saturated(None, None, [''])
    assert found['saturation_steps'][-1]['offered_hz'] == 640.0 and not found['is_saturated']


@pytest.fixture
def sleeper():
    """Starts processes that sleep; ends them."""
    started = []

    def start(*command):
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Reader:
    """Hears of a cloud at each look, and of engines as they are listed."""

    def __init__(self, engines):
        self._engines, self.engine, self.count = iter(engines), '', 0

    def look(self, seconds):
        self.count += 1
        self.engine = next(self._engines, self.engine)


@pytest.fixture
def settle(monkeypatch):
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    from vlm_depth_ros.ros import bench_settle

    monkeypatch.setattr(bench_settle, 'spin', lambda reader, seconds: reader.look(seconds))
    monkeypatch.setattr(bench_settle, 'SETTLED_S', 0.0)
    monkeypatch.setattr(bench_settle, 'SETTLED_CLOUDS', 5)
    return bench_settle


def test_engine_has_settled_once_it_stayed_for_some_clouds(settle, sleeper):
    node = sleeper('sleep', '60')
    plain, changing = Reader(['eager'] * 6), Reader([*['eager'] * 4, 'openvino'])
    assert settle.wait_until_settled(plain, node) and plain.count <= 7
    assert settle.wait_until_settled(changing, node)
    assert changing.engine == 'openvino' and changing.count == 10


def test_wait_for_an_engine_ends_with_the_node_or_the_time(settle, sleeper, monkeypatch):
    node = sleeper('true')
    node.wait()
    assert not settle.wait_until_settled(Reader([]), node)
    monkeypatch.setattr(settle, 'LIMIT_S', 0.05)
    endless = Reader(str(i) for i in range(10**9))
    assert not settle.wait_until_settled(endless, sleeper('sleep', '60'))


def test_a_node_whose_child_converts_its_network_has_not_settled(settle, sleeper):
    if not Path('/proc/self/task').exists():
        pytest.skip('needs /proc')
    child = f'import time; time.sleep(60)  # {settle.PROGRAM}'
    parent = sleeper(
        sys.executable, '-c',
        f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}])',
    )  # fmt: skip
    end_s = time.monotonic() + 20
    while not (found := settle.is_converting(parent.pid)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert found and not settle.is_converting(sleeper('sleep', '60').pid)
    (grandchild,) = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    os.kill(int(grandchild), 9)


def test_figures_are_those_of_a_time_with_one_engine(monkeypatch):
    """A search that ends late spoils the first attempt: there is another one."""
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    from contextlib import nullcontext

    from vlm_depth_ros.ros import bench

    engines = iter(['openvino', 'openvino'])
    reader = SimpleNamespace(engine='eager')

    def saturated(*_):
        reader.engine = next(engines)
        return {'saturation_hz': 10.0}

    monkeypatch.setattr(bench, '_players', lambda *_: nullcontext({}))
    for name in ('_wait_for_clouds', 'spin'):
        monkeypatch.setattr(bench, name, lambda *_: None)
    monkeypatch.setattr(bench, 'wait_until_settled', lambda *_: True)
    monkeypatch.setattr(bench, '_saturated', saturated)
    monkeypatch.setattr(bench, '_measured', lambda *_: {'played_hz': 8.0})
    args = SimpleNamespace(frames=300)
    assert bench._with_one_engine(reader, args, [''], None) == {
        'saturation_hz': 10.0, 'played_hz': 8.0, 'engine': 'openvino', 'frames_per_camera': 300,
        'not_of_record': [],
    }  # fmt: skip
    engines = iter('abc')
    spoilt = bench._with_one_engine(reader, args, [''], None)
    assert spoilt['not_of_record'] == ['the engine changed meanwhile']


def test_graph_says_in_one_line_what_is_wrong(tmp_path, capsys):
    """Weights that the node refuses are told by what test_ros_demo starts it with, too."""
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    from vlm_depth_ros.ros import bench

    answer = tmp_path / 'found.json'
    given = ['--source', 'nowhere', '--out', str(tmp_path / 'out'), '--json', str(answer)]
    assert bench.main(given) == 1 and not answer.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert 'bench: nowhere: does not exist' in line
