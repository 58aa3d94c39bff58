"""Depth as a picture with a fixed range: the same colour means the same metres in every frame."""

from functools import lru_cache

import cv2
import numpy as np
import torch

UNKNOWN_BGR = (0, 0, 0)
"""Colour of NaN and of too near."""
BEYOND_BGR = (64, 64, 64)
"""Colour of beyond range."""


@lru_cache(maxsize=4)
def _palette(device: torch.device) -> torch.Tensor:
    """(258, 3) uint8 BGR: near is red, far is blue (Turbo), then beyond, then unknown."""
    ramp = np.arange(255, -1, -1, dtype=np.uint8)[:, None]
    turbo = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0]
    table = np.concatenate([turbo, [BEYOND_BGR], [UNKNOWN_BGR]]).astype(np.uint8)
    return torch.from_numpy(table).to(device)


def colour_depth(depth_m: torch.Tensor, range_m: tuple[float, float]) -> torch.Tensor:
    """Colour a depth map on its device, linear in depth.

    Args:
        depth_m: (H, W) metres; NaN unknown, +Inf beyond range.
        range_m: Depths of the first and the last colour.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    low, high = range_m
    index = ((depth_m - low) * (255 / (high - low))).clamp(0, 255)
    index = torch.where(depth_m == torch.inf, 256.0, index)
    index = torch.where(torch.isnan(depth_m) | (depth_m == -torch.inf), 257.0, index)
    return _palette(depth_m.device)[index.long()]
