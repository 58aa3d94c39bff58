"""Light on what the rays meet: textures, lamps with soft shadows, highlights, dark corners."""

from dataclasses import dataclass

import cv2
import numpy as np
from vlm_depth_ros.tools.contact import Contact
from vlm_depth_ros.tools.raycast import (
    cast,
    describe,
    Grid,
    look_along,
    portions,
    surface_points,
)
from vlm_depth_ros.tools.textures import remap

_SHADOW_PX = 224


@dataclass(frozen=True, eq=False)
class Light:
    """A small lamp: linear RGB power, shadows from a map that looks along `axis`.

    `spread_tan` is the tangent of half the map's field of view, `beyond` the share of the light
    off the map, and `screens` are solids that nothing but this light meets: the wall about the
    window that the sun shines through.
    """

    position_m: np.ndarray
    axis: np.ndarray
    power: np.ndarray
    softness_px: float = 2.0
    casts_shadow: bool = True
    spread_tan: float = 2.4
    beyond: float = 1.0
    screens: tuple = ()


@dataclass(eq=False)
class Surfaces:
    """What the rays meet, sorted by solid: one row per pixel, in the order of `pixels`."""

    pixels: np.ndarray
    points_m: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    glow: np.ndarray
    gloss: np.ndarray


def collect(solids, textures, pose, grid, depth, index) -> Surfaces:
    """Look up point, normal and colour of every hit."""
    flat = index.ravel()
    order = np.argsort(flat, kind='stable')
    ends = np.searchsorted(flat[order], np.arange(-1, len(solids)), side='right')
    order, ends = order[ends[0] :], ends - ends[0]
    n = len(order)
    points = np.empty((n, 3), np.float32)
    normals, albedo = np.empty((n, 3), np.float32), np.empty((n, 3), np.float32)
    glow, gloss = np.zeros(n, np.float32), np.zeros(n, np.float32)
    pixel_m = depth.ravel()[order] * np.float32(grid.x[1] - grid.x[0])
    origin = pose[:3, 3].astype(np.float32)
    visible = np.flatnonzero(np.diff(ends))
    parts = [(i, part) for i in visible for part in portions(slice(ends[i], ends[i + 1]))]
    for number, part in parts:
        solid = solids[number]
        points[part] = surface_points(pose, grid, depth, order[part])
        face, normal, coordinates, sizes = describe(solid, points[part])
        normals[part] = normal
        ray = points[part] - origin
        slant = np.abs(np.einsum('ij,ij->i', ray, normal)) / np.linalg.norm(ray, axis=1)
        footprint_m = pixel_m[part] / np.sqrt(np.maximum(slant, 0.02))
        names = np.asarray(solid.faces)[face]
        for name in np.flatnonzero(np.bincount(names)):
            mine, texture = np.flatnonzero(names == name), textures[name]
            rows = part.start + mine
            colour = texture.sample(
                coordinates[mine], sizes[face[mine]], footprint_m[mine], number
            )
            albedo[rows] = colour * solid.tint
            glow[rows], gloss[rows] = texture.glow, texture.gloss
    return Surfaces(order, points, normals, albedo, glow, gloss)


class ShadowMap:
    """Variance shadow map of one light (Donnelly and Lauritzen, I3D 2006)."""

    def __init__(self, light: Light, solids):
        """Render the solids that cast a shadow, as the light sees them, and blur the moments."""
        n = _SHADOW_PX
        x = np.linspace(-light.spread_tan, light.spread_tan, n, dtype=np.float32)
        self.pose = look_along(light.position_m, light.axis)
        blockers = [s for s in solids if s.casts_shadow] + list(light.screens)
        depth, _ = cast(blockers, self.pose, Grid(x, x))
        self.spread_tan, self.beyond = light.spread_tan, np.float32(light.beyond)
        depth = np.minimum(depth, 30)
        moments = cv2.merge([depth, depth * depth])
        self.moments = cv2.GaussianBlur(moments, (0, 0), light.softness_px)

    def lit(self, points_m: np.ndarray) -> np.ndarray:
        """Share of the light (N,) that reaches points (3, N): by Chebyshev's bound."""
        x, y, ahead = self.pose[:3, :3].T.astype(np.float32) @ (
            points_m - _column(self.pose[:3, 3])
        )
        z = np.maximum(ahead, 1e-3)
        scale = np.float32((_SHADOW_PX - 1) / (2 * self.spread_tan))
        middle = np.float32((_SHADOW_PX - 1) / 2)
        u, v = x / z * scale + middle, y / z * scale + middle
        inside = (ahead > 0.05) & (np.abs(u - middle) < middle) & (np.abs(v - middle) < middle)
        moments = remap(self.moments, u, v)
        behind = z - moments[:, 0] - 0.01
        variance = np.maximum(moments[:, 1] - moments[:, 0] ** 2, 2e-4 * z)
        share = variance / (variance + np.maximum(behind, 0) ** 2)
        share = np.clip((share - 0.25) / 0.75, 0, 1)
        return np.where(inside, share, self.beyond)


def shade(
    surfaces: Surfaces, lights, shadows, ambient: np.ndarray, contact: Contact, eye_m
) -> np.ndarray:
    """Linear RGB (N, 3) of every surface: Lambert, Blinn-Phong, and dark corners."""
    colour = np.empty_like(surfaces.albedo)
    for part in portions(slice(0, len(colour))):
        gloss = surfaces.gloss[part]
        diffuse, shine = _light(
            surfaces.points_m[part].T.copy(),
            surfaces.normals[part].T.copy(),
            gloss,
            lights,
            shadows,
            ambient,
            contact,
            eye_m,
        )
        diffuse += surfaces.glow[part]
        colour[part] = surfaces.albedo[part] * diffuse.T + shine.T
    return colour


def _light(p, n, gloss, lights, shadows, ambient, contact, eye_m):
    """Diffuse light and highlights (3, N) at points and normals (3, N)."""
    open_share = contact.open_share(p, n)
    sky = np.float32(0.8) + np.float32(0.2) * n[2]
    diffuse = open_share * sky * _column(ambient)
    shine = np.zeros_like(diffuse)
    glossy = bool(gloss.any())
    if glossy:
        view = _column(eye_m) - p
        view /= np.sqrt((view * view).sum(axis=0))
    for light, shadow in zip(lights, shadows, strict=True):
        to_light = _column(light.position_m) - p
        square = (to_light * to_light).sum(axis=0)
        to_light /= np.sqrt(square)
        strength = np.maximum((to_light * n).sum(axis=0), 0) / (np.float32(0.5) + square)
        if shadow is not None:
            strength *= shadow.lit(p)
        power = _column(light.power)
        # A lamp is wide: a dark corner sees less of it too.
        strength *= np.float32(0.4) + np.float32(0.6) * open_share
        diffuse += strength * power
        if glossy:
            to_light += view
            to_light /= np.sqrt((to_light * to_light).sum(axis=0)) + np.float32(1e-6)
            cosine = np.maximum((to_light * n).sum(axis=0), 0)
            for _ in range(6):
                cosine *= cosine
            shine += cosine * gloss * strength * 6 * power
    return diffuse, shine


def _column(vector) -> np.ndarray:
    return np.asarray(vector, np.float32)[:, None]
