"""Ways to run a network, compared on the frames that come: in the real size, beside the real load.

A measurement at start would be one of an idle machine. Beside a camera and a reader that need a
core too, two threads may lose what they gain alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import logging
import os
import statistics
import time
from typing import TypeVar

from vlm_depth_ros.core.devices import num_threads, use_threads
from vlm_depth_ros.core.errors import reason_of
from vlm_depth_ros.core.heads.base import HeadOutput

log = logging.getLogger(__name__)

T = TypeVar('T')

THREADS_GAIN = 1.5
"""All threads have to be so many times faster than one. What they gain below that they take from
the processes beside them: a small network gains 1.1 to 1.35 from two, a ViT-B/16 1.9."""
ENGINE_GAIN = 1.1
"""Another engine has to be so many times faster than the one at hand."""
SKIPPED, COUNTED = 2, 6
"""Frames of each way: the first prepare memory and threads, the others count."""


@dataclass(frozen=True)
class Way:
    """One way to run a network."""

    engine: str
    network: Callable[..., HeadOutput]
    num_threads: int | None = None
    """Of PyTorch's operations; None: as many as the thread has that calls."""

    def __str__(self) -> str:
        """As logs and diagnostics call it."""
        if self.num_threads is None or self.engine != 'eager':  # Others have threads of their own.
            return self.engine
        return f'{self.engine}, {self.num_threads} thread{"s" if self.num_threads > 1 else ""}'

    def enter(self) -> None:
        """Give the calling thread, and no other, its number of threads."""
        if self.num_threads is not None:
            use_threads(self.num_threads)


class Trial:
    """Takes turns between ways until each has run often enough; then `winner` is known.

    Args:
        name: Of the network, for the log.
        first: Stays unless another is faster.
        others: Compared with it.
        gain: How many times faster than `first` the fastest of them has to be.
    """

    def __init__(self, name: str, first: Way, others: Sequence[Way], gain: float):
        self._name, self._first, self._gain = name, first, gain
        self._took_ms: dict[Way, list[float]] = {way: [] for way in (first, *others)}
        self.of_engines = any(way.engine != first.engine for way in others)
        self.winner: Way | None = None
        """Once it is known."""

    def next(self) -> Way:
        """Whose turn it is; each round begins with another, lest turns keep step with the load."""
        ways, rounds = list(self._took_ms), min(map(len, self._took_ms.values()))
        first = rounds % len(ways)
        left = (way for way in ways[first:] + ways[:first] if len(self._took_ms[way]) == rounds)
        return next(left)

    def note(self, way: Way, took_ms: float) -> None:
        """Count what `way` took for an image."""
        self._took_ms[way].append(took_ms)
        if all(len(took) >= SKIPPED + COUNTED for took in self._took_ms.values()):
            self._decide()

    def leave_out(self, way: Way, err: Exception) -> None:
        """Take one of `others` out that failed, with one warning."""
        log.warning('%s: %s failed on a frame (%s): left out.', self._name, way, reason_of(err))
        del self._took_ms[way]
        if len(self._took_ms) == 1:
            self.winner = self._first

    def _decide(self) -> None:
        median_ms = {w: statistics.median(took[SKIPPED:]) for w, took in self._took_ms.items()}
        fastest = min(median_ms, key=median_ms.get)
        is_faster = median_ms[fastest] * self._gain <= median_ms[self._first]
        self.winner = fastest if is_faster else self._first
        figures = '; '.join(f'{way}: {ms:.1f} ms' for way, ms in median_ms.items())
        end = 'answers from now on' if is_faster else 'goes on'
        log.info('%s: an image took %s. %s %s.', self._name, figures, self.winner, end)


class Ways:
    """The way that a network is run, and the trial of others.

    Args:
        name: Of the network, for the log.
        way: The first one.
        device_type: ``cpu``, or another, where there is nothing to try.
    """

    def __init__(self, name: str, way: Way, device_type: str):
        self.at_hand = way
        """What answers, or goes on answering unless a trial shows a faster one."""
        self._name, self._device_type = name, device_type
        self._trial: Trial | None = None

    @property
    def are_on_trial(self) -> bool:
        """Whether a trial goes on, so that no other can begin."""
        return self._trial is not None

    def try_thread_counts(self) -> None:
        """Find out whether eager is better off with one thread than with all.

        All are as many as the calling thread has. Nothing to find out on other devices, in other
        engines, which have threads of their own, and where ``OMP_NUM_THREADS`` is set.
        """
        count = num_threads()
        if (
            (self._device_type, self.at_hand.engine) == ('cpu', 'eager')
            and count > 1
            and 'OMP_NUM_THREADS' not in os.environ
        ):
            self.at_hand = replace(self.at_hand, num_threads=1)
            others = [replace(self.at_hand, num_threads=count)]
            self._trial = Trial(self._name, self.at_hand, others, THREADS_GAIN)

    def try_engines(self, engines: Mapping[str, Callable[..., HeadOutput]]) -> None:
        """Find out which engine is fastest, the one at hand included.

        Frames are answered by one after the other meanwhile, so each must have been checked.

        Args:
            engines: By name; they answer as the network does, with an embedding too.
        """
        others = [replace(self.at_hand, engine=e, network=n) for e, n in engines.items()]
        self._trial = Trial(self._name, self.at_hand, others, ENGINE_GAIN)

    def run(self, answer: Callable[[Way], T], num_images: int, by_engine: bool = True) -> T:
        """Run the network in the way whose turn it is; one that is on trial may fail.

        Args:
            answer: Does so.
            num_images: By which its time is divided; 0: it does not count.
            by_engine: Whether the engine of the way answers all of it; where it does not, as with
                an embedding, a trial of engines waits.

        Raises:
            Exception: Whatever `answer` raises for the way at hand.
        """
        trial = self._trial
        way = trial.next() if trial else self.at_hand
        way.enter()
        start_s, failure = time.perf_counter(), None
        try:
            found = answer(way)
        except Exception as err:
            if way is self.at_hand:
                raise
            failure = err.with_traceback(None)  # Which would hold the tensors of the attempt.
        if failure:
            found = answer(self.at_hand)  # Raises where the frame is at fault, not the way.
            trial.leave_out(way, failure)
        elif trial and num_images and (by_engine or not trial.of_engines):
            trial.note(way, (time.perf_counter() - start_s) * 1e3 / num_images)
        if trial and trial.winner:
            self.at_hand, self._trial = trial.winner, None
        return found
