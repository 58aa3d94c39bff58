"""The camera of a driver: sensor, window, binning and lens distortion, as camera_info has them."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from vlm_depth_ros.core.checks import integer, numbers
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.lens import opencv_coefficients, ray_angles_rad, turning_angle_rad

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_FARTHEST = 1000.0
"""Focal lengths are at least one part in so many of the image side and at most so many times it: a
telescope has 400. The principal point is at most so many sides away."""
_MAX_COEFFICIENTS = 100
_OUTSIDE_PX = -1e4  # A source coordinate in no image, and still finite for a half-precision grid.


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
        if len(self.d) > _MAX_COEFFICIENTS:  # A million numbers would be looked at one by one.
            raise InputError(
                f'camera_info has {len(self.d)} distortion coefficients: no lens model has more '
                'than 14. The driver fills the message wrongly.'
            )
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
        self._check_proportions()
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
        is_bounded = np.abs(rotation).max() < 2  # The squares of others may overflow.
        turns = is_bounded and np.allclose(rotation @ rotation.T, np.eye(3), atol=0.01)
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

    def _check_proportions(self) -> None:
        sides = np.array([self.width_px, self.height_px], float)
        for name, matrix in (('K', self.k), ('P', (*self.p[0:3], *self.p[4:7]))):
            focal, centre = np.array(matrix)[[0, 4]], np.array(matrix)[[2, 5]]
            if not focal[0] and name == 'P':
                continue
            near = (focal >= sides / _FARTHEST).all() and (focal <= sides * _FARTHEST).all()
            if not (near and (np.abs(centre) <= sides * _FARTHEST).all()):
                raise InputError(
                    f'camera_info {name} has focal lengths ({focal[0]:g}, {focal[1]:g}) and '
                    f'centre ({centre[0]:g}, {centre[1]:g}) for {self.width_px} x '
                    f'{self.height_px} pixels: expected focal lengths of 1/{_FARTHEST:g} to '
                    f'{_FARTHEST:g} times the image side, and the centre within {_FARTHEST:g} '
                    'sides. Calibrate the camera, or check the camera_info it publishes.'
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

    @cached_property
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
