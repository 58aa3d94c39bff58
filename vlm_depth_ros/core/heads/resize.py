"""How heads bring maps to one grid."""

import torch
import torch.nn.functional as F


def resized(x: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """(B, C, h, w) on the grid `hw`, bilinear, corners not aligned; `x` itself where it is."""
    if tuple(x.shape[-2:]) == tuple(hw):
        return x
    return F.interpolate(x, tuple(hw), mode='bilinear', align_corners=False)
