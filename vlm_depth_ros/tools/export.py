"""The verb `export`: a weights file as one ONNX or torch.export file, compared after writing."""

import argparse
from collections.abc import Callable
import json
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.engines import BOUNDS, difference_of, installed
from vlm_depth_ros.core.errors import (
    ConfigError,
    DependencyError,
    reason_of,
    VlmDepthError,
    WeightsError,
)
from vlm_depth_ros.core.exported import ExportedModel, record_of
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported, onnx_program
from vlm_depth_ros.core.model import DepthModel, load_model
from vlm_depth_ros.core.preprocess import network_input
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.images import list_images, load_rgb
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
        try:
            write(exported(model), model, partial)
        except (VlmDepthError, OSError):
            raise
        except Exception as err:  # exporters fail in ways of their own
            raise WeightsError(
                f'{model.card.name}: this network cannot be exported as {out.suffix} '
                f'({reason_of(err)}). Run its .safetensors file.'
            ) from err
        found = {
            name: _compared(model, network, images)
            for name, network in networks_of(partial).items()
        }
        for name, difference in found.items():
            if not difference <= BOUNDS[FP32]:
                raise WeightsError(
                    f'{out}: {name} differs from eager fp32 by {difference:.2g}, expected at '
                    f'most {BOUNDS[FP32]:g}. Not written; run the .safetensors file.'
                )
    return found


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


def _compared(model: DepthModel, network: Network, images: list[np.ndarray]) -> float:
    """Largest difference: images one by one, together, and at a second size where one exists."""
    spec = model.backbone.spec
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    hw, step = spec.input_hw, spec.size_multiple if spec.is_hierarchical else 0
    batches = []
    for size in dict.fromkeys((hw, (hw[0] + step, hw[1] + step))):
        singles = [
            network_input(torch.from_numpy(rgb).permute(2, 0, 1)[None], size, mean, std)
            for rgb in images
        ]
        batches += [*singles, torch.cat(singles)]
    nearest_m = model.config.depth_range_m[0]
    with torch.inference_mode():
        return max(difference_of(model(b), network(b), nearest_m) for b in batches)


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
    images = images_of(args.images)
    model = load_model(args.weights, tower_weights=args.tower_weights)
    model.requires_grad_(False)
    found = export_model(model, args.out, images)
    kind = f'images of {args.images}' if args.images else 'rendered pictures'
    size_mb = args.out.stat().st_size / 1e6
    print(f'{args.out}: {size_mb:.1f} MB, {len(images)} {kind}')
    for name, difference in found.items():
        print(f'  {name}: largest relative difference from eager fp32 {difference:.1e} '
              f'(bound {BOUNDS[FP32]:g})')  # fmt: skip
    if args.json:
        record = {
            'file': str(args.out),
            'size_mb': size_mb,
            'images': len(images),
            'bound': BOUNDS[FP32],
            'largest_difference': found,
        }
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(record, indent=2) + '\n')
    return 0
