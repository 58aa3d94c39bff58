"""SPACE-CLIP's decoder for inference: the same depth from fewer products.

Between two nonlinearities all is linear, so that it may be done in another order:

* A transposed convolution 2x2, stride 2, and the 3x3 convolution behind it are one transposed
  convolution 4x4, stride 2: 4 products of a pixel and channel pair in place of 1 + 9. What the
  bias between them gives differs along the border, where the 3x3 convolution sees zeros.
* A 3x3 convolution of a resized map is a sum over its taps of resized 1x1 convolutions, and
  those can be done on the small grid (`ConvOfResized`).
* A convolution of a concatenation is a sum of convolutions.
* BatchNorm folds into the convolution in front of it, the shift of FiLM into the projection.

What stays: maps that a gate multiplies, everything behind a ReLU, and bilinear UP blocks. B, C,
c_i, h, w as in `space_clip`.
"""

import copy

import torch
from torch import nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.resize import resized
from vlm_depth_ros.core.heads.space_clip import (
    ACTIVATIONS,
    Residual,
    SemanticBlock,
    SpaceClipHead,
    StructuralBlock,
    Up,
)


class SpaceClipInference(nn.Module):
    """What answers as a `SpaceClipHead` in evaluation mode does.

    Args:
        head: Copied, and left as it is. Nothing goes back to it, so this is not for training.
    """

    @torch.no_grad()
    def __init__(self, head: SpaceClipHead):
        super().__init__()
        head = copy.deepcopy(head).eval()
        self.name, self.config, self.spec = head.name, head.config, head.spec
        self.layers, self.tower_change = head.layers, head.tower_change
        self.semantic, self.structural = head.semantic, head.structural
        self.skips = Skips(head)
        self.structural_projections = head.structural_path_projections
        self.structural_blocks = nn.ModuleList(
            FoldedStructural(block, *_grids(head.spec, k, head.semantic[0], 2 ** (i + 1)))
            for i, (k, block) in enumerate(zip(self.structural, head.structural_decoder_blocks))
        )
        self.semantic_blocks = nn.ModuleList(map(FoldedSemantic, head.main_decoder_blocks))
        hidden, norm, relu, last = head.depth_prediction_head
        self.output = nn.Sequential(fuse_conv_bn_eval(hidden, norm), relu, last)
        if head.config.confidence:
            self.confidence_head = head.confidence_head
        self._activate = ACTIVATIONS[head.config.output_activation]
        self.eval().requires_grad_(False)

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, 16h, 16w) depth, and confidence where it was asked for."""
        skips = self.skips(features)
        structures = [None] * len(skips)
        if self.structural:
            x = resized(features.maps[self.structural[0]], skips[0].shape[-2:])
        parts = zip(self.structural, self.structural_projections, self.structural_blocks)
        for i, (k, project, block) in enumerate(parts):
            structures[i] = x = block(x, project(features.maps[k]))
        x = skips[0]
        for block, skip, structure in zip(self.semantic_blocks, skips, structures):
            x = block(x, skip, structure)
        found = HeadOutput(self._activate(self.output(x)))
        if self.config.confidence:
            found.confidence = self.confidence_head(x, found.depth_m).sigmoid()
        return found


class Skips(nn.Module):
    """FiLM and projection of the semantic maps; the first product of all generators is one.

    ``P (gamma * F + beta) + b`` is ``P (gamma * F)`` and a vector, which is linear in what the
    generator has hidden: c_i numbers in place of the C of beta.
    """

    def __init__(self, head: SpaceClipHead):
        super().__init__()
        self.semantic = head.semantic
        generators, projections = head.film_param_generators, head.main_path_projections
        for name in ('weight', 'bias'):
            first = torch.cat([getattr(g[0], name) for g in generators])
            self.register_buffer(f'first_{name}', first)
        self.projections = nn.ParameterList(p.weight for p in projections)
        seconds = [_gamma_and_shift(g[2], p) for g, p in zip(generators, projections)]
        self.second_weights = nn.ParameterList(weight for weight, _ in seconds)
        self.second_biases = nn.ParameterList(bias for _, bias in seconds)

    def forward(self, features: Features) -> list[torch.Tensor]:
        """P_i, (B, c_i, h_k, w_k) each."""
        hidden = F.relu(F.linear(features.pooled, self.first_weight, self.first_bias))
        found = []
        for k, own, project, weight, bias in zip(
            self.semantic,
            hidden.chunk(len(self.semantic), dim=1),
            self.projections,
            self.second_weights,
            self.second_biases,
        ):
            c, c_in = project.shape[:2]
            gamma, shift = F.linear(own, weight, bias)[:, :, None, None].split((c_in, c), dim=1)
            found.append(F.conv2d(gamma * features.maps[k], project) + shift)
        return found


class FoldedUp(nn.Module):
    """`Up` as one transposed convolution, where that takes fewer products."""

    def __init__(self, up: Up):
        super().__init__()
        conv, first = fuse_conv_bn_eval(up.conv[0], up.conv[1]), up.upsample
        # 4 c_in c_out products of a pixel in place of c_in c_out + 9 c_out c_out.
        self.is_one = (
            isinstance(first, nn.ConvTranspose2d) and first.in_channels < 3 * first.out_channels
        )
        if not self.is_one:
            self.two = nn.Sequential(first, conv)
            return
        weight = F.conv_transpose2d(first.weight, conv.weight.flip(2, 3).transpose(0, 1))
        between = first.bias[None, :, None, None].expand(-1, -1, 3, 3)
        self.register_buffer('weight', weight)  # (c_in, c_out, 4, 4)
        self.register_buffer('frame', F.conv2d(between, conv.weight, conv.bias, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c_out, 2h, 2w)."""
        if not self.is_one:
            return F.relu(self.two(x))
        enlarged = F.conv_transpose2d(x, self.weight, stride=2, padding=1)
        return F.relu(enlarged + self._constant(enlarged))

    def _constant(self, like: torch.Tensor) -> torch.Tensor:
        """(1, c_out, H, W) of `frame`: its corners, its edges along the border, its middle."""
        frame = self.frame.to(like.dtype)  # or all behind it would be float32 under autocast
        for side in (2, 3):
            index = torch.arange(like.shape[side], device=like.device)
            place = (index > 0).long() + (index == like.shape[side] - 1).long()
            frame = frame.index_select(side, place)
        return frame


class ConvOfResized(nn.Module):
    """A 3x3 convolution, without bias, of a map resized to a larger grid.

    The bilinear resize is a matrix over the rows and one over the columns, equal for all channels;
    moved by a tap of the convolution, with zeros from beyond the border, they are three each:
    ``y = sum over i, j of rows_i (w_ij x) columns_j``.

    Args:
        weight: (c_out, c_in, 3, 3).
        small_hw: Grid of what comes.
        large_hw: Grid that it is resized to.
    """

    def __init__(
        self, weight: torch.Tensor, small_hw: tuple[int, int], large_hw: tuple[int, int]
    ):
        super().__init__()
        # Out channels by column tap, channel, row tap: the latter then lie beside the rows.
        taps = weight.permute(3, 0, 2, 1).flatten(0, 2)[:, :, None, None]
        rows, columns = (_resize_by_tap(*n, weight) for n in zip(small_hw, large_hw))
        self.register_buffer('taps', taps.contiguous())
        self.register_buffer('rows', rows)
        self.register_buffer('columns', columns.T.contiguous())

    @staticmethod
    def num_products(
        channels: tuple[int, int], small_hw: tuple[int, int], large_hw: tuple[int, int]
    ) -> int:
        """Of an image, where the convolution has (c_out, c_in) channels."""
        (c_out, c_in), (h, w), (tall, wide) = channels, small_hw, large_hw
        return 9 * c_out * (c_in * h * w + h * tall * w) + 3 * c_out * tall * w * wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c_out, H, W)."""
        x = F.conv2d(x, self.taps).unflatten(1, (-1, 3)).flatten(2, 3)
        x = self.rows @ x  # (B, 3 c_out, H, w)
        x = x.unflatten(1, (3, -1)).movedim(1, 3).flatten(3)  # (B, c_out, H, 3 w)
        return x @ self.columns


class FoldedStructural(nn.Module):
    """`StructuralBlock` without its concatenation.

    Args:
        block: What it stands for.
        small_hw: Grid of the projected map; None: it depends on the input.
        large_hw: Grid of the answer.
    """

    def __init__(
        self,
        block: StructuralBlock,
        small_hw: tuple[int, int] | None,
        large_hw: tuple[int, int] | None,
    ):
        super().__init__()
        self.up = FoldedUp(block.upsample_low)
        conv = fuse_conv_bn_eval(block.fusion_conv[0], block.fusion_conv[1])
        self.of_up, of_skip = _split(conv, 2)
        self.of_skip = of_skip
        channels = of_skip.weight.shape[:2]
        if small_hw is None or small_hw == large_hw:
            return
        on_large = 9 * channels.numel() * large_hw[0] * large_hw[1]
        if ConvOfResized.num_products(channels, small_hw, large_hw) < on_large:
            self.of_skip = ConvOfResized(of_skip.weight, small_hw, large_hw)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c, 2h, 2w)."""
        up = self.up(x)
        if isinstance(self.of_skip, nn.Conv2d):
            skip = resized(skip, up.shape[-2:])
        return F.relu(self.of_up(up) + self.of_skip(skip))


class FoldedSemantic(nn.Module):
    """`SemanticBlock` without its concatenation."""

    def __init__(self, block: SemanticBlock):
        super().__init__()
        gates = [part for name, part in block.named_children() if name.endswith('_gate')]
        self.up, self.gates = FoldedUp(block.upsample_low), nn.ModuleList(gates)
        conv, norm, _, residual = block.fusion_conv
        self.parts = nn.ModuleList(_split(fuse_conv_bn_eval(conv, norm), 1 + len(gates)))
        self.residual = FoldedResidual(residual)

    def forward(
        self, x: torch.Tensor, skip: torch.Tensor, structure: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c, 2h, 2w)."""
        up = self.up(x)
        y = self.parts[0](up)
        for part, gate, other in zip(
            self.parts[1:], self.gates, (resized(skip, up.shape[-2:]), structure)
        ):
            y = y + part(other * (1 + gate(up)))
        return self.residual(F.relu(y))


class FoldedResidual(nn.Module):
    """`Residual` of two convolutions."""

    def __init__(self, block: Residual):
        super().__init__()
        self.conv1 = fuse_conv_bn_eval(block.conv1, block.norm1)
        self.conv2 = fuse_conv_bn_eval(block.conv2, block.norm2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


def _gamma_and_shift(
    generator: nn.Linear, project: nn.Conv2d
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the linear layer that answers gamma and the projection of beta."""
    matrix = project.weight[:, :, 0, 0]
    gamma_weight, beta_weight = generator.weight.chunk(2)
    gamma_bias, beta_bias = generator.bias.chunk(2)
    shift = matrix @ beta_bias + project.bias
    return torch.cat([gamma_weight, matrix @ beta_weight]), torch.cat([gamma_bias, shift])


def _split(conv: nn.Conv2d, count: int) -> list[nn.Conv2d]:
    """3x3 convolutions whose sum over as many equal parts of the channels is `conv`."""
    parts = []
    for i, weight in enumerate(conv.weight.chunk(count, dim=1)):
        has_bias = i == 0
        part = nn.utils.skip_init(
            nn.Conv2d, weight.shape[1], len(weight), 3, padding=1, bias=has_bias,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        part.weight = nn.Parameter(weight.contiguous())
        if has_bias:
            part.bias = conv.bias
        parts.append(part)
    return parts


def _resize_by_tap(small: int, large: int, like: torch.Tensor) -> torch.Tensor:
    """(large, 3 * small): a resize of one side, moved by -1, 0 and 1, with zeros from beyond."""
    unit = torch.eye(small, device=like.device, dtype=like.dtype)[None]
    matrix = F.interpolate(unit, size=large, mode='linear', align_corners=False)[0].T
    framed = F.pad(matrix, (0, 0, 1, 1))
    return torch.cat([framed[i : i + large] for i in range(3)], dim=1)


def _grids(
    spec: BackboneSpec, layer: int, trunk: int, times: int
) -> tuple[tuple[int, int], tuple[int, int]] | tuple[None, None]:
    """Grids of a layer, and of the trunk enlarged so many times; None where inputs differ."""
    if spec.is_hierarchical:
        return None, None
    of_layer, of_trunk = (tuple(n // spec.strides[k] for n in spec.input_hw)
                          for k in (layer, trunk))  # fmt: skip
    return of_layer, tuple(times * n for n in of_trunk)
