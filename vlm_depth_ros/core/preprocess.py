"""Camera image to network input on the device, and the exact way back for depth.

``squash-bicubic-v1``: the whole image is squashed to the network size without keeping its aspect,
antialiased bicubic, rounded to 8 bits as PIL does it, scaled to 0..1 and normalised with the
tower's mean and std. The undo is one bilinear resize to the camera's grid (half-pixel centres on
both ways), so a pixel's depth stays on its ray. ``squash-bicubic-imagenet-v1`` is the same with
the mean and std of ImageNet, which the official DepthCLIP uses on CLIP's tower.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec

PREPROCESSES = {
    'squash-bicubic-v1': None,
    'squash-bicubic-imagenet-v1': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std by the name of a preprocessing; None: the tower's own."""
_SMOOTH = {'antialias': True, 'align_corners': False}


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that a preprocessing brings along; None: it takes the tower's.

    Raises:
        ConfigError: If this version does not have it.
    """
    if name not in PREPROCESSES:
        raise ConfigError(
            f'preprocess {name!r} is unknown here. Expected one of {tuple(PREPROCESSES)}; update '
            'the package.'
        )
    return PREPROCESSES[name]


def upload(rgb: np.ndarray, device: torch.device) -> torch.Tensor:
    """(H, W, 3) uint8 RGB array to a (3, H, W) uint8 tensor on the device, channels last."""
    rgb = np.require(rgb, requirements='CW')  # a copy only where torch would warn or refuse
    image = torch.from_numpy(rgb)
    if device.type == 'cuda':
        # From other memory CUDA copies while the thread waits. torch keeps and reuses pinned
        # blocks, each only after the copy from it is done.
        image = image.pin_memory()
    return image.to(device, non_blocking=True).permute(2, 0, 1)


def network_input(
    rgb: torch.Tensor, input_hw: tuple[int, int], mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Squash and normalise.

    Args:
        rgb: (B, 3, H, W) uint8 RGB.
        input_hw: Network size.
        mean: (3, 1, 1), in 0..1, on the same device.
        std: (3, 1, 1), likewise.

    Returns:
        (B, 3, h, w) float32.
    """
    if tuple(rgb.shape[-2:]) != tuple(input_hw):
        rgb = _squash(rgb, input_hw)
    return (rgb.float() / 255).sub_(mean).div_(std)


class InputBatch:
    """Makes one batch of camera images, as a tower wants it.

    Args:
        spec: Says mean and deviation.
        device: Where the images lie.
    """

    def __init__(self, spec: BackboneSpec, device: torch.device):
        self._mean, self._std = (
            torch.tensor(v, device=device)[:, None, None] for v in (spec.mean, spec.std)
        )

    def __call__(self, images: Sequence[torch.Tensor], hw: tuple[int, int]) -> torch.Tensor:
        """(B, 3, h, w) float32 in channels-last of (3, H, W) uint8 images of any sizes."""
        inputs = [network_input(i[None], hw, self._mean, self._std) for i in images]
        batch = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        return batch.contiguous(memory_format=torch.channels_last)


def _squash(rgb: torch.Tensor, hw: tuple[int, int], mode: str = 'bicubic') -> torch.Tensor:
    if rgb.device.type != 'cpu':
        return _squash_as_float(rgb, hw, mode)
    # torch has PIL's own 8-bit algorithm, on the CPU only.
    return F.interpolate(rgb, size=tuple(hw), mode=mode, **_SMOOTH)


def _squash_as_float(
    rgb: torch.Tensor, hw: tuple[int, int], mode: str = 'bicubic'
) -> torch.Tensor:
    """Across, then down, 8 bits each: in one pass, edges overshoot that PIL clips."""
    for size in ((rgb.shape[-2], hw[1]), tuple(hw)):
        rgb = F.interpolate(rgb.float(), size=size, mode=mode, **_SMOOTH)
        rgb = rgb.round_().clamp_(0, 255)
    return rgb


def to_camera_grid(depth: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """(B, 1, h, w) head output to (B, 1, H, W) on the camera's pixels, bilinear."""
    if tuple(depth.shape[-2:]) == tuple(hw):
        return depth
    return F.interpolate(depth, size=tuple(hw), mode='bilinear', align_corners=False)


def resize_rgb(rgb: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8 to (3, h, w) uint8, antialiased bilinear; the colour of a smaller depth."""
    if tuple(rgb.shape[-2:]) == tuple(hw):
        return rgb
    return _squash(rgb[None], hw, 'bilinear')[0].to(torch.uint8)


def sampling_grid(map_xy: np.ndarray, device: torch.device) -> torch.Tensor:
    """Rectification map (H, W, 2) of source pixels to a (1, H, W, 2) grid for `remap`."""
    height, width = map_xy.shape[:2]
    grid = torch.from_numpy(np.ascontiguousarray(map_xy, dtype=np.float32)).to(device)
    size = torch.tensor([width, height], device=device, dtype=torch.float32)
    return ((grid + 0.5) * 2 / size - 1)[None]


def remap(rgb: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Rectify a (3, H, W) uint8 image by a `sampling_grid`; pixels without a source are black."""
    warped = F.grid_sample(rgb[None].float(), grid, align_corners=False, padding_mode='zeros')
    return warped[0].round_().to(torch.uint8)


def has_source(grid: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: which pixels of a `sampling_grid` look at the source image at all."""
    return (grid[0].abs() <= 1).all(dim=-1)
