"""Depth is learned in one camera: what to show the network of another, and what its depth means.

A lens of twice the focal length (over the image size) shows everything twice as large, as if it
were half as far. Either the image is made smaller, so that things have the size that the network
knows, or its depth is multiplied: the two canonical transforms of Metric3D (Yin et al. 2023,
arXiv 2307.10984, CSTM-image and CSTM-label). Networks that learned with random crops answer
between the two, so a model may divide the difference among both (`ModelConfig.size_by_focal`).
"""

import math
from typing import NamedTuple

from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.geometry import CameraIntrinsics

LARGEST = 2.0
"""Most pixels of a network input, as a multiple of those of ``input_hw``."""


class Seen(NamedTuple):
    """How a network sees the image of one camera."""

    input_hw: tuple[int, int]
    """What the image is resized to."""
    depth_scale: float
    """Depth at the camera over depth that the network answers."""


def seen_by(
    model: ModelConfig, intrinsics: CameraIntrinsics | None, size_multiple: int = 1
) -> Seen:
    """What the network is to see of a camera's image, and the factor on its depth.

    Args:
        model: Its training camera, and how much of a difference the size of the input takes.
        intrinsics: The camera at hand; None: one like that of the training.
        size_multiple: What height and width of the input must be multiples of.
    """
    height, width = model.input_hw
    if intrinsics is None or model.camera is None:
        return Seen(model.input_hw, 1.0)
    share, focal = model.size_by_focal, intrinsics.normalised_focal / model.camera.focal
    if not share:
        return Seen(model.input_hw, focal)
    fx_per_width = intrinsics.fx_px / intrinsics.width_px
    fy_per_height = intrinsics.fy_px / intrinsics.height_px
    grown_h = height * (model.camera.fy_per_height / fy_per_height) ** share
    grown_w = width * (model.camera.fx_per_width / fx_per_width) ** share
    shrink = min(1.0, math.sqrt(LARGEST * height * width / (grown_h * grown_w)))
    input_hw = tuple(
        max(1, round(side * shrink / size_multiple)) * size_multiple for side in (grown_h, grown_w)
    )
    # A larger input shows everything larger too.
    return Seen(input_hw, focal * math.sqrt(math.prod(input_hw) / (height * width)))
