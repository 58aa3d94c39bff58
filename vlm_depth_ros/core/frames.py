"""What a robot hands to the estimator and gets back: a camera's frame in, packed outputs out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
import math

import numpy as np
import torch
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.compressed_depth import PackedCompressedImage
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.packing import PackedCameraInfo, PackedCloud, PackedImage
from vlm_depth_ros.core.predictions import check_rgb
from vlm_depth_ros.core.preprocess import has_source, remap, sampling_grid, upload
from vlm_depth_ros.core.scan import PackedScan
from vlm_depth_ros.core.track import CameraTrack

EMBEDDING = 'embedding'
NO_DEPTH = frozenset({EMBEDDING, 'rgb'})
"""What can be had without depth."""


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
    """Any key of `outputs.PACKERS`, and ``embedding``."""
    stamp_s: float = 0.0
    """When the image was taken."""
    track: CameraTrack | None = None
    """What is remembered of this camera; None: no scale is applied, nothing smoothed over time."""
    base_from_optical: np.ndarray | None = None
    """(4, 4) from the camera's optical frame to the robot's base (`core.mounting`)."""
    range_points: np.ndarray | None = None
    """(N, 3) points in the optical frame that another sensor measured, for the scale."""
    silence: str = ''
    """Why what the scale is measured by is missing."""

    @property
    def wants_depth(self) -> bool:
        """Whether anything is wanted that needs the head."""
        return not self.wants <= NO_DEPTH

    @property
    def needs_warp(self) -> bool:
        """Whether the image has a distortion that is to be undone."""
        return self.rectify and self.camera is not None and self.camera.is_distorted

    @cached_property
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
    valid_share: float = math.nan
    """Share of the depth that is a number of metres; NaN where no depth was asked for."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What could not be made, or lost something, and why: a sentence by the name of the output."""
    depth: PackedImage | None = None
    compressed: PackedCompressedImage | None = None
    """The depth image in the form of the compressedDepth transport."""
    confidence: PackedImage | None = None
    """Of the depth at each pixel, 0..1; NaN where that is NaN. None too if the head has none."""
    camera_info: PackedCameraInfo | None = None
    rgb: PackedImage | None = None
    """The rectified image at the size of the depth."""
    points: PackedCloud | None = None
    clearing: PackedCloud | None = None
    """Ends of the rays that see free space."""
    scan: PackedScan | None = None
    """In the base frame."""
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


@lru_cache(maxsize=16)
def _rectification(camera: CameraModel, device: torch.device):
    grid = sampling_grid(camera.rectify_map(), device)
    return grid, has_source(grid)
