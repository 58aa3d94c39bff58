"""``vlm-depth benchmark``: network, estimator and node on this machine, and peers beside them.

docs/benchmark.md says what each figure is.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from vlm_depth_ros.core.config import require, RuntimeConfig
from vlm_depth_ros.core.devices import choose_device, num_cuda
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.exported import read_metadata, read_record, SUFFIX
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.model import DepthModel, find_weights, load_model
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.source import open_source
from vlm_depth_ros.tools.bench_compare import peer_rows
from vlm_depth_ros.tools.bench_engines import Choice, choices_of
from vlm_depth_ros.tools.bench_floor import floor_of, measure_rates, Rates
from vlm_depth_ros.tools.bench_graph import graph_row, measure_graph, precision_of, why_not
from vlm_depth_ros.tools.bench_machine import Load, machine, occasion
from vlm_depth_ros.tools.bench_measure import (
    Bench,
    camera_rows,
    single_rows,
    stage_rows,
)
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_peers import chosen_peers
from vlm_depth_ros.tools.bench_report import Result, show, write
from vlm_depth_ros.tools.bench_sizes import require_sizes, size_rows
from vlm_depth_ros.tools.bench_timing import clock_of
from vlm_depth_ros.tools.synthetic import render_clip

CLIP = {'frames': 20, 'hw': (480, 640), 'seed': 4}
"""What is rendered where no source is given."""

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Measure everything that was asked for; print and write it."""
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise InputError(f'{args.out}: is a file; name a folder.')
    for name, least in (('runs', 1), ('peer_runs', 1), ('frames', 0)):
        value = getattr(args, name)
        require(value >= least, f'--{name.replace("_", "-")} {value}: expected at least {least}.')
    cameras = numbers_of(args.cameras, '--cameras')
    sizes_px = numbers_of(args.input_sizes, '--input-sizes') if args.input_sizes else []
    device = choose_device(RuntimeConfig(args.device).device, num_cuda())
    choices = choices_of(args.engines, device, Path(args.weights).suffix == SUFFIX)
    peers = [] if args.peers is None else chosen_peers(args.peers)
    with _source(args.source) as source:
        result = measure(args, device, choices, peers, cameras, sizes_px, source)
    show(result)
    for path in write(result, args.out) if args.out else ():
        print(f'  {path}')
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def numbers_of(text: str, flag: str) -> list[int]:
    """Whole numbers from 1 up, as ``1,2,4``, each once.

    Raises:
        ConfigError: If it says something else.
    """
    try:
        numbers = [int(part) for part in text.split(',')]
    except ValueError:
        numbers = [0]
    require(min(numbers) >= 1, f'{flag} {text!r}: expected whole numbers from 1, as 1,2,4.')
    return list(dict.fromkeys(numbers))


@contextmanager
def _source(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with TemporaryDirectory() as folder:
        clip = Path(folder) / 'clip'
        render_clip(clip, **CLIP, progress=True)
        yield clip


def measure(
    args: argparse.Namespace,
    device: torch.device,
    choices: list[Choice],
    peers: list[str],
    cameras: list[int],
    sizes_px: list[int],
    source: Path,
) -> Result:
    """All figures, as JSON has them.

    Args:
        args: Of the verb.
        device: Where networks run.
        choices: How they run.
        peers: Names of `bench_peers`.
        cameras: How many, each in turn.
        sizes_px: Sides of square inputs.
        source: Holds the camera image.

    Raises:
        ConfigError: If the tower does not take one of `sizes_px`, or a parameter is wrong.
        InputError: If the source cannot be played.
        WeightsError: If the weights cannot be loaded.
    """
    with open_source(source) as frames:
        shot = frames[0]
    of_node = precision_of(args.param, device.type)
    model, spec = _loaded(args)
    require_sizes(spec, sizes_px, isinstance(model, Path))
    load, clock = Load(), clock_of(device)
    ours = Ours(Path(args.weights).stem, model, choices, shot, device)
    precisions = list(dict.fromkeys(['fp32', of_node, *(c.precision for c in choices)]))
    rates = measure_rates(device, precisions, clock)
    bench = Bench(device, rates, args.runs)
    missing = [f'{ours.name} in {choice}: {why}' for choice, why in ours.failed.items()]
    network, estimator = single_rows(ours, bench)
    sizes, unmade = size_rows(ours, sizes_px, bench) if sizes_px else ([], [])
    missing += unmade
    result = {
        **occasion(),
        'machine': machine(device),
        'rates': {
            'gflop_per_s': {p: v / 1e9 for p, v in rates.flops_per_s.items()},
            'gb_per_s': rates.bytes_per_s / 1e9,
        },
        'weights': args.weights,
        'source': str(args.source or 'rendered clip'),
        'image_hw': list(shot.rgb.shape[:2]),
        'runs': args.runs,
        'peer_runs': args.peer_runs,
        'network': network,
        'estimator': estimator,
        'stages': stage_rows(ours, bench),
        'scaling': [
            *(camera_rows(ours, cameras, bench) if len(cameras) > 1 else ()),
            *sizes,
        ],
        'graph': graph_rows(args, ours, of_node, rates, cameras, source, missing),
        'peers': [],
        'not_measured': missing,
    }
    against = Bench(device, rates, args.peer_runs)
    if peers:
        log.info('Peers: %s.', ', '.join(peers))
    for rows, not_measured in peer_rows(peers, ours, choices, shot, against):
        result['peers'] += rows
        missing += not_measured
    return {**result, 'load': load.found()}


def _loaded(args: argparse.Namespace) -> tuple[DepthModel | Path, BackboneSpec]:
    """The network, or the exported file, and what its tower takes."""
    path = find_weights(args.weights)
    if path.suffix == SUFFIX:
        return path, read_record(read_metadata(path), path)[-1]
    model = load_model(path, tower_weights=args.tower_weights)
    return model, model.backbone.spec


def graph_rows(
    args: argparse.Namespace,
    ours: Ours,
    precision: str,
    rates: Rates,
    cameras: list[int],
    source: Path,
    missing: list[str],
) -> list[dict[str, Any]]:
    """Figures of the node with each number of cameras; `missing` gets what there is none of.

    Args:
        args: Of the verb.
        ours: The network of the node, for the floor.
        precision: It runs in.
        rates: Of the machine.
        cameras: How many, each in turn.
        source: What the players play.
        missing: One sentence each.
    """
    reason = why_not() if args.frames else '--frames 0'
    if reason:
        missing.append(f'the node end to end: {reason}')
        return []
    rows = []
    with TemporaryDirectory() as folder:
        for number in cameras:
            log.info('The node with %d camera(s), %d frames.', number, args.frames)
            logs = (args.out or Path(folder)) / f'logs_{number}'
            found = measure_graph(args, source, number, logs)
            if isinstance(found, str):
                missing.append(f'the node with {number} camera(s): {found}')
                continue
            messages = ours.frame.rgb.nbytes + sum(found['message_bytes'].values())
            floor = floor_of(ours.work(), precision, rates, messages)
            rows.append(graph_row(found, floor))
    return rows
