"""Exact depth of a floor and boxes, as a camera on a robot sees them."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.mounting import base_from_optical

SKY_M = 500.0
"""A network answers a number for the sky too."""


@dataclass(frozen=True)
class Box:
    """An upright box in the base frame, metres."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class Robot:
    """Where the camera sits, and what it is."""

    camera_in_base: tuple[float, ...] = (0.15, 0.0, 0.4, 0.0, 0.1, 0.0)
    """0.4 m above the floor, 6 degrees down."""
    intrinsics: CameraIntrinsics = CameraIntrinsics.from_fov(70.0, (240, 320))

    @property
    def base_from_optical(self) -> np.ndarray:
        """(4, 4) from the optical frame to the base."""
        return base_from_optical(self.camera_in_base)


@cache
def depth_of_scene(robot: Robot, boxes: tuple[Box, ...] = ()) -> np.ndarray:
    """(H, W) float32 depth along the optical axis, read only; `SKY_M` where nothing is met."""
    pose, intrinsics = robot.base_from_optical, robot.intrinsics
    x, y = (axis.astype(float) for axis in intrinsics.axis_rays())
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), -1) @ pose[:3, :3].T
    eye = pose[:3, 3]
    with np.errstate(divide='ignore'):
        depth_m = np.where(rays[..., 2] < 0, -eye[2] / rays[..., 2], np.inf)
        for box in boxes:
            sides = (np.array([box.low, box.high])[:, None, None] - eye) / rays
            enters, leaves = sides.min(axis=0).max(axis=-1), sides.max(axis=0).min(axis=-1)
            hit = (enters <= leaves) & (enters > 0)
            depth_m = np.where(hit, np.minimum(depth_m, enters), depth_m)
    depth_m = np.minimum(depth_m, SKY_M).astype(np.float32)
    depth_m.flags.writeable = False
    return depth_m
