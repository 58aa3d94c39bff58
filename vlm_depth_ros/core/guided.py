"""Depth enlarged along the edges of the picture: the fast guided filter.

A network answers on a coarse grid, and softly. Within a small window depth is taken as a linear
function of the colours, fitted there; at full size the same function reads the full picture, so
that depth ends where the thing in the picture ends (He, Sun and Tang, "Guided Image Filtering",
PAMI 2013, equations 19 to 21 for colour; He and Sun, "Fast Guided Filter", arXiv 1505.00996).

On a CPU windows and enlargement are OpenCV's, which needs a fifth of torch's time for few planes.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.filters import upsample_keeping_edges
from vlm_depth_ros.core.preprocess import resize_rgb, to_camera_grid

EPSILON = 3e-4
"""Variance of colour, in 0..1 squared, below which a window counts as even (4.4 of 255)."""


class OpenCvPlanes:
    """Windows and enlargement of (1, C, h, w) on a CPU."""

    @staticmethod
    def box(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Mean of each window, the picture mirrored at its rim."""
        side = 2 * radius_px + 1
        return _by_plane(values, lambda plane: cv2.blur(plane, (side, side)))

    @staticmethod
    def farthest(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Largest of each window."""
        window = np.ones((2 * radius_px + 1,) * 2, np.uint8)
        return _by_plane(values, lambda plane: cv2.dilate(plane, window))

    @staticmethod
    def enlarged(values: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
        """As `to_camera_grid`."""
        return _by_plane(values, lambda plane: cv2.resize(plane, hw[::-1]))


class TorchPlanes:
    """The same on any device."""

    @staticmethod
    def box(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Mean of each window, the picture mirrored at its rim."""
        padded = F.pad(values, (radius_px,) * 4, mode='reflect')
        return F.avg_pool2d(padded, 2 * radius_px + 1, stride=1)

    @staticmethod
    def farthest(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Largest of each window."""
        return F.max_pool2d(values, 2 * radius_px + 1, stride=1, padding=radius_px)

    enlarged = staticmethod(to_camera_grid)


Planes = type[OpenCvPlanes] | type[TorchPlanes]


@torch.no_grad()
def upsample_guided(
    depth: torch.Tensor,
    picture: torch.Tensor,
    radius_px: int,
    edge_ratio: float = 0.0,
    planes: Planes | None = None,
) -> torch.Tensor:
    """Resize depth to the size of a picture, along its edges.

    Never nearer or farther than what the network says within `radius_px` of a place, so nothing
    is extrapolated; constant depth stays what it is. A step of depth that the picture does not
    show would be smeared over the windows that see it, into depth where there is nothing: where
    the network itself is sharp, `edge_ratio` leaves the picture out.

    Args:
        depth: (1, 1, h, w) metres by the network.
        picture: (3, H, W) uint8 RGB, on the same device.
        radius_px: Half a window, in pixels of `depth`; never more than fits.
        edge_ratio: Where neighbours in reach differ by more than this factor, depth is enlarged
            as by `upsample_keeping_edges`; 0: nowhere.
        planes: How; None: what suits the device.

    Returns:
        (1, 1, H, W). Where a depth is not finite nothing can be fitted around it: then all of it
        is enlarged without the picture.
    """
    hw, coarse_hw = tuple(picture.shape[-2:]), tuple(depth.shape[-2:])
    radius_px = min(radius_px, min(coarse_hw) - 1)
    if radius_px < 1 or not depth.isfinite().all():
        return upsample_keeping_edges(depth, hw, edge_ratio)
    planes = planes or (OpenCvPlanes if depth.device.type == 'cpu' else TorchPlanes)
    depth = depth.float()
    colour = resize_rgb(picture, coarse_hw)[None].float() / 255
    slope, offset = _fit(colour, depth, radius_px, planes)
    fit = planes.box(torch.cat([slope / 255, offset], dim=1), radius_px)
    *slopes, found = planes.enlarged(fit, hw)[0]
    for slope, channel in zip(slopes, picture):
        found = torch.addcmul(found, slope, channel)
    nearest, farthest = (-planes.farthest(-depth, radius_px), planes.farthest(depth, radius_px))
    low, high = planes.enlarged(torch.cat([nearest, farthest], dim=1), hw)[0]
    found = torch.clamp(found, low, high)[None, None]
    if not edge_ratio:
        return found
    # A fit reaches as far as its window, and each pixel reads the fits of a window around it.
    step = _step_near(depth, edge_ratio, 2 * radius_px + 1, planes)
    if not step.any():
        return found
    sharp = F.interpolate(step, size=hw, mode='nearest-exact') > 0
    return torch.where(sharp, upsample_keeping_edges(depth, hw, edge_ratio), found)


def _step_near(
    depth: torch.Tensor, edge_ratio: float, reach_px: int, planes: Planes
) -> torch.Tensor:
    """(1, 1, h, w): 1 where neighbours within reach differ by more than the ratio, else 0."""
    farthest, nearest = planes.farthest(depth, 1), -planes.farthest(-depth, 1)
    return planes.farthest((farthest > edge_ratio * nearest).float(), reach_px)


def _fit(
    colour: torch.Tensor, depth: torch.Tensor, radius_px: int, planes: Planes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of each window: slopes (1, 3, h, w) in metres by colour, offset (1, 1, h, w).

    slopes = (S + EPSILON)^-1 c, where S has the covariances of the colours and c those of depth.
    """
    values = torch.cat([colour, depth], dim=1)
    mean = planes.box(values, radius_px)
    covariance = planes.box(_products(values), radius_px) - _products(mean)
    rr, rg, rb, rz, gg, gb, gz, bb, bz = covariance.unbind(dim=1)
    rr, gg, bb = rr + EPSILON, gg + EPSILON, bb + EPSILON
    # By cofactors: twelve thousand systems of three equations in some passes.
    c_rr, c_rg, c_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    c_gg, c_gb, c_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    slopes = torch.stack(
        [
            c_rr * rz + c_rg * gz + c_rb * bz,
            c_rg * rz + c_gg * gz + c_gb * bz,
            c_rb * rz + c_gb * gz + c_bb * bz,
        ],
        dim=1,
    )
    slopes = slopes / (rr * c_rr + rg * c_rg + rb * c_rb)[:, None]
    return slopes, mean[:, 3:] - (slopes * mean[:, :3]).sum(dim=1, keepdim=True)


def _products(values: torch.Tensor) -> torch.Tensor:
    """Of r, g, b, z: rr rg rb rz gg gb gz bb bz."""
    return torch.cat([values[:, i : i + 1] * values[:, i:] for i in range(3)], dim=1)


def _by_plane(
    values: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]
) -> torch.Tensor:
    """(1, C, h, w), each plane changed by a function of OpenCV."""
    planes = (change(plane) for plane in values[0].numpy())
    return torch.stack([torch.from_numpy(plane) for plane in planes])[None]
