"""A scene of solids, textures and lamps, and its photograph with exact depth."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.tools import raycast, rooms, shading
from vlm_depth_ros.tools.contact import Contact
from vlm_depth_ros.tools.sensor import Sensor

STYLES = rooms.STYLES


@dataclass(eq=False)
class Scene:
    """Solids, textures, lamps and the camera's sensor; the first solid is the closed room.

    World frame: metres, z up, origin in the middle of the floor.
    """

    solids: list
    textures: list
    lights: list
    ambient: np.ndarray
    sensor: Sensor
    style: str = 'room'

    def __post_init__(self):
        """Stack the boxes of all solids: a scene does not move."""
        self._boxes = (
            np.array([s.center_m for s in self.solids]),
            np.array([s.half_m for s in self.solids]),
            np.array([s.rotation for s in self.solids]),
        )

    @cached_property
    def _shadows(self) -> list:
        return [
            shading.ShadowMap(light, self.solids) if light.casts_shadow else None
            for light in self.lights
        ]

    @cached_property
    def _contact(self) -> Contact:
        return Contact(self.solids)

    @property
    def shell(self) -> raycast.Solid:
        """The room itself."""
        return self.solids[0]

    def depth(self, pose: np.ndarray, intrinsics: CameraIntrinsics) -> np.ndarray:
        """Exact depth (H, W) float32 in metres along the optical axis, at pixel centres.

        Args:
            pose: World_from_optical (4, 4), the camera inside the room.
            intrinsics: The pinhole camera.

        Raises:
            InputError: If the pose is no rigid motion or the camera stands outside the room.
        """
        pose = self._checked(pose)
        grid = raycast.Grid.of(intrinsics)
        return raycast.cast(self.solids, pose, grid)[0].astype(np.float32)

    def render(self, pose, intrinsics, rng=None) -> tuple[np.ndarray, np.ndarray]:
        """Photograph the scene.

        Colour is averaged over 2 x 2 samples per pixel; depth is not averaged.

        Args:
            pose: World_from_optical (4, 4), the camera inside the room.
            intrinsics: The pinhole camera.
            rng: Source of sensor noise; without it the picture is free of noise.

        Returns:
            RGB (H, W, 3) uint8, and depth (H, W) float32 as from `depth`; every pixel has one.

        Raises:
            InputError: As `depth`.
        """
        pose = self._checked(pose)
        grid = raycast.Grid.of(intrinsics, samples=2, dtype=np.float32)
        coarse, index = raycast.cast(self.solids, pose, grid)
        seen = shading.collect(self.solids, self.textures, pose, grid, coarse, index)
        colour = shading.shade(
            seen, self.lights, self._shadows, self.ambient, self._contact, pose[:3, 3]
        )
        linear = np.zeros((coarse.size, 3), np.float32)
        linear[seen.pixels] = colour
        hw = intrinsics.height_px, intrinsics.width_px
        linear = linear.reshape(*coarse.shape, 3)
        linear = cv2.resize(linear, hw[::-1], interpolation=cv2.INTER_AREA)
        depth_m = self.depth(pose, intrinsics)
        return self.sensor.develop(linear, rng, depth_m), depth_m

    def clearance_m(self, points_m: np.ndarray) -> np.ndarray:
        """Distance (N,) from points (N, 3) to the nearest surface; negative inside a solid.

        A cylinder or an ellipsoid counts as its bounding box.
        """
        places = np.asarray(points_m, float)[:, None]
        center, half, rotation = self._boxes
        over = np.abs(np.einsum('nsi,sij->nsj', places - center, rotation)) - half
        outside = np.linalg.norm(np.maximum(over, 0), axis=2)
        gap = outside + np.minimum(over.max(axis=2), 0)
        gap[:, 0] = -over[:, 0].max(axis=1)
        return gap.min(axis=1)

    def _checked(self, pose) -> np.ndarray:
        pose = np.asarray(pose, float)
        if pose.shape != (4, 4) or not np.allclose(
            pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6
        ):
            raise InputError(
                f'pose of shape {pose.shape}: expected a rigid 4 x 4 matrix world_from_optical; '
                'build one with raycast.look_along.'
            )
        inside = (
            np.abs(self.shell.rotation.T @ (pose[:3, 3] - self.shell.center_m)) < self.shell.half_m
        )
        if not inside.all():
            raise InputError(
                f'camera at {pose[:3, 3].round(2).tolist()} m: expected a place inside the room '
                f'of {(2 * self.shell.half_m).round(2).tolist()} m, as random_camera gives.'
            )
        return pose


def random_scene(rng: np.random.Generator, style: str = 'room') -> Scene:
    """A furnished room.

    Args:
        rng: Decides everything; the same state gives the same scene.
        style: One of `STYLES`.

    Raises:
        InputError: If the style is unknown.
    """
    if style not in STYLES:
        raise InputError(f'style {style!r}: expected one of {", ".join(STYLES)}.')
    room = rooms.Room(rng, style)
    return Scene(
        room.solids, room.paint.textures, room.lights, room.ambient, Sensor.random(rng), style
    )
