"""The plainest head: one 1x1 convolution on one map; what it cannot do, a better head must show.

It exists to prove the `Features` contract on every kind of tower and as the lowest honest
baseline: depth is the softplus of a linear function of the last map and the pooled vector.
"""

from dataclasses import dataclass

from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput


class LinearHead(DepthHead):
    """softplus(W map + V pooled + b) on one map, at that map's own size."""

    name = 'linear'

    @dataclass(frozen=True)
    class Config:
        """Options of the linear head."""

        layer: int = -1
        """Which map to read; negative counts from the last."""

        def __post_init__(self):
            """Check types."""
            require(isinstance(self.layer, int), f'layer = {self.layer!r}: expected an integer.')

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        layer = config.layer + len(spec.widths) if config.layer < 0 else config.layer
        require(
            0 <= layer <= spec.num_layers,
            f'head linear: layer {config.layer} does not exist on tower {spec.tower!r} '
            f'(0 to {spec.num_layers}).',
        )
        self.layers = (layer,)
        self.local = nn.Conv2d(spec.widths[layer], 1, 1)
        self.globally = nn.Linear(spec.pooled_width, 1, bias=False)

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, h, w) depth at the map's grid."""
        score = self.local(features.maps[self.layers[0]])
        score = score + self.globally(features.pooled)[:, :, None, None]
        return HeadOutput(F.softplus(score))
