"""Nodes in processes of their own, for tests: what they print, and how they end."""

from collections.abc import Callable
import multiprocessing
from multiprocessing.context import ForkServerProcess
import os
from pathlib import Path
import re
import subprocess
import sys
import time

from ros_graph import CALLED, Graph, image_message, main, wait_for, WARM_UP_CALLS

START_S = 120
"""Importing PyTorch takes half a minute on a machine that trains beside the tests."""
STAND_IN = [sys.executable, str(Path(__file__).with_name('ros_graph.py'))]


class Process:
    """A program whose output is read as it comes."""

    def __init__(self, command: list[str], log: Path):
        self._log = log
        self._segments_before = {str(p) for p in Path('/dev/shm').glob('fast*')}
        self._process = self._start(command)

    def _start(self, command: list[str]) -> subprocess.Popen:
        with self._log.open('wb') as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self) -> 'Process':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # Killed, it would leave its shared memory behind.
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def segments(self) -> set[str]:
        """Shared memory that it allocated."""
        maps = Path(f'/proc/{self.pid}/maps').read_text()
        found = set(re.findall(r'/dev/shm/fast\w+', maps)) - self._segments_before
        return {segment for segment in found if '_port' not in segment}

    def signalled(self, number: int) -> int:
        """Its exit code after a signal."""
        self._process.send_signal(number)
        return self._process.wait(timeout=10)

    def end_with(self, number: int) -> float:
        """Send a signal; the seconds until the process ended by itself with exit code 0.

        Everything it allocated in shared memory has to be gone.
        """
        segments, start_s = self.segments, time.monotonic()
        code = self.signalled(number)
        took_s = time.monotonic() - start_s
        assert code == 0, f'exit code {code}: {self.output}'
        assert 'Traceback' not in self.output and 'rror' not in self.output, self.output
        left = {s for s in segments if Path(s).exists()}
        assert segments and not left, left
        return took_s


class StandIn(Process):
    """The program `STAND_IN`, without the seconds in which a process imports torch.

    It is forked off a process that has imported everything and done nothing: what the node starts,
    allocates and catches is its own.
    """

    def _start(self, command: list[str]) -> 'Forked':
        multiprocessing.get_context('forkserver').set_forkserver_preload(
            ['pytest', 'vlm_depth_ros.ros.depth_node', 'vlm_depth_ros.core.estimator']
        )
        self._log.touch()
        process = Forked(target=_run_stand_in, args=(command, self._log), daemon=True)
        process.start()
        return process


class Forked(ForkServerProcess):
    """A forked process that is handled as one of `subprocess`."""

    def poll(self) -> int | None:
        """Its exit code, once it has one."""
        self.join(0)
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code at its end."""
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired('a forked process', timeout)
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def _run_stand_in(arguments: list[str], log: Path) -> None:
    with log.open('wb') as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = [STAND_IN[1], *arguments]
    sys.exit(main())


def end_an_inference(start: Callable[[list[str]], Process], number: int, *ros_args: str) -> float:
    """End a node that has just begun an inference of 30 s; how long it took to end.

    Args:
        start: Gets the arguments of `STAND_IN`.
        number: Of the signal.
        ros_args: More of them.
    """
    with Graph(active=False) as graph:
        node = start(['30', '0', '--ros-args', *ros_args, '-r', 'image:=busy/image'])
        wait_for(lambda: graph.tester.count_subscribers('busy/image'), 'the node', START_S)
        depth = graph.listen('depth/image_rect')
        wait_for(
            lambda: graph.publish('busy/image', image_message())
            or node.output.count(CALLED) > WARM_UP_CALLS,
            'an inference',
        )
        assert not depth
        return node.end_with(number)
