"""Networks of others beside ours, timed in the same rounds."""

from collections.abc import Iterator, Sequence
import copy
import gc

import torch
from torch import nn
from vlm_depth_ros.core.errors import reason_of
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.bench_engines import call_of, Choice, unchecked
from vlm_depth_ros.tools.bench_floor import floor_of, Work, work_of
from vlm_depth_ros.tools.bench_measure import Bench, measured, Row
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_peers import (
    build_faithful,
    build_peer,
    COMMON_HW,
    FAITHFUL,
    peer_at,
    PEERS,
)
from vlm_depth_ros.tools.bench_timing import Times

PLAIN = Choice('eager', 'fp32')


def peer_rows(
    names: Sequence[str], ours: Ours, choices: Sequence[Choice], shot: SourceFrame, bench: Bench
) -> Iterator[tuple[list[Row], list[str]]]:
    """Measure peers one after the other, each beside ours; two at once would need the memory.

    The faithful head in plain PyTorch stands beside the same network as our estimator runs it.

    Args:
        names: Of `bench_peers`.
        ours: What the others are compared with.
        choices: How to run peers.
        shot: The camera image of our estimators.
        bench: Where and how often.

    Yields:
        Rows of one peer at one size, and what could not be measured of it.
    """
    for name in names:
        if name == FAITHFUL:
            yield _faithful_rows(choices, shot, bench)
            continue
        model = build_peer(name, bench.device)
        for size, hw in {**PEERS[name].sizes_hw, 'common': COMMON_HW}.items():
            about = {'peer': name, 'size': size, 'input_hw': list(hw)}
            yield _rows_at(about, peer_at(model, hw), choices, ours, bench)
            gc.collect()  # engines of a gigabyte each


def _rows_at(
    about: Row, peer: nn.Module, choices: Sequence[Choice], ours: Ours, bench: Bench
) -> tuple[list[Row], list[str]]:
    runs, failed = unchecked(peer, list(dict.fromkeys([PLAIN, *choices])))
    image = torch.randn(1, 3, *about['input_hw'], generator=torch.Generator().manual_seed(0))
    image = image.to(bench.device)
    calls = {c: call_of(network, image, c.precision) for c, network in runs.items()}
    what = f'{about["peer"]} at {about["input_hw"][0]}x{about["input_hw"][1]}'
    missing = [f'{what} in {c}: {why}' for c, why in failed.items()]
    try:
        return paired_rows(about, calls, work_of(lambda: peer(image)), ours, bench), missing
    except RuntimeError as err:  # out of memory, of the machine or of the device
        return [], [*missing, f'{what}: {reason_of(err)}']


def _faithful_rows(
    choices: Sequence[Choice], shot: SourceFrame, bench: Bench
) -> tuple[list[Row], list[str]]:
    plain = build_faithful().to(bench.device)
    same = Ours(FAITHFUL, copy.deepcopy(plain), choices, shot, bench.device)
    image = same.image().contiguous()
    calls = {PLAIN: call_of(plain, image, PLAIN.precision)}
    about = {'peer': FAITHFUL, 'size': 'own and common', 'input_hw': list(same.input_hw)}
    rows = paired_rows(about, calls, same.work(), same, bench)
    return rows, [f'{FAITHFUL} in {c}: {why}' for c, why in same.failed.items()]


def paired_rows(about: Row, calls: dict, work: Work, ours: Ours, bench: Bench) -> list[Row]:
    """Time a peer and ours together, and set each of our ways beside the peer's same way.

    Where the peer has no such way it is its plain PyTorch; the last row has the fastest of both.
    """
    timed = {('peer', c): call for c, call in calls.items()}
    for c in ours.ready:
        timed |= {('network', c): ours.network_call(c), ('estimator', c): ours.estimator_call(c)}
    found = bench.time(timed, about['peer'])
    theirs = {c: found['peer', c] for c in calls}
    pairs = [(c if c in theirs else PLAIN, c) for c in ours.ready]
    fastest = (
        min(theirs, key=lambda c: theirs[c].median_ms),
        min(ours.ready, key=lambda c: found['estimator', c].median_ms),
    )
    rows = [_row(found, work, their, our, bench) for their, our in [*pairs, fastest]]
    shared = {**about, 'ours': ours.name, 'flops': work.flops}
    return [{**shared, 'is_fastest': i == len(pairs), **row} for i, row in enumerate(rows)]


def _row(
    found: dict[tuple[str, Choice], Times], work: Work, their: Choice, our: Choice, bench: Bench
) -> Row:
    times = found['peer', their]
    network_ms, estimator_ms = (found[part, our].median_ms for part in ('network', 'estimator'))
    return {
        'engine': their.engine,
        'precision': their.precision,
        **measured(times, floor_of(work, their.precision, bench.rates)),
        'ours_engine': our.engine,
        'ours_precision': our.precision,
        'ours_network_ms': network_ms,
        'ours_estimator_ms': estimator_ms,
        'network_over_peer': network_ms / times.median_ms,
        'estimator_over_peer': estimator_ms / times.median_ms,
    }

