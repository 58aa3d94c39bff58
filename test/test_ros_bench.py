"""The node end to end as ``vlm-depth benchmark`` measures it: figures by hand, one real run."""

import json
import os
import struct
import subprocess
import sys

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
        'frames': 200, 'cameras': 2, 'param': 'cloud_stride:=1', 'json': tmp_path / 'found.json',
        'out': out,
    }  # fmt: skip
    assert main(['benchmark', *(str(p) for k, v in flags.items() for p in (f'--{k}', v))]) == 0
    result = json.loads((tmp_path / 'found.json').read_text())
    assert result['not_measured'] == []
    (found,) = result['graph']
    assert found['cameras'] == 2 and found['frames'] == 200
    assert found['answered'] + found['missed'] == 200 and found['answered'] > 0
    offered = [step['offered_hz'] for step in found['saturation_steps']]
    assert offered == [10.0 * 2**i for i in range(len(offered))]
    assert found['played_hz'] == pytest.approx(0.8 * found['saturation_hz'])
    assert found['node_resident_mb'] > 100 and found['gpu_memory_mb'] is None
    assert found['cpu_percent']['node'] > 0
    points, depth = (found['message_bytes'][t] for t in ('points', 'depth/image_rect'))
    assert points > 48 * 64 * 16 > depth > 48 * 64 * 4
    assert 'Publication to cloud, through DDS between processes' in capsys.readouterr().out
    assert (out / 'logs_2' / 'camera_player_camera1.log').is_file()


@pytest.mark.parametrize(('flags', 'says'), [
    (('--source', 'nowhere'), 'bench: nowhere: does not exist'),
    (('--source', '{set}', '--weights', 'nothing.safetensors'), 'nothing.safetensors'),
], ids=['source', 'weights'])  # fmt: skip
def test_graph_says_in_one_line_what_is_wrong(flags, says, tmp_path):
    pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
    pytest.importorskip('torch', reason='the node needs a network')
    from desk_sets import write_set

    source, answer = write_set(tmp_path / 'set', [2.0]), tmp_path / 'found.json'
    command = [sys.executable, '-m', 'vlm_depth_ros.ros.bench', '--out', str(tmp_path / 'out'),
               '--json', str(answer), *(f.format(set=source) for f in flags)]  # fmt: skip
    environment = os.environ | {'ROS_DOMAIN_ID': DOMAIN}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and not answer.exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith('bench: ')]
    assert len(lines) == 1 and says in lines[0]
