"""From what the network says of a frame to the depth that a robot gets: scale, filters, range."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.enlarging import upsample_keeping_edges
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.filters import apply_filters
from vlm_depth_ros.core.frames import Frame
from vlm_depth_ros.core.guided import upsample_guided
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.packing import gate_depth
from vlm_depth_ros.core.preprocess import resize_rgb
from vlm_depth_ros.core.scale import Measurement
from vlm_depth_ros.core.scale_ground import measure_ground
from vlm_depth_ros.core.scale_ranges import measure_ranges


def refined(
    frame: Frame,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    depth: torch.Tensor,
    confidence: torch.Tensor | None,
    range_m: tuple[float, float],
    options: OutputOptions,
) -> torch.Tensor:
    """Published depth of a frame.

    Args:
        frame: The frame.
        image: As `frames.rectified` gives it.
        mask: Likewise.
        depth: (1, 1, h, w) metres by the network, in the camera at hand.
        confidence: (H, W) in 0..1 at the published size, or None where the head has none.
        range_m: Published range.
        options: What to do; scale and temporal filter only where the frame has a `track`.

    Returns:
        (H, W) in metres at the published size; NaN unknown, +Inf beyond range.
    """
    n, track = options.depth_divisor, frame.track
    hw = tuple(side // n for side in frame.rgb.shape[:2])
    if track is not None:
        track.follow(options)
        measure = partial(_measured, frame, mask, options=options)
        depth = track.in_metres(depth, measure, frame.stamp_s)
    picture = resize_rgb(image, hw) if options.filter.guide_px or options.temporal.weight else None
    if options.filter.guide_px:
        depth = upsample_guided(depth, picture, options.filter.guide_px, options.filter.edge_ratio)
    else:
        depth = upsample_keeping_edges(depth, hw, options.filter.edge_ratio)
    depth = depth[0, 0]
    if mask is not None:
        seen = mask.view(hw[0], n, hw[1], n).all(dim=3).all(dim=1)
        depth = torch.where(seen, depth, torch.nan)
    if track is not None and options.temporal.weight:
        depth = track.temporal(depth, picture, frame.stamp_s, frame.intrinsics)
    intrinsics = frame.intrinsics.resized(hw) if frame.intrinsics else None
    depth = apply_filters(depth, options.filter, intrinsics, confidence)
    return gate_depth(depth, *range_m, options.near_is_neg_inf)


def _measured(
    frame: Frame, mask: torch.Tensor | None, depth_m: np.ndarray, options: OutputOptions
) -> Measurement:
    """What this frame says about the scale of its depth (h, w), or why it says nothing."""
    if frame.intrinsics is None:
        return Measurement(reason='no camera_info fits the image')
    if mask is not None:
        seen = F.interpolate(mask[None, None].float(), size=depth_m.shape, mode='nearest-exact')
        depth_m = np.where(seen[0, 0].cpu().numpy() > 0, depth_m, np.nan)
    intrinsics = frame.intrinsics.resized(depth_m.shape)
    try:
        if options.scale.source == 'ground' and frame.base_from_optical is not None:
            return measure_ground(depth_m, intrinsics, frame.base_from_optical, options.ground)
        if options.scale.source == 'ranges' and frame.range_points is not None:
            return measure_ranges(depth_m, intrinsics, frame.range_points, options.ranges)
    except InputError as err:
        return Measurement(reason=str(err))
    return Measurement(reason=frame.silence or f'nothing to measure {options.scale.source} by')
