"""The figures of one of our networks: alone, in the estimator, for cameras and input sizes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import math
from typing import Any

import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools.bench_floor import Floor, floor_of, Rates
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_timing import clock_of, time_calls, Times

Row = dict[str, Any]
"""One line of a table, as JSON has it."""


@dataclass(frozen=True)
class Bench:
    """Where and how often."""

    device: torch.device
    rates: Rates
    runs: int


def measured(times: Times, floor: Floor) -> Row:
    """A figure and the floor beneath it."""
    return {
        **asdict(times),
        'floor_ms': floor.ms,
        'floor_arithmetic_ms': floor.arithmetic_ms,
        'floor_traffic_ms': floor.traffic_ms,
        'over_floor': times.median_ms / floor.ms,
    }


def single_rows(ours: Ours, bench: Bench) -> tuple[list[Row], list[Row]]:
    """Network alone and estimator in every way to run them, in the same rounds."""
    calls = {('network', c): ours.network_call(c) for c in ours.ready}
    calls |= {('estimator', c): ours.estimator_call(c) for c in ours.ready}
    found = time_calls(calls, bench.runs, clock_of(bench.device), ours.name)
    work, message_bytes = ours.work(), ours.message_bytes()
    tables: dict[str, list[Row]] = {'network': [], 'estimator': []}
    for (part, choice), times in found.items():
        more_bytes = message_bytes if part == 'estimator' else 0
        floor = floor_of(work, choice.precision, bench.rates, more_bytes)
        tables[part].append(
            {'network': ours.name, 'engine': choice.engine, 'precision': choice.precision,
             'input_hw': list(ours.input_hw), 'flops': work.flops, **measured(times, floor)}
        )  # fmt: skip
    return tables['network'], tables['estimator']


def stage_rows(ours: Ours, bench: Bench) -> list[Row]:
    """The parts of the estimator, engine by engine; on CUDA each part waits for the one before."""
    clock, rows = clock_of(bench.device), []
    for choice in ours.ready:
        stages = ours.stages(choice, bench.runs, lambda: clock()[0])
        rows.append(
            {'network': ours.name, 'engine': choice.engine, 'precision': choice.precision,
             'milliseconds': stages.milliseconds, 'other_share': stages.other_share,
             'network_calls': stages.network_calls}
        )  # fmt: skip
    return rows


def camera_rows(ours: Ours, cameras: Sequence[int], bench: Bench) -> list[Row]:
    """The estimator on the images of several cameras in one call."""
    calls = {(c, n): ours.estimator_call(c, n) for c in ours.ready for n in cameras}
    found = time_calls(calls, bench.runs, clock_of(bench.device), 'cameras')
    floors = {
        (c, n): floor_of(work, c.precision, bench.rates, n * ours.message_bytes())
        for n in cameras
        for work in [ours.work(n)]
        for c in ours.ready
    }
    return _grown([
        {'part': 'estimator', 'engine': c.engine, 'precision': c.precision, 'cameras': n,
         'input_hw': list(ours.input_hw), **measured(times, floors[c, n])}
        for (c, n), times in found.items()
    ])  # fmt: skip


def size_rows(ours: Ours, sizes_px: Sequence[int], bench: Bench) -> list[Row]:
    """The network alone on square inputs; the tower has to take any size."""
    calls = {(c, s): ours.network_call(c, hw=(s, s)) for c in ours.ready for s in sizes_px}
    found = time_calls(calls, bench.runs, clock_of(bench.device), 'input sizes')
    work = {s: ours.work(hw=(s, s)) for s in sizes_px}
    return _grown([
        {'part': 'network', 'engine': c.engine, 'precision': c.precision, 'cameras': 1,
         'input_hw': [s, s], **measured(times, floor_of(work[s], c.precision, bench.rates))}
        for (c, s), times in found.items()
    ])  # fmt: skip


def _grown(rows: list[Row]) -> list[Row]:
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


def require_sizes(model: DepthModel, sizes_px: Sequence[int]) -> None:
    """Refuse sizes of square inputs that the tower does not take.

    Raises:
        ConfigError: If there is one.
    """
    spec = model.backbone.spec
    if sizes_px and not spec.is_hierarchical:
        height, width = spec.input_hw
        raise ConfigError(
            f'--input-sizes: tower {spec.tower!r} takes {height}x{width} only. Leave it out.'
        )
    multiple = spec.size_multiple
    for size_px in sizes_px:
        nearest = max(1, round(size_px / multiple)) * multiple
        require(
            size_px == nearest,
            f'--input-sizes {size_px}: expected multiples of {multiple}, which this tower takes; '
            f'the nearest is {nearest}.',
        )
