"""``vlm-depth obstacles``: false and missed obstacles on a costmap's grid, filters off and on.

What is judged is what the node publishes: each row of the table is a run of the estimator over the
sequence with the options of a robot. `obstacle_grid` says what is false and what is missed.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
import json
import logging
from typing import Any

import numpy as np
import torch
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.config import from_mapping, RuntimeConfig
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.frames import Frame
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.core.options import FilterOptions, OutputOptions, TemporalOptions
from vlm_depth_ros.core.refine import refined
from vlm_depth_ros.core.scale import ScaleOptions
from vlm_depth_ros.core.track import CameraTrack
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.blind import fit_blind
from vlm_depth_ros.tools.datasets import parse_rows, select_rows
from vlm_depth_ros.tools.flicker import StillPixels
from vlm_depth_ros.tools.metrics import PROTOCOLS
from vlm_depth_ros.tools.obstacle_grid import (
    GridOptions,
    ObstacleScore,
    SensorGrid,
    TABLE_TOLERANCE,
    TOLERANCES,
)
from vlm_depth_ros.tools.obstacle_picture import obstacle_sheet, Shown
from vlm_depth_ros.tools.progress import steps
from vlm_depth_ros.tools.rows import open_rows, Row

RECOMMENDED = FilterOptions(guide_px=3, median_px=5, edge_ratio=1.2)
"""Of docs/costmap.md, which says what they were chosen on."""
TEMPORAL = TemporalOptions(weight=0.8)
LASER = ScaleOptions(source='ranges')

LASER_ROWS = 2
"""The simulated laser is the sensor's depth in so many rows above and below the camera's height:
one row of a Kinect or of a projected LiDAR has gaps."""
LASER_STEP_PX = 3
LASER_RANGE_M = 10.0
TABLE_WIDTH = 96
"""Characters, where the terminal has fewer or there is none."""
SHOWN = 4
"""Frames of the picture."""
AS_SHIPPED, FILTERS, BOTH = 'as shipped', 'filters', 'scale, filters'

log = logging.getLogger(__name__)


Published = Callable[[SourceFrame, CameraTrack, np.ndarray], np.ndarray]
"""Depth (H, W) as the node would publish it, +Inf beyond range, from a frame, what is remembered
of its camera and the points of a laser."""


def run(args: argparse.Namespace) -> int:
    """Judge, print the table, write JSON and picture; 1 if a row could not be judged."""
    options = GridOptions(args.cell_m, args.range_m, tuple(args.heights_m))
    filters = _filters(args.filters)
    rows = select_rows(open_rows(args.data), parse_rows(args.rows) if args.rows else [])
    runtime = RuntimeConfig(args.device, args.precision, tower_weights=args.tower_weights)
    estimator = DepthEstimator.from_weights(args.weights, runtime)
    failed: dict[str, str] = {}
    has_time = all(row.pair.stamp_s is not None for row in rows)
    ways = {name: _by(estimator, o) for name, o in _options(filters, has_time).items()}
    if args.blind_from:
        ways |= _blind_ways(args, failed, filters, has_time)
    drawn = _drawn(len(rows)) if args.picture else set()
    scores, shown = _judge(rows, ways, options, drawn, failed)
    result = {
        'weights': str(args.weights),
        'weights_sha256': estimator.weights_sha256,
        'data': str(args.data),
        'rows': args.rows or 'all',
        'frame': 'body frame of the camera',
        'cell_m': options.cell_m,
        'range_m': options.range_m,
        'heights_m': options.heights_m,
        'tolerance_cells': TABLE_TOLERANCE,
        'filters': asdict(filters),
        'images': len(next(iter(scores.values())).kept),
        'results': {name: score.as_dict() for name, score in scores.items()},
        'failed': [{'image': file, 'reason': why} for file, why in failed.items()],
    }
    _print_table(result)
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(result, indent=2) + '\n')
    if args.picture:
        names = [name for name in (AS_SHIPPED, FILTERS, BOTH) if name in ways]
        save_png(args.picture, obstacle_sheet(shown, names, photographs=args.photographs))
        log.info('%s', args.picture)
    for reason in failed.values():
        log.error('left out: %s', reason)
    return 1 if failed else 0


def _filters(texts: list[str] | None) -> FilterOptions:
    """What ``--filters median_px=3 max_gradient=0.05`` says; `RECOMMENDED` without it."""
    if texts is None:
        return RECOMMENDED
    values = {}
    for text in texts:
        name, _, number = text.partition('=')
        try:
            values[name] = json.loads(number)
        except ValueError as err:
            raise InputError(
                f'--filters {text!r}: expected NAME=NUMBER, such as max_gradient=0.05.'
            ) from err
    return from_mapping(FilterOptions, values, '--filters')


def _options(filters: FilterOptions, has_time: bool) -> dict[str, OutputOptions]:
    """The rows of the table; what needs a sequence only where there is one."""
    found = {AS_SHIPPED: OutputOptions(), FILTERS: OutputOptions(filter=filters)}
    if has_time:
        found |= {
            'scale': OutputOptions(scale=LASER),
            BOTH: OutputOptions(scale=LASER, filter=filters),
            'scale, filters, temporal': OutputOptions(
                scale=LASER, filter=filters, temporal=TEMPORAL
            ),
        }
    return found


def _by(estimator: DepthEstimator, options: OutputOptions) -> Published:
    def published(frame: SourceFrame, track: CameraTrack, laser: np.ndarray) -> np.ndarray:
        [found] = estimator.process([_robot_frame(frame, track, laser)], options)
        return found.depth.data.view('<f4').reshape(frame.rgb.shape[:2])

    return published


def _robot_frame(frame: SourceFrame, track: CameraTrack, laser: np.ndarray) -> Frame:
    return Frame(
        frame.rgb,
        CameraModel.from_intrinsics(frame.intrinsics),
        stamp_s=frame.stamp_s or 0.0,
        track=track,
        range_points=laser,
    )


def _blind_ways(
    args: argparse.Namespace, failed: dict[str, str], filters: FilterOptions, has_time: bool
) -> dict[str, Published]:
    """The per-pixel mean of other images' depth, and the same with the scale of the laser."""
    others = open_rows(args.blind_from)
    others = select_rows(others, parse_rows(args.blind_rows) if args.blind_rows else [])
    protocol = PROTOCOLS['nyu']
    blind = fit_blind(others, protocol, failed)
    mean = torch.from_numpy(blind.geometric_mean_m)[None, None]
    range_m = (protocol.min_depth_m, protocol.max_depth_m)

    def way(options: OutputOptions) -> Published:
        def published(frame: SourceFrame, track: CameraTrack, laser: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(frame.rgb).permute(2, 0, 1)
            robot = _robot_frame(frame, track, laser)
            return refined(robot, image, None, mean, None, range_m, options).numpy()

        return published

    named = {'blind': AS_SHIPPED} | ({'blind, scale': 'scale'} if has_time else {})
    options = _options(filters, has_time)
    return {name: way(options[of]) for name, of in named.items()}


def laser_points(truth_m: np.ndarray, camera: CameraIntrinsics) -> np.ndarray:
    """Points (N, 3) that a level 2-D laser at the camera would measure, in the optical frame.

    They are the sensor's own depth at the height of the camera, within `LASER_ROWS`.
    """
    row = round(camera.cy_px)
    band = slice(max(row - LASER_ROWS, 0), max(row + LASER_ROWS + 1, 0))
    points = depth_to_points(truth_m, camera)[band, ::LASER_STEP_PX].reshape(-1, 3)
    with np.errstate(invalid='ignore'):
        return points[points[:, 2] <= LASER_RANGE_M]


def _drawn(count: int) -> set[int]:
    """Which rows are drawn: the middles of equal parts."""
    parts = min(SHOWN, count)
    return {(2 * part + 1) * count // (2 * parts) for part in range(parts)}


def _judge(
    rows: list[Row],
    ways: dict[str, Published],
    options: GridOptions,
    drawn: set[int],
    failed: dict[str, str],
) -> tuple[dict[str, ObstacleScore], list[Shown]]:
    """Run over the set once; each way has a memory of its own, for each scene a new one."""
    scores = {name: ObstacleScore() for name in ways}
    shown, scene, tracks, still_pixels = [], None, {}, StillPixels()
    for place, row in enumerate(steps(rows, 'judging')):
        try:
            frame = row.pair.load()
            if not np.isfinite(frame.depth_m).any():
                raise InputError(f'{row.pair.depth}: measures nothing; expected some depth.')
        except InputError as err:
            failed[str(row.pair.rgb)] = str(err)
            continue
        if row.scene != scene or frame.stamp_s is None:
            scene, tracks = row.scene, {name: CameraTrack(name) for name in ways}
        truth_m, laser = frame.depth_m, laser_points(frame.depth_m, frame.intrinsics)
        grid = SensorGrid(truth_m, frame.intrinsics, options)
        still = still_pixels(row, frame.rgb)
        picture = Shown(row.number, frame.rgb, grid) if place in drawn else None
        for name, published in ways.items():
            depth_m = published(frame, tracks[name], laser)
            judged = grid.judge(depth_m)
            scores[name].add(depth_m, truth_m, judged, still)
            if picture:
                picture.add(name, depth_m, judged[TOLERANCES.index(TABLE_TOLERANCE)])
        if picture:
            shown.append(picture)
    if not next(iter(scores.values())).kept:
        why = next(iter(failed.values()))
        raise InputError(f'none of the {len(rows)} images could be judged; the first: {why}')
    return scores, shown


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = result['heights_m']
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(
        f'{result["weights"]} on {result["images"]} images of {result["data"]}, rows '
        f'{result["rows"]}; cells of {result["cell_m"]:g} m up to {result["range_m"]:g} m, '
        f'heights {low:+g} to {high:+g} m about the camera, tolerance {TABLE_TOLERANCE} cells\n',
        markup=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column('row', no_wrap=True)
    for column in ('false', 'missed', 'false cells', 'frames', 'kept', 'abs_rel', 'flicker'):
        table.add_column(column, justify='right')
    for name, row in result['results'].items():
        table.add_row(
            name,
            _percent(row['false_rate']),
            _percent(row['missed_rate']),
            f'{row["false_cells"]:.1f}',
            f'{row["frames_with_judged_marks"]}/{row["frames_with_sensor_marks"]}',
            _percent(row['kept_share']),
            '-' if row['abs_rel'] is None else f'{row["abs_rel"]:.3f}',
            '-' if row['flicker'] is None else f'{row["flicker"]:.2%}',
        )
    console.print(table)


def _percent(share: float | None) -> str:
    return '-' if share is None else f'{100 * share:.1f} %'
