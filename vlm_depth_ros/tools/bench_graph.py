"""The node end to end, measured by `vlm_depth_ros.ros.bench` in processes of its own."""

import argparse
from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import Any

from vlm_depth_ros.core.config import require, RuntimeConfig
from vlm_depth_ros.core.devices import precision_on
from vlm_depth_ros.tools.bench_floor import Floor

MODULE = 'vlm_depth_ros.ros.bench'


def why_not() -> str:
    """What is missing for a graph; empty where nothing is."""
    if find_spec('rclpy') is None:
        return "rclpy is not installed: source a ROS installation, or pip install '.[ros]'"
    return ''


def measure_graph(
    args: argparse.Namespace, source: Path, cameras: int, logs: Path
) -> dict[str, Any] | str:
    """Figures of the node with some cameras, or why there are none.

    Args:
        args: Of the verb.
        source: What the players play.
        cameras: How many.
        logs: Folder for the logs of the processes.
    """
    # It meets no robot in the same network, and no second measurement.
    environment = {'ROS_DOMAIN_ID': str(os.getpid() % 90 + 10), **os.environ}
    with TemporaryDirectory() as folder:
        answer = Path(folder) / 'graph.json'
        tower = [f'tower_weights:={args.tower_weights}'] if args.tower_weights else []
        command = [
            sys.executable, '-m', MODULE, '--source', str(source), '--out', str(logs),
            '--json', str(answer), '--weights', args.weights, '--device', args.device,
            '--cameras', str(cameras), '--frames', str(args.frames),
            *(part for value in [*args.param, *tower] for part in ('--param', value)),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(answer.read_text())
    lines = [line for line in done.stderr.splitlines() if line.startswith('bench: ')]
    last = (lines or done.stderr.strip().splitlines() or ['no output'])[-1]
    return f'ended with code {done.returncode}: {last.removeprefix("bench: ")}'


def precision_of(params: list[str], device_type: str) -> str:
    """The precision that the node runs in, as its parameters say it.

    Raises:
        ConfigError: If one of them is no NAME:=VALUE, or the precision is not known.
    """
    for value in params:
        require(':=' in value, f'--param {value!r}: expected NAME:=VALUE.')
    precision = dict(value.split(':=', 1) for value in params).get('precision', 'auto')
    return precision_on(device_type, RuntimeConfig(precision=precision).precision)


def graph_row(found: dict[str, Any], floor: Floor | None) -> dict[str, Any]:
    """Its figures beside the floor of one frame: the network, and each message copied once."""
    latency = found['latency_ms']
    return {
        **found,
        'floor_ms': floor and floor.ms,
        'over_floor': floor and latency and latency['p50'] / floor.ms,
    }
