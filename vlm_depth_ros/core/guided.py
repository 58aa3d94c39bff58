"""Depth enlarged along the edges of the picture: the fast guided filter.

A network answers on a coarse grid, and softly. Within a small window depth is taken as a linear
function of the colours, fitted there; at full size the same function reads the full picture, so
that depth ends where the thing in the picture ends (He, Sun and Tang, "Guided Image Filtering",
PAMI 2013, equations 19 to 21 for colour; He and Sun, "Fast Guided Filter", arXiv 1505.00996).

On a CPU all of it is OpenCV's and NumPy's, plane by plane: a fifth of torch's time for few planes,
and little memory in flight, because what a C library gives back to the system after each frame is
handed out as fresh pages at the next, which takes longer than to compute what goes there.
"""

from types import ModuleType
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from vlm_depth_ros.core.enlarging import nearest_of, upsample_keeping_edges
from vlm_depth_ros.core.filters import paste
from vlm_depth_ros.core.preprocess import resize_rgb, to_camera_grid

Array = TypeVar('Array', np.ndarray, torch.Tensor)
"""(C, h, w) float32, or (h, w); what NumPy and torch spell alike runs on either."""

EPSILON = 3e-4
"""Variance of colour, in 0..1 squared, below which a window counts as even (4.4 of 255)."""


class OpenCvPlanes:
    """Windows and enlargement on a CPU."""

    xp: ModuleType = np

    @staticmethod
    def of(values: torch.Tensor) -> np.ndarray:
        """The values as what the others take."""
        return values.detach().float().contiguous().numpy()

    @staticmethod
    def box(values: np.ndarray, radius_px: int) -> np.ndarray:
        """Mean of each window of (C, h, w), the picture mirrored at its rim."""
        found = np.empty_like(values)
        for plane, mean in zip(values, found):
            cv2.blur(plane, (2 * radius_px + 1,) * 2, mean)
        return found

    @staticmethod
    def farthest(values: np.ndarray, radius_px: int) -> np.ndarray:
        """Largest of each window of (h, w)."""
        return cv2.dilate(values, np.ones((2 * radius_px + 1,) * 2, np.uint8))

    @staticmethod
    def read(
        fit: np.ndarray, nearest: np.ndarray, farthest: np.ndarray, picture: torch.Tensor
    ) -> torch.Tensor:
        """(H, W): three slopes and an offset enlarged, applied to the picture, within limits."""
        size = picture.shape[:0:-1]
        *slopes, offset = fit
        found = cv2.resize(offset, size)
        wide = np.empty_like(found)  # one for all: see above
        rgb = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        for slope, channel in zip(slopes, cv2.split(rgb)):
            cv2.accumulateProduct(cv2.resize(slope, size, wide), channel.astype(np.float32), found)
        np.maximum(found, cv2.resize(nearest, size, wide), out=found)
        np.minimum(found, cv2.resize(farthest, size, wide), out=found)
        return torch.from_numpy(found)


class TorchPlanes:
    """The same on any device."""

    xp: ModuleType = torch

    @staticmethod
    def of(values: torch.Tensor) -> torch.Tensor:
        """The values as what the others take."""
        return values.float()

    @staticmethod
    def box(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Mean of each window of (C, h, w), the picture mirrored at its rim."""
        padded = F.pad(values, (radius_px,) * 4, mode='reflect')
        return F.avg_pool2d(padded, 2 * radius_px + 1, stride=1)

    @staticmethod
    def farthest(values: torch.Tensor, radius_px: int) -> torch.Tensor:
        """Largest of each window of (h, w)."""
        return F.max_pool2d(values[None], 2 * radius_px + 1, stride=1, padding=radius_px)[0]

    @staticmethod
    def read(
        fit: torch.Tensor, nearest: torch.Tensor, farthest: torch.Tensor, picture: torch.Tensor
    ) -> torch.Tensor:
        """(H, W): three slopes and an offset enlarged, applied to the picture, within limits."""
        planes = torch.cat([fit, torch.stack([nearest, farthest])])[None]
        *slopes, found, low, high = to_camera_grid(planes, picture.shape[1:])[0]
        for slope, channel in zip(slopes, picture):
            found = torch.addcmul(found, slope, channel)
        return torch.clamp(found, low, high)


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
    planes = planes or (OpenCvPlanes if depth.device.type == 'cpu' else TorchPlanes)
    z = planes.of(depth[0, 0])
    if radius_px < 1 or not planes.xp.isfinite(z).all():
        return upsample_keeping_edges(depth, hw, edge_ratio)
    colour = planes.of(resize_rgb(picture, coarse_hw)) / 255
    fit = planes.box(_fit(colour, z, radius_px, planes), radius_px)
    fit[:3] /= 255
    nearest, farthest = -planes.farthest(-z, radius_px), planes.farthest(z, radius_px)
    found = planes.read(fit, nearest, farthest, picture)
    if edge_ratio:
        # A fit reaches as far as its window, and each pixel reads the fits of a window around it.
        step = _step_near(z, edge_ratio, 2 * radius_px + 1, planes)
        if step.any():
            kept = upsample_keeping_edges(depth.float(), hw, edge_ratio)[0, 0]
            found = paste(kept, torch.as_tensor(nearest_of(step, hw)), found)
    return found[None, None]


def _step_near(z: Array, edge_ratio: float, reach_px: int, planes: Planes) -> Array:
    """(h, w) bool: where neighbours within reach differ by more than the ratio."""
    farthest, nearest = planes.farthest(z, 1), -planes.farthest(-z, 1)
    return planes.farthest(farthest - edge_ratio * nearest, reach_px) > 0


def _fit(colour: Array, z: Array, radius_px: int, planes: Planes) -> Array:
    """Least squares of each window: (4, h, w), slopes in metres by colour and then the offset.

    slopes = (S + EPSILON)^-1 c, where S has the covariances of the colours and c those of depth.
    """
    xp = planes.xp
    values = xp.concatenate([colour, z[None]])
    mean = planes.box(values, radius_px)
    covariance = planes.box(_products(xp, values), radius_px) - _products(xp, mean)
    rr, rg, rb, rz, gg, gb, gz, bb, bz = covariance
    # Gauss's elimination, of twelve thousand systems of three equations in each pass.
    rr = rr + EPSILON
    g_by_r, b_by_r = rg / rr, rb / rr
    gg, gb, gz = gg + EPSILON - g_by_r * rg, gb - g_by_r * rb, gz - g_by_r * rz
    bb, bz = bb + EPSILON - b_by_r * rb, bz - b_by_r * rz
    b_by_g = gb / gg
    blue = (bz - b_by_g * gz) / (bb - b_by_g * gb)
    green = (gz - gb * blue) / gg
    red = (rz - rg * green - rb * blue) / rr
    offset = mean[3] - red * mean[0] - green * mean[1] - blue * mean[2]
    return xp.stack([red, green, blue, offset])


def _products(xp: ModuleType, values: Array) -> Array:
    """Of r, g, b, z: rr rg rb rz gg gb gz bb bz."""
    return xp.concatenate([values[i] * values[i:] for i in range(3)])
