"""Lens polynomials: what sensor_msgs/CameraInfo names, in the form that OpenCV takes."""

import math

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.texts import quoted

_COEFFICIENT_COUNTS = {
    'plumb_bob': (4, 5),
    'rational_polynomial': tuple(range(8, 15)),
    'equidistant': (4,),
}
_UNNAMED_MODELS = ('', 'pinhole')


def opencv_coefficients(model: str, d: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """The model that OpenCV shall use and the coefficients in a number that it accepts.

    Raises:
        InputError: If the model is unknown or has another number of coefficients.
    """
    if model in _UNNAMED_MODELS:  # OpenCV's own polynomial, told apart by the number alone.
        model = 'plumb_bob' if len(d) <= 5 else 'rational_polynomial'
    if model not in _COEFFICIENT_COUNTS:
        raise InputError(
            f'camera_info has distortion_model {quoted(model)}: expected one of '
            f'{", ".join(_COEFFICIENT_COUNTS)}. Rectify the image upstream and publish its '
            'camera_info with zeros in D.'
        )
    counts = _COEFFICIENT_COUNTS[model]
    if len(d) not in counts:
        expected = f'{counts[0]} to {counts[-1]}' if len(counts) > 1 else f'{counts[0]}'
        raise InputError(
            f'camera_info has {len(d)} distortion coefficients for {model!r}: expected {expected}.'
            ' Check distortion_model and D.'
        )
    accepted = next(n for n in (4, 5, 8, 12, 14) if n >= len(d))
    return model, d + (0.0,) * (accepted - len(d))


def ray_angles_rad(to_ray: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Angle between the optical axis of the lens and the ray of each rectified pixel, (H, W)."""
    u = np.arange(image_hw[1], dtype=np.float32)
    v = np.arange(image_hw[0], dtype=np.float32)[:, None]
    x, y, z = (np.float32(a) * u + (np.float32(b) * v + np.float32(c)) for a, b, c in to_ray)
    return np.arctan2(np.hypot(x, y), z)


def turning_angle_rad(model: str, d: tuple[float, ...], needed_rad: float) -> float:
    """Angle up to which a larger one lies farther out in the raw image, below 90 degrees."""
    limit = math.radians(89.9)
    angle = np.linspace(0.0, min(max(needed_rad * 1.001, 1e-3), limit), 4096)
    r = angle if model == 'equidistant' else np.tan(angle)
    if model == 'equidistant':
        numerator, denominator = d, ()
    else:
        k = (*d, *(0.0,) * 8)
        numerator, denominator = (k[0], k[1], k[4]), k[5:8]
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        distorted = r * np.polyval((*numerator[::-1], 1.0), r * r)
        distorted /= np.polyval((*denominator[::-1], 1.0), r * r)
        turns_back = np.flatnonzero(~(np.diff(distorted) > 0))
    return float(angle[turns_back[0]]) if turns_back.size else limit
