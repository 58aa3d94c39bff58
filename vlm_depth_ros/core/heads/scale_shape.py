"""A head of our own: log depth is the scale of the scene plus the shape of what is in it.

Part of the error of a small tower is the scale of a whole image: one number, which no cell knows
from its surroundings. So it is answered by itself, from everything that the deepest map and the
pooled vector say, and has a term of the loss of its own. The shape is a map of log ratios to it,
an expectation over bins (`core.bins` has the literature), decoded coarse to fine as in a feature
pyramid (Lin et al., arXiv 1612.03144).

Where `space_clip` spends its products, on 3x3 convolutions of joined maps at high resolution,
this one adds maps, projects before it enlarges (a 1x1 convolution and a bilinear resize commute)
and has no convolution beyond eight times the deepest grid.

B batch, c_0 width of the trunk, c_1 to c_3 of the stages, h, w the deepest grid, T = hw + 1.
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
from vlm_depth_ros.core.heads.linear_bins import layers_or_four
from vlm_depth_ros.core.heads.resize import resized

REFINES = ('guided', 'bilinear')
WIDEST_RATIO = 8.0
"""A cell is at most so many times farther or nearer than the scale."""
ATTENTION_HEADS = 4
SCALE_WIDTH = 32
"""Narrow: a training set has as many scales as images, and those are few."""
LEAST_SHARE = 1e-3
"""With which a neighbour starts that a bilinear resize would not ask."""


class ScaleShapeHead(DepthHead):
    """Depth in metres at 16 times the deepest of four grids, as `space_clip`'s."""

    name = 'scale_shape'

    @dataclass(frozen=True)
    class Config:
        """Options; the first three are for an ablation."""

        scale: bool = True
        """Answer the scale of the scene by itself; False: it is always `start_m`."""
        num_bins: int = 64
        """Log ratios whose expectation is the shape; 1: it is a plain regression."""
        refine: str = 'guided'
        """The last doubling: ``guided`` weighs the nine cells around by what the map there shows
        (Teed and Deng, arXiv 2003.12039, their convex upsampling), ``bilinear`` does not look."""
        layers: tuple[int, ...] | None = None
        """Four layers, ascending; None: as `linear_bins` chooses them."""
        widths: tuple[int, ...] = (128, 96, 64, 32)
        """Channels c_0 to c_3."""
        dropout: float = 0.1
        """Share of channels that are hidden while training: of the tower's maps and pooled vector,
        and of what the scale is answered from."""
        start_m: float = 2.0
        """Depth at which an untrained head answers, best near that of the data."""
        confidence: bool = False
        """Also answer how likely each depth is right (`core.confidence`; it changes no depth)."""

        def __post_init__(self):
            """Check names and sizes."""
            require(
                type(self.scale) is bool, f'scale = {self.scale!r}: expected true or false.'
            )
            require(
                type(self.num_bins) is int and self.num_bins > 0,
                f'num_bins = {self.num_bins!r}: expected a positive integer.',
            )
            require(
                self.refine in REFINES, f'refine = {self.refine!r}: expected one of {REFINES}.'
            )
            require(
                self.layers is None or (isinstance(self.layers, tuple) and len(self.layers) == 4),
                f'layers = {self.layers!r}: expected four layer numbers.',
            )
            require(
                len(self.widths) == 4
                and all(type(c) is int and c > 0 for c in self.widths)
                and self.widths[0] % ATTENTION_HEADS == 0,
                f'widths = {self.widths}: expected four positive integers, the first a multiple '
                f'of {ATTENTION_HEADS}.',
            )
            require(0 <= self.dropout < 1, f'dropout = {self.dropout}: expected 0 to below 1.')
            require(
                0 < self.start_m < math.inf,
                f'start_m = {self.start_m}: expected a positive depth.',
            )

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        self.layers = layers_or_four(config.layers, spec, self.name)
        c = config.widths
        *skips, deepest = (spec.widths[k] for k in self.layers)
        self.trunk = Trunk(deepest, spec.pooled_width, c[0], config.dropout)
        self.stages = nn.ModuleList(
            Stage(c[i], skip, c[i + 1], config.dropout) for i, skip in enumerate(reversed(skips))
        )
        if config.scale:
            self.scale = nn.Sequential(
                nn.LayerNorm(3 * c[0]),
                nn.Dropout(config.dropout),
                nn.Linear(3 * c[0], SCALE_WIDTH),
                nn.GELU(),
                nn.Linear(SCALE_WIDTH, 1),
            )
            nn.init.zeros_(self.scale[-1].weight)
            nn.init.zeros_(self.scale[-1].bias)
        self.shape = nn.Conv2d(c[3], config.num_bins, 1)
        if config.num_bins > 1:
            widest = math.log(WIDEST_RATIO)
            ratios = torch.linspace(-widest, widest, config.num_bins)
            self.register_buffer('log_ratios', ratios, persistent=False)
        if config.refine == 'guided':
            self.guide = Guide(c[3])
        if config.confidence:
            self.confidence_head = ConfidenceHead(c[3])

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, 16h, 16w) depth, and confidence where it was asked for.

        In training also ``extras['aux_depth_m']``: the scale alone, (B, 1, 1, 1); while the
        confidence is in training, ``['confidence_logit']``.
        """
        *skips, deepest = (features.maps[k] for k in self.layers)
        x, scene = self.trunk(deepest, features.pooled)
        for stage, skip in zip(self.stages, reversed(skips)):
            x = stage(x, skip)
        extras = {}
        log_m = self._log_shape(x) + math.log(self.config.start_m)
        if self.config.scale:
            log_scale = self.scale(scene).float()[:, :, None, None]
            log_m = log_m + log_scale
            if self.training:
                extras['aux_depth_m'] = [self.config.start_m * log_scale.exp()]
        hw = tuple(2 * n for n in x.shape[-2:])
        finer = self.guide(log_m, x) if self.config.refine == 'guided' else resized(log_m, hw)
        found = HeadOutput(finer.exp(), extras=extras)
        if self.config.confidence:
            logit = resized(self.confidence_head(x, log_m.exp()), hw)
            found.confidence = logit.sigmoid()
            if self.confidence_head.training:
                found.extras['confidence_logit'] = logit
        return found

    def _log_shape(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 8h, 8w) logarithm of the ratio to the scale, at least float32."""
        logits = self.shape(x).float()
        if self.config.num_bins == 1:
            return logits
        weights = logits.softmax(dim=1)
        return (weights * self.log_ratios[:, None, None]).sum(dim=1, keepdim=True)


class Trunk(nn.Module):
    """A transformer block over the deepest cells, their places and a token of the pooled vector.

    Each cell meets each other once, which no stack of small convolutions has to offer.
    """

    def __init__(self, c_in: int, c_pooled: int, c: int, dropout: float):
        super().__init__()
        self.drop_map, self.drop_pooled = nn.Dropout2d(dropout), nn.Dropout(dropout)
        self.local = nn.Sequential(nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c))
        self.place = nn.Linear(2, c, bias=False)
        self.globally = nn.Sequential(nn.LayerNorm(c_pooled), nn.Linear(c_pooled, c))
        self.norm = nn.LayerNorm(c)
        self.ask = nn.Linear(c, 3 * c)
        self.join = nn.Linear(c, c)
        self.think = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)
        )

    def forward(
        self, x: torch.Tensor, pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, h, w) and (B, P) to (B, c_0, h, w) and what describes the scene, (B, 3 c_0)."""
        x = self.local(self.drop_map(x))
        hw = x.shape[-2:]
        cells = x.flatten(2).transpose(1, 2) + self.place(_places(hw, x))
        token = self.globally(self.drop_pooled(pooled))[:, None]
        x = torch.cat([token.to(cells.dtype), cells], dim=1)  # (B, T, c_0)
        asked = self.ask(self.norm(x)).unflatten(-1, (3, ATTENTION_HEADS, -1))
        query, key, value = asked.permute(2, 0, 3, 1, 4)  # (B, heads, T, c_0 / heads) each
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.join(seen.transpose(1, 2).flatten(2))
        x = x + self.think(x)
        token, cells = x[:, 0], x[:, 1:]
        spread = (cells.var(dim=1, correction=0) + 1e-6).sqrt()
        scene = torch.cat([token, cells.mean(dim=1), spread], dim=1)
        return cells.transpose(1, 2).unflatten(2, hw), scene


class Stage(nn.Module):
    """Twice the grid: what came up plus a skip, ReLU, two 3x3 convolutions around an identity."""

    def __init__(self, c_in: int, c_skip: int, c: int, dropout: float):
        super().__init__()
        # A norm for each: the maps of a tower may differ in scale by a factor of six.
        self.up = nn.Sequential(nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c))
        self.drop = nn.Dropout2d(dropout)
        self.skip = nn.Sequential(nn.Conv2d(c_skip, c, 1, bias=False), nn.BatchNorm2d(c))
        self.refine = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, c_in, h, w) and a skip of any grid to (B, c, 2h, 2w)."""
        hw = tuple(2 * n for n in x.shape[-2:])
        x = F.relu(resized(self.up(x), hw) + resized(self.skip(self.drop(skip)), hw))
        return F.relu(x + self.refine(x))


class Guide(nn.Module):
    """Twice the grid: each new cell is a mean of the nine around it, weighed by a map.

    It starts as a bilinear resize and can but interpolate: no value beyond its neighbours', so no
    pattern that the neighbours lack.
    """

    def __init__(self, c: int):
        super().__init__()
        self.weigh = nn.Conv2d(c, 9 * 4, 1)
        nn.init.zeros_(self.weigh.weight)
        with torch.no_grad():
            self.weigh.bias.copy_(_bilinear_shares().clamp(min=LEAST_SHARE).log().flatten())

    def forward(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, h, w) float32 values and (B, C, h, w) to (B, 1, 2h, 2w)."""
        h, w = values.shape[-2:]
        shares = self.weigh(x).float().unflatten(1, (9, 4)).softmax(dim=1)
        padded = F.pad(values, (1, 1, 1, 1), mode='replicate')
        around = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
        finer = (shares * torch.cat(around, dim=1)[:, :, None]).sum(dim=1)  # (B, 4, h, w)
        return F.pixel_shuffle(finer, 2)


def _bilinear_shares() -> torch.Tensor:
    """(9, 4) share of each cell around, row by row, in each of the four new cells."""
    # Of the cell before, itself and the cell behind, half a cell before and behind its centre.
    one_way = torch.tensor([[0.25, 0.0], [0.75, 0.75], [0.0, 0.25]])
    return torch.einsum('ia,jb->ijab', one_way, one_way).reshape(9, 4)


def _places(hw: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """(hw, 2) centres of the cells, y and x in -1..1 of height and width."""
    y, x = (
        (torch.arange(n, device=like.device, dtype=torch.float32) + 0.5) * 2 / n - 1 for n in hw
    )
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1).flatten(0, 1)
