"""How far what runs a network is from eager fp32, and how far it may be."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.exact_fp32 import exact_fp32
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.base import HeadOutput

BOUNDS = {'fp32': 1e-3, 'bf16': 0.05, 'fp16': 0.05}
"""Largest relative difference of depth from eager fp32, by precision."""


def too_far(difference: float, precision: str) -> str:
    """What to say of a difference that is not within `BOUNDS`; empty where it is."""
    if difference <= BOUNDS[precision]:
        return ''
    return (
        f'in {precision} differs from eager fp32 by {difference:.2g} of the depth, more than '
        f'{BOUNDS[precision]:g}'
    )


def fixed_images(spec: BackboneSpec, device: torch.device) -> Iterator[torch.Tensor]:
    """(B, 3, h, w) noise, always the same: one, and two of another size where there is one."""
    grow = spec.size_multiple if spec.is_hierarchical else 0
    height, width = spec.input_hw
    noise = torch.Generator().manual_seed(0)
    for shape in ((1, 3, height, width), (2, 3, height + grow, width + grow)):
        yield torch.randn(shape, generator=noise).to(device)


def largest_difference(
    model: nn.Module, engine: Callable[..., HeadOutput], precision: str, device: torch.device
) -> float:
    """How far an engine is from eager fp32 on any of the `fixed_images`.

    Raises:
        WeightsError: If the network itself answers no finite depth.
    """
    images = fixed_images(model.backbone.spec, device)
    return max(difference_on(image, model, engine, precision) for image in images)


def difference_on(
    image: torch.Tensor, model: nn.Module, engine: Callable[..., HeadOutput], precision: str
) -> float:
    """`difference_of` what an engine answers in `precision` and what the network does in fp32.

    Raises:
        WeightsError: If the network itself answers no finite depth.
    """
    with torch.inference_mode(), exact_fp32():
        expected = model(image)
        is_low = precision != 'fp32'
        with torch.autocast(image.device.type, DTYPES[precision], enabled=is_low):
            found = engine(image)
    return difference_of(expected, found, model.config.depth_range_m[0])


def difference_of(expected: HeadOutput, found: HeadOutput, nearest_m: float) -> float:
    """Largest difference of depth, relative, or of confidence; raises as `differences_of`."""
    return max(d.max().item() for d in differences_of(expected, found, nearest_m))


def differences_of(
    expected: HeadOutput, found: HeadOutput, nearest_m: float
) -> list[torch.Tensor]:
    """Difference of depth, relative, and, where there is one, of confidence, in every pixel.

    It is infinite where one of the two has no number, or only one has a confidence.

    Args:
        expected: What eager fp32 answers.
        found: What is judged.
        nearest_m: Nothing nearer is divided by.

    Raises:
        WeightsError: If `expected` is nowhere finite.
    """
    depth_m = expected.depth_m
    if not depth_m.isfinite().any():
        raise WeightsError(
            'the network answers no finite depth: nothing to check an engine against. Its '
            'weights are damaged (NaN or Inf); fetch or train them again.'
        )
    differences = [(depth_m - found.depth_m).abs() / depth_m.clamp(min=nearest_m)]
    if (expected.confidence is None) != (found.confidence is None):
        differences.append(torch.tensor(torch.inf))
    elif expected.confidence is not None:
        differences.append((expected.confidence - found.confidence).abs())
    return [d.nan_to_num(nan=torch.inf, posinf=torch.inf) for d in differences]
