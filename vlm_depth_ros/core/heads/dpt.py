"""The DPT decoder (Ranftl et al., arXiv 2103.13413) as the DINOv2 study has it (2304.07193).

Four layers are reassembled into a pyramid of strides 4 to 32 of a 16-pixel patch, brought to 256
channels, and fused coarse to fine; each fusion doubles the grid. No BatchNorm, as in the study.

Ours: by default the readout joins ``Features.pooled``, which every tower has (the study's, each
layer's own class token: ``class_token='own'``); depth over bins by default, where the study
regresses (``output='regression'``); and hierarchical towers, whose deepest maps of strides 4, 8,
16 and 32 are that pyramid already, so that nothing but the readout stands in front of the fusion.
"""

from dataclasses import dataclass

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.bins import bin_depths_m, check_bins, expected_depth_m
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.class_token import (
    check_class_token,
    global_vectors,
    global_widths,
)
from vlm_depth_ros.core.heads.linear_bins import layers_or_four
from vlm_depth_ros.core.heads.resize import resized

OUTPUTS = ('bins', 'regression')
OUTPUT_WIDTH = 32


class DptHead(DepthHead):
    """Depth in metres at 16 times a plain tower's grid (an odd grid counts as one cell more).

    On a hierarchical tower at 32 times its last grid. The range of the depths is
    ``depth_range_m`` of the model.
    """

    name = 'dpt'

    @dataclass(frozen=True)
    class Config:
        """Options; the defaults are the study's decoder, with depth over bins."""

        layers: tuple[int, ...] | None = None
        """Four layers, ascending; None: the study's, or by stride on a hierarchical tower."""
        channels: int = 256
        """Width of the fusion."""
        class_token: str = 'pooled'
        """What the readouts join: ``pooled`` of the tower, or ``own``, the raw class token of each
        layer, the study's."""
        output: str = 'bins'
        """``bins``: expected depth over `num_bins`; ``regression``: relu(score) + minimum."""
        num_bins: int = 256
        bins: str = 'uniform'
        """Depths spaced evenly (``uniform``) or evenly in the logarithm (``log``)."""
        depth_range_m: tuple[float, float] = (0.001, 10.0)
        """Nearest and farthest depth: those of the model, as which they are where left out."""

        def __post_init__(self):
            """Check names and sizes."""
            require(
                self.layers is None or (isinstance(self.layers, tuple) and len(self.layers) == 4),
                f'layers = {self.layers!r}: expected four layer numbers.',
            )
            require(
                type(self.channels) is int and self.channels >= 2,
                f'channels = {self.channels!r}: expected an integer of at least 2.',
            )
            require(
                self.output in OUTPUTS,
                f'output = {self.output!r}: expected one of {OUTPUTS}.',
            )
            check_class_token(self.class_token)
            check_bins(self.num_bins, self.bins, self.depth_range_m)

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        self.layers = layers_or_four(config.layers, spec, self.name)
        c = config.channels
        widths = [spec.widths[k] for k in self.layers]
        joined = global_widths(config.class_token, self.layers, spec, self.name)
        self.readouts = nn.ModuleList(Readout(n, m) for n, m in zip(widths, joined))
        if spec.is_hierarchical:
            self.reassemble = nn.ModuleList(nn.Identity() for _ in widths)
        else:
            require(
                widths[0] >= 8,
                f'head dpt cannot work on tower {spec.tower!r}: its width {widths[0]} leaves no '
                'channel of an eighth. Use a tower of width 8 or more.',
            )
            self.reassemble, widths = _pyramid(widths)
        self.convs = nn.ModuleList(_conv(n, c, 3, bias=False) for n in widths)
        self.fusions = nn.ModuleList(Fusion(c, has_skip=i > 0) for i in range(4))
        self.project = nn.Sequential(_conv(c, c, 3), nn.ReLU())
        self.narrow = nn.Conv2d(c, c // 2, 3, padding=1)
        self.output = nn.Sequential(
            nn.Conv2d(c // 2, OUTPUT_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(OUTPUT_WIDTH, config.num_bins if config.output == 'bins' else 1, 1),
        )
        depths_m = bin_depths_m(config.num_bins, config.bins, config.depth_range_m)
        self.register_buffer('depths_m', depths_m, persistent=False)

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, h, w) depth; within the range, but for a regression while it trains."""
        vectors = global_vectors(self.config.class_token, self.layers, features)
        skips = [
            conv(reassemble(readout(features.maps[k], vector)))
            for k, vector, readout, reassemble, conv in zip(
                self.layers, vectors, self.readouts, self.reassemble, self.convs
            )
        ]
        x = self.fusions[0](skips[-1])
        for fusion, skip in zip(self.fusions[1:], reversed(skips[:-1])):
            x = fusion(x, skip)
        x = self.output(_doubled(self.narrow(self.project(x))))
        if self.config.output == 'bins':
            return HeadOutput(expected_depth_m(x, self.depths_m))
        near_m, far_m = self.config.depth_range_m
        depth_m = F.relu(x.float()) + near_m
        # Cut off in use only, as in the study: a depth beyond the range must feel the loss.
        return HeadOutput(depth_m if self.training else depth_m.clamp(max=far_m))


class Readout(nn.Module):
    """``gelu(W [map, vector] + b)`` in every cell: DPT's readout of kind "project"."""

    def __init__(self, c: int, c_global: int):
        super().__init__()
        # One matrix in two parts: the global part is the same in every cell.
        self.local = nn.Conv2d(c, c, 1)
        self.globally = nn.Linear(c_global, c, bias=False)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) and (B, G) to (B, C, h, w)."""
        return F.gelu(self.local(x) + self.globally(vector)[:, :, None, None])


class Residual(nn.Module):
    """Two 3x3 convolutions without bias, a ReLU before each, around an identity."""

    def __init__(self, c: int):
        super().__init__()
        self.conv1 = _conv(c, c, 3, bias=False)
        self.conv2 = _conv(c, c, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Add a refined skip, refine the sum, double the grid, 1x1 convolution."""

    def __init__(self, c: int, has_skip: bool):
        super().__init__()
        if has_skip:
            self.skip = Residual(c)
        self.refine = Residual(c)
        self.project = _conv(c, c, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w); a skip of another size is resized."""
        if skip is not None:
            x = x + self.skip(resized(skip, x.shape[-2:]))
        return self.project(_doubled(self.refine(x)))


def _pyramid(widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
    """A plain tower's maps to D/8, D/4, D/2, D channels at 4, 2, 1 and 1/2 times the grid."""
    c = [n // 2 ** (3 - i) for i, n in enumerate(widths)]
    resize = (
        nn.ConvTranspose2d(c[0], c[0], 4, stride=4),
        nn.ConvTranspose2d(c[1], c[1], 2, stride=2),
        nn.Identity(),
        nn.Conv2d(c[3], c[3], 3, stride=2, padding=1),
    )
    return nn.ModuleList(
        nn.Sequential(_conv(n, m, 1), r) for n, m, r in zip(widths, c, resize)
    ), c  # fmt: skip


def _conv(c_in: int, c_out: int, size: int, bias: bool = True) -> nn.Conv2d:
    """A convolution with the study's initial values: Kaiming by fan-out, bias 0."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
