"""Newest-frame slots, and the one thread that empties them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
import math
import threading
import time
from typing import Any

from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.scale import ScaleState
from vlm_depth_ros.ros.process import one_line

log = logging.getLogger(__name__)


@dataclass
class Statistics:
    """What became of one camera's frames; each number is written by one thread only."""

    received: int = 0
    """Frames that came while the node was active and enabled."""
    dropped: int = 0
    """Replaced by a newer one before the worker was free."""
    unwanted: int = 0
    """Not computed, since nobody subscribed."""
    failed: int = 0
    """Refused, or the network failed; `last_error` says why."""
    published: int = 0
    """Frames whose outputs left."""
    last_error: str = ''
    busy_since_s: float = 0.0
    """When the worker took the frame that it works on, monotonic; 0 while it has none."""
    last_received_s: float = 0.0
    """On the monotonic clock; 0 before the first."""
    last_stamp_ns: int = 0
    """Stamp of the newest processed frame."""
    last_latency_ms: float = 0.0
    """From the callback to the last published message."""
    time_jumps: int = 0
    """How often stamps went back."""
    camera_trouble: str = ''
    """Why the newest frame has no camera; empty when it has one."""
    valid_share: float = math.nan
    """Share of the newest depth that is a number of metres."""
    scale: ScaleState = ScaleState(1.0, math.nan, 'off')
    """What the newest depth was multiplied by."""

    def count_failed(self, err: Exception) -> None:
        """Count a frame that got no answer, and keep why."""
        self.failed += 1
        self.last_error = one_line(err)


@dataclass(frozen=True)
class Arrival:
    """A message and when it came."""

    message: Any
    received_s: float
    """On the monotonic clock."""


class NewestFrameWorker:
    """One slot for each camera and one thread that takes whatever is newest in all of them.

    A frame never waits behind an older one: `offer` replaces what still lies in the slot.
    """

    def __init__(
        self,
        process: Callable[[dict[int, Arrival], Callable[[], bool]], None],
        statistics: Sequence[Statistics],
    ):
        """Prepare; `start` starts.

        Args:
            process: Gets the taken frames by camera index, and a function that says whether the
                worker is stopping, in the worker's thread. It handles its own errors; one that
                escapes costs the frames at hand.
            statistics: One entry for each camera; its arrivals and drops are counted here.
        """
        self._process = process
        self._statistics = statistics
        self._slots: dict[int, Arrival] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, with empty slots.

        Raises:
            ConfigError: If the one before has not ended: two would share the device.
        """
        if self.is_running():
            raise ConfigError(
                'the inference of before still runs: expected none. Activate again once it ends.'
            )
        self._slots.clear()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='depth_worker', daemon=True)
        self._thread.start()

    def offer(self, camera: int, message: Any) -> None:
        """Put the newest message of a camera into its slot; returns at once."""
        now_s = time.monotonic()
        with self._changed:
            statistics = self._statistics[camera]
            statistics.received += 1
            statistics.last_received_s = now_s
            if camera in self._slots:
                statistics.dropped += 1
            self._slots[camera] = Arrival(message, now_s)
            self._changed.notify()

    def stop(self, timeout_s: float) -> bool:
        """Let the thread end after the frame at hand; whether it ended in time.

        What still lies in a slot counts as dropped.
        """
        with self._changed:
            self._stopping = True
            for camera in self._slots:
                self._statistics[camera].dropped += 1
            self._slots.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.is_running()

    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slots or self._stopping)
                if self._stopping:
                    return
                taken, self._slots = self._slots, {}
            for camera in taken:
                self._statistics[camera].busy_since_s = time.monotonic()
            try:
                self._process(taken, lambda: self._stopping)
            except Exception as err:  # Without its thread the node would be silent for ever.
                log.error('The frames at hand are lost: %s', one_line(err))
                for camera in taken:
                    self._statistics[camera].count_failed(err)
            for camera in taken:
                self._statistics[camera].busy_since_s = 0.0
