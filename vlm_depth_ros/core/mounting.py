"""Where a camera or a range sensor sits on the robot, as 4x4 matrices.

A matrix ``a_from_b`` turns a point of frame b into frame a. Body frames have x forward, y left and
z up, optical frames x right, y down and z forward (REP-103); metres and radians.
"""

from collections.abc import Sequence

import numpy as np
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError

BODY_FROM_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""From ``*_optical_frame`` to the body frame of the same camera."""


def base_from_sensor(sensor_in_base: Sequence[float], what: str = 'camera_in_base') -> np.ndarray:
    """Turn a pose of six numbers into a matrix.

    Args:
        sensor_in_base: x, y, z in metres, then roll, pitch, yaw in radians about the fixed axes x,
            y, z of the base, in this order, as in URDF: R = Rz(yaw) Ry(pitch) Rx(roll). A positive
            pitch looks down, a positive yaw to the left.
        what: Name of the parameter, for the message.

    Returns:
        (4, 4) float64; points of the sensor's *body* frame to the base frame.

    Raises:
        ConfigError: If these are not six finite numbers.
    """
    try:
        pose = np.array(sensor_in_base, float)
    except (TypeError, ValueError):
        pose = np.array(np.nan)
    require(
        pose.shape == (6,) and bool(np.isfinite(pose).all()),
        f'{what} = {sensor_in_base!r}: expected six finite numbers, '
        '[x, y, z] in metres and [roll, pitch, yaw] in radians.',
    )
    (sr, sp, sy), (cr, cp, cy) = np.sin(pose[3:]), np.cos(pose[3:])
    matrix = np.eye(4)
    matrix[:3, :3] = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    matrix[:3, 3] = pose[:3]
    return matrix


def base_from_optical(camera_in_base: Sequence[float]) -> np.ndarray:
    """As `base_from_sensor`, from the camera's optical frame.

    `camera_in_base` is the pose of the camera's body frame (``camera_link``): six zeros are a
    camera that looks ahead.
    """
    return base_from_sensor(camera_in_base) @ BODY_FROM_OPTICAL


def inverse_of(transform: np.ndarray) -> np.ndarray:
    """``b_from_a`` of a rigid ``a_from_b``, (4, 4)."""
    rotation, translation = transform[:3, :3], transform[:3, 3]
    inverse = np.eye(4)
    inverse[:3, :3] = rotation.T
    inverse[:3, 3] = -rotation.T @ translation
    return inverse


def require_rigid(transform: np.ndarray, what: str) -> np.ndarray:
    """Return `transform` as (4, 4) float64.

    Raises:
        InputError: If it is no rotation and translation.
    """
    matrix = np.asarray(transform, float)
    rigid = matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())
    if rigid:
        rotation = matrix[:3, :3]
        rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        rigid = rigid and np.linalg.det(rotation) > 0 and np.allclose(matrix[3], (0, 0, 0, 1))
    if not rigid:
        raise InputError(
            f'{what} of shape {matrix.shape} is no rigid transform: expected a (4, 4) matrix of a '
            'rotation and a translation. Check the transform tree, or camera_in_base.'
        )
    return matrix
