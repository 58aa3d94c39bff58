"""The demo as a stranger runs it: real processes, a recording, a table, a verdict."""

import json
import os
from pathlib import Path
import subprocess
import sys

import cv2
from desk_sets import write_set
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import DepthLimits, DepthWatch  # noqa: E402
from vlm_depth_ros.core.config import ModelConfig  # noqa: E402
from vlm_depth_ros.core.model import find_weights, read_card  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402
from vlm_depth_ros.files import bags  # noqa: E402
from vlm_depth_ros.ros import demo  # noqa: E402

DOMAIN = str(os.getpid() % 90 + 110)


def run(module: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run one of our modules to its end."""
    environment = os.environ | {'ROS_DOMAIN_ID': DOMAIN}
    command = [sys.executable, '-m', f'vlm_depth_ros.{module}', *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.alone
def test_demo_records_a_run_that_its_report_accepts(tmp_path):
    """Every image comes back as a cloud, stamps are the images' own, and the figures are there."""
    source, out = write_set(tmp_path / 'set', [1.5, 2.0, 2.5]), tmp_path / 'out'
    done = run('ros.demo', '--source', source, '--out', out)
    assert done.returncode == 0, done.stderr
    done = run('tools.cli', 'report', out / 'depth.mcap', '--out', out, '--check')
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames_in'] >= 100
    assert summary['frames_out'] >= 0.9 * summary['frames_in']
    assert summary['points_out'] > 0 and summary['rate_hz'] > 5
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99'] < 2000
    assert (summary['weights'], summary['device']) == ('pocket', 'cpu')
    assert 0 < summary['abs_rel'] < 10
    picture = cv2.imread(str(out / 'frames.png'))
    assert picture is not None and np.ptp(picture) > 100
    config = ModelConfig.from_dict(read_card(find_weights('pocket')).model)
    limits, watch = DepthLimits.of(config.depth_range_m, OutputOptions()), DepthWatch()
    with bags.BagReader(out / 'depth.mcap') as bag:
        topics = {t.name for t in bag.topics}
        for _, _, kind, cdr in bag.raw(['/depth/image_rect']):
            watch.look(bag.decode(kind, cdr), [limits])
    assert watch.looked_at >= 0.9 * summary['frames_in']
    watch.check()
    inputs, outputs = {'/image', '/camera_info'}, {'/depth/image_rect', '/depth/camera_info'}
    assert inputs | outputs | {'/points'} <= topics


@pytest.mark.parametrize(
    'arguments, says',
    [
        (('--source', 'nowhere'), 'demo: nowhere: does not exist'),
        (('--source', '{set}', '--weights', 'nothing.safetensors'), 'nothing.safetensors'),
    ],
    ids=['source', 'weights'],
)
def test_demo_says_in_one_line_what_is_wrong(arguments, says, tmp_path, monkeypatch, capsys):
    """A mistake ends it with exit code 1, and no recording is left."""
    source = write_set(tmp_path / 'set', [2.0])
    given = [a.format(set=source) for a in arguments]
    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)
    assert demo.main([*given, '--out', str(tmp_path / 'out')]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('demo: ')]
    assert len(lines) == 1 and says in lines[0]
    assert not list(Path(tmp_path / 'out').glob('*.mcap'))
