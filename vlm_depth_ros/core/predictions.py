"""What a network answers, what a caller gets of it as arrays, and what is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from numbers import Integral, Real
import time
from typing import NamedTuple

import numpy as np
import torch
from vlm_depth_ros.core.canonical import Seen
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.packing import gate_depth
from vlm_depth_ros.core.preprocess import to_camera_grid


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
    embedding: np.ndarray | None = None
    """(E,) float32 of unit length, the tower's embedding of the whole image; None unless asked
    for."""


class Answer(NamedTuple):
    """What the network says of one image: float32, on the device; None where not asked for."""

    depth_m: torch.Tensor | None
    """(1, 1, h, w), NaN where there is none."""
    confidence: torch.Tensor | None
    """(1, 1, h, w)."""
    embedding: torch.Tensor | None
    """(E,)."""


def answers_of(found: HeadOutput, embedding: torch.Tensor | None) -> list[Answer]:
    """One for each image of a batch.

    What is no depth (not finite, zero, negative) becomes NaN here, before a resize could blend it
    with its neighbours into a distance that nobody estimated.
    """
    depths = gate_depth(found.depth_m, 0.0, math.inf, False).split(1)
    nothing = [None] * len(depths)
    confidences = nothing if found.confidence is None else found.confidence.float().split(1)
    embeddings = nothing if embedding is None else embedding.float()
    return [Answer(*parts) for parts in zip(depths, confidences, embeddings)]


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


def cameras_of(
    images_hw: Sequence[tuple[int, int]],
    intrinsics: CameraIntrinsics | Sequence[CameraIntrinsics | None] | None,
) -> list[CameraIntrinsics | None]:
    """The camera of each image, from one for all, one for each, or none.

    Raises:
        InputError: If they are not as many as the images, or one is for another size.
    """
    if isinstance(intrinsics, CameraIntrinsics) or intrinsics is None:
        intrinsics = [intrinsics] * len(images_hw)
    if len(intrinsics) != len(images_hw):
        raise InputError(f'{len(images_hw)} images but {len(intrinsics)} cameras.')
    for hw, camera in zip(images_hw, intrinsics):
        if camera is not None and hw != camera.image_hw:
            raise InputError(
                f'image {hw} but its camera is for {camera.image_hw} (height, width). Use '
                'CameraIntrinsics.resized, cropped or binned.'
            )
    return list(intrinsics)


def sizes_of(
    image_hw: tuple[int, int] | Sequence[tuple[int, int]], count: int
) -> list[tuple[int, int]]:
    """The (height, width) of `count` images, from one for all or one for each.

    Raises:
        InputError: If one is no pair of positive integers, or they are not `count`.
    """
    single = len(image_hw) > 0 and isinstance(image_hw[0], Real)
    sizes = [tuple(hw) for hw in ([image_hw] * count if single else image_hw)]
    for hw in sizes:
        if len(hw) != 2 or not all(isinstance(n, Integral) and n > 0 for n in hw):
            raise InputError(
                f'image_hw {hw}: expected (height, width) of the camera image, or a list of such.'
            )
    if len(sizes) != count:
        raise InputError(f'features of {count} images but {len(sizes)} image_hw.')
    return sizes


def check_features(
    features: Features, layers: Sequence[int], spec: BackboneSpec, device: torch.device
) -> None:
    """Refuse features that the tower of a head did not compute; only shapes can tell.

    Args:
        features: Computed elsewhere.
        layers: Maps that the head reads.
        spec: Its tower.
        device: Where the head is.

    Raises:
        InputError: If a map that the head needs is missing, or something has another shape than
            the tower gives it, or lies on another device.
    """
    missing = sorted(set(layers) - set(features.maps))
    if missing:
        raise InputError(
            f'features have layers {sorted(features.maps)}, the head also needs {missing}. '
            'Ask the tower for DepthEstimator.layers.'
        )
    count = len(features.pooled)
    expected = {f'maps[{k}]': (features.maps[k], _map_shape(spec, k, count)) for k in layers}
    expected['pooled'] = features.pooled, (count, spec.pooled_width)
    for k in set(layers) & set(features.class_tokens):
        expected[f'class_tokens[{k}]'] = features.class_tokens[k], (count, spec.widths[k])
    if features.embedding is not None:
        expected['embedding'] = features.embedding, (count, spec.embedding_width)
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError(
                f'features.{name} is {tuple(tensor.shape)}, expected {shape} from tower '
                f'{spec.tower!r} at {spec.input_hw} input. Use features of that tower.'
            )
        if tensor.device != device:
            raise InputError(
                f'features.{name} is on {tensor.device}, the head on {device}. Run both on one '
                'device.'
            )


def _map_shape(spec: BackboneSpec, layer: int, count: int) -> tuple[int, ...]:
    return (count, spec.widths[layer], *(n // spec.strides[layer] for n in spec.input_hw))


def predictions_of(
    answers: Sequence[Answer],
    views: Sequence[Seen],
    sizes: Sequence[tuple[int, int]],
    cameras: Sequence[CameraIntrinsics | None],
    start_s: float,
) -> list[DepthPrediction]:
    """What a caller gets: arrays at the camera's size, in metres of the camera at hand.

    Args:
        answers: Of each image.
        views: How the network saw each.
        sizes: Of each image, height first.
        cameras: Of each image.
        start_s: When the call began, by `time.perf_counter`.
    """
    arrays = []
    for found, view, hw in zip(answers, views, sizes):
        depth = to_camera_grid(found.depth_m, hw)[0, 0] * view.depth_scale
        confidence, embedding = found.confidence, found.embedding
        if confidence is not None:
            confidence = to_camera_grid(confidence, hw)[0, 0].cpu().numpy()
        if embedding is not None:
            embedding = embedding.detach().cpu().numpy()
        arrays.append((depth.cpu().numpy(), confidence, embedding))
    latency_ms = (time.perf_counter() - start_s) * 1e3
    return [
        DepthPrediction(depth_m, confidence, camera, latency_ms, embedding)
        for (depth_m, confidence, embedding), camera in zip(arrays, cameras)
    ]
