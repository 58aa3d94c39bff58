"""The camera of images that come without one, as somebody types it."""

from dataclasses import dataclass
import math

from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics


@dataclass
class GivenCamera:
    """Pinhole numbers or a field of view; None of both leaves every image its own camera."""

    numbers_px: tuple[float, float, float, float] | None = None
    """fx, fy, cx, cy, for images of one size."""
    fov_deg: float | None = None
    """Horizontal field of view, for images of any size, principal point in the middle."""
    _image_hw: tuple[int, int] | None = None

    def __post_init__(self):
        """Refuse what no camera has."""
        require(
            self.fov_deg is None or 0 < self.fov_deg < 180,
            f'--fov-deg {self.fov_deg}: expected an angle between 0 and 180 degrees.',
        )

    @classmethod
    def from_flags(cls, camera: str | None, fov_deg: float | None) -> 'GivenCamera':
        """Read ``--camera FX,FY,CX,CY`` or ``--fov-deg``.

        Raises:
            ConfigError: If the text has another form or a number is no camera's.
        """
        if camera is None:
            return cls(fov_deg=fov_deg)
        try:
            numbers = tuple(float(part) for part in camera.split(','))
        except ValueError:
            numbers = ()
        good = len(numbers) == 4 and all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0
        if not good:
            raise ConfigError(
                f'--camera {camera}: expected FX,FY,CX,CY in pixels, with positive FX and FY.'
            )
        return cls(numbers)

    def of(
        self, own: CameraIntrinsics | None, image_hw: tuple[int, int]
    ) -> CameraIntrinsics | None:
        """Give the camera of an image: what was typed, else its own.

        Raises:
            InputError: If four numbers were typed and images differ in size.
        """
        if self.fov_deg is not None:
            return CameraIntrinsics.from_fov(self.fov_deg, image_hw)
        if self.numbers_px is None:
            return own
        height, width = image_hw
        self._image_hw = self._image_hw or image_hw
        if image_hw != self._image_hw:
            raise InputError(
                f'{width} x {height} pixels, but --camera is for those of the first image, '
                f'{self._image_hw[1]} x {self._image_hw[0]}; give --fov-deg for images of any '
                'size.'
            )
        return CameraIntrinsics(*self.numbers_px, width, height)
