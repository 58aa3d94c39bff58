"""SPACE-CLIP's dual-pathway FiLM decoder (Cho, Kim and Choi, arXiv 2601.17657), to the parameter.

A semantic pathway modulates deep maps by the pooled vector (FiLM) and decodes them coarse to fine;
a structural pathway feeds shallower maps into the first three stages through gates. Module names
are those of the authors' checkpoints, so that their weights load by name.

B batch, C tower width, c_i stage width, h, w trunk grid; stage i runs at (2^(i+1) h, 2^(i+1) w).

Ours, beyond the paper: ``softplus`` output (the published ReLU can die: a pixel at exactly zero
gets no gradient), slim widths, and hierarchical towers, where taps go by stride (`_by_stride`)
and the first structural map is resized to the trunk grid before its UP block, so that stage grids
keep doubling. The trunk grid is that of the first semantic tap. docs/heads.md has the taps and
the parameters on each kind of tower.
"""

from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.confidence import ConfidenceHead
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.resize import resized

SEMANTIC_OF_12 = (12, 9, 6, 3)
STRUCTURAL_OF_12 = {'early': (2, 1, 0), 'middle': (7, 5, 4), 'late': (11, 10, 8), 'none': ()}
SEMANTIC_STRIDES = (32, 16, 8, 4)
STRUCTURAL_STRIDES = (16, 8, 4)
"""Of the ``middle`` taps on a hierarchical tower, which has no twelfths of its depth."""
MAPS_FROM_MIDDLE = {'early': -1, 'middle': 0, 'late': 1}
UPSAMPLES = ('transposed', 'bilinear')
ACTIVATIONS = {'softplus': F.softplus, 'relu': F.relu}


class SpaceClipHead(DepthHead):
    """Depth in metres at 16 times the trunk grid (the input size of a 16-pixel-patch tower)."""

    name = 'space_clip'

    @dataclass(frozen=True)
    class Config:
        """Options; the defaults are the paper's network with our output activation and taps."""

        structural: str | tuple[int, ...] = 'middle'
        """Structural taps: ``early`` (paper), ``middle``, ``late``, ``none``, or three layers."""
        semantic: tuple[int, ...] | None = None
        """Four semantic taps, deepest first; None: the paper's, as fractions of the depth."""
        output_activation: str = 'softplus'
        """``softplus``, or ``relu`` for the authors' checkpoints."""
        widths: tuple[int, ...] = (256, 128, 64, 32)
        """Channels c_i of the four stages."""
        film_width: int = 256
        """Hidden width of the FiLM generators."""
        output_width: int = 16
        """Hidden channels of the output convolution."""
        dropout: float = 0.1
        """Element-wise dropout inside residual blocks, in training."""
        aux_heads: bool = True
        """Depth heads on stages 0 to 2 that only the training loss reads."""
        upsample: str = 'transposed'
        """How a stage doubles the size: a ``transposed`` convolution (the paper), or ``bilinear``
        after a 1x1 convolution, which leaves no grid of two pixels (Odena et al. 2016)."""
        start_m: float | None = None
        """Depth around which an untrained softplus head answers; near that of the data, a short
        training need not first climb there. None: what random values give, about 0.7 m."""
        confidence: bool = False
        """Also answer how likely each depth is right (`core.confidence`; it changes no depth)."""

        def __post_init__(self):
            """Check names and sizes."""
            if isinstance(self.structural, str):
                require(
                    self.structural in STRUCTURAL_OF_12,
                    f'structural = {self.structural!r}: expected one of '
                    f'{tuple(STRUCTURAL_OF_12)} or three layer numbers.',
                )
            else:
                require(
                    len(self.structural) in (0, 3),
                    f'structural = {self.structural}: expected three layer numbers or none.',
                )
            require(
                self.semantic is None or len(self.semantic) == 4,
                f'semantic = {self.semantic}: expected four layer numbers.',
            )
            require(
                self.output_activation in ACTIVATIONS,
                f'output_activation = {self.output_activation!r}: expected one of '
                f'{tuple(ACTIVATIONS)}.',
            )
            require(
                len(self.widths) == 4 and all(isinstance(c, int) and c > 0 for c in self.widths),
                f'widths = {self.widths}: expected four positive integers.',
            )
            for name in ('film_width', 'output_width'):
                value = getattr(self, name)
                require(
                    isinstance(value, int) and value > 0,
                    f'{name} = {value!r}: expected a positive integer.',
                )
            require(
                self.upsample in UPSAMPLES,
                f'upsample = {self.upsample!r}: expected one of {UPSAMPLES}.',
            )
            require(
                self.start_m is None
                or (self.start_m > 0 and self.output_activation == 'softplus'),
                f'start_m = {self.start_m}: expected a positive depth, with softplus.',
            )
            require(0 <= self.dropout < 1, f'dropout = {self.dropout}: expected 0 to below 1.')

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        self.semantic, self.structural = _taps(config, spec)
        self.layers = tuple(sorted({*self.semantic, *self.structural}))
        c, c_in = config.widths, spec.widths
        self.film_param_generators = nn.ModuleList(
            nn.Sequential(
                nn.Linear(spec.pooled_width, config.film_width),
                nn.ReLU(),
                nn.Linear(config.film_width, 2 * c_in[k]),
            )
            for k in self.semantic
        )
        self.main_path_projections = nn.ModuleList(
            nn.Conv2d(c_in[k], c[i], 1) for i, k in enumerate(self.semantic)
        )
        self.structural_path_projections = nn.ModuleList(
            nn.Conv2d(c_in[k], c[i], 1) for i, k in enumerate(self.structural)
        )
        has_structural = bool(self.structural)
        self.main_decoder_blocks = nn.ModuleList(
            SemanticBlock(c[max(i - 1, 0)], c[i], has_structural and i < 3, config)
            for i in range(4)
        )
        self.structural_decoder_blocks = nn.ModuleList(
            StructuralBlock(c_in[k] if i == 0 else c[i - 1], c[i], config.upsample)
            for i, k in enumerate(self.structural)
        )
        self.depth_prediction_head = nn.Sequential(
            *_conv_bn_relu(c[3], config.output_width),
            nn.Conv2d(config.output_width, 1, 3, padding=1),
        )
        self.aux_depth_heads = nn.ModuleList()
        if config.aux_heads:
            self.aux_depth_heads.extend(
                nn.Sequential(
                    *_conv_bn_relu(n, max(n // 2, 16)), nn.Conv2d(max(n // 2, 16), 1, 1)
                )
                for n in c[:3]
            )
        if config.confidence:
            self.confidence_head = ConfidenceHead(c[3])
        if config.start_m:
            for part in (self.depth_prediction_head, *self.aux_depth_heads):
                nn.init.constant_(part[-1].bias, math.log(math.expm1(config.start_m)))
        self._activate = ACTIVATIONS[config.output_activation]

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, 16h, 16w) depth, and confidence where it was asked for.

        In training also ``extras['aux_depth_m']``, coarse to fine; while the confidence is in
        training, ``['confidence_logit']``.
        """
        skips = []  # P_i: (B, c_i, h_k, w_k)
        for k, film, project in zip(
            self.semantic, self.film_param_generators, self.main_path_projections
        ):
            gamma, beta = film(features.pooled)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1)
            skips.append(project(gamma * features.maps[k] + beta))
        structures = self._structures(features, skips[0].shape[-2:])
        x, aux = skips[0], []
        for i, block in enumerate(self.main_decoder_blocks):
            x = block(x, skips[i], structures[i] if i < len(structures) else None)
            if self.training and i < len(self.aux_depth_heads):
                aux.append(self._activate(self.aux_depth_heads[i](x)))
        depth_m = self._activate(self.depth_prediction_head(x))
        found = HeadOutput(depth_m, extras={'aux_depth_m': aux} if aux else {})
        if self.config.confidence:
            logit = self.confidence_head(x, depth_m)
            found.confidence = logit.sigmoid()
            if self.confidence_head.training:
                found.extras['confidence_logit'] = logit
        return found

    def _structures(self, features: Features, trunk_hw: torch.Size) -> list[torch.Tensor]:
        if not self.structural:
            return []
        x = resized(features.maps[self.structural[0]], trunk_hw)
        found = []
        for k, project, block in zip(
            self.structural, self.structural_path_projections, self.structural_decoder_blocks
        ):
            x = block(x, project(features.maps[k]))
            found.append(x)
        return found


class Up(nn.Module):
    """Twice the size (`Config.upsample`), then 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, c_in: int, c_out: int, upsample: str):
        super().__init__()
        if upsample == 'bilinear':
            self.upsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1),
                nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False),
            )
        else:
            self.upsample = nn.ConvTranspose2d(c_in, c_out, 2, stride=2)
        self.conv = nn.Sequential(*_conv_bn_relu(c_out, c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c_out, 2h, 2w)."""
        return self.conv(self.upsample(x))


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity, ReLU after the sum."""

    def __init__(self, c: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        y = self.dropout(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + x)


class SemanticBlock(nn.Module):
    """Up, gate the semantic and structural skips by what came up, fuse."""

    def __init__(self, c_in: int, c: int, has_structural: bool, config: SpaceClipHead.Config):
        super().__init__()
        self.upsample_low = Up(c_in, c, config.upsample)
        self.skip_clip_gate = nn.Sequential(nn.Conv2d(c, c, 1), nn.Sigmoid())
        if has_structural:
            self.skip_struct_gate = nn.Sequential(nn.Conv2d(c, c, 1), nn.Sigmoid())
        self.fusion_conv = nn.Sequential(
            *_conv_bn_relu(c * (3 if has_structural else 2), c), Residual(c, config.dropout)
        )

    def forward(
        self, x: torch.Tensor, skip: torch.Tensor, structure: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c, 2h, 2w)."""
        up = self.upsample_low(x)
        parts = [up, resized(skip, up.shape[-2:]) * (1 + self.skip_clip_gate(up))]
        if structure is not None:
            parts.append(structure * (1 + self.skip_struct_gate(up)))
        return self.fusion_conv(torch.cat(parts, dim=1))


class StructuralBlock(nn.Module):
    """Up, then fuse with a projected shallow map; no FiLM, no gate."""

    def __init__(self, c_in: int, c: int, upsample: str):
        super().__init__()
        self.upsample_low = Up(c_in, c, upsample)
        self.fusion_conv = nn.Sequential(*_conv_bn_relu(2 * c, c))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) to (B, c, 2h, 2w)."""
        up = self.upsample_low(x)
        return self.fusion_conv(torch.cat([up, resized(skip, up.shape[-2:])], dim=1))


def _conv_bn_relu(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(c_out), nn.ReLU()


def _taps(config: SpaceClipHead.Config, spec: BackboneSpec) -> tuple[tuple, tuple]:
    """Semantic and structural layer numbers on this tower; what is given explicitly wins."""
    preset = config.structural
    semantic, structural = config.semantic, preset
    if semantic is None and spec.is_hierarchical:
        semantic = _by_stride(SEMANTIC_STRIDES, spec)
    elif semantic is None:
        semantic = _fractions(SEMANTIC_OF_12, spec.num_layers)
    if preset == 'none':
        structural = ()
    elif isinstance(preset, str) and spec.is_hierarchical:
        middle = _by_stride(STRUCTURAL_STRIDES, spec)
        structural = tuple(k + MAPS_FROM_MIDDLE[preset] for k in middle)
    elif isinstance(preset, str):
        structural = _fractions(STRUCTURAL_OF_12[preset], spec.num_layers)
    for k in (*semantic, *structural):
        require(
            isinstance(k, int) and 0 <= k <= spec.num_layers,
            f'head space_clip: layer {k!r} does not exist on tower {spec.tower!r} '
            f'(0 to {spec.num_layers}).',
        )
    return semantic, structural


def _fractions(of_12: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    return tuple(round(k * num_layers / 12) for k in of_12)


def _by_stride(strides: tuple[int, ...], spec: BackboneSpec) -> tuple[int, ...]:
    """The deepest map of each stride: the stage, where the stem has the same."""
    deepest = {stride: k for k, stride in enumerate(spec.strides)}
    missing = [s for s in strides if s not in deepest]
    require(
        not missing,
        f'head space_clip cannot work on tower {spec.tower!r}: it has no map of stride {missing} '
        f'(strides {spec.strides}). Name its layers in semantic and structural.',
    )
    return tuple(deepest[s] for s in strides)
