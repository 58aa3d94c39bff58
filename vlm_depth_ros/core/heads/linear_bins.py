"""The linear depth head of the DINOv2 study (Oquab et al., arXiv 2304.07193).

Patch tokens of one or four layers and a global vector, resized to four times the grid, 1x1
convolution to 256 bins, expected depth (`core.bins`). The authors' module is called a BatchNorm
head, but its BatchNorm is switched off in the code that they published; there is none here.

Theirs joins the maps, resizes them and convolves. A 1x1 convolution and a bilinear resize are
linear and commute, so here each map has its share of the convolution at its own grid and only
the logits are resized: the same function for a sixteenth of the products.

Ours: by default the global vector is ``Features.pooled``, joined once, which every tower has (the
study's, each layer's own class token: ``class_token='own'``); and hierarchical towers, where four
layers are the deepest maps of strides 4, 8, 16 and 32, and one layer is the last map.
"""

from dataclasses import dataclass

import torch
from torch import nn
from vlm_depth_ros.core.bins import bin_depths_m, check_bins, expected_depth_m
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.class_token import (
    check_class_token,
    global_vectors,
    global_widths,
)
from vlm_depth_ros.core.heads.resize import resized

UPSAMPLE = 4
FOUR_OF_12 = (3, 6, 9, 12)
FOUR_OF_24 = (5, 12, 18, 24)
"""The study's choice for 24 blocks, whose first is not a quarter of the depth."""
FOUR_STRIDES = (4, 8, 16, 32)


class LinearBinsHead(DepthHead):
    """Depth in metres at four times the deepest grid, or at the finest map's where that is finer.

    The range of the bins is ``depth_range_m`` of the model: no depth outside it can be answered.
    """

    name = 'linear_bins'

    @dataclass(frozen=True)
    class Config:
        """Options; the defaults are the study's four-layer head for NYU Depth V2."""

        layers: int | tuple[int, ...] = 4
        """1: the last layer; 4: the study's four; or a list of layer numbers, ascending."""
        num_bins: int = 256
        class_token: str = 'pooled'
        """The global vector: ``pooled`` of the tower, once; or ``own``, the raw class token of
        each layer, the study's."""
        bins: str = 'uniform'
        """Depths spaced evenly (``uniform``, the study's) or evenly in the logarithm (``log``)."""
        depth_range_m: tuple[float, float] = (0.001, 10.0)
        """Nearest and farthest depth: those of the model, as which they are where left out."""

        def __post_init__(self):
            """Check names and sizes."""
            require(
                (type(self.layers) is int and self.layers in (1, 4))
                or (isinstance(self.layers, tuple) and len(self.layers) > 0),
                f'layers = {self.layers!r}: expected 1, 4 or a list of layer numbers.',
            )
            check_class_token(self.class_token)
            check_bins(self.num_bins, self.bins, self.depth_range_m)

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        if config.layers == 1:
            self.layers = (spec.num_layers,)
        else:
            named = None if config.layers == 4 else config.layers
            self.layers = layers_or_four(named, spec, self.name)
        self.local = nn.ModuleList(
            nn.Conv2d(spec.widths[k], config.num_bins, 1, bias=False) for k in self.layers
        )
        # One vector for all layers is joined once: more copies of its matrix say nothing new.
        self._joined = self.layers[-1:] if config.class_token == 'pooled' else self.layers
        widths = global_widths(config.class_token, self._joined, spec, self.name)
        self.globally = nn.Linear(sum(widths), config.num_bins)
        depths_m = bin_depths_m(config.num_bins, config.bins, config.depth_range_m)
        self.register_buffer('depths_m', depths_m, persistent=False)

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, h, w) depth within the range."""
        maps = [features.maps[k] for k in self.layers]
        hw = tuple(max(UPSAMPLE * maps[-1].shape[i], maps[0].shape[i]) for i in (-2, -1))
        vectors = global_vectors(self.config.class_token, self._joined, features)
        logits = self.globally(torch.cat(vectors, dim=1))[:, :, None, None]
        for x, project in zip(maps, self.local):
            logits = logits + resized(project(x), hw)
        return HeadOutput(expected_depth_m(logits, self.depths_m))


def layers_or_four(
    layers: tuple[int, ...] | None, spec: BackboneSpec, head: str
) -> tuple[int, ...]:
    """The `layers` that are named, else `four_layers`; raises ConfigError as these do."""
    return four_layers(spec, head) if layers is None else checked_layers(layers, spec, head)


def four_layers(spec: BackboneSpec, head: str) -> tuple[int, ...]:
    """The layers that the study reads, shallow to deep, on this tower.

    Quarters of the depth (those of 12 and of 40 blocks in the study), and its own four of 24.

    Raises:
        ConfigError: If a hierarchical tower lacks one of the strides, naming head and tower.
    """
    if not spec.is_hierarchical:
        found = FOUR_OF_24 if spec.num_layers == 24 else tuple(
            round(k * spec.num_layers / 12) for k in FOUR_OF_12
        )  # fmt: skip
        return checked_layers(found, spec, head)
    deepest = {stride: k for k, stride in enumerate(spec.strides)}
    missing = [s for s in FOUR_STRIDES if s not in deepest]
    require(
        not missing,
        f'head {head} cannot work on tower {spec.tower!r}: it has no map of stride {missing} '
        f'(strides {spec.strides}). Name its layers in layers.',
    )
    return tuple(deepest[s] for s in FOUR_STRIDES)


def checked_layers(layers: tuple[int, ...], spec: BackboneSpec, head: str) -> tuple[int, ...]:
    """`layers`, if the tower has them and they ascend.

    Raises:
        ConfigError: If not, naming head and tower.
    """
    require(
        all(type(k) is int and 0 <= k <= spec.num_layers for k in layers)
        and list(layers) == sorted(set(layers)),
        f'head {head}: layers {layers} do not fit tower {spec.tower!r}: expected ascending '
        f'numbers from 0 to {spec.num_layers}.',
    )
    return layers
