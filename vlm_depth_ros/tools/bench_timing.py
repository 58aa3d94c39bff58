"""How long calls take, side by side: other work on the machine meets all of them alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math
import random
import statistics
import time
from typing import Any

import numpy as np
import torch
from vlm_depth_ros.tools.progress import steps

WARM_UP = 2
"""Rounds that are not counted: libraries choose algorithms and take memory in the first ones."""
LEAST_RUNS = 10
"""So many rounds a limit of time leaves, of those that were asked for."""

Clock = Callable[[], tuple[float, float]]
"""Wall time and CPU time of this process, in seconds."""


@dataclass(frozen=True)
class Times:
    """Of one call."""

    runs: int
    median_ms: float
    least_ms: float
    p5_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    """Median CPU time, summed over the threads: it hardly grows when others use the machine."""


def clock_of(device: torch.device) -> Clock:
    """The clock for work on a device; it waits until that is done."""

    def now() -> tuple[float, float]:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    return now


def time_calls(
    calls: Mapping[str, Callable[[], Any]],
    runs: int,
    clock: Clock,
    what: str = 'timing',
    limit_s: float = math.inf,
) -> dict[str, Times]:
    """Time each call once a round, in an order that changes, so that none has fixed neighbours.

    Args:
        calls: By name.
        runs: How many rounds count, after `WARM_UP` that do not, unless `limit_s` ends them.
        clock: See `clock_of`.
        what: Stands beside the progress bar.
        limit_s: No round begins later, but for the first `LEAST_RUNS` that count.
    """
    order, shuffled = list(calls), random.Random(0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    end_s = clock()[0] + limit_s
    for number in steps(range(WARM_UP + runs), what):
        if number >= WARM_UP + LEAST_RUNS and clock()[0] > end_s:
            break
        shuffled.shuffle(order)
        for name in order:
            start = clock()
            calls[name]()
            end = clock()
            if number >= WARM_UP:
                found[name].append((end[0] - start[0], end[1] - start[1]))
    return {name: times_of(seconds) for name, seconds in found.items()}


def times_of(seconds: list[tuple[float, float]]) -> Times:
    """Summarise (wall, CPU) seconds of at least one run."""
    wall_ms, cpu_ms = (np.array(column) * 1e3 for column in zip(*seconds))
    return Times(
        runs=len(seconds),
        median_ms=statistics.median(wall_ms.tolist()),
        least_ms=float(wall_ms.min()),
        p5_ms=float(np.percentile(wall_ms, 5)),
        p95_ms=float(np.percentile(wall_ms, 95)),
        p99_ms=float(np.percentile(wall_ms, 99)),
        cpu_ms=statistics.median(cpu_ms.tolist()),
    )
