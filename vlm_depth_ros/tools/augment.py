"""Random views of a batch with true camera geometry: what zooms the image also moves the focal.

A crop of a fraction c of the image has a focal length 1/c times as large relative to its own
width, so in the canonical camera its depth is c times as large: the canonical transform of
Metric3D (Yin et al. 2023). Roll and flip leave Z unchanged.
"""

from dataclasses import dataclass
import math

import torch
import torch.nn.functional as F
from vlm_depth_ros.core.features import BackboneSpec

BLENDED = (0.3, 0.7)
"""Bounds of the part that a view has in a blend."""


@dataclass(frozen=True)
class AugmentConfig:
    """Bounds of the random views; all zero (and ``min_crop`` 1) gives the plain centre view."""

    min_crop: float = 0.6
    """Smallest fraction of the image that a view may show."""
    aspect: float = 0.1
    """Log-uniform stretch between the axes."""
    roll_deg: float = 5.0
    flip: bool = True
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    channel: float = 0.1
    """Gain per colour channel."""
    gamma: float = 0.3
    grey: float = 0.05
    """Share of views without colour."""
    noise: float = 0.03
    """Largest standard deviation of added noise, of 1."""
    blur: float = 0.2
    """Share of blurred views."""


def random_views(
    rgb: torch.Tensor,
    depth_m: torch.Tensor,
    focal: torch.Tensor,
    canonical_focal: float,
    out_hw: tuple[int, int],
    config: AugmentConfig,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop, stretch, roll, flip and recolour every image of a batch its own way.

    Args:
        rgb: (B, 3, H, W) uint8.
        depth_m: (B, 1, H, W) metres, NaN where there is no truth.
        focal: (B,) normalised focal lengths (geometric mean of fx/W and fy/H).
        canonical_focal: That of the camera the network learns depth for.
        out_hw: Size of the views.
        config: Bounds.
        rng: Source of all randomness.

    Returns:
        (B, 3, h, w) float RGB in 0..1 and (B, 1, h, w) canonical depth in metres, NaN = no truth.
    """
    count = len(rgb)

    def uniform(low, high):
        return torch.empty(count).uniform_(low, high, generator=rng)

    crop = uniform(config.min_crop, 1.0)
    stretch = torch.exp(uniform(-config.aspect, config.aspect) / 2)
    crop_x, crop_y = (crop * stretch).clamp(max=1), (crop / stretch).clamp(max=1)
    roll = uniform(-1, 1) * math.radians(config.roll_deg)
    mirror = torch.where(uniform(0, 1) < 0.5 * config.flip, -1.0, 1.0)
    shift_x, shift_y = (1 - crop_x) * uniform(-1, 1), (1 - crop_y) * uniform(-1, 1)
    aspect = rgb.shape[-1] / rgb.shape[-2]
    cos, sin = roll.cos(), roll.sin()
    theta = torch.stack(
        [
            torch.stack([crop_x * cos * mirror, -crop_y * sin / aspect, shift_x], -1),
            torch.stack([crop_x * sin * aspect * mirror, crop_y * cos, shift_y], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, (count, 3, *out_hw), align_corners=False)
    view = F.grid_sample(rgb.float() / 255, grid, padding_mode='border', align_corners=False)
    depth = F.grid_sample(depth_m, grid, mode='nearest', align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None]
    depth = torch.where(inside & (depth > 0), depth, torch.nan)
    focal_here = focal / (crop_x * crop_y).sqrt()
    depth = depth * (canonical_focal / focal_here)[:, None, None, None]
    return recolour(view, config, rng), depth


def blend(
    view: torch.Tensor, valid: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix some views with their neighbours in the batch; these have no truth any more.

    Args:
        view: (B, 3, h, w) RGB in 0..1.
        valid: (B, 1, H, W) bool.
        share: How many of them.

    Returns:
        Both, changed.
    """
    chosen = torch.rand(len(view), 1, 1, 1, device=view.device) < share
    part = torch.empty(len(view), 1, 1, 1, device=view.device).uniform_(*BLENDED)
    mixed = part * view + (1 - part) * view.roll(1, 0)
    return torch.where(chosen, mixed, view), valid & ~chosen


def normalised(view: torch.Tensor, spec: BackboneSpec) -> torch.Tensor:
    """(B, 3, h, w) RGB in 0..1 as a tower wants it."""
    mean, std = (torch.tensor(v, device=view.device)[:, None, None] for v in (spec.mean, spec.std))
    return (view - mean) / std


def recolour(rgb: torch.Tensor, config: AugmentConfig, rng: torch.Generator) -> torch.Tensor:
    """Random exposure, contrast, saturation, white balance, gamma, blur and noise per image."""
    count = len(rgb)

    def gain(spread, channels=1):
        shape = (count, channels, 1, 1)
        return torch.exp(torch.empty(shape).uniform_(-spread, spread, generator=rng))

    def chance(share):
        return torch.rand((count, 1, 1, 1), generator=rng) < share

    rgb = rgb * gain(config.brightness) * gain(config.channel, 3)
    mean = rgb.mean((1, 2, 3), keepdim=True)
    rgb = (rgb - mean) * gain(config.contrast) + mean
    grey = rgb.mean(1, keepdim=True)
    saturation = torch.where(chance(config.grey), 0.0, gain(config.saturation))
    rgb = grey + (rgb - grey) * saturation
    rgb = rgb.clamp(1e-4, 1) ** gain(config.gamma)
    rgb = torch.where(chance(config.blur), _blurred(rgb), rgb)
    deviation = torch.rand((count, 1, 1, 1), generator=rng) * config.noise
    rgb = rgb + deviation * torch.randn(rgb.shape, generator=rng)
    return rgb.clamp(0, 1)


def _blurred(rgb: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
