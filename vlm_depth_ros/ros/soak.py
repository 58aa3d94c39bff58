"""``make soak``: the node at full rate for minutes; its memory must not grow.

``python -m vlm_depth_ros.ros.soak --source PATH --minutes 10`` plays a looping source faster than
the node can answer, with every output subscribed, and reads the node's resident memory.
"""

import argparse
import json
import os
from pathlib import Path
import time

from rich.console import Console
from vlm_depth_ros.ros.demo import (
    add_node_flags,
    guarded,
    spin,
    start_node,
    start_player,
    wait_for_node,
)

PLAYED_HZ = 60.0
SETTLE_S = 60.0
"""Allocators, caches and discovery reach their size in the first minute."""
PERIOD_S = 30.0
LARGEST_GROWTH = 0.01


def main(argv: list[str] | None = None) -> int:
    """Run the soak; 1 if memory grew by more than 1 % after the first minute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_node_flags(parser)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--out', type=Path, default=Path('demo_out'))
    return guarded('soak', run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Start node and player, watch, judge, write ``soak.json``."""
    import rclpy
    from vlm_depth_ros.ros.recorder import Recorder

    args.out.mkdir(parents=True, exist_ok=True)
    console, readings = Console(), []
    rclpy.init()
    recorder = Recorder()
    try:
        with start_node(args) as node:
            wait_for_node(recorder, node, args.out)
            with start_player(args, PLAYED_HZ, 0):
                spin(recorder, SETTLE_S)
                start_s, clouds = time.monotonic(), recorder.counts['points']
                while (elapsed_s := time.monotonic() - start_s) < args.minutes * 60:
                    readings.append(resident_mb(node.pid))
                    spin(recorder, min(PERIOD_S, args.minutes * 60 - elapsed_s))
                    rate_hz = (recorder.counts['points'] - clouds) / (time.monotonic() - start_s)
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
    }  # fmt: skip
    (args.out / 'soak.json').write_text(json.dumps(result, indent=2) + '\n')
    console.print(f'resident memory grew by {growth:.2%} after the first minute')
    return int(growth > LARGEST_GROWTH)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, from /proc."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


if __name__ == '__main__':
    raise SystemExit(main())
