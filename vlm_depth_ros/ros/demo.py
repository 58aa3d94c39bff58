"""``make demo``: player, node and recorder as real processes; a recording comes out.

``python -m vlm_depth_ros.ros.demo --source PATH --out DIR`` writes ``DIR/depth.mcap``;
``vlm-depth report`` makes the table and the pictures from it. A warm-up of three seconds finds the
rate that this machine reaches; the measured run plays at 0.8 of it, at least 10 Hz.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from rich.console import Console
from rich.progress import Progress
from vlm_depth_ros.core.errors import InputError, VlmDepthError
from vlm_depth_ros.files.source import open_source

WARM_UP_S = 3.0
WARM_UP_HZ = 60.0
SHARE = 0.8
LEAST_HZ = 10.0
LEAST_FRAMES, MOST_FRAMES = 100, 150
"""A short source is looped, a long one is cut: a recording holds 5 MB a frame in memory."""
START_TIMEOUT_S = 180.0
QUIET_S = 1.0
"""The run is over when nothing has arrived for so long."""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 when a recording was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_node_flags(parser)
    parser.add_argument('--out', type=Path, default=Path('demo_out'))
    parser.add_argument(
        '--rate-hz', type=float, default=0.0,
        help='play at this rate instead of at the rate that the warm-up finds',
    )  # fmt: skip
    return guarded('demo', run, parser.parse_args(argv))


def add_node_flags(parser: argparse.ArgumentParser) -> None:
    """What is played, and the parameters of the node that answers."""
    parser.add_argument('--source', required=True, help='pairs.csv folder, images, video or bag')
    parser.add_argument('--weights', default='pocket')
    parser.add_argument('--device', default='auto')
    parser.add_argument(
        '--param', action='append', default=[], metavar='NAME:=VALUE',
        help='any other parameter of the node, such as cloud_stride:=1; may be repeated',
    )  # fmt: skip


def guarded(name: str, action: Callable, args: argparse.Namespace) -> int:
    """Run `action` on a graph of its own; errors become one line and exit code 1."""
    # It speaks to nobody but itself.
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    try:
        return action(args)
    except VlmDepthError as err:
        print(f'{name}: {err}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'{name}: stopped.', file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Start everything, measure, write the recording.

    Raises:
        InputError: If the source cannot be played or nothing came out of the node.
    """
    import rclpy
    from vlm_depth_ros.ros.recorder import Recorder

    with open_source(args.source) as source:
        frames = max(LEAST_FRAMES, min(len(source), MOST_FRAMES))
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    rclpy.init()
    recorder = Recorder()
    try:
        with start_node(args) as node:
            with console.status('starting the node'):
                wait_for_node(recorder, node, args.out)
            reached_hz = _warm_up(recorder, args)
            rate_hz = args.rate_hz or max(LEAST_HZ, SHARE * reached_hz)
            console.print(
                f'the warm-up reached {reached_hz:.1f} Hz; playing {frames} images at '
                f'{rate_hz:.1f} Hz'
            )
            _measure(recorder, args, rate_hz, frames)
        facts = {
            'source': args.source,
            'is_synthetic': is_synthetic(args.source),
            'rmw': rclpy.get_rmw_implementation_identifier(),
            'weights': args.weights,
            'device': recorder.hardware or args.device,
            'played_hz': round(rate_hz, 2),
            'warm_up_hz': round(reached_hz, 2),
        }
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task('writing the recording', total=recorder.kept_count)
            recorder.write(args.out / 'depth.mcap', facts, lambda: progress.advance(task))
    finally:
        recorder.destroy_node()
        rclpy.try_shutdown()
    return 0


def is_synthetic(source: str) -> bool:
    """Whether a folder says of itself that its images are rendered."""
    note = Path(source) / 'README.md'
    return note.is_file() and note.read_text(errors='replace').startswith('SYNTHETIC')


@contextmanager
def start(name: str, module: str, ros_args: list[str], out: Path) -> Iterator:
    """One of our executables as a process, ended by SIGINT; its log is a file in `out`."""
    command = [sys.executable, '-m', f'vlm_depth_ros.ros.{module}', '--ros-args', *ros_args]
    with (out / f'{name}.log').open('w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_node(args: argparse.Namespace):
    """The depth node as a process, with the parameters of the command line."""
    values = [f'weights:={args.weights}', f'device:={args.device}', *args.param]
    return start('depth_node', 'node', [part for v in values for part in ('-p', v)], args.out)


def start_player(
    args: argparse.Namespace, rate_hz: float, count: int, camera: str = '', readers: int = 2
):
    """The camera player as a process.

    Args:
        args: With ``source`` and ``out``.
        rate_hz: Images a second.
        count: How many; 0 plays until it is stopped.
        camera: Name that prefixes its topics, and ends that of its log.
        readers: It waits for so many subscribers: the node, and a recorder of the images.
    """
    values = {
        'source': args.source, 'rate_hz': rate_hz, 'loop': 'true', 'count': count,
        # Node and recorder discover a new player one after the other.
        'wait_for_subscribers': readers, 'start_delay_s': 0.5,
    }  # fmt: skip
    ros_args = [part for k, v in values.items() for part in ('-p', f'{k}:={v}')]
    if camera:
        ros_args += ['-r', f'__ns:=/{camera}']
    return start(player_name(camera), 'camera_player', ros_args, args.out)


def player_name(camera: str) -> str:
    """What the log of a camera's player is called."""
    return f'camera_player_{camera}' if camera else 'camera_player'


def spin(recorder, seconds: float) -> None:
    """Let a node receive for a while."""
    import rclpy

    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        rclpy.spin_once(recorder, timeout_sec=left_s)


def check_alive(process: subprocess.Popen, name: str, out: Path) -> None:
    """Raise InputError with the last line of its log if a process has ended."""
    if process.poll() is not None:
        log = out / f'{name}.log'
        lines = log.read_text(errors='replace').strip().splitlines()
        last = lines[-1] if lines else 'no output'
        raise InputError(f'{name} ended with code {process.returncode}: {last} (see {log})')


def wait_for_node(
    recorder, node: subprocess.Popen, out: Path, topic: str = 'image'
) -> None:
    """Until the depth node subscribes to the images, which it does once it is active.

    Raises:
        InputError: If it ended, could not be configured, or took too long.
    """
    log, end_s = out / 'depth_node.log', time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s:
        spin(recorder, 0.2)
        check_alive(node, 'depth_node', out)
        readers = recorder.get_subscriptions_info_by_topic(topic)
        if any(info.node_name == 'depth_node' for info in readers):
            return
        # The node itself lives on and waits for better parameters; nobody here will set them.
        _, refused, reason = log.read_text(errors='replace').partition('Cannot configure: ')
        if refused:
            raise InputError(f'the node refuses: {reason.splitlines()[0]}')
    raise InputError(f'the node was not active after {START_TIMEOUT_S:.0f} s; see {log}')


def _warm_up(recorder, args: argparse.Namespace) -> float:
    """Rate of the clouds while images come faster than they can be answered."""
    with start_player(args, WARM_UP_HZ, 0) as player:
        end_s = time.monotonic() + 30
        while not recorder.counts['points']:
            spin(recorder, 0.1)
            check_alive(player, 'camera_player', args.out)
            if time.monotonic() > end_s:
                raise InputError(
                    'no cloud within 30 s of the first images; does the source know its camera? '
                    f'See {args.out / "depth_node.log"}.'
                )
        before, start_s = recorder.counts['points'], time.monotonic()
        spin(recorder, WARM_UP_S)
        reached_hz = (recorder.counts['points'] - before) / (time.monotonic() - start_s)
    spin(recorder, QUIET_S)
    return reached_hz


def _measure(recorder, args: argparse.Namespace, rate_hz: float, frames: int) -> None:
    recorder.is_keeping = True
    before = recorder.counts['image']
    with Progress(transient=True) as progress, start_player(args, rate_hz, frames) as player:
        task = progress.add_task('measuring', total=frames)
        recorder.last_arrival_s = time.monotonic() + 20  # the player needs time to start
        while time.monotonic() < recorder.last_arrival_s + QUIET_S:
            spin(recorder, 0.05)
            done = recorder.counts['image'] - before
            progress.update(task, completed=done)
            if done == 0:
                check_alive(player, 'camera_player', args.out)
    recorder.is_keeping = False


if __name__ == '__main__':
    sys.exit(main())
