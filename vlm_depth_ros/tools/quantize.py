"""A network in 8 bits, and what that costs on photographs: `vlm-depth export --int8`.

Convolutions and products with weights are taken in 8 bits (Jacob et al., arXiv 1712.05877):
activations unsigned with one scale a tensor, as far as they go on the calibration images, weights
signed with one scale a channel. So the dot products of x86 processors (VNNI) want it. All else
stays as it is: attention, norms, the expectation over bins, logarithms.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
from pathlib import Path

import numpy as np
import torch
from vlm_depth_ros.core.agreement import differences_of
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import IMAGE
from vlm_depth_ros.files.source import open_source, SourceFrame
from vlm_depth_ros.tools.metrics import compare, PROTOCOLS

LEAST_FRAMES, MOST_FRAMES = 8, 32
"""Photographs that are asked for, and taken; every other one is for judging alone."""
MOST_DIFFERENCE = 0.01
"""Of depth, relative, or of confidence; mean over the pixels of all photographs. AbsRel changes by
at most about 0.01 then where depth is about the truth, and far less where the differences point
both ways: `pocket` has 0.006, which changes its AbsRel of 0.2017 by 0.0001 (docs/engines.md)."""
MOST_RISE = 0.01
"""Of AbsRel, relative, where the depth of the photographs is known."""
MATRICES = ('Gemm', 'MatMul')
OPERATIONS = ('Conv', 'Relu', *MATRICES)
"""A ReLU behind one of the others goes into that one's range."""
EXACT = ('Softmax', 'Softplus', 'Exp', 'Log')
"""Nothing they are given is rounded: they enlarge an error, and stand where a map is largest."""
MOVES = ('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze')
"""Change no number."""
LEAST_MATRIX = 1 << 18
"""Numbers in a matrix that is worth the conversions around it: those of a transformer tower have
more, those of heads and gates fewer. Of two activations, as in attention, none is."""


@dataclass(frozen=True)
class Loss:
    """What 8 bits cost in one engine."""

    difference: float
    """See `MOST_DIFFERENCE`."""
    abs_rel: tuple[float, float] | None
    """Of eager fp32 and of 8 bits; None where no photograph has a depth."""

    @property
    def rise(self) -> float:
        """Of AbsRel, relative; negative where 8 bits are better, 0 where nothing is known."""
        return self.abs_rel[1] / self.abs_rel[0] - 1 if self.abs_rel else 0.0

    @property
    def is_small(self) -> bool:
        """Whether it is within the bounds."""
        return self.difference <= MOST_DIFFERENCE and self.rise <= MOST_RISE

    def __str__(self) -> str:
        """As a line of a table."""
        said = f'differs from eager fp32 by {self.difference:.2%} in the mean'
        if self.abs_rel:
            said += f', AbsRel {self.abs_rel[1]:.4f} for {self.abs_rel[0]:.4f} ({self.rise:+.2%})'
        return said


def photographs_of(path: Path | None) -> list[SourceFrame]:
    """At most `MOST_FRAMES` frames, evenly spread over what `open_source` opens.

    Raises:
        ConfigError: If there is no path, or there are fewer than `LEAST_FRAMES`.
        InputError: If there is no source, or a frame cannot be read.
    """
    if path is None:
        raise ConfigError(
            '--int8 takes the ranges of the maps from photographs like those of your camera: '
            'name them by --images DIR.'
        )
    with open_source(path) as source:
        if len(source) < LEAST_FRAMES:
            raise ConfigError(
                f'{path}: {len(source)} images, expected at least {LEAST_FRAMES} for --int8. '
                'Give more, of different places.'
            )
        places = np.linspace(0, len(source) - 1, min(len(source), MOST_FRAMES)).round()
        return [source[int(place)] for place in places]


def quantise(fp32: Path, int8: Path, images: Sequence[torch.Tensor]) -> None:
    """Write an ONNX file again, with its products in 8 bits.

    Args:
        fp32: As `vlm-depth export` writes it; its record goes along.
        int8: File to write.
        images: (1, 3, h, w) network inputs whose maps give the ranges.

    Raises:
        DependencyError: If onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            quantize_static,
            QuantType,
        )
    except ImportError as err:
        raise DependencyError(
            f"--int8: {err}. It takes onnx and onnxruntime: pip install 'vlm_depth_ros[engines]'."
        ) from err

    class Reader(CalibrationDataReader):
        """Hands the images out, one by one."""

        def __init__(self):
            self._left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._left, None)
            return None if image is None else {IMAGE: image.numpy()}

    logger = logging.getLogger()  # There the quantiser advises to simplify first: torch did.
    logger.addFilter(_is_no_advice)
    try:
        quantize_static(
            fp32,
            int8,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            nodes_to_exclude=_left_in_fp32(onnx.load(fp32).graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logger.removeFilter(_is_no_advice)


def _left_in_fp32(graph) -> list[str]:
    """Names of the nodes of an ONNX graph that `EXACT` is given, and of those with few weights."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    size = {weights.name: math.prod(weights.dims) for weights in graph.initializer}

    def is_exact(node) -> bool:
        return any(
            reader.op_type in EXACT or (reader.op_type in MOVES and is_exact(reader))
            for output in node.output
            for reader in readers[output]
        )

    def is_small(node) -> bool:
        return node.op_type in MATRICES and size.get(node.input[1], 0) < LEAST_MATRIX

    nodes = [node for node in graph.node if node.op_type in OPERATIONS]
    return [node.name for node in nodes if is_exact(node) or is_small(node)]


def _is_no_advice(record: logging.LogRecord) -> bool:
    return 'pre-processing before quantization' not in record.getMessage()


def loss_of(
    model: torch.nn.Module,
    network: torch.nn.Module,
    batches: Sequence[torch.Tensor],
    frames: Sequence[SourceFrame],
) -> Loss:
    """Compare a network in 8 bits with eager fp32.

    Args:
        model: A `DepthModel` on the CPU.
        network: The same in 8 bits.
        batches: Network inputs.
        frames: Pictures with their cameras; those that have a depth give AbsRel.
    """
    nearest_m = model.config.depth_range_m[0]
    with torch.inference_mode():
        found = [mean_difference(model(b), network(b), nearest_m) for b in batches]
    known = [frame for frame in frames if frame.depth_m is not None]
    abs_rel = tuple(_abs_rel(n, known) for n in (model, network)) if known else None
    return Loss(float(np.mean(found)), abs_rel)


def mean_difference(expected: HeadOutput, found: HeadOutput, nearest_m: float) -> float:
    """The larger mean of `differences_of`; raises as these."""
    return max(d.mean().item() for d in differences_of(expected, found, nearest_m))


def _abs_rel(network: torch.nn.Module, frames: Sequence[SourceFrame]) -> float:
    """As ``vlm-depth evaluate`` has it, protocol ``full``."""
    estimator = DepthEstimator(network, RuntimeConfig('cpu'))
    errors = [
        compare(estimator(f.rgb, f.intrinsics).depth_m, f.depth_m, PROTOCOLS['full']).errors()
        for f in frames
    ]
    return float(np.mean([error['abs_rel'] for error in errors]))
