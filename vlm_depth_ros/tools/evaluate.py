"""``vlm-depth evaluate``: depth errors on measured depth, unscaled first, blind rows beside.

A blind predictor never looks at the image: one constant, or a per-pixel mean of other images'
depth. A model that does not beat them sees nothing.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.tools.blind import fit_blind
from vlm_depth_ros.tools.confidence_picture import confidence_picture
from vlm_depth_ros.tools.datasets import parse_rows, select_rows
from vlm_depth_ros.tools.html_report import html_report, metres_range, ratio_to_blind
from vlm_depth_ros.tools.judged_confidence import at_20_percent
from vlm_depth_ros.tools.judging import judge, Judgement
from vlm_depth_ros.tools.metrics import PROTOCOLS
from vlm_depth_ros.tools.rows import open_rows, Row
from vlm_depth_ros.tools.sheets import judged_sheet

WORST = 10
TYPICAL = 3
"""Images around the median error that the report shows beside the worst."""
SCENES_SHOWN = 10
DIGITS = {'rmse': 3, 'silog': 2}
"""Of the printed tables, where four are too many for 80 columns; JSON has all."""

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write JSON and HTML; 1 if a row could not be judged."""
    rows = open_rows(args.data, args.format)
    judged = select_rows(rows, parse_rows(args.rows) if args.rows else [])
    others, source = _blind_set(args, rows, judged)
    protocol = PROTOCOLS[args.protocol]
    runtime = RuntimeConfig(args.device, args.precision, tower_weights=args.tower_weights)
    estimator = DepthEstimator.from_weights(args.weights, runtime)
    failed = {}
    blind = fit_blind(others, protocol, failed)
    judgement = judge(estimator, judged, protocol, blind, flip=args.flip)
    judgement.failed = failed | judgement.failed
    result = {
        'weights': str(args.weights),
        'data': str(args.data),
        'rows': args.rows or 'all',
        'protocol': args.protocol,
        'flip': args.flip,
        'blind_fitted_on': source,
        **judgement.as_dict(),
    }
    _print_tables(result)
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(result, indent=2) + '\n')
    if args.html:
        _write_report(args.html, result, judgement, estimator)
    for reason in judgement.failed.values():
        log.error('left out: %s', reason)
    return 1 if judgement.failed else 0


def _blind_set(
    args: argparse.Namespace, rows: list[Row], judged: list[Row]
) -> tuple[list[Row], str]:
    """The rows that the blind predictors are fitted on, and what to call them."""
    if args.blind_from:
        return open_rows(args.blind_from), str(args.blind_from)
    chosen = {row.number for row in judged}
    others = [row for row in rows if row.number not in chosen]
    if others:
        return others, 'the other rows of the set'
    return judged, 'the judged images themselves (in favour of the blind rows)'


def _write_report(
    place: Path, result: dict[str, Any], judgement: Judgement, estimator: DepthEstimator
) -> None:
    page = place if place.suffix == '.html' else place / 'report.html'
    worst = judgement.worst(WORST)
    ranked = judgement.worst(len(judgement.images))
    middle = max(0, (len(ranked) - TYPICAL) // 2)
    sheets = [
        (heading, judged_sheet(estimator, images, judgement.best_blind, result['flip']))
        for heading, images in (
            (f'The worst {len(worst)}', worst),
            ('Around the median error', ranked[middle : middle + TYPICAL]),
        )
    ]
    save_png(page.parent / 'worst.png', sheets[0][1])
    if result['confidence']:
        save_png(page.parent / 'confidence.png', confidence_picture(result['confidence']))
    with atomic_file(page) as path:
        path.write_text(html_report(result, judgement.ratios, sheets), encoding='utf-8')
    log.info('%s', page)


def _print_tables(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def empty_table(first: str, *columns: str) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(first, no_wrap=True)
        for column in columns:
            table.add_column(column, justify='right')
        return table

    console = Console()
    flipped = ', averaged with the mirrored image' if result['flip'] else ''
    title = (
        f'{result["weights"]} on {result["images"]} images of {result["data"]}, rows '
        f'{result["rows"]}, protocol {result["protocol"]}{flipped}'
    )
    console.print(title, '\n', markup=False, soft_wrap=True)
    names = ('abs_rel', 'rmse', 'log10', 'silog', 'delta1', 'delta2', 'delta3')
    table = empty_table('row', *names)
    rows = {'unscaled': result['unscaled'], 'median-scaled': result['median_scaled']}
    rows |= {f'blind: {name}': metrics for name, metrics in result['blind'].items()}
    for name, metrics in rows.items():
        table.add_row(name.replace('_', ' '), *_numbers(metrics, names))
    console.print(table)
    console.print()
    where = empty_table('where', 'images or pixels', 'abs_rel', 'blind', 'rmse', 'delta1')
    for row in result['by_depth']:
        where.add_row(metres_range(row), *_cells(row['pixels'], row))
    scenes = sorted(result['by_scene'].items(), key=lambda item: -item[1]['abs_rel'])
    if len(scenes) > 1:
        where.add_row()
        for name, row in scenes[:SCENES_SHOWN]:
            where.add_row(escape(name), *_cells(row['images'], row))
    console.print(where)
    console.print()
    for line in _sentences(result):
        console.print(line, markup=False, soft_wrap=True)


def _cells(count: int, row: dict[str, float]) -> list[str]:
    return [str(count), *_numbers(row, ('abs_rel', 'blind_abs_rel', 'rmse', 'delta1'))]


def _numbers(row: dict[str, float], names: tuple[str, ...]) -> list[str]:
    return [f'{row[name]:.{DIGITS.get(name, 4)}f}' for name in names]


def _sentences(result: dict[str, Any]) -> list[str]:
    edges, ground, temporal = (result[name] for name in ('edges', 'ground', 'temporal'))
    found = [
        f'abs_rel is {ratio_to_blind(result):.3f} of the best blind row ({result["best_blind"]}, '
        f'fitted on {result["blind_fitted_on"]}).'
    ]
    if edges:
        found.append(
            f'edges: abs_rel {edges["abs_rel"]:.4f} beside true depth edges, '
            f'{edges["interior_abs_rel"]:.4f} away from them.'
        )
    if ground:
        found.append(
            f'ground: RMS {ground["rms_m"]:.3f} m from its own plane (measured depth '
            f'{ground["true_rms_m"]:.3f} m), tilted by {ground["tilt_deg"]:.1f} degrees; '
            f'{ground["images"]} images show one.'
        )
    if temporal:
        found.append(
            f'time: changes by {temporal["predicted"]:.2%} a frame, truth by '
            f'{temporal["true"]:.2%}; flicker {temporal["flicker"]:.2%}; '
            f'{temporal["frame_pairs"]} pairs of frames.'
        )
    if result['confidence']:
        found += _about_confidence(result['confidence'])
    return found


def _about_confidence(judged: dict[str, Any]) -> list[str]:
    kept = at_20_percent(judged)
    return [
        f'confidence: without the least confident 20 % of the pixels abs_rel falls by '
        f'{judged["gain_at_20_percent"]:.1%}, to {kept["confidence"]:.4f}; without the farthest '
        f'20 % it is {kept["farness"]:.4f}, the nearest {kept["nearness"]:.4f}, the most wrong '
        f'{kept["oracle"]:.4f}.',
        f'confidence: off by {judged["calibration_error"]:.3f} from the share within a factor of '
        '1.25 (calibration error).',
    ]
