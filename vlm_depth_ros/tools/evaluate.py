"""``vlm-depth evaluate``: depth errors on measured depth, unscaled first, blind rows beside.

A blind predictor never looks at the image: one constant, or a per-pixel mean of other images'
depth. A model that does not beat them sees nothing.
"""

import argparse
from dataclasses import dataclass
import json

import cv2
import numpy as np
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.pairs import Pair, read_pairs
from vlm_depth_ros.tools.datasets import parse_rows, select_rows
from vlm_depth_ros.tools.metrics import depth_metrics, mean_metrics, Protocol, PROTOCOLS
from vlm_depth_ros.tools.progress import steps

BLIND_HW = (240, 320)
"""Grid on which the per-pixel blind maps are averaged; resized to each image."""


@dataclass(frozen=True)
class BlindRows:
    """Predictors that never look: fitted once, the same for every image."""

    constant_m: float
    """Median over images of the median depth."""
    arithmetic_mean_m: np.ndarray
    """(h, w) per-pixel mean."""
    geometric_mean_m: np.ndarray
    """(h, w) per-pixel exponential of the mean logarithm."""

    def predictions(self, hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """Depth of each row as (H, W) float32 metres."""
        def at(map_m):
            return cv2.resize(map_m, hw[::-1], interpolation=cv2.INTER_LINEAR)

        return {
            'constant': np.full(hw, self.constant_m, np.float32),
            'arithmetic_mean': at(self.arithmetic_mean_m),
            'geometric_mean': at(self.geometric_mean_m),
        }


def fit_blind(pairs: list[Pair], protocol: Protocol) -> BlindRows:
    """Fit the blind predictors on measured depth.

    Args:
        pairs: The images to fit on; best none of the judged ones.
        protocol: Its range limits which depths count; a pixel never measured gets the constant.

    Raises:
        InputError: If no depth was measured at all.
    """
    total, total_log, count = (np.zeros(BLIND_HW) for _ in range(3))
    medians = []
    for pair in steps(pairs, 'fitting the blind rows'):
        depth = cv2.resize(
            pair.load_depth_m(), BLIND_HW[::-1], interpolation=cv2.INTER_NEAREST_EXACT
        )
        with np.errstate(invalid='ignore'):
            valid = (depth > protocol.min_depth_m) & (depth < protocol.max_depth_m)
        if not valid.any():
            continue
        medians.append(np.median(depth[valid]))
        total[valid] += depth[valid]
        total_log[valid] += np.log(depth[valid])
        count += valid
    if not medians:
        raise InputError('no depth was measured in the images for the blind rows.')
    constant, seen = float(np.median(medians)), np.maximum(count, 1)
    return BlindRows(
        constant,
        np.where(count > 0, total / seen, constant).astype(np.float32),
        np.where(count > 0, np.exp(total_log / seen), constant).astype(np.float32),
    )


def evaluate(
    estimator: DepthEstimator,
    pairs: list[Pair],
    protocol: Protocol,
    blind_pairs: list[Pair],
) -> dict:
    """Judge a model on measured depth, at the measured size, each image counting once.

    Args:
        estimator: The model; it is given each image's camera.
        pairs: Images to judge on.
        protocol: Crop and range.
        blind_pairs: Images that the blind predictors are fitted on.

    Returns:
        ``images``, and the nine metrics under ``unscaled``, ``median_scaled`` and, per blind
        predictor, ``blind``.
    """
    blind = fit_blind(blind_pairs, protocol)
    unscaled, scaled, rows = [], [], {}
    for pair in steps(pairs, f'judging {estimator.name}'):
        frame = pair.load()
        depth_m = estimator(frame.rgb, frame.intrinsics).depth_m
        try:
            unscaled.append(depth_metrics(depth_m, frame.depth_m, protocol))
        except InputError as err:
            raise InputError(f'{pair.depth}: {err}') from err
        scaled.append(depth_metrics(depth_m, frame.depth_m, protocol, median_scaled=True))
        for name, guess in blind.predictions(frame.depth_m.shape).items():
            rows.setdefault(name, []).append(depth_metrics(guess, frame.depth_m, protocol))
    return {
        'images': len(pairs),
        'unscaled': mean_metrics(unscaled),
        'median_scaled': mean_metrics(scaled),
        'blind': {name: mean_metrics(found) for name, found in rows.items()},
    }


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the JSON."""
    pairs = read_pairs(args.data)
    rows = parse_rows(args.rows) if args.rows else []
    judged = select_rows(pairs, rows)
    if args.blind_from:
        others, source = read_pairs(args.blind_from), str(args.blind_from)
    else:
        chosen = set(map(id, judged))
        others = [p for p in pairs if id(p) not in chosen]
        source = 'the other rows of the set'
    if not others:
        others, source = judged, 'the judged images themselves (in favour of the blind rows)'
    runtime = RuntimeConfig(device=args.device, precision=args.precision)
    result = {
        'weights': str(args.weights),
        'data': str(args.data),
        'rows': args.rows or 'all',
        'protocol': args.protocol,
        'blind_fitted_on': source,
    }
    estimator = DepthEstimator.from_weights(args.weights, runtime)
    result |= evaluate(estimator, judged, PROTOCOLS[args.protocol], others)
    _print_table(result)
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def _print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ('abs_rel', 'rmse', 'log10', 'silog', 'delta1', 'delta2', 'delta3')
    table = Table(title=f'{result["weights"]} on {result["images"]} images of {result["data"]}, '
                        f'rows {result["rows"]}, protocol {result["protocol"]}')  # fmt: skip
    for column in ('row', *names):
        table.add_column(column)
    rows = {'unscaled': result['unscaled'], 'median-scaled': result['median_scaled']}
    blind = result['blind']
    best = min(blind, key=lambda name: blind[name]['abs_rel'])
    rows |= {f'blind: {name}': metrics for name, metrics in blind.items()}
    for name, metrics in rows.items():
        table.add_row(name, *(f'{metrics[m]:.4f}' for m in names))
    console = Console()
    console.print(table)
    ratio = result['unscaled']['abs_rel'] / blind[best]['abs_rel']
    console.print(f'abs_rel is {ratio:.3f} of the best blind row ({best}, fitted on '
                  f'{result["blind_fitted_on"]}).')  # fmt: skip
