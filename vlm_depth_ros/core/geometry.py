"""Pinhole cameras, lens distortion and unprojection.

The centre of pixel ``i`` lies at coordinate ``i``, so an image of width W covers -0.5 to W - 0.5.
Points are in the optical frame of the image (REP-103): x right, y down, z forward, in metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import NamedTuple

import cv2
import numpy as np
from vlm_depth_ros.core.checks import at_least_one, integer, number, numbers
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.lens import opencv_coefficients, ray_angles_rad, turning_angle_rad

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_OUTSIDE_PX = -1e4  # A source coordinate in no image, and still finite for a half-precision grid.


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


class RegionOfInterest(NamedTuple):
    """Window of the sensor in full-resolution, unbinned pixels; height or width 0 means all of it.

    `do_rectify` is kept for the record: as in image_proc, a rectified image covers the raw window.
    """

    x_offset: int = 0
    y_offset: int = 0
    height: int = 0
    width: int = 0
    do_rectify: bool = False


@dataclass(frozen=True)
class CameraModel:
    """What a sensor_msgs/CameraInfo says, free of ROS; hashable, so that it can key a cache.

    Sizes, `k` and `p` belong to the full sensor; an image that this camera delivers is first cut
    to `roi`, then binned (REP-104). The translation in `p` (a stereo baseline) is not used: points
    stay in the frame of this camera.
    """

    width_px: int
    height_px: int
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    r: tuple[float, ...] = _IDENTITY
    """Rotation to the rectified image; all zeros are read as the identity."""
    p: tuple[float, ...] = (0.0,) * 12
    """Camera of the rectified image; no focal length in it means `k`."""
    binning_x: int = 0
    binning_y: int = 0
    roi: RegionOfInterest = RegionOfInterest()

    def __post_init__(self):
        """Check numbers, sizes and the distortion model; keep plain Python values."""
        for name, count in (('d', None), ('k', 9), ('r', 9), ('p', 12)):
            values = numbers(getattr(self, name), f'camera_info {name.upper()}', count)
            object.__setattr__(self, name, values)
        for name in ('width_px', 'height_px', 'binning_x', 'binning_y'):
            value = integer(getattr(self, name), f'camera_info {name}')
            object.__setattr__(self, name, value)
        roi = RegionOfInterest(*self.roi)
        sides = (integer(getattr(roi, n), f'camera_info roi.{n}') for n in roi._fields[:4])
        object.__setattr__(self, 'roi', RegionOfInterest(*sides, bool(roi.do_rectify)))
        self._check_matrices()
        self._check_window()
        if any(self.d):
            opencv_coefficients(self.distortion_model, self.d)

    def _check_matrices(self) -> None:
        if not (self.k[0] > 0 and self.k[4] > 0):
            raise InputError(
                f'camera_info K has focal lengths ({self.k[0]}, {self.k[4]}): expected positive '
                'numbers. The camera is not calibrated: calibrate it, or set its calibration file.'
            )
        if (self.p[0] or self.p[5]) and not (self.p[0] > 0 and self.p[5] > 0):
            raise InputError(
                f'camera_info P has focal lengths ({self.p[0]}, {self.p[5]}): expected positive '
                'numbers, or all zeros for the same as K.'
            )
        rotation = self._rotation
        turns = np.allclose(rotation @ rotation.T, np.eye(3), atol=0.01)
        if not (turns and np.linalg.det(rotation) > 0):
            raise InputError(
                f'camera_info R = {self.r} is no rotation: expected an orthonormal 3 x 3 matrix; '
                'a camera that is not one of a stereo pair has the identity.'
            )

    def _check_window(self) -> None:
        if self.width_px < 1 or self.height_px < 1:
            raise InputError(
                f'camera_info is for {self.width_px} x {self.height_px} pixels: expected the full '
                'resolution of the camera (width and height of at least 1).'
            )
        if self.binning_x < 0 or self.binning_y < 0 or min(self.roi[:4]) < 0:
            raise InputError(
                f'camera_info has binning {self.binning_x} x {self.binning_y} and {self.roi}: '
                'expected no negative numbers.'
            )
        left, top, height, width = self._window
        if left + width > self.width_px or top + height > self.height_px:
            raise InputError(
                f'camera_info {self.roi} leaves the {self.width_px} x {self.height_px} image: '
                'expected a window in full-resolution pixels, before binning.'
            )
        if min(self.expected_image_hw) < 1:
            raise InputError(
                f'camera_info binning {self.binning_x} x {self.binning_y} leaves no pixel of a '
                f'{width} x {height} window: expected a binning no larger than the window.'
            )

    @classmethod
    def from_intrinsics(cls, intrinsics: CameraIntrinsics) -> 'CameraModel':
        """Return an ideal pinhole: no distortion, no rotation, full resolution."""
        k = tuple(intrinsics.matrix.ravel())
        p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
        width, height = intrinsics.width_px, intrinsics.height_px
        return cls(width, height, 'plumb_bob', (0.0,) * 5, k, p=p)

    @property
    def expected_image_hw(self) -> tuple[int, int]:
        """Size of the images that this camera delivers, height first."""
        _, _, height, width = self._window
        return height // (self.binning_y or 1), width // (self.binning_x or 1)

    @property
    def is_distorted(self) -> bool:
        """Whether a coefficient is not zero, or the rotation not the identity.

        Zero coefficients mean a pinhole whatever the model's name, as image_geometry reads them.
        """
        return any(self.d) or not np.allclose(self._rotation, np.eye(3), rtol=0, atol=1e-9)

    def intrinsics(self, rectified: bool) -> CameraIntrinsics:
        """Pinhole of the delivered image (after ROI and binning).

        Args:
            rectified: True for an image warped by `rectify_map`, or one that arrives rectified:
                the left of `p`, or `k` where `p` has no focal length. False for a raw image: `k`.
        """
        matrix = self.k
        if rectified and self.p[0]:
            matrix = (*self.p[0:3], *self.p[4:7])
        left, top, height, width = self._window
        full = CameraIntrinsics(
            matrix[0], matrix[4], matrix[2], matrix[5], self.width_px, self.height_px
        )
        window = full.cropped(top, left, (height, width))
        return window.binned(self.binning_x or 1, self.binning_y or 1)

    def rectify_map(self) -> np.ndarray:
        """Where each pixel of the rectified image lies in the delivered one.

        The formulas are those of cv2.initUndistortRectifyMap, as in image_proc. Distortion acts on
        rays: it knows nothing of ROI and binning, which are in the cameras of the delivered grid.

        Returns:
            An (H, W, 2) float32 array of source (x, y), always finite. What the raw image does not
            show lies outside it; so does a ray from behind the camera or from beyond the angle at
            which the lens polynomial turns back, which would show a mirrored image.
        """
        raw, rectified = self.intrinsics(rectified=False), self.intrinsics(rectified=True)
        model, d = 'plumb_bob', (0.0,) * 5
        if any(self.d):
            model, d = opencv_coefficients(self.distortion_model, self.d)
        warp = cv2.fisheye if model == 'equidistant' else cv2
        size = (raw.width_px, raw.height_px)
        source_px = np.stack(
            warp.initUndistortRectifyMap(
                raw.matrix, np.array(d), self._rotation, rectified.matrix, size, cv2.CV_32FC1
            ),
            axis=-1,
        )
        angle_rad = ray_angles_rad(np.linalg.inv(rectified.matrix @ self._rotation), raw.image_hw)
        seen = angle_rad < turning_angle_rad(model, d, float(angle_rad.max()))
        seen &= np.isfinite(source_px).all(axis=-1)
        source_px[~seen] = _OUTSIDE_PX
        return source_px

    @property
    def _rotation(self) -> np.ndarray:
        return np.array(self.r if any(self.r) else _IDENTITY).reshape(3, 3)

    @property
    def _window(self) -> tuple[int, int, int, int]:
        """Left, top, height and width of the region of interest."""
        if self.roi.height == 0 or self.roi.width == 0:
            return 0, 0, self.height_px, self.width_px
        return self.roi[:4]


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
