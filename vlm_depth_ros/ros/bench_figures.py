"""Figures of a run from the times of its clouds, and what processes took of the machine."""

from collections.abc import Iterable, Sequence
import os
from pathlib import Path
from typing import Any

import numpy as np

NS_PER_MS, NS_PER_S = 1e6, 1e9


def rate_hz(arrivals_ns: Sequence[int]) -> float:
    """Clouds a second from the first to the last; 0 of fewer than two."""
    if len(arrivals_ns) < 2 or arrivals_ns[-1] <= arrivals_ns[0]:
        return 0.0
    return (len(arrivals_ns) - 1) * NS_PER_S / (arrivals_ns[-1] - arrivals_ns[0])


def time_figures(
    cameras: Iterable[tuple[Sequence[int], Sequence[int]]], sent: int
) -> dict[str, Any]:
    """Latency, jitter and losses of a run.

    Latency goes from the stamp, which the player writes at publication, to the arrival of the
    cloud in another process. Jitter is the 95th less the 5th percentile of the time from one
    arrival to the next of the same camera. Players start one after the other: but for what was
    answered, only the time counts in which all of them played.

    Args:
        cameras: Stamps and arrivals (ns) of the clouds of each camera.
        sent: Images of all of them.
    """
    cameras = [(np.array(s, np.int64), np.array(a, np.int64)) for s, a in cameras]
    answered = sum(len(s) for s, _ in cameras)
    cameras = _together(cameras)
    latency_ms = np.concatenate([a - s for s, a in cameras]) / NS_PER_MS
    interval_ms = np.concatenate([np.diff(a) for _, a in cameras]) / NS_PER_MS
    intervals = _percentiles(interval_ms, (5, 50, 95, 100))
    return {
        'frames': sent,
        'answered': answered,
        'missed': sent - answered,
        'missed_share': (sent - answered) / sent,
        'rate_hz': sum(rate_hz(a) for _, a in cameras),
        'latency_ms': _percentiles(latency_ms, (50, 95, 99, 100)),
        'interval_ms': intervals,
        'jitter_ms': intervals and intervals['p95'] - intervals['p5'],
    }


def _together(cameras: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple]:
    if not all(len(arrivals) for _, arrivals in cameras):
        return [(s[:0], a[:0]) for s, a in cameras]
    first, last = max(a[0] for _, a in cameras), min(a[-1] for _, a in cameras)
    kept = [(first <= a) & (a <= last) for _, a in cameras]
    return [(s[k], a[k]) for (s, a), k in zip(cameras, kept)]


def _percentiles(values: np.ndarray, which: Sequence[int]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f'p{q}': float(np.percentile(values, q)) for q in which}


def cpu_s(pid: int) -> float:
    """CPU time of a process with all its threads, from /proc."""
    # The name in front of it may hold spaces and brackets.
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
