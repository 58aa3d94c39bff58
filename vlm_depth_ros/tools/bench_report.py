"""Figures as tables for a terminal and for a Markdown page, and as charts."""

from dataclasses import dataclass
import math
from pathlib import Path
import sys
from typing import Any

from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.tools.bench_chart import lines_of, lying_bars
from vlm_depth_ros.tools.bench_ours import STAGES

PIPED_WIDTH = 180
"""Characters of a line where no terminal says it."""

Result = dict[str, Any]
"""What ``vlm-depth benchmark --json`` writes."""


@dataclass(frozen=True)
class Table:
    """Cells as they are shown."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables_of(result: Result) -> list[Table]:
    """Every table that has a row."""
    made = [
        _single('Network alone, prepared tensor in', result['network']),
        _single('Estimator, camera image in, depth and cloud out', result['estimator']),
        _stages(result['stages']),
        _graph(result['graph']),
        _scaling(result['scaling']),
        _peers(result['peers']),
    ]
    return [table for table in made if table.rows]


def _single(title: str, rows: list[dict]) -> Table:
    columns = ('network', 'engine', 'input', 'runs', 'p50 ms', 'p95 ms', 'p99 ms', 'CPU ms',
               'memory MB', 'floor ms', 'over floor')  # fmt: skip
    return Table(title, columns, [
        (r['network'], _way(r), _size(r), str(r['runs']),
         *(_ms(r[name]) for name in ('median_ms', 'p95_ms', 'p99_ms', 'cpu_ms')),
         '-' if r['memory_mb'] is None else f'{r["memory_mb"]:.0f}', _ms(r['floor_ms']), _over(r))
        for r in rows
    ])  # fmt: skip


def _stages(rows: list[dict]) -> Table:
    columns = ('engine', *(f'{name} ms' for name in STAGES), 'not the network', 'network calls')
    return Table('Stages of the estimator, medians', columns, [
        (_way(r), *(_ms(r['milliseconds'][name]) for name in STAGES),
         f'{r["other_share"]:.1%}', f'{r["network_calls"]:g}')
        for r in rows
    ])  # fmt: skip


def _graph(rows: list[dict]) -> Table:
    columns = ('cameras', 'engine', 'saturation Hz', 'played Hz', 'p50 ms', 'p95 ms', 'p99 ms',
               'missed', 'jitter ms', 'node CPU', 'players, reader CPU', 'memory MB', 'floor ms',
               'over floor')  # fmt: skip
    return Table('Publication to cloud, through DDS between processes', columns, [
        (str(r['cameras']), r['engine'] or '-',
         ('' if r['is_saturated'] else 'over ') + f'{r["saturation_hz"]:.1f}',
         f'{r["played_hz"]:.1f}', *(_ms(_in(r['latency_ms'], q)) for q in ('p50', 'p95', 'p99')),
         f'{r["missed"]} of {r["frames"]}', _ms(r['jitter_ms']), _percent(r, 'node'),
         f'{_percent(r, "players")}, {_percent(r, "reader")}', _memory(r), _ms(r['floor_ms']),
         _over(r))
        for r in rows
    ])  # fmt: skip


def _scaling(rows: list[dict]) -> Table:
    columns = ('part', 'engine', 'input', 'cameras', 'median ms', 'ns a pixel and camera',
               'over the smallest', 'floor ms', 'over floor')  # fmt: skip
    return Table('Cost for pixels and cameras', columns, [
        (r['part'], _way(r), _size(r), str(r['cameras']), _ms(r['median_ms']),
         f'{r["ns_per_pixel"]:.1f}', f'{r["growth"]:.2f}', _ms(r['floor_ms']), _over(r))
        for r in rows
    ])  # fmt: skip


def _peers(rows: list[dict]) -> Table:
    columns = ('peer', 'input', 'GFLOP', 'engine', 'runs', 'peer ms', 'over floor', 'ours',
               'our engine', 'our network ms', 'our estimator ms', 'our network / peer',
               'our estimator / peer')  # fmt: skip
    return Table('Peers, network alone, beside ours in the same rounds', columns, [
        (r['peer'], f'{_size(r)} ({r["size"]})', f'{r["flops"] / 1e9:.1f}',
         _way(r) + ' (fastest)' * r['is_fastest'], str(r['runs']), _ms(r['median_ms']),
         f'{r["over_floor"]:.1f}', r['ours'],
         f'{r["ours_engine"]} {r["ours_precision"]}', _ms(r['ours_network_ms']),
         _ms(r['ours_estimator_ms']), f'{r["network_over_peer"]:.3f}',
         f'{r["estimator_over_peer"]:.3f}')
        for r in rows
    ])  # fmt: skip


def _way(row: dict) -> str:
    return f'{row["engine"]} {row["precision"]}'


def _over(row: dict) -> str:
    return '-' if row['over_floor'] is None else f'{row["over_floor"]:.1f}'


def _size(row: dict) -> str:
    return 'x'.join(map(str, row['input_hw']))


def _ms(value: float | None) -> str:
    if value is None:
        return '-'
    return f'{value:.1f}' if value >= 10 else f'{value:.2f}'


def _in(values: dict | None, name: str) -> float | None:
    return values[name] if values else None


def _percent(row: dict, name: str) -> str:
    return f'{row["cpu_percent"][name]:.0f} %' if row['cpu_percent'] else '-'


def _memory(row: dict) -> str:
    if row['node_resident_mb'] is None:
        return '-'
    gpu_mb = row['gpu_memory_mb']
    return f'{row["node_resident_mb"]:.0f}' + (f', GPU {gpu_mb:.0f}' if gpu_mb else '')


def about(result: Result) -> list[str]:
    """What has to stand beside the tables: machine, versions, rates, load, what is missing."""
    machine, load, rates = result['machine'], result['load'], result['rates']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    products = ', '.join(f'{p} {v:.0f}' for p, v in rates['gflop_per_s'].items())
    lines = [
        f'{result["date"]}: {result["command"]}',
        f'{machine["processor"]}, {machine["cores"]} cores, {machine["threads"]} threads, '
        f'{machine["memory_gb"]:g} GB, {machine["gpu"] or "no GPU"}; {machine["system"]}, Python '
        f'{machine["python"]}, {versions}.',
        f'Products of matrices: {products} GFLOP/s; copying: {rates["gb_per_s"]:.1f} GB/s, read '
        f'and written. At most {result["runs"]} runs; {result["peer_runs"]} at most beside peers.',
        f'Load average {load["load_average_before"]:.2f} before, '
        f'{load["load_average_after"]:.2f} after; others took {load["others_share"]:.1%} of all '
        'cores.',
    ]
    if not load['was_idle']:
        lines.append('The machine was not idle: these figures are of no record.')
    lines += [
        f'The node with {r["cameras"]} camera(s): {reason}, so its figures are of no record.'
        for r in result['graph'] for reason in r['not_of_record']
    ]  # fmt: skip
    return lines + [f'Not measured: {sentence}.' for sentence in result['not_measured']]


def markdown(result: Result) -> str:
    """All tables as a page to paste."""
    parts = []
    for table in tables_of(result):
        lines = [table.columns, ('---',) * len(table.columns), *table.rows]
        parts.append(f'**{table.title}**\n\n' + '\n'.join(f'| {" | ".join(r)} |' for r in lines))
    return '\n\n'.join([*parts, *about(result)]) + '\n'


def show(result: Result) -> None:
    """Print all tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for table in tables_of(result):
        shown = Shown(title=table.title, title_justify='left', box=SIMPLE_HEAD)
        for name in table.columns:
            shown.add_column(name)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
    for line in about(result):
        console.print(line, markup=False, soft_wrap=True)


def charts(result: Result) -> dict[str, str]:
    """SVG files by name.

    Ours in each engine beside the floor, the fastest ways of peers beside ours, and milliseconds
    over cameras and over pixels.
    """
    ours = [(part, r) for part in ('network', 'estimator') for r in result[part]]
    bars = {'measured': [r['median_ms'] for _, r in ours]}
    if all(r['floor_ms'] is not None for _, r in ours):
        bars['floor'] = [r['floor_ms'] for _, r in ours]
    made = {'benchmark.svg': lying_bars([f'{part}, {_way(r)}' for part, r in ours], bars, 'ms')}
    fastest = [r for r in result['peers'] if r['is_fastest']]
    if fastest:
        made['peers.svg'] = lying_bars(
            [f'{r["peer"]} {_size(r)}' for r in fastest],
            {'peer, network alone': [r['median_ms'] for r in fastest],
             'our estimator': [r['ours_estimator_ms'] for r in fastest]},
            'ms, each in its fastest engine',
        )  # fmt: skip
    for name, part, x_title, x_of in (
        ('cameras.svg', 'estimator', 'cameras', lambda r: r['cameras']),
        ('sizes.svg', 'network', 'thousand pixels', lambda r: math.prod(r['input_hw']) / 1e3),
    ):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in result['scaling']:
            if row['part'] == part:
                series.setdefault(_way(row), []).append((x_of(row), row['median_ms']))
        if series:
            made[name] = lines_of(series, x_title, f'{part}, ms')
    return made


def write(result: Result, folder: Path) -> list[Path]:
    """Write ``table.md`` and the charts; where they lie."""
    contents = {'table.md': markdown(result), **charts(result)}
    for name, content in contents.items():
        with atomic_file(folder / name) as path:
            path.write_text(content, encoding='utf-8')
    return [folder / name for name in contents]
