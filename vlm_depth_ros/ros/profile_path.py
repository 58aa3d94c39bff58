"""Where the CPU time of a frame goes, from the take of an image to the publication of its cloud.

``python -m vlm_depth_ros.ros.profile_path --source PATH`` runs the real node in this process while
a camera player and a reader run in processes of their own, and prints a table: milliseconds of CPU
a frame by stage, and the share. It is CPU time, so that other programs change it little; what a
stage waits, as for the GIL, is not in it. The stages are functions of the package that are wrapped
from outside: nothing in the node knows of it.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, ExitStack
from dataclasses import dataclass, replace
import json
import multiprocessing
import os
from pathlib import Path
import sys
import tempfile
import threading
import time
from typing import Any

from rich.console import Console
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.ros.demo import check_alive, guarded, start
from vlm_depth_ros.ros.meter import Meter

WARM_UP_FRAMES = 10
TIMEOUT_S = 120.0
"""Longer without a frame, and it has failed."""
BUSY_NS = 1e6
"""CPU within the warm-up that makes a thread without a name one of those that tensors run on."""
TAKE = 'take (DDS to Python)'
NETWORK = 'network'
EXECUTOR = 'executor: waiting, timers, callbacks'
WORKER = 'worker: all else'
MIDDLEWARE = "the middleware's own threads"
OTHERS = 'other threads'


def meter_stages(meter: Meter) -> list[str]:
    """Wrap every stage of the path in this process; their names in the order of a frame."""
    from rclpy.executors import Executor
    from vlm_depth_ros.core import estimator, preprocess
    from vlm_depth_ros.core import outputs as core_outputs
    from vlm_depth_ros.ros import inputs, outputs

    stages = []

    def wrap(stage: str, owner: Any, name: str) -> None:
        stages.append(stage)
        setattr(owner, name, meter.metered(stage, getattr(owner, name)))

    wrap(TAKE, Executor, '_take_subscription')
    wrap('to RGB', inputs.CameraInput, 'to_rgb')
    wrap('upload, rectify', estimator, 'rectified')
    wrap('preprocess', preprocess.InputBatch, '__call__')
    wrap(NETWORK, estimator.DepthEstimator, '_answers')
    wrap('refine: scale, upsample, filters, range', core_outputs, 'refined')
    for name, packer in core_outputs.PACKERS.items():
        stages.append(f'pack {name}')
        core_outputs.PACKERS[name] = meter.metered(stages[-1], packer)
    stages.append('fill messages')
    outputs.TOPICS = tuple(
        replace(topic, wrap=meter.metered(stages[-1], topic.wrap)) for topic in outputs.TOPICS
    )
    wrap('publish (serialise, hand to DDS)', outputs.CameraOutput, 'publish')
    return stages


def main(argv: list[str] | None = None) -> int:
    """Run, print the table; 1 after an error, which is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--source', required=True, help='pairs.csv folder, images, video or bag')
    parser.add_argument('--weights', default='pocket')
    parser.add_argument('--param', action='append', default=[], metavar='NAME:=VALUE')
    parser.add_argument('--rate-hz', type=float, default=10.0, help='images a second')
    parser.add_argument('--frames', type=int, default=200, help='so many after the warm-up')
    parser.add_argument(
        '--listen', nargs='+', default=['depth/image_rect', 'points'], metavar='TOPIC',
        help='outputs that somebody subscribes to; the others are not computed',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, metavar='FILE')
    return guarded('profile_path', run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Play, meter, print, write.

    Raises:
        ConfigError: If an output is unknown, no frame is asked for, or this system does not say
            what a thread took.
        InputError: If the node does not answer the source.
    """
    require(Path('/proc/self/schedstat').exists(), 'no /proc/self/schedstat: expected Linux.')
    kinds = _kinds()
    for name in args.listen:
        require(name in kinds, f'--listen {name}: expected any of {", ".join(kinds)}.')
    require(args.frames >= 1, f'--frames {args.frames}: expected at least 1.')
    require(args.rate_hz > 0, f'--rate-hz {args.rate_hz:g}: expected more than 0.')
    meter = Meter()
    stages = meter_stages(meter)
    result = _result(*_snapshots(args, meter), meter, stages, args.frames)
    result['listen'] = args.listen
    console = Console()
    for line in table(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def table(result: dict) -> list[str]:
    """Lines of Markdown: a row for each stage that took anything, then the sums."""
    whole_ms = result['process_ms']
    sums = {
        'everything but the network': whole_ms - result['stages_ms'][NETWORK],
        'not explained': result['unexplained_ms'],
        'whole process': whole_ms,
    }
    rows = [
        f'| {stage} | {ms:.3f} | {ms / whole_ms:.1%} |'
        for stage, ms in (result['stages_ms'] | sums).items()
    ]
    return [
        f'{result["frames"]} frames of {result["received"]} images to '
        f'{", ".join(result["listen"])}; tensors run on {result["threads"]} threads',
        '',
        '| stage | ms of CPU a frame | share |',
        '|---|---|---|',
        *rows,
    ]


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; times in nanoseconds of CPU."""

    received: int
    process_ns: int
    threads_ns: dict[int, tuple[str, int]]
    """Kind and time of each thread, by the kernel's id."""
    spent_ns: Counter


def _snapshots(args: argparse.Namespace, meter: Meter) -> tuple[Snapshot, Snapshot]:
    """Run node, player and reader; the counters after the warm-up and after the last frame."""
    import rclpy
    from rclpy.lifecycle import TransitionCallbackReturn
    from vlm_depth_ros.ros.depth_node import DepthNode
    from vlm_depth_ros.ros.executors import executor_for, SPIN_S
    from vlm_depth_ros.ros.node import one_thread_of_opencv
    from vlm_depth_ros.ros.pipeline import DepthPipeline
    from vlm_depth_ros.ros.profile import use_large_segment

    last = WARM_UP_FRAMES + args.frames
    snapshots: dict[int, Snapshot] = {}
    answer = DepthPipeline.__call__

    def answer_and_look(pipeline: DepthPipeline, *taken: Any) -> None:
        # In the worker's thread, between two frames: no stage of it is cut in two.
        frames = statistics.published
        if frames in (1, WARM_UP_FRAMES, last) and frames not in snapshots:
            if frames == WARM_UP_FRAMES:
                meter.follow(threading.get_native_id(), _helpers(snapshots[1].threads_ns))
            snapshots[frames] = Snapshot(
                statistics.received, time.process_time_ns(), _cpu_ns(), Counter(meter.spent_ns)
            )
        answer(pipeline, *taken)

    DepthPipeline.__call__ = answer_and_look
    use_large_segment()
    values = ['autostart:=false', f'weights:={args.weights}', *args.param]
    with ExitStack() as ending:
        out = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        rclpy.init(args=['--ros-args', *(part for v in values for part in ('-p', v))])
        ending.callback(rclpy.try_shutdown)
        one_thread_of_opencv()
        node = DepthNode()
        ending.callback(node.destroy_node)
        executor, _ = executor_for(node)
        ending.callback(executor.shutdown, 0.5)
        if node.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            raise InputError('the node refuses its parameters; the log above says why.')
        statistics = node.statistics[0]
        node.trigger_activate()
        ending.enter_context(_reader(args.listen))
        player = ending.enter_context(_player(args, out))
        end_s = time.monotonic() + TIMEOUT_S + 2 * last / args.rate_hz
        while last not in snapshots:
            executor.spin_once(timeout_sec=SPIN_S)
            check_alive(player, 'camera_player', out)
            if time.monotonic() > end_s:
                raise InputError(f'{statistics.published} frames came back, not {last}.')
    return snapshots[WARM_UP_FRAMES], snapshots[last]


def _result(first: Snapshot, last: Snapshot, meter: Meter, stages: list[str], frames: int) -> dict:
    """What was spent between two snapshots, in milliseconds a frame."""
    spent_ns = {
        stage: last.spent_ns[stage] - first.spent_ns[stage]
        for stage in stages if stage in last.spent_ns
    }  # fmt: skip
    rest_ns = Counter()
    for thread, (kind, ns) in last.threads_ns.items():
        place = WORKER if thread in meter.threads else kind
        rest_ns[place] += ns - first.threads_ns.get(thread, (kind, 0))[1]
    in_executor_ns = spent_ns.get(TAKE, 0)
    rest_ns[EXECUTOR] -= in_executor_ns
    rest_ns[WORKER] -= sum(spent_ns.values()) - in_executor_ns
    process_ns = last.process_ns - first.process_ns
    unexplained_ns = process_ns - sum(spent_ns.values()) - sum(rest_ns.values())
    return {
        'frames': frames,
        'received': last.received - first.received,
        'threads': len(meter.threads),
        'stages_ms': {s: ns / frames / 1e6 for s, ns in (spent_ns | rest_ns).items()},
        'unexplained_ms': unexplained_ns / frames / 1e6,
        'process_ms': process_ns / frames / 1e6,
    }


def _cpu_ns() -> dict[int, tuple[str, int]]:
    """Kind and CPU time of every thread of this process, by the kernel's id.

    The middleware names its threads; those of Python and of tensor libraries are called as the
    main thread is.
    """
    tasks, main_thread, found = Path('/proc/self/task'), os.getpid(), {}
    own_name = (tasks / str(main_thread) / 'comm').read_text()
    for thread in map(int, os.listdir(tasks)):
        try:
            name = (tasks / str(thread) / 'comm').read_text()
            took_ns = int((tasks / str(thread) / 'schedstat').read_text().split()[0])
        except OSError:  # It ended meanwhile.
            continue
        kind = OTHERS if name == own_name else MIDDLEWARE
        found[thread] = EXECUTOR if thread == main_thread else kind, took_ns
    return found


def _helpers(before: dict[int, tuple[str, int]]) -> list[int]:
    """Threads that are not Python's and have worked since `before`: those of tensor operations."""
    pythons = {thread.native_id for thread in threading.enumerate()}
    return [
        thread
        for thread, (kind, ns) in _cpu_ns().items()
        if kind == OTHERS and thread not in pythons
        and ns - before.get(thread, (kind, 0))[1] > BUSY_NS
    ]  # fmt: skip


def _player(args: argparse.Namespace, out: Path) -> AbstractContextManager:
    values = {
        'source': args.source, 'rate_hz': args.rate_hz, 'loop': 'true', 'wait_for_subscribers': 1
    }  # fmt: skip
    ros_args = [part for k, v in values.items() for part in ('-p', f'{k}:={v}')]
    return start('camera_player', 'camera_player', ros_args, out)


@contextmanager
def _reader(topics: list[str]) -> Iterator[None]:
    """Somebody who subscribes, in a process of its own."""
    process = multiprocessing.get_context('spawn').Process(
        target=_read, args=(topics,), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(10)


def _read(topics: list[str]) -> None:
    import rclpy
    from rclpy.executors import ExternalShutdownException

    rclpy.init(args=[])  # The command line is that of the process that started this one.
    node = rclpy.create_node('profile_reader')
    kinds = _kinds()
    for topic in topics:
        node.create_subscription(kinds[topic], topic, lambda cdr: None, 5, raw=True)
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        pass


def _kinds() -> dict[str, type]:
    from vlm_depth_ros.ros.outputs import TOPICS

    return {topic.name: topic.kind for topic in TOPICS}


if __name__ == '__main__':
    sys.exit(main())
