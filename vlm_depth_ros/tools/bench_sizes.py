"""What a network costs on inputs of several sizes."""

from collections.abc import Sequence
from dataclasses import replace
import gc

import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools.bench_engines import call_of, unchecked
from vlm_depth_ros.tools.bench_floor import floor_of, work_of
from vlm_depth_ros.tools.bench_measure import Bench, grown, measured, Row
from vlm_depth_ros.tools.bench_ours import Ours


def size_rows(ours: Ours, sizes_px: Sequence[int], bench: Bench) -> tuple[list[Row], list[str]]:
    """The network alone on square inputs, and what could not be measured.

    A tower that takes any size runs as it is, all sizes in the same rounds. A transformer is built
    for one: it is built anew for each, with random weights, one after the other.
    """
    if ours.model.backbone.spec.is_hierarchical:
        calls = {(c, s): ours.network_call(c, hw=(s, s)) for c in ours.ready for s in sizes_px}
        found, missing = bench.time(calls, 'input sizes'), []
        work = {s: ours.work(hw=(s, s)) for s in sizes_px}
    else:
        found, work, missing = {}, {}, []
        for size_px in sizes_px:
            model = rebuilt(ours.model, size_px).to(bench.device)
            image = torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
            image = image.to(bench.device)
            runs, failed = unchecked(model, list(ours.ready))
            calls = {
                (c, size_px): call_of(network, image, c.precision) for c, network in runs.items()
            }
            missing += [f'{ours.name} at {size_px} px in {c}: {why}' for c, why in failed.items()]
            found |= bench.time(calls, f'{size_px} px')
            work[size_px] = work_of(lambda m=model, i=image: m(i))
            del runs, calls, model
            gc.collect()  # engines of a gigabyte each
    return grown([
        {'part': 'network', 'engine': c.engine, 'precision': c.precision, 'cameras': 1,
         'input_hw': [s, s], **measured(times, floor_of(work[s], c.precision, bench.rates))}
        for (c, s), times in found.items()
    ]), missing  # fmt: skip


def rebuilt(model: DepthModel, size_px: int) -> DepthModel:
    """The same network for another square input, with random weights: speed needs no others."""
    torch.manual_seed(0)
    made = DepthModel(replace(model.config, input_hw=(size_px, size_px)))
    made.freeze_tower()
    made = made.eval().requires_grad_(False)
    return made.to(memory_format=torch.channels_last)


def require_sizes(spec: BackboneSpec, sizes_px: Sequence[int], is_exported: bool) -> None:
    """Refuse sizes of square inputs that a tower does not take.

    Raises:
        ConfigError: If there is one.
    """
    height, width = spec.input_hw
    require(
        not (sizes_px and is_exported) or spec.is_hierarchical,
        f'--input-sizes: this file was exported for {height}x{width} only. Leave it out, or give '
        'the .safetensors file.',
    )
    multiple = spec.size_multiple
    for size_px in sizes_px:
        nearest = max(1, round(size_px / multiple)) * multiple
        require(
            size_px == nearest,
            f'--input-sizes {size_px}: expected multiples of {multiple}, which this tower takes; '
            f'the nearest is {nearest}.',
        )
