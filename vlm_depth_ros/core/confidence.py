"""How sure a head is of each depth: learned after the depth, which it never changes."""

import torch
from torch import nn
import torch.nn.functional as F

WIDTH = 24
COARSER = 4
"""Whether a depth is right is a matter of regions: their mean says it better than each pixel."""
DROPPED = 0.3
NEAREST_M = 1e-3
"""Logarithms take nothing nearer."""


class ConfidenceHead(nn.Module):
    """The probability that depth is within a factor of 1.25 of the truth.

    It looks at the last map of a depth head and at the logarithm of its depth, both `COARSER`.
    ``gain`` and ``shift`` of the logit are fitted when all is trained (Platt 1999).

    Args:
        channels: Of that map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, WIDTH, 1),
            nn.ReLU(),
            nn.Dropout2d(DROPPED),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 1, 1),
        )
        self.register_buffer('gain', torch.ones(()))
        self.register_buffer('shift', torch.zeros(()))

    def forward(self, maps: torch.Tensor, depth_m: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) map and (B, 1, H, W) metres to the (B, 1, H, W) logit; no gradient back."""
        seen = torch.cat([maps, depth_m.clamp(min=NEAREST_M).log()], 1).detach()
        logit = self.layers(F.avg_pool2d(seen, COARSER))
        logit = F.interpolate(logit, depth_m.shape[-2:], mode='bilinear', align_corners=False)
        return self.gain * logit + self.shift
