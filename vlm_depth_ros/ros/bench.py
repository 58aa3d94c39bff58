"""The node end to end: players, node and a reader as processes, over real DDS.

``python -m vlm_depth_ros.ros.bench --source PATH --out DIR --json FILE`` waits until the node has
chosen its engine, finds the rate at which it cannot answer more, then plays at 0.8 of that.
``vlm-depth benchmark`` starts it.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
import json
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.source import open_source
from vlm_depth_ros.ros.bench_figures import cpu_s, rate_hz, time_figures
from vlm_depth_ros.ros.bench_settle import wait_until_settled
from vlm_depth_ros.ros.demo import (
    add_node_flags,
    check_alive,
    guarded,
    player_name,
    QUIET_S,
    SHARE,
    spin,
    start_node,
    start_player,
    wait_for_node,
)
from vlm_depth_ros.ros.soak import resident_mb

FIRST_HZ = 10.0
"""Of all cameras together; doubled until the node cannot follow."""
MOST_HZ = 1000.0
"""Of one camera: what the player can be asked for."""
FOLLOWED_SHARE = 0.9
"""Whoever answers fewer of the images cannot follow."""
SATURATION_S = 2.0
SATURATION_SHARE = 0.2
"""One step of the search lasts at least so long, and so many of the frames to be measured."""
OF_RECORD = 300
"""Fewer images of a camera make no percentiles to keep."""
ATTEMPTS = 3
"""To measure one engine from the beginning to the end."""
PATIENCE_S = 60.0
"""A first cloud takes no longer; many players start slowly on few cores."""


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 when the figures were written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_node_flags(parser)
    parser.add_argument('--out', type=Path, required=True, help='folder for the logs')
    parser.add_argument('--json', type=Path, required=True, help='file for the figures')
    parser.add_argument('--cameras', type=int, default=1)
    parser.add_argument('--frames', type=int, default=300, help='of each camera')
    return guarded('bench', run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Start the node, find its rate, measure, write the figures.

    Raises:
        InputError: If the source cannot be played or nothing comes out of the node.
    """
    import rclpy
    from vlm_depth_ros.ros.bench_reader import BenchReader

    with open_source(args.source):
        pass  # A source that cannot be played is told before anything starts.
    args.out.mkdir(parents=True, exist_ok=True)
    cameras = [''] if args.cameras == 1 else [f'camera{i}' for i in range(args.cameras)]
    if args.cameras > 1:
        args.param = [*args.param, f'cameras:=[{",".join(cameras)}]']
    rclpy.init()
    reader = BenchReader(cameras)
    try:
        with start_node(args) as node:
            first = f'{cameras[0]}/image' if cameras[0] else 'image'
            wait_for_node(reader, node, args.out, first)
            found = _with_one_engine(reader, args, cameras, node)
        found |= {
            'cameras': args.cameras,
            'device': reader.hardware,
            'gpu_memory_mb': None if reader.hardware == 'cpu' else reader.device_memory_mb,
            'rmw': rclpy.get_rmw_implementation_identifier(),
            'message_bytes': reader.message_bytes,
        }
    finally:
        reader.destroy_node()
        rclpy.try_shutdown()
    with atomic_file(args.json) as path:
        path.write_text(json.dumps(found, indent=2) + '\n')
    return 0


def _with_one_engine(
    reader, args: argparse.Namespace, cameras: list[str], node: subprocess.Popen
) -> dict[str, Any]:
    """All figures, from a time in which the node did not change its engine."""
    for _ in range(ATTEMPTS):
        with _players(args, cameras, FIRST_HZ, 0) as players:
            _wait_for_clouds(reader, args, cameras, players)
            is_settled = wait_until_settled(reader, node)
        spin(reader, QUIET_S)
        engine = reader.engine
        found = _saturated(reader, args, cameras)
        found |= _measured(reader, args, cameras, node, SHARE * found['saturation_hz'])
        spin(reader, 1.2)  # diagnostics come once a second
        if reader.engine == engine:
            break
    reasons = {
        f'fewer than {OF_RECORD} images of a camera': args.frames < OF_RECORD,
        'the search for an engine did not end': not is_settled,
        'the engine changed meanwhile': reader.engine != engine,
    }
    return found | {
        'engine': reader.engine,
        'frames_per_camera': args.frames,
        'not_of_record': [reason for reason, holds in reasons.items() if holds],
    }


def _saturated(reader, args: argparse.Namespace, cameras: list[str]) -> dict[str, Any]:
    """The most clouds a second, while images come faster than they can be answered."""
    offered_hz, steps = FIRST_HZ, []
    while True:
        answered_hz = _answered_hz(reader, args, cameras, offered_hz)
        steps.append({'offered_hz': offered_hz, 'answered_hz': answered_hz})
        followed = answered_hz >= FOLLOWED_SHARE * offered_hz
        if not followed or 2 * offered_hz / len(cameras) > MOST_HZ:
            break
        offered_hz *= 2
    saturation_hz = max(step['answered_hz'] for step in steps)
    if not saturation_hz:
        raise InputError(
            f'fewer than two clouds within {PATIENCE_S:.0f} s: too slow to measure. See '
            f'{args.out / "depth_node.log"}.'
        )
    return {
        'saturation_hz': saturation_hz,
        'is_saturated': not followed,
        'saturation_steps': steps,
    }


def _answered_hz(reader, args: argparse.Namespace, cameras: list[str], offered_hz: float) -> float:
    """Clouds a second of all cameras, counted once all of them are answered."""
    reader.forget()
    with _players(args, cameras, offered_hz, 0) as players:
        _wait_for_clouds(reader, args, cameras, players)
        reader.forget()
        enough, start_s = max(2, SATURATION_SHARE * args.frames), time.monotonic()
        while (waited_s := time.monotonic() - start_s) < PATIENCE_S:
            spin(reader, 0.1)
            if waited_s >= SATURATION_S and reader.count >= enough:
                break
        answered_hz = sum(rate_hz(c.arrivals_ns) for c in reader.clouds.values())
    spin(reader, QUIET_S)
    return answered_hz


def _measured(
    reader, args: argparse.Namespace, cameras: list[str], node: subprocess.Popen, hz: float
) -> dict[str, Any]:
    """Play so many images at a rate that the node can answer; figures of clouds and processes."""
    count = args.frames
    quiet_s = QUIET_S + 3 * len(cameras) / hz
    taken: list[_Taken] = []
    reader.forget()
    with _players(args, cameras, hz, count) as players:
        pids = {'node': [node.pid], 'players': [p.pid for p in players.values()]}
        _wait_for_clouds(reader, args, cameras, players)
        while time.monotonic() < reader.last_arrival_s + quiet_s:
            is_playing = all(player.poll() is None for player in players.values())
            if is_playing and reader.count < count * len(cameras):
                taken.append(_Taken(pids, reader.count))
            spin(reader, 0.2)
        check_alive(node, 'depth_node', args.out)
    times = [(c.stamps_ns, c.arrivals_ns) for c in reader.clouds.values()]
    return {
        'played_hz': hz, **time_figures(times, count * len(cameras)), **_used(taken)
    }  # fmt: skip


class _Taken:
    """What processes had taken of the machine at one moment."""

    def __init__(self, pids: dict[str, list[int]], clouds: int):
        self.wall_s, self.clouds = time.monotonic(), clouds
        self.cpu_s = {name: sum(map(cpu_s, group)) for name, group in pids.items()}
        self.cpu_s['reader'] = time.process_time()
        self.node_mb = resident_mb(pids['node'][0])


def _used(taken: list[_Taken]) -> dict[str, Any]:
    """CPU in per cent of one core between the first and the last look, and memory."""
    if len(taken) < 2:
        return {'cpu_percent': None, 'node_cpu_ms_per_frame': None, 'node_resident_mb': None}
    first, last = taken[0], taken[-1]
    used_s = {name: last.cpu_s[name] - first.cpu_s[name] for name in first.cpu_s}
    clouds, wall_s = last.clouds - first.clouds, last.wall_s - first.wall_s
    return {
        'cpu_percent': {name: 100 * s / wall_s for name, s in used_s.items()},
        'node_cpu_ms_per_frame': 1e3 * used_s['node'] / clouds if clouds else None,
        'node_resident_mb': max(t.node_mb for t in taken),
    }


@contextmanager
def _players(
    args: argparse.Namespace, cameras: list[str], hz: float, count: int
) -> Iterator[dict[str, subprocess.Popen]]:
    """One player for each camera, at `hz` together, `count` images each; ended with the block."""
    with ExitStack() as players:
        # The reader takes no images: a copy of each would cost time that no robot spends.
        yield {
            camera: players.enter_context(
                start_player(args, hz / len(cameras), count, camera, readers=1)
            )
            for camera in cameras
        }


def _wait_for_clouds(reader, args: argparse.Namespace, cameras: list[str], players: dict) -> None:
    """Until every camera has a cloud.

    Raises:
        InputError: If a player ended, or one of them has none in time.
    """
    end_s = time.monotonic() + PATIENCE_S
    while not all(clouds.stamps_ns for clouds in reader.clouds.values()):
        spin(reader, 0.05)
        for camera, player in players.items():
            if player.poll() not in (None, 0):
                check_alive(player, player_name(camera), args.out)
        if time.monotonic() > end_s:
            raise InputError(
                f'no cloud within {PATIENCE_S:.0f} s of the first images; does the source know '
                f'its camera? See {args.out / "depth_node.log"}.'
            )


if __name__ == '__main__':
    sys.exit(main())
