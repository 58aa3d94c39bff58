"""``make soak``: the node at full rate for minutes; its memory must not grow.

``python -m vlm_depth_ros.ros.soak --source PATH --minutes 10`` plays a looping source faster than
the node can answer, with every output subscribed, and reads the node's resident memory. An output
that the model cannot give, such as an embedding, is subscribed too; what came is in the result.
"""

import argparse
import json
import os
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

from rich.console import Console
from vlm_depth_ros.core.config import require
from vlm_depth_ros.ros.demo import (
    add_node_flags,
    check_alive,
    guarded,
    spin,
    start_node,
    start_player,
    wait_for_node,
)

if TYPE_CHECKING:
    from vlm_depth_ros.ros.recorder import Recorder

PLAYED_HZ = 60.0
SETTLE_S = 60.0
"""Allocators, caches and discovery reach their size in the first minute."""
PERIOD_S = 30.0
LARGEST_GROWTH = 0.01
MOUNTED = 'camera_in_base:=[0.0, 0.0, 0.4, 0.0, 0.0, 0.0]'
"""Without a pose there is no scan; ``--param`` can say another."""


def main(argv: list[str] | None = None) -> int:
    """Run the soak; 1 if memory grew by more than 1 % after the first minute, or no cloud came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_node_flags(parser)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--out', type=Path, default=Path('demo_out'))
    return guarded('soak', run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Start node and player, watch, judge, write ``soak.json``.

    Raises:
        ConfigError: If it shall last no time.
        InputError: If the node cannot be started, or ends.
    """
    import rclpy

    require(args.minutes > 0, f'--minutes {args.minutes:g}: expected more than 0.')
    args.out.mkdir(parents=True, exist_ok=True)
    args.param = [MOUNTED, *args.param]
    console, readings = Console(), []
    rclpy.init()
    recorder = reader()
    try:
        with start_node(args) as node:
            wait_for_node(recorder, node, args.out)
            with start_player(args, PLAYED_HZ, 0, readers=1):
                spin(recorder, SETTLE_S)
                recorder.counts.clear()
                start_s = time.monotonic()
                while (elapsed_s := time.monotonic() - start_s) < args.minutes * 60:
                    readings.append(resident_mb(node.pid))
                    spin(recorder, min(PERIOD_S, args.minutes * 60 - elapsed_s))
                    check_alive(node, 'depth_node', args.out)
                    rate_hz = recorder.counts['points'] / (time.monotonic() - start_s)
                    console.print(
                        f'{elapsed_s + SETTLE_S:5.0f} s  {readings[-1]:7.1f} MB  {rate_hz:5.1f} Hz'
                    )
                readings.append(resident_mb(node.pid))
    finally:
        recorder.destroy_node()
        rclpy.try_shutdown()
    growth = max(readings) / readings[0] - 1
    result = {
        'minutes': args.minutes, 'rate_hz': round(rate_hz, 2), 'growth': round(growth, 5),
        'resident_mb': [round(r, 1) for r in readings],
        'messages': {topic: recorder.counts[topic] for topic in recorder.topics},
    }  # fmt: skip
    (args.out / 'soak.json').write_text(json.dumps(result, indent=2) + '\n')
    silent = [topic for topic, count in result['messages'].items() if not count]
    if silent:
        console.print(f'subscribed, and never came: {", ".join(silent)}')
    console.print(f'resident memory grew by {growth:.2%} after the first minute')
    return int(growth > LARGEST_GROWTH or not recorder.counts['points'])


def reader(**kwargs: Any) -> 'Recorder':
    """A node that subscribes to every output of a camera, and keeps none; `kwargs` for `Node`."""
    from vlm_depth_ros.ros.outputs import TOPICS
    from vlm_depth_ros.ros.recorder import Recorder

    return Recorder({topic.name: topic.kind for topic in TOPICS}, **kwargs)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, from /proc."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


if __name__ == '__main__':
    raise SystemExit(main())
