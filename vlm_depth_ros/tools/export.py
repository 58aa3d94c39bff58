"""The verb `export`: a weights file as one ONNX or torch.export file, compared after writing."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
import json
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram
from vlm_depth_ros.core.agreement import BOUNDS, difference_of
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.engines import installed
from vlm_depth_ros.core.errors import (
    ConfigError,
    DependencyError,
    reason_of,
    VlmDepthError,
    WeightsError,
)
from vlm_depth_ros.core.exported import ExportedModel, record_of, SUFFIX
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported, onnx_program
from vlm_depth_ros.core.model import DepthModel, load_model
from vlm_depth_ros.core.preprocess import InputBatch, upload
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.images import list_images, load_rgb
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.bench_engines import PRECISIONS
from vlm_depth_ros.tools.quantize import (
    Loss,
    loss_of,
    MOST_DIFFERENCE,
    MOST_RISE,
    photographs_of,
    quantise,
)
from vlm_depth_ros.tools.scene import random_scene
from vlm_depth_ros.tools.viewpoints import random_camera

MOST_IMAGES = 16
DRAWN, DRAWN_HW = 2, (240, 320)
"""Pictures that are rendered where no images are given, and their size."""
FP32 = 'fp32'

Network = Callable[[torch.Tensor], HeadOutput]


def export_model(
    model: DepthModel, out: Path, images: list[np.ndarray]
) -> dict[str, float]:
    """Write a network as one file; it stays only if what it answers is what eager answers.

    Args:
        model: As `load_model` answers it; on the CPU.
        out: Ends in .onnx or .pt2.
        images: (H, W, 3) uint8 RGB to compare with, at least one.

    Returns:
        Largest difference from eager fp32 (`difference_of`) by what ran the file.

    Raises:
        ConfigError: If `out` has another suffix.
        DependencyError: If a library is missing.
        WeightsError: If the network cannot be exported, or the file answers something else; what
            was at `out` before is unchanged then.
    """
    if out.suffix not in WRITERS:
        raise ConfigError(f'{out}: expected a name that ends in {" or ".join(WRITERS)}.')
    write, networks_of = WRITERS[out.suffix]
    with atomic_file(out) as partial:
        with _telling_what_failed(model, out.suffix):
            write(exported(model), model, partial)
        batches = _batches(model, images)
        found = {
            name: _compared(model, network, batches)
            for name, network in networks_of(partial).items()
        }
        for name, difference in found.items():
            if not difference <= BOUNDS[FP32]:
                raise WeightsError(
                    f'{out}: {name} differs from eager fp32 by {difference:.2g}, expected at '
                    f'most {BOUNDS[FP32]:g}. Not written; run the .safetensors file.'
                )
    return found


def export_int8(model: DepthModel, out: Path, frames: list[SourceFrame]) -> dict[str, Loss]:
    """Write a network in 8 bits; it stays only if that costs next to nothing in every engine.

    Args:
        model: As `load_model` answers it; on the CPU.
        out: Ends in .onnx.
        frames: Of `photographs_of`; every other one is for judging alone.

    Returns:
        What it costs, by engine and the precision of what is not in 8 bits.

    Raises:
        ConfigError: If `out` has another suffix.
        DependencyError: If a library is missing.
        WeightsError: If the network cannot be exported, or 8 bits cost more than `Loss` allows;
            what was at `out` before is unchanged then.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f'{out}: expected a name that ends in {SUFFIX} for --int8.')
    ranging, judged = frames[::2], frames[1::2]
    with atomic_file(out) as partial:
        fp32 = partial.with_name(f'fp32{SUFFIX}')
        with _telling_what_failed(model, f'{SUFFIX} in 8 bits'):
            _write_onnx(exported(model), model, fp32)
            hw = model.backbone.spec.input_hw
            quantise(fp32, partial, _inputs(model, [frame.rgb for frame in ranging], hw))
        batches = _batches(model, [frame.rgb for frame in judged])
        found = {
            f'{name} {precision}': loss_of(
                model,
                ExportedModel(partial, RuntimeConfig('cpu', precision, engine=name)),
                batches,
                judged,
            )
            for name in installed()
            for precision in PRECISIONS['cpu'][name]
        }
        for name, loss in found.items():
            if not loss.is_small:
                raise WeightsError(
                    f'{out}: in {name} it {loss}, expected at most {MOST_DIFFERENCE:.0%} in the '
                    f'mean and {MOST_RISE:+.0%} of AbsRel. Not written; export without --int8.'
                )
    return found


@contextmanager
def _telling_what_failed(model: DepthModel, form: str) -> Iterator[None]:
    try:
        yield
    except (VlmDepthError, OSError):
        raise
    except Exception as err:  # exporters fail in ways of their own
        raise WeightsError(
            f'{model.card.name}: this network cannot be exported as {form} '
            f'({reason_of(err)}). Run its .safetensors file.'
        ) from err


def _write_onnx(program: ExportedProgram, model: DepthModel, path: Path) -> None:
    if not installed():
        raise DependencyError(
            f'{path.name}: neither openvino nor onnxruntime is installed, so nothing can compare '
            "it. Install them: pip install 'vlm_depth_ros[engines]'."
        )
    onnx = onnx_program(program)
    onnx.model.metadata_props.update(record_of(model))
    onnx.save(path, external_data=False)


def _onnx_networks(path: Path) -> dict[str, Network]:
    return {
        name: ExportedModel(path, RuntimeConfig(device='cpu', engine=name)) for name in installed()
    }


def _write_pt2(program: ExportedProgram, model: DepthModel, path: Path) -> None:
    torch.export.save(program, path, extra_files=record_of(model))


def _pt2_networks(path: Path) -> dict[str, Network]:
    graph = torch.export.load(path).module()
    return {'torch.export': lambda image: HeadOutput(*graph(image))}


WRITERS = {'.onnx': (_write_onnx, _onnx_networks), '.pt2': (_write_pt2, _pt2_networks)}
"""Suffix: (what writes it, what can run it then)."""


def _compared(model: DepthModel, network: Network, batches: list[torch.Tensor]) -> float:
    """Largest difference."""
    nearest_m = model.config.depth_range_m[0]
    with torch.inference_mode():
        return max(difference_of(model(b), network(b), nearest_m) for b in batches)


def _batches(model: DepthModel, images: list[np.ndarray]) -> list[torch.Tensor]:
    """Images one by one, together, and at a second size where one exists."""
    spec = model.backbone.spec
    hw, step = spec.input_hw, spec.size_multiple if spec.is_hierarchical else 0
    batches = []
    for size in dict.fromkeys((hw, (hw[0] + step, hw[1] + step))):
        singles = _inputs(model, images, size)
        batches += [*singles, torch.cat(singles)]
    return batches


def _inputs(
    model: DepthModel, images: list[np.ndarray], hw: tuple[int, int]
) -> list[torch.Tensor]:
    """(1, 3, h, w) network inputs of (H, W, 3) uint8 RGB images."""
    cpu = torch.device('cpu')
    batch = InputBatch(model.backbone.spec, cpu)
    return [batch([upload(rgb, cpu)], hw) for rgb in images]


def images_of(folder: Path | None) -> list[np.ndarray]:
    """At most `MOST_IMAGES` images of a folder; without one, rendered rooms.

    Raises:
        InputError: If a file is no image.
        ConfigError: If the folder has none.
    """
    if folder is None:
        return [_drawn(number) for number in range(DRAWN)]
    paths = list_images(folder)[:MOST_IMAGES]
    if not paths:
        raise ConfigError(f'{folder}: expected a folder with images (.png, .jpg), found none.')
    return [load_rgb(path) for path in paths]


def _drawn(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    scene = random_scene(rng)
    rgb, _ = scene.render(*random_camera(rng, scene, DRAWN_HW), rng)
    return rgb


def run(args: argparse.Namespace) -> int:
    """Write the file and print how far it is from eager."""
    images = photographs_of(args.images) if args.int8 else images_of(args.images)
    model = load_model(args.weights, tower_weights=args.tower_weights)
    model.requires_grad_(False)
    if args.int8:
        losses = export_int8(model, args.out, images)
        lines = [f'{name}: {loss}' for name, loss in losses.items()]
        record = {
            'bound': {'difference': MOST_DIFFERENCE, 'abs_rel_rise': MOST_RISE},
            'int8': {name: asdict(loss) for name, loss in losses.items()},
        }
    else:
        found = export_model(model, args.out, images)
        lines = [
            f'{name}: largest relative difference from eager fp32 {difference:.1e} '
            f'(bound {BOUNDS[FP32]:g})'
            for name, difference in found.items()
        ]
        record = {'bound': BOUNDS[FP32], 'largest_difference': found}
    size_mb = args.out.stat().st_size / 1e6
    kind = f'images of {args.images}' if args.images else 'rendered pictures'
    print(f'{args.out}: {size_mb:.1f} MB, {len(images)} {kind}', *lines, sep='\n  ')
    if args.json:
        record = {'file': str(args.out), 'size_mb': size_mb, 'images': len(images), **record}
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(record, indent=2) + '\n')
    return 0
