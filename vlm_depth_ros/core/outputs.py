"""What is made of the depth of a frame, packed on the device for messages."""

import torch
from vlm_depth_ros.core.colormap import colour_depth
from vlm_depth_ros.core.frames import Frame
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.packing import (
    camera_info_of,
    pack_cloud,
    pack_color,
    pack_confidence,
    pack_depth,
    PackedCameraInfo,
    PackedCloud,
    PackedImage,
)
from vlm_depth_ros.core.preprocess import resize_rgb, to_camera_grid
from vlm_depth_ros.core.refine import refined


def pack_depth_outputs(
    frame: Frame,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    depth: torch.Tensor,
    confidence: torch.Tensor | None,
    range_m: tuple[float, float],
    options: OutputOptions,
) -> dict[str, PackedImage | PackedCameraInfo | PackedCloud | float]:
    """Depth and what is made of it, as far as the frame wants it and has a camera.

    Args:
        frame: The frame.
        image: As `frames.rectified` gives it.
        mask: Likewise.
        depth: (1, 1, h, w) metres by the network, in the camera at hand.
        confidence: (1, 1, h, w) in 0..1, or None where the head has none.
        range_m: Published range.
        options: Scale, filters, size and cloud form.

    Returns:
        Fields of `FrameOutput`.
    """
    depth = refined(frame, image, mask, depth, confidence, range_m, options)
    hw = depth.shape
    packed = {'valid_share': _valid_share(depth)}
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


def _valid_share(depth: torch.Tensor) -> float:
    """Of every eighth row and column: enough to say how much is left."""
    return float(depth[::8, ::8].isfinite().float().mean())
