"""The search for an engine that runs the network of the node faster, while it answers."""

from collections.abc import Callable
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.ros.process import one_line

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator

PROGRAM = 'vlm_depth_ros.ros.prepare_engines'
START = (
    'import sys; sys.path[:] = sys.argv.pop(1).split(":"); import runpy; '
    'runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)'
)
"""Runs a program with the node's own modules, whatever lies in the folder where it was started."""
BUSY_LOOKS = 20
"""So many looks must have found new frames before anything begins: a node that is stopped soon, or
that nobody listens to, has nothing to gain. Five seconds, at four looks a second."""


class Preparation:
    """Another process that converts the network, and a thread that waits for it."""

    def __init__(self, weights: str, estimator: 'DepthEstimator', runtime: RuntimeConfig):
        """Start at once."""
        from vlm_depth_ros.core.devices import num_threads  # Needs torch.

        self.engines: dict[str, Callable] = {}
        """Those that are ready, once done."""
        self.trouble = ''
        """What went wrong, in one line."""
        self._process: subprocess.Popen | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        command = [
            sys.executable, '-c', START, os.pathsep.join(filter(None, sys.path)), PROGRAM,
            weights, estimator.precision, runtime.tower_weights,
        ]  # fmt: skip
        self._thread = threading.Thread(
            target=self._run,
            args=(command, estimator, num_threads()),
            name='engine_search',
            daemon=True,
        )
        self._thread.start()

    def is_done(self) -> bool:
        """Whether it came to an end, good or bad."""
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """End the process; the thread ends by itself."""
        with self._lock:
            self._abandoned = True
            if self._process is not None:
                self._process.kill()

    def _run(self, command: list[str], estimator: 'DepthEstimator', num_threads: int) -> None:
        from vlm_depth_ros.core.devices import use_threads
        from vlm_depth_ros.core.faster_engines import load, Prepared

        try:
            answer = self._ask(command)
            if self._abandoned:
                return
            self.trouble = answer.pop('trouble')
            if answer:
                use_threads(num_threads)
                self.engines = load(Prepared(**answer), estimator)
        except Exception as err:
            self.trouble = one_line(err)

    def _ask(self, command: list[str]) -> dict:
        """What the program says."""
        with self._lock:
            if self._abandoned:
                return {}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors='replace',
                env=os.environ | {'OMP_NUM_THREADS': '1'},
            )  # fmt: skip
        out, err = self._process.communicate()
        if self._process.returncode or not out.strip():
            last = (err.strip().splitlines() or ['nothing was said'])[-1]
            raise RuntimeError(f'{PROGRAM} ended with {self._process.returncode}: {last}')
        return json.loads(out.splitlines()[-1])


class EngineSearch:
    """One search for one network; used in the executor's thread."""

    def __init__(self, weights: str, estimator: 'DepthEstimator', runtime: RuntimeConfig):
        """Begin with nothing but to count frames; arguments as those of `RunningModel`."""
        self._weights, self._estimator, self._runtime = weights, estimator, runtime
        is_open = runtime.engine == 'auto' and estimator.ways.at_hand.engine == 'eager'
        is_ours = estimator.device.type == 'cpu' and bool(estimator.weights_sha256)
        self._is_over = not (is_open and is_ours)
        self._num_published = self._busy_looks = 0
        self._preparation: Preparation | None = None

    def look(self, num_published: int) -> str:
        """Go on with it; called four times a second while the node is active.

        Args:
            num_published: Frames that were answered so far.

        Returns:
            What to warn of; mostly nothing.
        """
        if self._is_over:
            return ''
        if self._preparation is None:
            self._begin_when_busy(num_published)
            return ''
        ways, done = self._estimator.ways, self._preparation
        if not done.is_done() or ways.are_on_trial:
            return ''
        self._is_over, self._preparation = True, None
        if done.engines:
            ways.try_engines(done.engines)
        return done.trouble

    def _begin_when_busy(self, num_published: int) -> None:
        from vlm_depth_ros.core.engines import convertible  # Needs torch.

        self._busy_looks += num_published > self._num_published
        self._num_published = num_published
        if self._busy_looks < BUSY_LOOKS:
            return
        if convertible(self._estimator.precision):
            self._preparation = Preparation(self._weights, self._estimator, self._runtime)
        else:
            self._is_over = True

    def abandon(self) -> None:
        """End it without a result."""
        self._is_over = True
        if self._preparation is not None:
            self._preparation.abandon()
