"""Depth that stands still where the world does, and leaves no trail where it moves."""

from collections.abc import Hashable
from dataclasses import dataclass
import math
from typing import TypeVar

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.options import TemporalOptions

Array = TypeVar('Array', np.ndarray, torch.Tensor)
"""NumPy on a CPU, steady while other programs run; torch elsewhere."""


@dataclass(frozen=True, eq=False)
class _Past:
    depth: torch.Tensor
    grey: Array
    stamp_s: float
    camera: Hashable


class TemporalFilter:
    """Recursive smoothing of the depth of one camera, pixel by pixel, without motion vectors.

    With the relative change c = abs(before - now) / now, a pixel whose c is below `max_change` and
    whose grey value is as before becomes now + weight (1 - c / max_change) (before - now); any
    other is that of now. So no pixel ever lies farther than weight * max_change / 4 (1 % with
    0.8 and 0.05) from what the network says of this very frame: that is the longest trail.

    Args:
        options: May be exchanged between frames.
    """

    def __init__(self, options: TemporalOptions):
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget the past; the next frame comes out as it is."""
        self._past: _Past | None = None

    @torch.no_grad()
    def __call__(
        self,
        depth: torch.Tensor,
        image: torch.Tensor,
        stamp_s: float,
        camera: Hashable = None,
    ) -> torch.Tensor:
        """Smooth one frame; the past is dropped on a cut, a pause or a jump back in time.

        Args:
            depth: (H, W) float32 metres, NaN where missing. It is kept until the next frame and
                never written to; neither must the caller.
            image: (3, H, W) uint8 RGB at the size of the depth, on its device.
            stamp_s: When it was taken.
            camera: Whatever is equal for the same camera; another one drops the past.

        Returns:
            (H, W), NaN exactly where `depth` is; the very same tensor with weight 0, or where
            there is no past.

        Raises:
            InputError: If the image does not fit the depth.
        """
        if not self.options.weight:
            self.reset()
            return depth
        if image.shape != (3, *depth.shape) or image.device != depth.device:
            raise InputError(
                f'image has shape {tuple(image.shape)} on {image.device}: expected '
                f'{(3, *depth.shape)} on {depth.device}, as the depth.'
            )
        grey = _grey(image)
        if self._follows(depth, stamp_s, camera):
            depth = self._blended(depth, grey)
        self._past = _Past(depth, grey, stamp_s, camera)
        return depth

    def _follows(self, depth: torch.Tensor, stamp_s: float, camera: Hashable) -> bool:
        past = self._past
        return (
            past is not None
            and past.depth.shape == depth.shape
            and past.depth.device == depth.device
            and past.camera == camera
            and 0 <= stamp_s - past.stamp_s <= self.options.max_gap_s
        )

    def _blended(self, depth: torch.Tensor, grey: Array) -> torch.Tensor:
        options, past = self.options, self._past
        on_cpu = depth.device.type == 'cpu'
        z, before = (depth.numpy(), past.depth.numpy()) if on_cpu else (depth, past.depth)
        count = np.count_nonzero if on_cpu else torch.count_nonzero
        with np.errstate(all='ignore'):  # Depth of 0 or infinite changes by NaN.
            step = before - z
            change = abs(step)
            change /= z
        keep = change < options.max_change
        keep &= _difference(grey, past.grey) < math.ceil(options.max_grey)
        known = int(count(change == change))  # NaN is not equal to itself.
        if known - int(count(keep)) > options.cut_share * known:
            return depth
        change *= -options.weight / options.max_change
        change += options.weight
        step *= change
        step += z
        if not on_cpu:
            return torch.where(keep, step, z)
        cv2.copyTo(z, (~keep).view(np.uint8), step)
        return torch.from_numpy(step)


def _grey(image: torch.Tensor) -> Array:
    """Luma (ITU-R BT.601) of a (3, H, W) image as a new (H, W): uint8, or int16 on a device.

    A copy, because the image may lie in a message that its sender writes anew.
    """
    if image.device.type == 'cpu':
        rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    red, green, blue = image.float()
    return (0.299 * red + 0.587 * green + 0.114 * blue).round().to(torch.int16)


def _difference(one: Array, other: Array) -> Array:
    """Between two of `_grey`, without a sign."""
    if isinstance(one, np.ndarray):
        return cv2.absdiff(one, other)
    return abs(one - other)
