"""Byte layouts of what a robot reads: depth, confidence, point cloud, camera_info, embedding.

They are decided here, once, and packed on the device that holds the depth: a message, or a bag
written at a desk, only wraps `data`, which is there at once, or at the end of
`downloads.one_wait`. All numbers are little endian.

Depth follows REP-117 and REP-118: metres along the optical axis, NaN unknown, +Inf beyond range,
-Inf too near where asked for. 0 would be a point at the lens to depth_image_proc: it never comes
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
import math

import cv2
import numpy as np
import torch
from torch.nn.functional import threshold_
from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions
from vlm_depth_ros.core.clouds import crop_depth, ray_ends, voxel_means
from vlm_depth_ros.core.downloads import host_bytes
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size

FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32."""
POINT_FIELDS = (('x', 0, FLOAT32), ('y', 4, FLOAT32), ('z', 8, FLOAT32), ('rgb', 12, FLOAT32))
"""Name, offset in bytes and type of each field of a point."""
POINT_STEP = 16
"""Bytes of one point."""

STRIP_PX = 32_000
"""Pixels of a pass on a CPU: they stay in the cache, and are just under what torch divides."""


@dataclass(frozen=True, eq=False)
class PackedImage:
    """The content of a sensor_msgs/Image, without its header."""

    height: int
    width: int
    encoding: str
    step: int
    """Bytes of one row."""
    data: np.ndarray
    """Flat, contiguous uint8. It may share memory with the tensor that was packed."""


@dataclass(frozen=True, eq=False)
class PackedCloud:
    """The content of a sensor_msgs/PointCloud2 with `POINT_FIELDS`, without its header."""

    height: int
    width: int
    point_step: int
    row_step: int
    is_dense: bool
    """True only if every coordinate is finite."""
    has_rgb: bool
    """False: every ``rgb`` is 0, black."""
    data: np.ndarray
    """Flat, contiguous uint8."""


@dataclass(frozen=True)
class PackedCameraInfo:
    """The content of a sensor_msgs/CameraInfo of a rectified image, without its header."""

    height: int
    width: int
    k: tuple[float, ...]
    p: tuple[float, ...]
    distortion_model: str = 'plumb_bob'
    d: tuple[float, ...] = (0.0,) * 5
    r: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def camera_info_of(intrinsics: CameraIntrinsics) -> PackedCameraInfo:
    """Camera_info of a rectified image: D = 0, R = I, P = [K|0], no ROI, no binning."""
    k = tuple(intrinsics.matrix.ravel().tolist())
    p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
    return PackedCameraInfo(intrinsics.height_px, intrinsics.width_px, k, p)


@torch.no_grad()
def gate_depth(
    depth: torch.Tensor, min_m: float, max_m: float, near_is_neg_inf: bool
) -> torch.Tensor:
    """Write the range of the sensor into depth values (REP-117).

    Args:
        depth: (..., H, W) metres, any floating type, unchanged.
        min_m: Nearer than this is too near: NaN, or -Inf with `near_is_neg_inf`.
        max_m: Farther than this is beyond range: +Inf.
        near_is_neg_inf: REP-117's -Inf instead of NaN. The stock compressedDepth encoder turns it
            into an obstacle at the lens.

    Returns:
        A new float32 tensor; NaN where the input is not finite, zero or negative.

    Raises:
        InputError: If the range is empty, negative or NaN.
    """
    if not 0 <= min_m < max_m:
        raise InputError(f'depth range {min_m} to {max_m} m: expected 0 <= minimum < maximum.')
    # What is no depth at all goes first, so that neither bound can give it a meaning. Thresholds
    # pass NaN on and cost a fifth of a comparison and a masked fill on a CPU.
    gated = _positive(depth)
    nearer = float(np.nextafter(np.float32(min_m), np.float32(0)))
    farther = float(np.nextafter(np.float32(max_m), np.float32(np.inf)))
    for strip in _strips(gated):
        if min_m > 0:
            threshold_(strip, nearer, -math.inf if near_is_neg_inf else math.nan)
        if max_m < math.inf:
            threshold_(strip.neg_(), -farther, -math.inf).neg_()
    return gated


@torch.no_grad()
def pack_depth(depth: torch.Tensor) -> PackedImage:
    """Pack gated depth (H, W) in metres as a ``32FC1`` image; one copy to the host, none on a CPU.

    Raises:
        InputError: If `depth` has other than two dimensions.
    """
    if depth.ndim != 2:
        raise InputError(f'depth has shape {tuple(depth.shape)}: expected (height, width).')
    return _pack_floats(depth)


@torch.no_grad()
def pack_confidence(confidence: torch.Tensor, depth: torch.Tensor) -> PackedImage:
    """Pack confidence (H, W) in 0..1 as a ``32FC1`` image, NaN where gated `depth` is NaN.

    Raises:
        InputError: If the two have different shapes, or other than two dimensions.
    """
    if confidence.ndim != 2 or confidence.shape != depth.shape:
        raise InputError(
            f'confidence has shape {tuple(confidence.shape)}: expected that of the depth, '
            f'{tuple(depth.shape)} as (height, width).'
        )
    return _pack_floats(torch.where(depth.isnan(), math.nan, confidence))


@torch.no_grad()
def pack_embedding(embedding: torch.Tensor) -> PackedImage:
    """Pack an embedding (E,) as a ``32FC1`` image of one row and E columns.

    Raises:
        InputError: If `embedding` has other than one dimension.
    """
    if embedding.ndim != 1:
        raise InputError(f'embedding has shape {tuple(embedding.shape)}: expected (width,).')
    return _pack_floats(embedding[None])


@torch.no_grad()
def pack_picture(picture: torch.Tensor, encoding: str) -> PackedImage:
    """Pack an (H, W, 3) uint8 picture as an image, ``bgr8`` or ``rgb8``."""
    height, width, _ = picture.shape
    return PackedImage(height, width, encoding, width * 3, host_bytes(picture.contiguous()))


@torch.no_grad()
def pack_cloud(
    depth: torch.Tensor,
    intrinsics: CameraIntrinsics,
    rgb: torch.Tensor | None = None,
    stride: int = 1,
    organized: bool = False,
    options: CloudOptions | None = None,
    base_from_optical: np.ndarray | None = None,
) -> PackedCloud:
    """Unproject depth into points of 16 bytes: x y z float32, then rgb as bits 0x00RRGGBB.

    Args:
        depth: (H, W) gated depth in metres; only finite, positive values become points.
        intrinsics: Camera of exactly this depth image, before `stride`.
        rgb: (H, W, 3) uint8 on the device of `depth`; None writes 0.
        stride: Takes every n-th pixel and row.
        organized: Keep the grid of ceil(H / stride) rows, with NaN in x, y and z where there is no
            point. Otherwise one row of points only.
        options: Box and voxels; None keeps every point.
        base_from_optical: (4, 4), for a box in the base frame.

    Raises:
        InputError: If sizes, types or devices do not match, or the box wants a transform.
        ConfigError: If voxels are to be organised.
    """
    require_size(depth.shape, intrinsics)
    x, y = _axis_rays(intrinsics, depth.device, stride)
    z = _positive(depth[::stride, ::stride])
    if options is not None:
        options.require_form(organized)
        z = crop_depth(z, intrinsics.strided(stride), options, base_from_optical)
    if rgb is not None:
        _check_rgb(rgb, depth)
    colour = torch.zeros_like(z) if rgb is None else _colour_bits(rgb, stride)
    points, known = _points(z, x, y, colour)

    if organized:
        (height, width), data, is_dense = z.shape, host_bytes(points), known is None
    else:
        kept = points.view(-1, 4)
        if known is not None:
            kept = _chosen(kept, known)
        if options is not None and options.voxel_m:
            kept = voxel_means(kept, options.voxel_m)
        data = host_bytes(kept)
        height, width, is_dense = 1, data.size // POINT_STEP, True
    return PackedCloud(
        height, width, POINT_STEP, width * POINT_STEP, is_dense, rgb is not None, data
    )


@torch.no_grad()
def pack_clearing(
    depth: torch.Tensor,
    intrinsics: CameraIntrinsics,
    options: ClearingOptions,
    max_depth_m: float = math.inf,
) -> PackedCloud:
    """Put points into the air where rays see free space, for a costmap to trace rays to.

    For a source of Nav2 that clears and does not mark. A pixel gets its point, `range_m` from the
    camera along the ray, if it sees farther than that. +Inf sees as far as `max_depth_m`: what
    comes behind that may be a wall. NaN and -Inf get none: what is unknown is not free.

    Args:
        depth: (H, W) gated depth in metres.
        intrinsics: Camera of exactly this depth image, before the stride.
        options: How far, and how many.
        max_depth_m: What +Inf lies beyond, along the optical axis.

    Returns:
        A dense cloud of one row, without colour, in the optical frame.

    Raises:
        InputError: If the sizes do not match.
    """
    require_size(depth.shape, intrinsics)
    end, points = ray_ends(intrinsics, depth.device, options)
    seen_m = depth[:: options.stride, :: options.stride].clamp(max=max_depth_m)
    data = host_bytes(_chosen(points, seen_m > end))
    width = data.size // POINT_STEP
    return PackedCloud(1, width, POINT_STEP, width * POINT_STEP, True, False, data)


@lru_cache(maxsize=32)
def _axis_rays(
    intrinsics: CameraIntrinsics, device: torch.device, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays of the strided image, (w,) and (h, 1): less to read than an image of rays."""
    x, y = intrinsics.strided(stride).axis_rays()
    return torch.from_numpy(x).to(device), torch.from_numpy(y)[:, None].to(device)


def _colour_bits(rgb: torch.Tensor, stride: int) -> torch.Tensor:
    """Bits 0x00RRGGBB of the strided picture, as float32 (h, w)."""
    if rgb.device.type != 'cpu':
        red, green, blue = rgb[::stride, ::stride].to(torch.int32).unbind(-1)
        return (red << 16 | green << 8 | blue).view(torch.float32)
    rows = np.ascontiguousarray(rgb[::stride].numpy())
    words = cv2.cvtColor(rows, cv2.COLOR_RGB2BGRA).view(np.uint32)[:, ::stride, 0]
    return torch.from_numpy((words & 0xFFFFFF).view(np.float32))


def _points(
    z: torch.Tensor, x: torch.Tensor, y: torch.Tensor, colour: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Points (h, w, 4) float32, and which of them are finite (h, w); None where all are."""
    on_cpu = z.device.type == 'cpu'
    if on_cpu:  # A quarter of torch's time.
        z, x, y, colour = (values.numpy() for values in (z, x, y, colour))
    with np.errstate(over='ignore'):
        fields = z * x, z * y, z, colour
        points = torch.from_numpy(cv2.merge(fields)) if on_cpu else torch.stack(fields, dim=-1)
        if math.isfinite(z.sum()):  # One NaN makes the sum NaN; cheaper than a mask.
            return points, None
    return points, torch.as_tensor(z == z)  # NaN is not equal to itself.


def _pack_floats(values: torch.Tensor) -> PackedImage:
    height, width = values.shape
    data = host_bytes(values.to(torch.float32).contiguous())
    return PackedImage(height, width, '32FC1', width * 4, data)


def _positive(depth: torch.Tensor) -> torch.Tensor:
    """Return a new float32 tensor with NaN for whatever is no finite, positive number."""
    positive = depth.detach().to(torch.float32)
    if positive.device.type == 'cpu':
        positive = torch.from_numpy(np.array(positive.numpy(), order='C'))
    else:
        positive = positive.clone(memory_format=torch.contiguous_format)
    for strip in _strips(positive):
        # -Inf is below the threshold; NaN is not, and stays.
        threshold_(strip, 0.0, math.nan).nan_to_num_(nan=math.nan, posinf=math.nan)
    return positive


def _strips(values: torch.Tensor) -> Sequence[torch.Tensor]:
    """Contiguous values to be changed in place; on a CPU in parts for which torch wakes no thread.

    To wake them takes longer than such a pass over a whole image.
    """
    return values.view(-1).split(STRIP_PX) if values.device.type == 'cpu' else [values]


def _chosen(points: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the rows of `points` (N, 4) float32 where `chosen`, of N pixels, is true."""
    if points.device.type != 'cpu':
        return points[chosen.view(-1)]
    # NumPy moves a point as one 16-byte number, ten times faster than torch moves rows of four.
    rows = points.numpy().view(np.complex128).reshape(-1)[chosen.numpy().reshape(-1)]
    return torch.from_numpy(rows.view(np.float32).reshape(-1, 4))


def _check_rgb(rgb: torch.Tensor, depth: torch.Tensor) -> None:
    if rgb.shape != (*depth.shape, 3) or rgb.dtype != torch.uint8 or rgb.device != depth.device:
        raise InputError(
            f'rgb is {rgb.dtype} {tuple(rgb.shape)} on {rgb.device}: expected torch.uint8 '
            f'{(*depth.shape, 3)} on {depth.device}, one colour for each pixel of the depth.'
        )
