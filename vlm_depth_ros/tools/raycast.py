"""Rays against boxes, cylinders and ellipsoids: exact depth; NumPy, one core.

A ray is not normalised: its optical z component is 1, so that the ray parameter of a hit *is* the
depth along the optical axis. Coordinates are metres, the world's z points up, and a pose is the
(4, 4) matrix world_from_optical (x right, y down, z forward: REP-103).
"""

from dataclasses import dataclass, field
import math

import numpy as np

NEAR_M = 0.02
_TINY = 1e-20
_PORTION = 8192
KINDS = ('room', 'box', 'cylinder', 'ellipsoid')


@dataclass(frozen=True, eq=False)
class Solid:
    """One convex body, or (`room`) a box seen from inside.

    `rotation` is world_from_local; a cylinder stands along local z, and an ellipsoid has the
    semi-axes `half_m`. `faces` names a texture per face, in the order -x +x -y +y -z +z.
    """

    kind: str
    center_m: np.ndarray
    half_m: np.ndarray
    rotation: np.ndarray
    faces: tuple[int, ...] = (0,) * 6
    tint: np.ndarray = field(default_factory=lambda: np.ones(3, np.float32))
    casts_shadow: bool = True

    @classmethod
    def upright(cls, kind, center_m, half_m, yaw_rad=0.0, pitch_rad=0.0, **more) -> 'Solid':
        """A solid tilted about its x axis (positive raises its +y end), then turned about z."""
        c, s = math.cos(yaw_rad), math.sin(yaw_rad)
        turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        if pitch_rad:
            c, s = math.cos(pitch_rad), math.sin(pitch_rad)
            turn = turn @ np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
        return cls(kind, np.asarray(center_m, float), np.asarray(half_m, float), turn, **more)


@dataclass(frozen=True, eq=False)
class Grid:
    """The rays of a pinhole camera: optical x of every column and y of every row at z = 1."""

    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, intrinsics, samples: int = 1, dtype=np.float64) -> 'Grid':
        """Rays through the pixel centres, or through `samples` x `samples` points of each."""
        k, n = intrinsics, samples
        columns = (np.arange(k.width_px * n) + 0.5) / n - 0.5
        rows = (np.arange(k.height_px * n) + 0.5) / n - 0.5
        x = ((columns - k.cx_px) / k.fx_px).astype(dtype)
        y = ((rows - k.cy_px) / k.fy_px).astype(dtype)
        return cls(x, y)


def look_along(position_m: np.ndarray, forward: np.ndarray, roll_rad: float = 0.0) -> np.ndarray:
    """World_from_optical of a camera that looks along `forward`, level but for the roll."""
    forward = np.asarray(forward, float) / np.linalg.norm(forward)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = math.cos(roll_rad), math.sin(roll_rad)
    pose = np.eye(4)
    pose[:3, 0] = c * right + s * down
    pose[:3, 1] = c * down - s * right
    pose[:3, 2] = forward
    pose[:3, 3] = position_m
    return pose


def cast(solids, pose: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First hits of all rays.

    Every solid is tried only in the rectangle that its box covers on the image, near ones first,
    and not at all where all that was met lies before it: what makes hundreds of solids affordable.

    Returns:
        Depth along the optical axis (H, W) in metres and in the grid's type, +Inf where nothing is
        met; index of the solid that is met (H, W) int16, -1 where none.
    """
    shape = (len(grid.y), len(grid.x))
    depth = np.full(shape, np.inf, grid.x.dtype)
    index = np.full(shape, -1, np.int16)
    turn, origin = pose[:3, :3], pose[:3, 3]
    windows, nearest = _windows(solids, turn, origin, grid)
    for number in np.argsort(nearest, kind='stable').tolist():
        top, bottom, left, right = windows[number]
        if left >= right or top >= bottom:
            continue
        solid, rows, columns = solids[number], slice(top, bottom), slice(left, right)
        local = (solid.rotation.T @ turn).astype(grid.x.dtype)
        start = solid.rotation.T @ (origin - solid.center_m)
        x = grid.x[columns]
        for band in portions(rows, len(x)):
            best = depth[band, columns]
            # The margin is for rounding: a face at its corner's depth must not be lost.
            if best.max() < nearest[number] - 1e-3:
                continue
            y = grid.y[band, None]
            t = _enter(solid, start, [(a * x + c) + b * y for a, b, c in local])
            closer = t < best
            np.copyto(best, t, where=closer)
            np.copyto(index[band, columns], np.int16(number), where=closer)
    return depth, index


def portions(span: slice, width: int = 1):
    """Cut a span of rows so that a portion stays in the cache: twice as fast as whole images."""
    step = max(1, _PORTION // width)
    for begin in range(span.start, span.stop, step):
        yield slice(begin, min(begin + step, span.stop))


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def _windows(solids, turn, origin, grid) -> tuple[list[list[int]], np.ndarray]:
    """Per solid: first and last row, first and last column that it may cover; least depth.

    The window of an unseen solid is empty; a room has least depth 0, so that it is met first.
    """
    center = np.array([s.center_m for s in solids]) - origin
    half = np.array([s.half_m for s in solids])
    rotation = np.array([s.rotation for s in solids])
    seen = (_CORNERS * half[:, None]) @ rotation.swapaxes(1, 2) + center[:, None]
    seen = seen @ turn
    z = seen[..., 2]
    before, cut = z.max(axis=1) >= NEAR_M, z.min(axis=1) < NEAR_M
    # A room, and whatever reaches behind the camera, may be anywhere.
    room = np.array([s.kind == 'room' for s in solids])
    anywhere = cut & before | room
    plane = seen[..., :2] / np.where(cut[:, None], 1, z)[..., None]
    low, high = plane.min(axis=1), plane.max(axis=1)
    first = [
        np.maximum(np.searchsorted(g, low[:, k]) - 1, 0) for k, g in enumerate((grid.x, grid.y))
    ]
    last = [
        np.minimum(np.searchsorted(g, high[:, k]) + 1, len(g))
        for k, g in enumerate((grid.x, grid.y))
    ]
    windows = np.stack((first[1], last[1], first[0], last[0]), axis=1)
    windows[cut] = 0
    windows[anywhere] = (0, len(grid.y), 0, len(grid.x))
    return windows.tolist(), np.where(room, -np.inf, z.min(axis=1))


def _enter(solid, start, rays):
    """Ray parameter where each ray first meets the solid, +Inf where it does not."""
    kind = rays[0].dtype.type
    if solid.kind in ('room', 'box'):
        enter, leave = _slab(start[0], solid.half_m[0], rays[0])
        for axis in (1, 2):
            near, far = _slab(start[axis], solid.half_m[axis], rays[axis])
            np.maximum(enter, near, out=enter)
            np.minimum(leave, far, out=leave)
        if solid.kind == 'room':
            return leave
    else:
        axes = 2 if solid.kind == 'cylinder' else 3
        a, b, c = kind(_TINY), kind(0), kind(-1)
        for axis in range(axes):
            d, o = rays[axis] * kind(1 / solid.half_m[axis]), start[axis] / solid.half_m[axis]
            a = a + d * d
            b = b + d * kind(o)
            c = c + kind(o * o)
        root = b * b - a * c
        miss = root < 0
        np.sqrt(np.maximum(root, 0, out=root), out=root)
        enter, leave = (-b - root) / a, (root - b) / a
        enter[miss] = np.inf
        if solid.kind == 'cylinder':
            near, far = _slab(start[2], solid.half_m[2], rays[2])
            np.maximum(enter, near, out=enter)
            np.minimum(leave, far, out=leave)
    enter[(enter >= leave) | (enter < NEAR_M)] = np.inf
    return enter


def _slab(start, half, ray):
    """Entry and exit parameter of the slab |coordinate| <= half."""
    kind = ray.dtype.type
    # A ray parallel to the slab would divide by zero; a tiny addend changes no other ray.
    inverse = kind(1) / (ray + kind(_TINY))
    middle = inverse * kind(-start)
    reach = np.abs(inverse, out=inverse) * kind(half)
    return middle - reach, middle + reach


def surface_points(pose, grid, depth, pixels) -> np.ndarray:
    """World points (N, 3) float32 of the flat pixel numbers `pixels`."""
    row, column = np.divmod(pixels, len(grid.x))
    t = depth.ravel()[pixels]
    optical = np.stack((grid.x[column] * t, grid.y[row] * t, t), axis=1).astype(np.float32)
    return optical @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32)


def describe(solid, points):
    """Face (N,), world normal (N, 3), place on the face (N, 2), sizes of the faces (6, 2)."""
    half = solid.half_m.astype(np.float32)
    local = (points - solid.center_m.astype(np.float32)) @ solid.rotation.astype(np.float32)
    scaled = local / half
    x, y, z = half * 2
    sizes = np.array([(y, z), (y, z), (x, z), (x, z), (x, y), (x, y)], np.float32)
    if solid.kind in ('room', 'box'):
        axis = np.abs(scaled).argmax(axis=1)
        positive = np.take_along_axis(scaled, axis[:, None], 1)[:, 0] > 0
        face = axis * 2 + positive
        outward = -1.0 if solid.kind == 'room' else 1.0
        table = np.repeat(solid.rotation.T, 2, axis=0) * np.tile([-outward, outward], 3)[:, None]
        normal = table.astype(np.float32)[face]
        u = np.where(axis == 0, local[:, 1], local[:, 0])
        v = np.where(axis == 2, -local[:, 1], -local[:, 2])
        return face, normal, np.stack((u, v), 1), sizes
    gradient = scaled / half
    if solid.kind == 'ellipsoid':
        gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
        axis = np.abs(gradient).argmax(axis=1)
        u = np.where(axis == 0, local[:, 1], local[:, 0])
        v = np.where(axis == 2, -local[:, 1], -local[:, 2])
        return axis * 2, gradient @ solid.rotation.T.astype(np.float32), np.stack((u, v), 1), sizes
    around = np.arctan2(scaled[:, 1], scaled[:, 0]) * (half[0] / 2 + half[1] / 2)
    coordinates = np.stack((around, -local[:, 2]), 1)
    cap = np.abs(scaled[:, 2]) > 1 - 1e-4
    gradient[:, 2] = np.where(cap, np.sign(scaled[:, 2]), 0)
    gradient[cap, :2] = 0
    coordinates[cap] = local[cap, :2]
    face = np.where(cap, 4 + (scaled[:, 2] > 0), 0)
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    sizes[:4] = (math.pi * (half[0] + half[1]), 2 * half[2])
    return face, gradient @ solid.rotation.T.astype(np.float32), coordinates, sizes
