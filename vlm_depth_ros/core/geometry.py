"""Pinhole cameras and unprojection.

The centre of pixel ``i`` lies at coordinate ``i``, so an image of width W covers -0.5 to W - 0.5.
Points are in the optical frame of the image (REP-103): x right, y down, z forward, in metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np
from vlm_depth_ros.core.checks import at_least_one, integer, number
from vlm_depth_ros.core.errors import InputError


@dataclass(frozen=True)
class CameraIntrinsics:
    """An ideal pinhole camera for images of one size; hashable, so that it can key a cache."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    width_px: int
    height_px: int

    def __post_init__(self):
        """Refuse what no camera has."""
        for name in ('fx_px', 'fy_px', 'cx_px', 'cy_px'):
            object.__setattr__(self, name, number(getattr(self, name), f'intrinsics {name}'))
        for name in ('width_px', 'height_px'):
            size = integer(getattr(self, name), f'intrinsics {name}')
            if size < 1:
                raise InputError(f'intrinsics {name} = {size}: expected at least 1 pixel.')
            object.__setattr__(self, name, size)
        if not (self.fx_px > 0 and self.fy_px > 0):
            raise InputError(
                f'intrinsics have focal lengths ({self.fx_px}, {self.fy_px}): expected positive '
                'numbers of pixels. Calibrate the camera, or check the camera_info it publishes.'
            )

    @classmethod
    def from_fov(cls, fov_deg: float, image_hw: tuple[int, int]) -> 'CameraIntrinsics':
        """Return square pixels around a central axis: width = 2 fx tan(fov / 2).

        Args:
            fov_deg: Horizontal field of view, above 0 and below 180 degrees.
            image_hw: Size of the image, height first.

        Raises:
            InputError: If no pinhole has this field of view.
        """
        fov_deg = number(fov_deg, 'field of view')
        if not 0 < fov_deg < 180:
            raise InputError(
                f'field of view = {fov_deg:g} degrees: expected an angle between 0 and 180.'
            )
        height, width = image_hw
        focal_px = width / 2 / math.tan(math.radians(fov_deg) / 2)
        return cls(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2, width, height)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Size of the image, height first."""
        return self.height_px, self.width_px

    @property
    def matrix(self) -> np.ndarray:
        """The (3, 3) float64 camera matrix in pixels."""
        return np.array(
            [[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]]
        )

    @property
    def normalised_focal(self) -> float:
        """Geometric mean of fx over the width and fy over the height: free of the image size."""
        return math.sqrt(self.fx_px / self.width_px * self.fy_px / self.height_px)

    def resized(self, hw: tuple[int, int]) -> 'CameraIntrinsics':
        """Camera of the image after a centre-aligned resize to `hw` (height first)."""
        height, width = hw
        return self._scaled(width / self.width_px, height / self.height_px, hw)

    def cropped(self, top: int, left: int, hw: tuple[int, int]) -> 'CameraIntrinsics':
        """Camera of the window of size `hw` at (`top`, `left`); negative offsets are padding."""
        return CameraIntrinsics(
            self.fx_px, self.fy_px, self.cx_px - left, self.cy_px - top, hw[1], hw[0]
        )

    def binned(self, by_x: int, by_y: int) -> 'CameraIntrinsics':
        """Camera of the image of means over `by_y` x `by_x` pixels; an incomplete block is cut."""
        by_x, by_y = at_least_one(by_x, 'binning x'), at_least_one(by_y, 'binning y')
        return self._scaled(1 / by_x, 1 / by_y, (self.height_px // by_y, self.width_px // by_x))

    def strided(self, n: int) -> 'CameraIntrinsics':
        """Camera of ``image[::n, ::n]``: pixel ``i`` is pixel ``i * n``, nothing is averaged."""
        n = at_least_one(n, 'stride')
        return CameraIntrinsics(
            self.fx_px / n,
            self.fy_px / n,
            self.cx_px / n,
            self.cy_px / n,
            math.ceil(self.width_px / n),
            math.ceil(self.height_px / n),
        )

    def axis_rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors on depth: x over z per column (W,) and y over z per row (H,), float32."""
        x = (np.arange(self.width_px) - self.cx_px) / self.fx_px
        y = (np.arange(self.height_px) - self.cy_px) / self.fy_px
        return x.astype(np.float32), y.astype(np.float32)

    def _scaled(self, by_x: float, by_y: float, hw: tuple[int, int]) -> 'CameraIntrinsics':
        # Image borders, not pixel centres, are what a resize maps onto one another.
        return CameraIntrinsics(
            self.fx_px * by_x,
            self.fy_px * by_y,
            (self.cx_px + 0.5) * by_x - 0.5,
            (self.cy_px + 0.5) * by_y - 0.5,
            hw[1],
            hw[0],
        )


def depth_to_points(depth_m: np.ndarray, intrinsics: CameraIntrinsics) -> np.ndarray:
    """Turn depth along the optical axis into points.

    Args:
        depth_m: (H, W), metres; not finite = missing.
        intrinsics: Camera of exactly this image.

    Returns:
        (H, W, 3) float32 in the optical frame; NaN in all three where depth is missing.

    Raises:
        InputError: If the sizes differ.
    """
    require_size(depth_m.shape, intrinsics)
    x, y = intrinsics.axis_rays()
    points = np.empty((*depth_m.shape, 3), np.float32)
    points[..., 2] = np.where(np.isfinite(depth_m), depth_m, np.nan)
    np.multiply(points[..., 2], x, out=points[..., 0])
    np.multiply(points[..., 2], y[:, None], out=points[..., 1])
    return points


def require_size(shape: Sequence[int], intrinsics: CameraIntrinsics) -> None:
    """Refuse a depth image of a shape that `intrinsics` are not for."""
    if tuple(shape) != intrinsics.image_hw:
        raise InputError(
            f'depth has shape {tuple(shape)} and its camera is for {intrinsics.image_hw}: expected'
            ' the same (height, width). Use CameraIntrinsics.resized, cropped or binned.'
        )
