"""The figures of one of our networks: alone, in the estimator, and for several cameras."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import math
from typing import Any

import torch
from vlm_depth_ros.tools.bench_floor import Floor, floor_of, Rates
from vlm_depth_ros.tools.bench_memory import memory_mb
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_timing import clock_of, time_calls, Times

LIMIT_S = 60.0
"""Of one table: a large network in many engines gets fewer runs, and the table says how many."""
STAGE_RUNS = 50
"""The parts of an estimator are no record of their own."""

Row = dict[str, Any]
"""One line of a table, as JSON has it."""


@dataclass(frozen=True)
class Bench:
    """Where and how often."""

    device: torch.device
    rates: Rates
    runs: int

    def time(self, calls: Mapping, what: str) -> dict[Any, Times]:
        """Time calls in rounds that take turns, so often or so long."""
        return time_calls(calls, self.runs, clock_of(self.device), what, LIMIT_S)


def measured(times: Times, floor: Floor | None) -> Row:
    """A figure and the floor beneath it, where that is known."""
    return {
        **asdict(times),
        'floor_ms': floor and floor.ms,
        'floor_arithmetic_ms': floor and floor.arithmetic_ms,
        'floor_traffic_ms': floor and floor.traffic_ms,
        'over_floor': floor and times.median_ms / floor.ms,
    }


def single_rows(ours: Ours, bench: Bench) -> tuple[list[Row], list[Row]]:
    """Network alone and estimator in every way to run them, in the same rounds."""
    calls = {('network', c): ours.network_call(c) for c in ours.ready}
    calls |= {('estimator', c): ours.estimator_call(c) for c in ours.ready}
    found = bench.time(calls, ours.name)
    work, message_bytes = ours.work(), ours.message_bytes()
    tables: dict[str, list[Row]] = {'network': [], 'estimator': []}
    for (part, choice), times in found.items():
        more_bytes = message_bytes if part == 'estimator' else 0
        floor = floor_of(work, choice.precision, bench.rates, more_bytes)
        tables[part].append(
            {'network': ours.name, 'engine': choice.engine, 'precision': choice.precision,
             'input_hw': list(ours.input_hw), 'flops': work and work.flops,
             'memory_mb': memory_mb(
                 calls[part, choice], ours.ready[choice].network, choice, bench.device),
             **measured(times, floor)}
        )  # fmt: skip
    return tables['network'], tables['estimator']


def stage_rows(ours: Ours, bench: Bench) -> list[Row]:
    """The parts of the estimator, engine by engine; on CUDA each part waits for the one before."""
    clock, rows = clock_of(bench.device), []
    for choice in ours.ready:
        stages = ours.stages(choice, min(bench.runs, STAGE_RUNS), lambda: clock()[0])
        rows.append(
            {'network': ours.name, 'engine': choice.engine, 'precision': choice.precision,
             'milliseconds': stages.milliseconds, 'other_share': stages.other_share,
             'network_calls': stages.network_calls}
        )  # fmt: skip
    return rows


def camera_rows(ours: Ours, cameras: Sequence[int], bench: Bench) -> list[Row]:
    """The estimator on the images of several cameras in one call."""
    calls = {(c, n): ours.estimator_call(c, n) for c in ours.ready for n in cameras}
    found = bench.time(calls, 'cameras')
    floors = {
        (c, n): floor_of(work, c.precision, bench.rates, n * ours.message_bytes())
        for n in cameras
        for work in [ours.work(n)]
        for c in ours.ready
    }
    return grown([
        {'part': 'estimator', 'engine': c.engine, 'precision': c.precision, 'cameras': n,
         'input_hw': list(ours.input_hw), **measured(times, floors[c, n])}
        for (c, n), times in found.items()
    ])  # fmt: skip


def grown(rows: list[Row]) -> list[Row]:
    """Add the cost per pixel and camera, and how it stands to that of the smallest of its kind."""
    for row in rows:
        pixels = math.prod(row['input_hw']) * row['cameras']
        row['ns_per_pixel'] = row['median_ms'] * 1e6 / pixels
    for row in rows:
        kind = [r for r in rows if (r['engine'], r['precision']) == (
            row['engine'], row['precision'])]  # fmt: skip
        least = min(kind, key=lambda r: math.prod(r['input_hw']) * r['cameras'])
        row['growth'] = row['ns_per_pixel'] / least['ns_per_pixel']
    return rows
