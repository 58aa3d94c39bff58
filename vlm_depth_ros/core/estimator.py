"""The one door for node and tools: RGB images in, metric depth and packed outputs out.

Everything between stays on the device; numpy appears once, at the edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
import logging
import math
from pathlib import Path
import time

import numpy as np
import torch
from torch import nn
from vlm_depth_ros.core.colormap import colour_depth
from vlm_depth_ros.core.config import ModelConfig, OutputOptions, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, CameraModel, focal_scale
from vlm_depth_ros.core.model import load_model
from vlm_depth_ros.core.packing import (
    camera_info_of,
    gate_depth,
    pack_cloud,
    pack_color,
    pack_depth,
    PackedCameraInfo,
    PackedCloud,
    PackedImage,
)
from vlm_depth_ros.core.preprocess import (
    has_source,
    network_input,
    remap,
    resize_rgb,
    sampling_grid,
    to_camera_grid,
    upload,
)

log = logging.getLogger(__name__)

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, as an array."""

    depth_m: np.ndarray
    """(H, W) float32 metres along the optical axis; NaN = no estimate. Not limited to a range."""
    confidence: np.ndarray | None
    """(H, W) float32 in 0..1, or None where the head has none."""
    intrinsics: CameraIntrinsics | None
    """The camera that was given."""
    latency_ms: float
    """Time of the whole call, upload and copy back included; shared by a batch."""


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
    """Any of ``depth``, ``points``, ``color``."""

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

    depth: PackedImage | None
    camera_info: PackedCameraInfo | None
    points: PackedCloud | None
    color: PackedImage | None
    latency_ms: float


def choose_device(name: str, num_cuda: int) -> torch.device:
    """The device behind a `RuntimeConfig` name, where there are `num_cuda` CUDA devices.

    Raises:
        ConfigError: If CUDA is asked for and absent.
    """
    if name == 'auto':
        return torch.device('cuda' if num_cuda else 'cpu')
    device = torch.device(name)
    if device.type == 'cuda' and (device.index or 0) >= num_cuda:
        found = f'only {num_cuda} CUDA device(s)' if num_cuda else 'no CUDA device'
        raise ConfigError(
            f'device {name!r}: torch sees {found}. Use cpu or auto, or install the driver.'
        )
    return device


class DepthEstimator:
    """A network on a device, ready to run.

    Args:
        model: A module with ``config`` (`ModelConfig`) that maps (B, 3, h, w) normalised images
            to a ``HeadOutput``; normalisation is read from ``model.backbone.spec``.
        runtime: How to run it.
        name: What to call it in messages.

    Raises:
        ConfigError: If the device is not there.
    """

    def __init__(self, model: nn.Module, runtime: RuntimeConfig | None = None, name: str = ''):
        runtime = runtime or RuntimeConfig()
        self.device = choose_device(runtime.device, torch.cuda.device_count())
        precision = runtime.precision
        if precision == 'auto':
            precision = 'fp16' if self.device.type == 'cuda' else 'fp32'
        self.name, self.precision = name or type(model).__name__, precision
        self.config: ModelConfig = model.config
        card = getattr(model, 'card', None)
        self.notice = card.notice if card else ''
        spec = model.backbone.spec
        self._mean, self._std = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (spec.mean, spec.std)
        )
        self._model = model.to(self.device, memory_format=torch.channels_last).eval()
        self._network = torch.compile(self._model) if runtime.compile == 'on' else self._model
        self._warned_camera = False

    @classmethod
    def from_weights(
        cls, name_or_path: str | Path, runtime: RuntimeConfig | None = None
    ) -> 'DepthEstimator':
        """Load a weights file: a shipped name such as ``pocket``, or a path.

        Raises:
            WeightsError: If the file is missing, damaged, foreign, or for another tower.
            ConfigError: If the device is not there.
        """
        return cls(load_model(name_or_path), runtime, str(name_or_path))

    def __call__(
        self,
        rgb: np.ndarray | Sequence[np.ndarray],
        intrinsics: CameraIntrinsics | Sequence[CameraIntrinsics | None] | None = None,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Depth of one undistorted image, or of a list of them in one network call.

        Args:
            rgb: (H, W, 3) uint8 RGB, or a list of such, of any sizes.
            intrinsics: Pinhole camera of each; with it depth is corrected for its focal length.

        Raises:
            InputError: If an image is no (H, W, 3) uint8 array or a camera has another size.
        """
        start = time.perf_counter()
        single = isinstance(rgb, np.ndarray)
        images = [rgb] if single else list(rgb)
        if isinstance(intrinsics, CameraIntrinsics) or intrinsics is None:
            intrinsics = [intrinsics] * len(images)
        if len(intrinsics) != len(images):
            raise InputError(f'{len(images)} images but {len(intrinsics)} cameras.')
        for image, camera in zip(images, intrinsics):
            check_rgb(image)
            if camera is not None and image.shape[:2] != camera.image_hw:
                raise InputError(
                    f'image {image.shape[:2]} but its camera is for {camera.image_hw} (height, '
                    'width). Use CameraIntrinsics.resized, cropped or binned.'
                )
        if not images:
            return []
        with torch.inference_mode():
            found = self._run([upload(image, self.device) for image in images])
            arrays = []
            for depth, confidence, image, camera in zip(*found, images, intrinsics):
                depth = to_camera_grid(depth, image.shape[:2])[0, 0] * self._scale(camera)
                if confidence is not None:
                    confidence = to_camera_grid(confidence, image.shape[:2])[0, 0].cpu().numpy()
                arrays.append((depth.cpu().numpy(), confidence))
        latency_ms = (time.perf_counter() - start) * 1e3
        answers = [
            DepthPrediction(depth_m, confidence, camera, latency_ms)
            for (depth_m, confidence), camera in zip(arrays, intrinsics)
        ]
        return answers[0] if single else answers

    def process(self, frames: Sequence[Frame], options: OutputOptions) -> list[FrameOutput]:
        """Depth of several cameras' frames in one network call, packed for messages.

        Args:
            frames: Of any sizes; at least one.
            options: Size, range and cloud form of the outputs.

        Raises:
            InputError: If an image has a wrong form, does not fit its camera, or cannot be
                divided by ``options.depth_divisor``.
        """
        start = time.perf_counter()
        for frame in frames:
            check_frame(frame, options)
        with torch.inference_mode():
            images, masks = zip(*(self._rectified(frame) for frame in frames))
            depths, _ = self._run(images)
            outputs = [
                self._pack(*parts, options) for parts in zip(frames, images, masks, depths)
            ]
        latency_ms = (time.perf_counter() - start) * 1e3
        return [FrameOutput(*packed, latency_ms) for packed in outputs]

    def warm_up(self, image_hw: tuple[int, int] = (480, 640)) -> float:
        """Run twice on a grey image; the milliseconds that the second run took."""
        grey = np.full((*image_hw, 3), 127, np.uint8)
        self(grey)
        return self(grey).latency_ms

    def range_m(self, options: OutputOptions) -> tuple[float, float]:
        """Published depth range: the model's own, narrowed by the options."""
        low, high = self.config.depth_range_m
        return max(low, options.min_depth_m), min(high, options.max_depth_m or high)

    def _run(self, images: Sequence[torch.Tensor]) -> tuple[list, list]:
        """One network call over (3, H, W) uint8 images; float32 depth and confidence of each.

        What is no depth (not finite, zero, negative) becomes NaN here, before a resize could blend
        it with its neighbours into a distance that nobody estimated.
        """
        hw = self.config.input_hw
        batch = torch.cat([network_input(i[None], hw, self._mean, self._std) for i in images])
        batch = batch.contiguous(memory_format=torch.channels_last)
        low = self.precision != 'fp32'
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=low):
            found = self._network(batch)
        depths = list(gate_depth(found.depth_m, 0.0, math.inf, False).split(1))
        if found.confidence is None:
            return depths, [None] * len(depths)
        return depths, list(found.confidence.float().split(1))

    def _rectified(self, frame: Frame) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The image on the device, undistorted where asked, and which pixels have a source."""
        image = upload(frame.rgb, self.device)
        if not frame.needs_warp:
            return image, None
        grid, mask = _rectification(frame.camera, self.device)
        return remap(image, grid), mask

    def _scale(self, intrinsics: CameraIntrinsics | None) -> float:
        """What turns depth in the training camera into depth in the camera at hand."""
        if intrinsics is None:
            return 1.0
        if self.config.camera is None:
            if not self._warned_camera:
                self._warned_camera = True
                log.warning('%s does not say which camera it was trained for: depth is not '
                            'corrected for the focal length.', self.name)  # fmt: skip
            return 1.0
        return focal_scale(intrinsics, self.config.camera)

    def _pack(self, frame: Frame, image, mask, depth, options: OutputOptions) -> tuple:
        intrinsics = frame.intrinsics
        if options.focal_correction:
            depth = depth * self._scale(intrinsics)
        hw = tuple(n // options.depth_divisor for n in frame.rgb.shape[:2])
        depth = to_camera_grid(depth, hw)[0, 0]
        if mask is not None:
            n = options.depth_divisor
            seen = mask.view(hw[0], n, hw[1], n).all(dim=3).all(dim=1)
            depth = torch.where(seen, depth, torch.nan)
        range_m = self.range_m(options)
        depth = gate_depth(depth, *range_m, options.near_is_neg_inf)
        wants, info, cloud = frame.wants, None, None
        if intrinsics is not None:
            intrinsics = intrinsics.resized(hw)
            info = camera_info_of(intrinsics)
            if 'points' in wants:
                rgb = resize_rgb(image, hw).permute(1, 2, 0)
                cloud = pack_cloud(
                    depth, intrinsics, rgb, options.cloud_stride, options.cloud_organized
                )
        return (
            pack_depth(depth) if 'depth' in wants else None,
            info,
            cloud,
            pack_color(colour_depth(depth, range_m)) if 'color' in wants else None,
        )


def check_rgb(rgb: np.ndarray) -> None:
    """Refuse what is no image.

    Raises:
        InputError: Unless `rgb` is (H, W, 3) uint8 with at least one pixel.
    """
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        found = getattr(rgb, 'shape', type(rgb).__name__)
        raise InputError(f'image {found}: expected an (H, W, 3) RGB array with H, W >= 1.')
    if rgb.dtype != np.uint8:
        raise InputError(f'image of {rgb.dtype}: expected uint8, 0 to 255.')


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


@lru_cache(maxsize=16)
def _rectification(camera: CameraModel, device: torch.device):
    grid = sampling_grid(camera.rectify_map(), device)
    return grid, has_source(grid)
