"""The robot's door of the estimator: a camera's frame in, packed outputs out, on the device."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from vlm_depth_ros.core.colormap import colour_depth
from vlm_depth_ros.core.config import OutputOptions
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, CameraModel
from vlm_depth_ros.core.packing import (
    camera_info_of,
    gate_depth,
    pack_cloud,
    pack_color,
    pack_confidence,
    pack_depth,
    PackedCameraInfo,
    PackedCloud,
    PackedImage,
)
from vlm_depth_ros.core.predictions import check_rgb
from vlm_depth_ros.core.preprocess import (
    has_source,
    remap,
    resize_rgb,
    sampling_grid,
    to_camera_grid,
    upload,
)

EMBEDDING = 'embedding'
"""The one output that is no depth."""


@dataclass(frozen=True)
class Frame:
    """One camera image and what is wanted of it."""

    rgb: np.ndarray
    """(H, W, 3) uint8 RGB."""
    camera: CameraModel | None = None
    """The camera of exactly this image; None: depth without focal correction, no points."""
    rectify: bool = True
    """Undo the distortion of `camera`, if it has one."""
    wants: frozenset = frozenset({'depth'})
    """Any of ``depth``, ``confidence``, ``points``, ``color``, ``embedding``."""

    @property
    def wants_depth(self) -> bool:
        """Whether anything is wanted that needs the head."""
        return self.wants != {EMBEDDING}

    @property
    def needs_warp(self) -> bool:
        """Whether the image has a distortion that is to be undone."""
        return self.rectify and self.camera is not None and self.camera.is_distorted

    @property
    def intrinsics(self) -> CameraIntrinsics | None:
        """The pinhole of the image as the network sees it: P once rectified, K of a raw one."""
        if self.camera is None:
            return None
        return self.camera.intrinsics(rectified=self.needs_warp or not self.rectify)


@dataclass(frozen=True)
class FrameOutput:
    """Packed outputs of one frame; None where not wanted or not possible."""

    latency_ms: float
    """Time of the whole call, shared by its frames."""
    depth: PackedImage | None = None
    confidence: PackedImage | None = None
    """Of the depth at each pixel, 0..1; NaN where that is NaN. None too if the head has none."""
    camera_info: PackedCameraInfo | None = None
    points: PackedCloud | None = None
    color: PackedImage | None = None
    embedding: PackedImage | None = None
    """One row of E columns, of unit length: of the whole image, rectified where depth is."""


def check_frame(frame: Frame, options: OutputOptions) -> None:
    """Refuse a frame that `DepthEstimator.process` cannot answer; raises InputError."""
    check_rgb(frame.rgb)
    hw, n = frame.rgb.shape[:2], options.depth_divisor
    if hw[0] % n or hw[1] % n:
        raise InputError(f'image {hw} cannot be divided by depth_divisor {n}; set another.')
    if frame.camera and hw != frame.camera.expected_image_hw:
        raise InputError(
            f'image {hw} but its camera_info describes {frame.camera.expected_image_hw} '
            '(height, width).'
        )


def rectified(frame: Frame, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The image on the device, undistorted where asked, and which pixels have a source.

    Returns:
        (3, H, W) uint8 RGB, and an (H, W) mask or None for all of them.
    """
    image = upload(frame.rgb, device)
    if not frame.needs_warp:
        return image, None
    grid, mask = _rectification(frame.camera, device)
    return remap(image, grid), mask


def pack_depth_outputs(
    frame: Frame,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    depth: torch.Tensor,
    confidence: torch.Tensor | None,
    range_m: tuple[float, float],
    options: OutputOptions,
) -> dict[str, PackedImage | PackedCameraInfo | PackedCloud]:
    """Depth and what is made of it, as far as the frame wants it and has a camera.

    Args:
        frame: The frame.
        image: As `rectified` gives it.
        mask: Likewise.
        depth: (1, 1, h, w) metres in the camera at hand, NaN where there is none.
        confidence: (1, 1, h, w) in 0..1, or None where the head has none.
        range_m: Published range.
        options: Size and cloud form.

    Returns:
        Fields of `FrameOutput`.
    """
    n = options.depth_divisor
    hw = tuple(side // n for side in frame.rgb.shape[:2])
    depth = to_camera_grid(depth, hw)[0, 0]
    if mask is not None:
        seen = mask.view(hw[0], n, hw[1], n).all(dim=3).all(dim=1)
        depth = torch.where(seen, depth, torch.nan)
    depth = gate_depth(depth, *range_m, options.near_is_neg_inf)
    packed = {}
    if 'depth' in frame.wants:
        packed['depth'] = pack_depth(depth)
    if 'confidence' in frame.wants and confidence is not None:
        packed['confidence'] = pack_confidence(to_camera_grid(confidence, hw)[0, 0], depth)
    if 'color' in frame.wants:
        packed['color'] = pack_color(colour_depth(depth, range_m))
    if frame.intrinsics is not None:
        intrinsics = frame.intrinsics.resized(hw)
        packed['camera_info'] = camera_info_of(intrinsics)
        if 'points' in frame.wants:
            rgb = resize_rgb(image, hw).permute(1, 2, 0)
            packed['points'] = pack_cloud(
                depth, intrinsics, rgb, options.cloud_stride, options.cloud_organized
            )
    return packed


@lru_cache(maxsize=16)
def _rectification(camera: CameraModel, device: torch.device):
    grid = sampling_grid(camera.rectify_map(), device)
    return grid, has_source(grid)
