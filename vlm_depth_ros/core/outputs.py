"""What is made of a frame, packed on the device for messages: one function for each output."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
import math
from typing import Any

import numpy as np
import torch
from vlm_depth_ros.core.colormap import colour_depth
from vlm_depth_ros.core.compressed_depth import compress_depth, PackedCompressedImage
from vlm_depth_ros.core.downloads import host_bytes, one_wait
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.frames import EMBEDDING, Frame
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.packing import (
    camera_info_of,
    pack_clearing,
    pack_cloud,
    pack_confidence,
    pack_depth,
    pack_embedding,
    pack_picture,
    PackedCloud,
    PackedImage,
)
from vlm_depth_ros.core.preprocess import resize_rgb, to_camera_grid
from vlm_depth_ros.core.refine import refined
from vlm_depth_ros.core.scan import PackedScan, scan_of


@dataclass(frozen=True)
class Scene:
    """A frame, and what is known of it once the network has run."""

    frame: Frame
    image: torch.Tensor
    """(3, h, w) uint8 RGB as `frames.rectified` gives it."""
    options: OutputOptions
    hw: tuple[int, int]
    """Size of all that is published."""
    range_m: tuple[float, float]
    depth: torch.Tensor | None = None
    """(H, W) metres as published; None where nothing is wanted of it."""
    confidence: torch.Tensor | None = None
    """(H, W) in 0..1; None where the head has none, or nobody asks."""

    @cached_property
    def rgb(self) -> torch.Tensor:
        """(H, W, 3) uint8."""
        return resize_rgb(self.image, self.hw).permute(1, 2, 0)

    @cached_property
    def intrinsics(self) -> CameraIntrinsics | None:
        """Camera of exactly the published size."""
        camera = self.frame.intrinsics
        return camera.resized(self.hw) if camera else None


def pack_outputs(
    frame: Frame,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    depth: torch.Tensor | None,
    confidence: torch.Tensor | None,
    range_m: tuple[float, float],
    options: OutputOptions,
    embedding: torch.Tensor | None = None,
) -> dict[str, Any]:
    """All that a frame wants, as far as it has what that needs.

    Args:
        frame: The frame.
        image: As `frames.rectified` gives it.
        mask: Likewise.
        depth: (1, 1, h, w) metres by the network, in the camera at hand; None where nothing is
            wanted of it.
        confidence: (1, 1, h, w) in 0..1, or None where the head has none.
        range_m: Published range.
        options: Scale, filters, sizes and forms.
        embedding: (E,), needed where it is wanted.

    Returns:
        Fields of `FrameOutput`; ``valid_share`` as an array of no dimension, which like all `data`
        is there at the end of `downloads.one_wait`. An output that cannot be made alone is
        missing, and a note says why.
    """
    hw = tuple(side // options.depth_divisor for side in frame.rgb.shape[:2])
    packed: dict[str, Any] = {}
    if confidence is not None:
        is_asked = 'confidence' in frame.wants or options.filter.min_confidence
        confidence = to_camera_grid(confidence, hw)[0, 0] if is_asked else None
    if depth is not None:
        depth = refined(frame, image, mask, depth, confidence, range_m, options)
        packed['valid_share'] = _valid_share(depth)
    scene = Scene(frame, image, options, hw, range_m, depth, confidence)
    if scene.intrinsics is not None:
        packed['camera_info'] = camera_info_of(scene.intrinsics)
    notes = packed['notes'] = {}
    for name in PACKERS:
        if name not in frame.wants:
            continue
        try:
            packed[name] = PACKERS[name](scene)
        except InputError as err:
            notes[name] = f'No {name}: {err}'
    lost = _lost_by_compression(packed.get('compressed'), options)
    if lost:
        notes['compressed'] = lost
    for name in REACHES.keys() & packed.keys():
        unseen = _unseen(name, scene)
        if unseen:
            notes[name] = unseen
    if EMBEDDING in frame.wants:
        packed[EMBEDDING] = pack_embedding(embedding)
    return packed


def pack_together(packed: Iterable[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Fields of `FrameOutput` of each frame of a call, all in place after one wait.

    Args:
        packed: Calls `pack_outputs` for a frame when it is asked for the next.
        device: Where it packs.
    """
    with one_wait(device):
        found = list(packed)
    for outputs in found:
        outputs['valid_share'] = float(outputs.get('valid_share', math.nan))
    return found


def _depth(scene: Scene) -> PackedImage:
    return pack_depth(scene.depth)


def _compressed(scene: Scene) -> PackedCompressedImage:
    return compress_depth(scene.depth, scene.options.compressed)


def _confidence(scene: Scene) -> PackedImage | None:
    if scene.confidence is None:
        return None
    return pack_confidence(scene.confidence, scene.depth)


def _color(scene: Scene) -> PackedImage:
    return pack_picture(colour_depth(scene.depth, scene.range_m), 'bgr8')


def _rgb(scene: Scene) -> PackedImage:
    return pack_picture(scene.rgb, 'rgb8')


def _points(scene: Scene) -> PackedCloud | None:
    if scene.intrinsics is None:
        return None
    options = scene.options
    cloud = pack_cloud(
        scene.depth, scene.intrinsics, scene.rgb, options.cloud_stride, options.cloud_organized,
        options.cloud, scene.frame.base_from_optical,
    )  # fmt: skip
    may_be_blind = not (cloud.width and cloud.is_dense)
    # Not NaN, nor too near: a number, or +Inf, which knows that nothing is within range.
    strided = scene.depth[:: options.cloud_stride, :: options.cloud_stride]
    if may_be_blind and not (strided > 0).any():
        raise InputError(
            'the whole picture is unknown, and an empty cloud would be taken for free space. '
            'Readers that expect a rate notice. Is the lens covered, or a filter too strict?'
        )
    return cloud


def _clearing(scene: Scene) -> PackedCloud | None:
    if scene.intrinsics is None:
        return None
    return pack_clearing(
        scene.depth, scene.intrinsics, scene.options.clearing, scene.range_m[1]
    )


def _scan(scene: Scene) -> PackedScan | None:
    if scene.intrinsics is None:
        return None
    if scene.frame.base_from_optical is None:
        raise InputError(f'the pose of the camera is not known: {scene.frame.silence}')
    return scan_of(
        scene.depth, scene.intrinsics, scene.frame.base_from_optical, scene.options.scan,
        scene.range_m[1],
    )  # fmt: skip


PACKERS: dict[str, Callable[[Scene], Any]] = {
    'depth': _depth,
    'confidence': _confidence,
    'color': _color,
    'rgb': _rgb,
    'points': _points,
    'clearing': _clearing,
    'compressed': _compressed,
    'scan': _scan,
}
"""What makes each thing that a frame may want; None where there is nothing to make it of. Those
last for which a GPU is waited for: until then it has the others to do."""
REACHES: dict[str, tuple[str, Callable[[OutputOptions], float]]] = {
    'clearing': ('clearing_range_m', lambda options: options.clearing.range_m),
    'scan': ('scan_range_max_m', lambda options: options.scan.range_max_m),
}
"""What says how far space is free: the option, by its name on the node, and its value."""


def _valid_share(depth: torch.Tensor) -> np.ndarray:
    """Of every eighth row and column: enough to say how much is left."""
    share = depth[::8, ::8].isfinite().float().mean()
    return host_bytes(share).view(np.float32).reshape(())


def _unseen(name: str, scene: Scene) -> str:
    (option, reach_of), far_m = REACHES[name], scene.range_m[1]
    if reach_of(scene.options) <= far_m:
        return ''
    return (
        f'{option} = {reach_of(scene.options):g} lies beyond the range of depth, {far_m:g} m: '
        f'behind that nothing is known to be free, so {name} clears next to nothing. Lower '
        f'{option}, or raise max_depth_m if it is below the range of the model.'
    )


def _lost_by_compression(packed: PackedCompressedImage | None, options: OutputOptions) -> str:
    if packed is None or not packed.beyond_px + packed.too_near_px:
        return ''
    compressed = options.compressed
    return (
        f'compressedDepth loses {packed.beyond_px} pixels from compressed_depth_max_m = '
        f'{compressed.depth_max_m:g} on and {packed.too_near_px} up to {compressed.nearest_m:.2f} '
        'm. Raise compressed_depth_max_m, or lower max_depth_m; for the near ones lower '
        'compressed_depth_quantization.'
    )
