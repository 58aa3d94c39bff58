"""The one door for node and tools: RGB images in, metric depth and packed outputs out.

Everything between stays on the device; numpy appears once, at the edge.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
import logging
from pathlib import Path
import time

import numpy as np
import torch
from torch import nn
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.canonical import Seen, seen_by
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.device_failures import DeviceGuard
from vlm_depth_ros.core.devices import choose_device, device_of_tower, DTYPES, num_cuda
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.exported import ExportedModel, SUFFIX
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.fingerprint import file_sha256
from vlm_depth_ros.core.first_way import first_way
from vlm_depth_ros.core.frames import check_frame, EMBEDDING, Frame, FrameOutput, rectified
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.model import find_weights, load_model
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.outputs import pack_outputs, pack_together
from vlm_depth_ros.core.predictions import (
    Answer,
    answers_of,
    cameras_of,
    check_features,
    check_rgb,
    DepthPrediction,
    predictions_of,
    sizes_of,
)
from vlm_depth_ros.core.preprocess import InputBatch, upload
from vlm_depth_ros.core.trial import Way, Ways

__all__ = ['DepthEstimator', 'DepthPrediction', 'Frame', 'FrameOutput']

log = logging.getLogger(__name__)


class DepthEstimator:
    """A network on a device, ready to run.

    Args:
        model: A module with ``config`` (`ModelConfig`) that maps (B, 3, h, w) normalised images
            to a ``HeadOutput``; normalisation is read from ``model.backbone.spec``. If that has an
            embedding, it takes the flag ``want_embedding`` as `DepthModel.forward` does.
        runtime: How to run it.
        name: What to call it in messages.
        owns_tower: False: somebody else uses ``model.backbone`` too, so it stays where and as it
            is, and the head goes to its device.

    Raises:
        ConfigError: If the device is not there, or not that of the tower of somebody else.
    """

    def __init__(
        self,
        model: nn.Module,
        runtime: RuntimeConfig | None = None,
        name: str = '',
        *,
        owns_tower: bool = True,
    ):
        runtime = runtime or RuntimeConfig()
        if owns_tower:
            self.device = choose_device(runtime.device, num_cuda())
        else:
            self.device = device_of_tower(model.backbone, runtime.device)
        self.guard = DeviceGuard(self.device)
        """Runs whatever `__call__` and `process` calculate; says whether the device is gone."""
        ours = model if owns_tower else model.head
        self.guard.run(lambda: ours.to(self.device, memory_format=torch.channels_last))
        self.model = model.eval()
        """The network itself, whatever runs it."""
        self.name = name or type(model).__name__
        begin = partial(first_way, model, runtime, self.device, self.name, owns_tower)
        way, self.precision = self.guard.run(begin)
        self.ways = Ways(self.name, way, self.device.type)
        """How the network is run; where others are tried, `process` decides."""
        self.config: ModelConfig = model.config
        card = getattr(model, 'card', None)
        self.notice = card.notice if card else ''
        self.weights_sha256 = ''
        """Of the file that it was loaded from; empty where there was none."""
        self._batch = InputBatch(model.backbone.spec, self.device)
        self._warned_camera = False
        self.has_confidence = False
        """Whether the head says how sure it is of each depth; known once it ran (`warm_up`)."""

    @classmethod
    def from_weights(
        cls,
        name_or_path: str | Path,
        runtime: RuntimeConfig | None = None,
        *,
        tower: Backbone | nn.Module | None = None,
    ) -> 'DepthEstimator':
        """Load a weights file: a shipped name such as ``pocket``, or a path.

        A .onnx that ``vlm-depth export`` wrote works too, on the CPU and without an embedding.
        The engine ``auto`` is eager here and stays it, so that the same image has the same depth;
        only the node looks for a faster one (`faster_engines`).

        Args:
            name_or_path: Shipped name or file.
            runtime: How to run it.
            tower: One to share, used as it is and where it is: an open_clip image tower, a model
                with such a one as ``visual``, or the `backbone` of another estimator.

        Raises:
            WeightsError: If the file is missing, damaged, foreign, or for another tower.
            ConfigError: If the device is not there, or not that of the given tower.
        """
        runtime = runtime or RuntimeConfig()
        path = find_weights(name_or_path)
        sha256 = file_sha256(path)  # Before it is read: if it is replaced now, nothing fits later.
        if path.suffix == SUFFIX:
            if tower is not None:
                raise ConfigError(f'{path}: an exported network has its own tower inside. Share '
                                  'one with a .safetensors file.')  # fmt: skip
            model = ExportedModel(path, runtime)
            runtime = replace(runtime, device=str(model.device))
        else:
            model = load_model(path, tower, runtime.tower_weights)
        made = cls(model, runtime, str(name_or_path), owns_tower=tower is None)
        made.weights_sha256 = sha256
        return made

    @property
    def backbone(self) -> Backbone:
        """The tower, to hand to a second estimator or to run for `from_features`."""
        return self.model.backbone

    @property
    def layers(self) -> tuple[int, ...]:
        """Which maps of the tower the head reads: what `from_features` needs."""
        return self.model.head.layers

    @property
    def can_embed(self) -> bool:
        """Whether the tower has a trained projection, so that an embedding can be asked for."""
        return self.backbone.spec.embedding_width is not None

    def __call__(
        self,
        rgb: np.ndarray | Sequence[np.ndarray],
        intrinsics: CameraIntrinsics | Sequence[CameraIntrinsics | None] | None = None,
        want_embedding: bool = False,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Depth of one undistorted image, or of a list of them in one network call.

        Args:
            rgb: (H, W, 3) uint8 RGB, or a list of such, of any sizes.
            intrinsics: Pinhole camera of each; with it depth is corrected for its focal length.
            want_embedding: Also give the tower's embedding of each image, from the same call.

        Raises:
            InputError: If an image is no (H, W, 3) uint8 array or a camera has another size.
            ConfigError: If an embedding is asked of a tower without a trained projection.
        """
        start_s = time.perf_counter()
        single = isinstance(rgb, np.ndarray)
        images = [rgb] if single else list(rgb)
        for image in images:
            check_rgb(image)
        sizes = [image.shape[:2] for image in images]
        cameras = cameras_of(sizes, intrinsics)
        if not images:
            return []

        def answer() -> list[DepthPrediction]:
            views = [self._seen(camera) for camera in cameras]
            uploaded = [upload(i, self.device) for i in images]
            found = self._run(uploaded, views, self.ways.at_hand, want_embedding)
            return predictions_of(found, views, sizes, cameras, start_s)

        with torch.inference_mode():
            answers = self.guard.run(answer)
        return answers[0] if single else answers

    def from_features(
        self,
        features: Features,
        image_hw: tuple[int, int] | Sequence[tuple[int, int]],
        intrinsics: CameraIntrinsics | Sequence[CameraIntrinsics | None] | None = None,
    ) -> list[DepthPrediction]:
        """Depth from features that the same tower computed elsewhere; only the head runs.

        Args:
            features: Of B images, at least the maps `layers`, from what `tower_input` answers.
                That they come from this very tower cannot be checked, only that they could.
            image_hw: Height and width of the camera images; one for all or one for each.
            intrinsics: Pinhole camera of each; with it depth is corrected for its focal length.

        Returns:
            One prediction for each image, with the embedding if `features` has it.

        Raises:
            InputError: If a map is missing, or maps, sizes or cameras do not fit, or features and
                head are on different devices.
        """
        start_s = time.perf_counter()
        device = next(self.model.head.parameters()).device
        check_features(features, self.layers, self.backbone.spec, device)
        sizes = sizes_of(image_hw, len(features.pooled))
        cameras = cameras_of(sizes, intrinsics)
        if not sizes:
            return []
        if self.precision == 'fp32':  # The tower may have run in half precision.
            features = features.each(torch.Tensor.float)
        with torch.inference_mode():
            with self._autocast():
                found = self.model.head(features)
            answers = answers_of(found, features.embedding)
            views = [self._seen(camera, fixed_size=True) for camera in cameras]
            return predictions_of(answers, views, sizes, cameras, start_s)

    def tower_input(self, rgb: Sequence[np.ndarray]) -> torch.Tensor:
        """What the tower sees of camera images, to compute `Features` of them elsewhere.

        Args:
            rgb: (H, W, 3) uint8 RGB each, of any sizes.

        Returns:
            (B, 3, h, w) squashed and normalised, on the device.

        Raises:
            InputError: If an image is no (H, W, 3) uint8 array.
        """
        for image in rgb:
            check_rgb(image)
        return self._batch([upload(image, self.device) for image in rgb], self.config.input_hw)

    def process(self, frames: Sequence[Frame], options: OutputOptions) -> list[FrameOutput]:
        """Depth of several cameras' frames in one network call, packed for messages.

        Args:
            frames: Of any sizes; at least one.
            options: Size, range, scale, filters and cloud form of the outputs.

        Raises:
            InputError: If an image has a wrong form, does not fit its camera, or cannot be
                divided by ``options.depth_divisor``.
            ConfigError: If an embedding is asked of a tower without a trained projection.
            DeviceMemoryError: If the device has no memory left for so many frames.
            DeviceLostError: If the device is gone, now or since an earlier call.
        """
        return self.guard.run(partial(self._process, frames, options))

    def _process(self, frames: Sequence[Frame], options: OutputOptions) -> list[FrameOutput]:
        start_s = time.perf_counter()
        for frame in frames:
            check_frame(frame, options)
        want_embedding = any(EMBEDDING in frame.wants for frame in frames)
        want_depth = any(frame.wants_depth for frame in frames)
        with torch.inference_mode():
            images, masks = zip(*(rectified(frame, self.device) for frame in frames))
            corrects = options.focal_correction
            views = [self._seen(frame.intrinsics if corrects else None) for frame in frames]
            answers = self.ways.run(
                lambda way: self._run(images, views, way, want_embedding, want_depth),
                len(frames) if want_depth or want_embedding else 0,
                by_engine=want_depth and not want_embedding,
            )
            parts = zip(frames, images, masks, views, answers)
            packed = pack_together((self._packed(*p, options) for p in parts), self.device)
        latency_ms = (time.perf_counter() - start_s) * 1e3
        return [FrameOutput(latency_ms, **outputs) for outputs in packed]

    def warm_up(self, image_hw: tuple[int, int] = (480, 640)) -> float:
        """Run twice on a grey image; the milliseconds that the second run took."""
        grey = np.full((*image_hw, 3), 127, np.uint8)
        self(grey)
        return self(grey).latency_ms

    def range_m(self, options: OutputOptions) -> tuple[float, float]:
        """Published depth range: the model's own, narrowed by the options."""
        low, high = self.config.depth_range_m
        return max(low, options.min_depth_m), min(high, options.max_depth_m or high)

    def _run(
        self,
        images: Sequence[torch.Tensor],
        views: Sequence[Seen],
        way: Way,
        want_embedding: bool,
        want_depth: bool = True,
    ) -> list[Answer]:
        """One network call for each input size over (3, H, W) uint8 images."""
        if want_embedding and not self.can_embed:
            raise ConfigError(
                f'{self.name} gives no embedding: its tower {self.backbone.spec.tower!r} has no '
                'trained projection. Use weights on a CLIP, SigLIP or MobileCLIP tower.'
            )
        answers = [None] * len(images)
        for hw in {view.input_hw: None for view in views}:
            places = [i for i, view in enumerate(views) if view.input_hw == hw]
            batch = self._batch([images[i] for i in places], hw)
            found = self._answers(batch, way, want_embedding, want_depth)
            for i, answer in zip(places, found):
                answers[i] = answer
        return answers

    def _answers(
        self, batch: torch.Tensor, way: Way, want_embedding: bool, want_depth: bool
    ) -> list[Answer]:
        with self._autocast():
            if not (want_depth or want_embedding):
                return [Answer(None, None, None)] * len(batch)
            if not want_depth:
                embeddings = self.backbone(batch, (), want_embedding=True).embedding
                return [Answer(None, None, e) for e in embeddings.float()]
            # Networks on a tower without an embedding need not know the flag.
            found = way.network(batch, True) if want_embedding else way.network(batch)
        self.has_confidence = found.confidence is not None
        return answers_of(found, found.extras.get('embedding'))

    def _autocast(self) -> torch.autocast:
        low = self.precision != 'fp32'
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=low)

    def _packed(self, frame: Frame, image, mask, view: Seen, found: Answer, options) -> dict:
        depth = found.depth_m * view.depth_scale if frame.wants_depth else None
        return pack_outputs(
            frame, image, mask, depth, found.confidence, self.range_m(options), options,
            found.embedding,
        )  # fmt: skip

    def _seen(self, intrinsics: CameraIntrinsics | None, fixed_size: bool = False) -> Seen:
        """What the network sees of a camera; warns once where it cannot tell."""
        if intrinsics is not None and self.config.camera is None and not self._warned_camera:
            self._warned_camera = True
            log.warning('%s does not say which camera it was trained for: depth is not '
                        'corrected for the focal length.', self.name)  # fmt: skip
        config = replace(self.config, size_by_focal=0.0) if fixed_size else self.config
        return seen_by(config, intrinsics, self.backbone.spec.size_multiple)
