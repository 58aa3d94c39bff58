"""MoA-DepthCLIP (Ahani Manghotay and Liang, arXiv 2604.01118): adapters inside CLIP, 128 bins.

A mixture of four small experts follows some of the tower's blocks, the last blocks are tuned, and
two 1x1 heads on the patch grid classify and regress depth. The authors published no code for it;
what the paper leaves open is an option here, with its reason in ``docs/heads_moa.md``.

B batch, T tokens, C tower width, K experts, N bins, h, w patch grid.
"""

from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.resize import resized
from vlm_depth_ros.core.tower_change import TowerChange

AFTER_OF_12 = (3, 6, 9, 12)
"""The paper's {2, 5, 8, 11} counted from 0, as numbers of blocks passed."""
CHOICES = {
    'context': ('rooms', 'none'),
    'bins': ('uniform', 'log'),
    'upsample': ('logits', 'depth'),
    'fusion': ('mean', 'bins', 'regression'),
}


class MoaDepthClipHead(DepthHead):
    """Depth in metres at the input's size (or on the patch grid), within the range of the bins."""

    name = 'moa_depthclip'

    @dataclass(frozen=True)
    class Config:
        """Options; the defaults are the paper's where it says, else `docs/heads_moa.md`'s."""

        after: tuple[int, ...] | None = None
        """Blocks that an adapter follows; None: the paper's {2, 5, 8, 11}, as fractions."""
        first_block: int = 0
        """Number of the first block in `after` and in the paper's set: 0, or 1."""
        experts: int = 4
        expert_width: int = 64
        gate_width: int = 128
        temperature: float = 2.0
        """Divides the gate's logits."""
        tuned_blocks: int = 4
        """How many of the last blocks are trained with the head."""
        context: str = 'rooms'
        """``rooms``: the stored mean embedding of room prompts joins every cell; or ``none``."""
        projection_width: int | None = 512
        """Channels that maps are projected to before the context joins; None: not projected."""
        shared_conv: bool = False
        """A 3x3 convolution with GELU in front of both 1x1 heads."""
        num_bins: int = 128
        bins: str = 'uniform'
        """Edges of the bins in depth (``uniform``) or in its logarithm (``log``)."""
        min_depth_m: float = 0.001
        max_depth_m: float = 10.0
        upsample: str = 'logits'
        """What grows from the patch grid to the input's size: ``logits``, or ``depth``, later."""
        fusion: str = 'mean'
        """Of the two depths: their ``mean``, or only ``bins``, or only ``regression``."""

        def __post_init__(self):
            """Check names and sizes."""
            for name, known in CHOICES.items():
                value = getattr(self, name)
                require(value in known, f'{name} = {value!r}: expected one of {known}.')
            require(
                self.first_block in (0, 1),
                f'first_block = {self.first_block!r}: expected 0 or 1.',
            )
            for name in ('experts', 'expert_width', 'gate_width', 'num_bins', 'projection_width'):
                value = getattr(self, name)
                require(
                    (isinstance(value, int) and value > 0)
                    or (value is None and name == 'projection_width'),
                    f'{name} = {value!r}: expected a positive integer.',
                )
            require(
                isinstance(self.tuned_blocks, int) and self.tuned_blocks >= 0,
                f'tuned_blocks = {self.tuned_blocks!r}: expected an integer from 0.',
            )
            require(
                self.temperature > 0, f'temperature = {self.temperature}: expected more than 0.'
            )
            require(
                0 < self.min_depth_m < self.max_depth_m < math.inf,
                f'min_depth_m = {self.min_depth_m}, max_depth_m = {self.max_depth_m}: expected '
                'two depths in metres, the nearer first, above 0.',
            )

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        require(
            not spec.is_hierarchical and spec.has_class_token,
            f'head moa_depthclip cannot work on tower {spec.tower!r}: its adapters stand between '
            "the blocks of open_clip's own ViT with a class token. Use ViT-B-32-quickgelu.",
        )
        after = _blocks_of(config, spec)
        self.layers = tuple(k + 1 for k in after)
        width = spec.widths[-1]
        self.tower_change = TowerChange(
            {
                k: MixtureOfAdapters(
                    width, config.experts, config.expert_width, config.gate_width,
                    config.temperature,
                )
                for k in after
            },
            range(spec.num_layers - config.tuned_blocks, spec.num_layers),
        )  # fmt: skip
        width = config.projection_width or width
        if config.projection_width:
            self.project = nn.Conv2d(spec.widths[-1], width, 1)
        if config.context == 'rooms':
            require(
                spec.embedding_width is not None,
                f"head moa_depthclip: tower {spec.tower!r} has no joint space with text, so no "
                "room prompts can be embedded. Set context = 'none'.",
            )
            # Zeros until a desk has filled it (tools/room_context.py).
            self.register_buffer('context', torch.zeros(spec.embedding_width))
            width += spec.embedding_width
        if config.shared_conv:
            self.mix = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.classify = nn.Conv2d(width, config.num_bins, 1)
        self.regress = nn.Conv2d(width, 1, 1)
        self.register_buffer('bin_edges_m', bin_edges_m(config), persistent=False)

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, H, W) depth: the expected bin centre and a regressed value, fused.

        In training also ``extras['bin_logits']`` (B, N, H, W) and ``extras['regressed_m']``.

        Raises:
            InputError: If the features come from a tower without this head's adapters.
            ConfigError: If it trains without the stored context that it is to use.
        """
        if not features.extras.get('is_changed'):
            raise InputError(
                'head moa_depthclip got features of the plain tower, but its adapters stand '
                'inside it. Run the whole model; it cannot share features.'
            )
        x = torch.stack([features.maps[k] for k in self.layers]).mean(dim=0)
        if self.config.projection_width:
            x = self.project(x)
        if self.config.context == 'rooms':
            if self.training and not self.context.any():
                raise ConfigError(
                    "head moa_depthclip trains with context = 'rooms', but none is stored. Name "
                    "the tag of the tower (pretrained), whose text side gives it, or set "
                    "context = 'none'."
                )
            around = self.context[None, :, None, None].expand(len(x), -1, *x.shape[-2:])
            x = torch.cat([x, around.to(x.dtype)], dim=1)
        if self.config.shared_conv:
            x = self.mix(x)
        logits, score = self.classify(x).float(), self.regress(x).float()
        if self.config.upsample == 'logits':
            stride = self.spec.strides[self.layers[0]]
            hw = tuple(n * stride for n in x.shape[-2:])
            logits, score = resized(logits, hw), resized(score, hw)
        regressed_m = torch.sigmoid(score) * self.config.max_depth_m
        centres_m = (self.bin_edges_m[1:] + self.bin_edges_m[:-1]) / 2
        binned_m = (logits.softmax(dim=1) * centres_m[:, None, None]).sum(dim=1, keepdim=True)
        depth_m = {
            'mean': (binned_m + regressed_m) / 2, 'bins': binned_m, 'regression': regressed_m
        }[self.config.fusion]  # fmt: skip
        extras = {'bin_logits': logits, 'regressed_m': regressed_m} if self.training else {}
        return HeadOutput(depth_m, extras=extras)


class MixtureOfAdapters(nn.Module):
    """``x + sum_k g_k Expert_k(x)`` with ``g = softmax(gate(x) / temperature)``; all experts run.

    An expert is Linear, GELU, Linear. They stand side by side in two matrices, so that K experts
    cost two products. The last Linear starts at zero: the first answer is x itself.
    """

    def __init__(self, c: int, experts: int, expert_width: int, gate_width: int, temp: float):
        super().__init__()
        self.experts, self.temperature = experts, temp
        self.down = nn.Linear(c, experts * expert_width)
        self.up = nn.Linear(experts * expert_width, c, bias=False)
        self.up_bias = nn.Parameter(torch.zeros(experts, c))
        nn.init.zeros_(self.up.weight)
        self.gate = nn.Sequential(
            nn.Linear(c, gate_width), nn.ReLU(), nn.Linear(gate_width, experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) tokens, the same shape."""
        gate = (self.gate(x) / self.temperature).softmax(dim=-1)  # (B, T, K)
        hidden = F.gelu(self.down(x)).unflatten(-1, (self.experts, -1))
        # sum_k g_k (U_k h_k + b_k) = U (g h) + g b
        hidden = (hidden * gate[..., None]).flatten(-2)
        return x + self.up(hidden) + gate.to(hidden.dtype) @ self.up_bias.to(hidden.dtype)


def bin_edges_m(config: MoaDepthClipHead.Config) -> torch.Tensor:
    """(N + 1) depths between the nearest and the farthest, ascending; centres lie midway."""
    low, high, count = config.min_depth_m, config.max_depth_m, config.num_bins + 1
    if config.bins == 'uniform':
        return torch.linspace(low, high, count)
    return torch.linspace(math.log(low), math.log(high), count).exp()


def _blocks_of(config: MoaDepthClipHead.Config, spec: BackboneSpec) -> tuple[int, ...]:
    """Blocks, from 0, that an adapter follows on this tower."""
    after = config.after
    if after is None:
        after = tuple(round(k * spec.num_layers / 12) - 1 for k in AFTER_OF_12)
    found = tuple(sorted({k - config.first_block for k in after}))
    require(
        found and 0 <= found[0] and found[-1] < spec.num_layers,
        f'head moa_depthclip: adapters after blocks {after}, counted from {config.first_block}, '
        f'but tower {spec.tower!r} has {spec.num_layers} blocks.',
    )
    require(
        config.tuned_blocks <= spec.num_layers,
        f'head moa_depthclip: tuned_blocks = {config.tuned_blocks}, but tower {spec.tower!r} has '
        f'{spec.num_layers} blocks.',
    )
    return found
