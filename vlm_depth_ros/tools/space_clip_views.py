"""What SPACE-CLIP's published training shows the network of an image, step by step.

Rotation, crop, mirror, colour, squash, in this order and with these bounds: the release of
https://github.com/taewan2002/SPACE-CLIP (commit 543eb5e, ``utils/dataloader.py``). The camera has
no part in it: a crop is a zoom whose metres stay, which `augment.random_views` mends.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.preprocess import network_input


@dataclass(frozen=True)
class SpaceClipAugment:
    """Bounds of the published views."""

    crop_hw: tuple[int, int]
    """Size that is cut out of the image as stored; a smaller image is resized to it."""
    roll_deg: float = 1.0
    flip: float = 0.5
    """Share of mirrored views."""
    recolour: float = 0.5
    """Share of views with changed colours."""
    gamma: float = 0.1
    """Exponent from 1 - gamma to 1 + gamma; so for the two gains below."""
    brightness: float = 0.1
    channel: float = 0.1
    """Gain per colour channel."""

    def __post_init__(self):
        """Check the size."""
        require(
            len(self.crop_hw) == 2 and all(isinstance(n, int) and n > 0 for n in self.crop_hw),
            f'augment: crop_hw = {self.crop_hw}, expected two positive integers, height first.',
        )


def space_clip_view(
    rgb: np.ndarray,
    depth_m: np.ndarray,
    view_hw: tuple[int, int],
    config: SpaceClipAugment,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show one image as published.

    Args:
        rgb: (H, W, 3) uint8, as stored.
        depth_m: (H, W) float32 metres, 0 where nothing was measured.
        view_hw: Size of the network input.
        config: Bounds.
        rng: Source of all randomness.

    Returns:
        (3, h, w) float32 RGB in 0..1, and (1, *crop_hw) metres, not resized.
    """

    def uniform(low, high):
        return torch.empty(()).uniform_(low, high, generator=rng).item()

    angle_deg = uniform(-config.roll_deg, config.roll_deg)
    rgb = _rotated(rgb, angle_deg, cv2.INTER_CUBIC)
    depth_m = _rotated(depth_m, angle_deg, cv2.INTER_NEAREST)
    rgb, depth_m = _cropped(rgb, depth_m, config.crop_hw, rng)
    # Eight bits become numbers in 0..1 and eight bits again, rounded down, as in the release.
    image = rgb.astype(np.float32) / 255
    if uniform(0, 1) < config.flip:
        image, depth_m = image[:, ::-1], depth_m[:, ::-1]
    if uniform(0, 1) < config.recolour:
        image = image ** np.float32(uniform(1 - config.gamma, 1 + config.gamma))
        image = image * np.float32(uniform(1 - config.brightness, 1 + config.brightness))
        gains = [uniform(1 - config.channel, 1 + config.channel) for _ in range(3)]
        image = np.clip(image * np.float32(gains), 0, 1)
    eight_bits = torch.from_numpy((image * 255).astype(np.uint8)).permute(2, 0, 1)
    view = network_input(eight_bits[None], view_hw, torch.zeros(()), torch.ones(()))[0]
    return view, torch.from_numpy(np.ascontiguousarray(depth_m))[None]


def _rotated(picture: np.ndarray, angle_deg: float, way: int) -> np.ndarray:
    """Turn counter-clockwise about the middle; what comes from outside is 0."""
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle_deg, 1.0)
    return cv2.warpAffine(picture, turn, (width, height), flags=way)


def _cropped(
    rgb: np.ndarray, depth_m: np.ndarray, hw: tuple[int, int], rng: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    room = [have - want for have, want in zip(rgb.shape[:2], hw)]
    if min(room) < 0:
        return (
            cv2.resize(rgb, hw[::-1], interpolation=cv2.INTER_CUBIC),
            cv2.resize(depth_m, hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT),
        )
    left, top = (torch.randint(n + 1, (), generator=rng).item() for n in reversed(room))
    inside = slice(top, top + hw[0]), slice(left, left + hw[1])
    return rgb[inside], depth_m[inside]
