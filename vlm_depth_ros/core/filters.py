"""Which depth a robot should not trust: unsure, at the rim, speckled, flying or seen at a graze.

All work on metric depth in the camera's grid, before `packing.gate_depth`, where NaN is missing,
and all but the median only ever remove. On a CPU they are NumPy and OpenCV passes, whose time is
steady while other programs run (torch wakes its threads for each pass over a whole image, which
takes longer than the pass); elsewhere the same formulas run in torch, on the device.
"""

from collections.abc import Sequence
from functools import lru_cache
import math
from types import ModuleType
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size
from vlm_depth_ros.core.options import FilterOptions

Array = TypeVar('Array', np.ndarray, torch.Tensor)
"""What NumPy and torch spell alike runs on either: the namespace is handed in as `xp`."""

STRIP_PX = 32_000
"""Pixels of which two dozen float32 passes stay in the cache, whatever the image."""


@torch.no_grad()
def apply_filters(
    depth: torch.Tensor,
    options: FilterOptions,
    intrinsics: CameraIntrinsics | None = None,
    confidence: torch.Tensor | None = None,
) -> torch.Tensor:
    """Remove what cannot be trusted: by confidence, at the border, by the median, at edges.

    Args:
        depth: (H, W) float32 metres, positive, or NaN where missing; unchanged.
        options: What to remove.
        intrinsics: Camera of exactly this depth; None: no grazing angle can be told, so none is
            refused.
        confidence: (H, W) in 0..1; None, as of a head that has none: none is refused.

    Returns:
        A new tensor; the very same one if there is nothing to do.

    Raises:
        InputError: If shapes or types do not fit.
    """
    if depth.ndim != 2 or depth.dtype != torch.float32:
        raise InputError(
            f'depth has shape {tuple(depth.shape)} of {depth.dtype}: expected (height, width) of '
            'float32 metres.'
        )
    if options.min_confidence > 0 and confidence is not None:
        if confidence.shape != depth.shape:
            raise InputError(
                f'confidence has shape {tuple(confidence.shape)}: expected that of the depth, '
                f'{tuple(depth.shape)}.'
            )
        sure = torch.as_tensor(array_of(confidence) >= options.min_confidence)
        depth = paste(depth, sure, _missing(depth))
    if any(options.border):
        depth = _without_border(depth, options.border)
    if options.median_px:
        depth = _median(depth, options.median_px)
    if intrinsics is not None:
        require_size(depth.shape, intrinsics)
    if options.max_gradient or (options.min_grazing_deg and intrinsics is not None):
        depth = _without_edges(depth, options, intrinsics)
    return depth


def array_of(values: torch.Tensor) -> Array:
    """On a CPU NumPy's view of it, elsewhere itself."""
    return values.detach().numpy() if values.device.type == 'cpu' else values


def paste(depth: torch.Tensor, where: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
    """`depth` where that is true, `onto` elsewhere; on a CPU `onto` is written to."""
    if depth.device.type != 'cpu':
        return torch.where(where, depth, onto)
    # Ten times faster than a masked fill of torch or NumPy.
    cv2.copyTo(depth.numpy(), where.numpy().view(np.uint8), onto.numpy())
    return onto


def _missing(like: torch.Tensor) -> torch.Tensor:
    if like.device.type != 'cpu':
        return torch.full_like(like, math.nan)
    return torch.from_numpy(np.full(like.shape, math.nan, np.float32))


def _without_border(depth: torch.Tensor, border: tuple[float, ...]) -> torch.Tensor:
    (height, width), (top, bottom, left, right) = depth.shape, border
    inside = (
        slice(round(top * height), height - round(bottom * height)),
        slice(round(left * width), width - round(right * width)),
    )
    kept = _missing(depth)
    array_of(kept)[inside] = array_of(depth)[inside]
    return kept


def _median(depth: torch.Tensor, side_px: int) -> torch.Tensor:
    """Median of the window, the rim repeated; a pixel with a NaN in its window stays as it is."""
    if depth.device.type == 'cpu':
        return torch.from_numpy(_median_opencv(depth.numpy(), side_px))
    return _median_unfold(depth, side_px)


def _median_opencv(depth: np.ndarray, side_px: int) -> np.ndarray:
    found = cv2.medianBlur(depth, side_px)  # sorts each window by itself, so a NaN stays in it
    missing = np.isnan(depth)
    if missing.any():
        near = cv2.dilate(missing.view(np.uint8), np.ones((side_px, side_px), np.uint8))
        cv2.copyTo(depth, near, found)
    return found


def _median_unfold(depth: torch.Tensor, side_px: int) -> torch.Tensor:
    rim = (side_px // 2,) * 4
    padded = F.pad(depth[None, None], rim, mode='replicate')[0, 0]
    windows = padded.unfold(0, side_px, 1).unfold(1, side_px, 1).flatten(2)
    found = windows.median(dim=-1).values  # NaN if one of them is
    return torch.where(found.isnan(), depth, found)


def _without_edges(
    depth: torch.Tensor, options: FilterOptions, intrinsics: CameraIntrinsics | None
) -> torch.Tensor:
    kept = _missing(depth)
    if depth.device.type != 'cpu':
        terms = _ray_terms(intrinsics, depth.device) if intrinsics else ()
        return paste(depth, _trusted(torch, depth, options, intrinsics, terms), kept)
    z, found = depth.numpy(), kept.numpy()
    terms = _ray_terms(intrinsics) if intrinsics else ()
    rows = max(STRIP_PX // z.shape[1], 1)
    for top in range(0, len(z), rows):
        first, last = max(top - 1, 0), top + rows
        seen = slice(first, last + 1)
        here = [term[seen] if len(term) > 1 else term for term in terms]
        with np.errstate(all='ignore'):  # A depth of 0 or beyond all sense is not trusted.
            good = _trusted(np, z[seen], options, intrinsics, here)[top - first :][:rows]
        cv2.copyTo(z[top:last], good.view(np.uint8), found[top:last])
    return kept


def _trusted(
    xp: ModuleType,
    z: Array,
    options: FilterOptions,
    intrinsics: CameraIntrinsics | None,
    terms: Sequence[Array],
) -> Array:
    """Which pixels are neither too steep nor met too flat; `terms` as of `_ray_terms`."""
    w = 1 / z
    du, dv = slopes(xp, w)
    w_2, du_2, dv_2 = w * w, du * du, dv * dv
    # A comparison with NaN is false: nothing that is missing is trusted.
    limit = options.max_gradient**2
    good = xp.maximum(du_2, dv_2) <= limit * w_2 if limit else w_2 == w_2
    if options.min_grazing_deg and terms:
        # w = n . r for the ray r = (x, y, 1) and n = (fx du, fy dv, w - x fx du - y fy dv), so the
        # sine of the angle between ray and surface is w / (|n| |r|); squared, it needs no root.
        columns, rows, ray_2 = terms
        du *= columns
        dv *= rows
        n_2 = w - du
        n_2 -= dv
        n_2 *= n_2
        du_2 *= intrinsics.fx_px**2
        dv_2 *= intrinsics.fy_px**2
        n_2 += du_2
        n_2 += dv_2
        n_2 *= ray_2
        w_2 /= math.sin(math.radians(options.min_grazing_deg)) ** 2
        good &= n_2 <= w_2
    return good


def slopes(xp: ModuleType, w: Array) -> tuple[Array, Array]:
    """Change of w = 1/z per pixel to the right and down; exact on a plane, where w is affine.

    Minmod of the differences to either side (Roe 1986): the smaller if they agree in sign, else 0.
    A step is steep to one side of its pixels and both planes keep their slope; a pixel that
    floats between them is steep to both. Where one side is missing, the other decides; where both
    are, the slope is 0.

    Args:
        xp: NumPy or torch, whichever `w` is of.
        w: (H, W) inverse depth, NaN where missing.

    Returns:
        Two (H, W).
    """
    flat, width = w.reshape(-1), w.shape[1]
    return tuple(_minmod_slope(xp, flat, apart, width).reshape(w.shape) for apart in (1, width))


def _minmod_slope(xp: ModuleType, flat: Array, apart: int, width: int) -> Array:
    """Slope between pixels `apart` places from each other; rows without gaps are faster.

    fmin and fmax pass over a NaN where they can, which lets the other side decide.
    """
    place = {'device': flat.device} if xp is torch else {}
    steps = xp.empty(len(flat) + apart, dtype=flat.dtype, **place)
    xp.subtract(flat[apart:], flat[:-apart], out=steps[apart:-apart])
    steps[:apart] = steps[-apart:] = math.nan
    if apart == 1:
        steps[::width] = math.nan  # from the end of a row to the start of the next
    before, after = steps[:-apart], steps[apart:]
    low, high = xp.fmin(before, after), xp.fmax(before, after)
    return xp.fmax(low, xp.fmin(high, xp.zeros_like(high)))  # the middle one of both and 0


@lru_cache(maxsize=16)
def _ray_terms(
    intrinsics: CameraIntrinsics, device: torch.device | None = None
) -> tuple[Array, Array, Array]:
    """Offsets u - cx (1, W) and v - cy (H, 1), and |r|^2 (H, W); arrays if no device is named."""
    x, y = intrinsics.axis_rays()
    x, y = x[None], y[:, None]
    terms = x * np.float32(intrinsics.fx_px), y * np.float32(intrinsics.fy_px), x * x + y * y + 1
    if device is None:
        return terms
    return tuple(torch.from_numpy(term).to(device) for term in terms)
