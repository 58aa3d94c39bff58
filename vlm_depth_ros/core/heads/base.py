"""The contract of a depth head: which maps it wants, and depth in metres out of them."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.tower_change import TowerChange


@dataclass
class HeadOutput:
    """What a head answers; sizes are the head's own, the estimator resizes."""

    depth_m: torch.Tensor
    """(B, 1, h, w) metres along the optical axis, in the camera the head was trained for."""
    confidence: torch.Tensor | None = None
    """(B, 1, h, w) in 0..1, or None where the head has none."""
    extras: dict = field(default_factory=dict)
    """In training ``aux_depth_m``; ``embedding`` (B, E) where `DepthModel` was asked for it."""


class DepthHead(nn.Module):
    """A text-free head on a frozen tower's `Features`.

    Subclasses set `name` (registry key = file stem = test id) and `Config` (frozen, checks
    itself), fill `layers` when built, and refuse a tower they cannot work on with a
    ``ConfigError`` that names both.
    """

    name: ClassVar[str]
    Config: ClassVar[type]

    layers: tuple[int, ...]
    """Indices of ``Features.maps`` that `forward` reads."""
    tower_change: TowerChange | None
    """What stands between the tower's blocks while it runs for this head; most have nothing."""

    def __init__(self, config, spec: BackboneSpec):
        super().__init__()
        self.config = config
        self.spec = spec
        self.tower_change = None

    def forward(self, features: Features) -> HeadOutput:
        """Depth from features."""
        raise TypeError(f'{type(self).__name__} does not define forward().')
