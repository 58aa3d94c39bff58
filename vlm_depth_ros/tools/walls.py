"""What hangs on the walls of a room: doors, windows with curtains, pictures, boards with books."""

import math

import numpy as np
from vlm_depth_ros.tools.furniture import box, clutter
from vlm_depth_ros.tools.raycast import Solid
from vlm_depth_ros.tools.shading import Light


def decorate(room) -> None:
    """Hang things on all four walls of a `rooms.Room`, none over another."""
    rng = room.rng
    makers = (_door, _window, _window, _picture, _picture, _picture, _board)
    for number in range(4):
        place, run = room.wall(number)
        if room.style == 'warehouse':
            break
        spans = []
        for _ in range(int(rng.integers(1, 5 if run < 4 else 8))):
            maker = makers[int(rng.integers(len(makers)))]
            width = rng.uniform(*_WIDTHS_M[maker])
            if width > run - 0.3:
                continue
            along = rng.uniform(-1, 1) * ((run - width) / 2 - 0.1)
            if all(abs(along - a) >= (width + b) / 2 + 0.15 for a, b in spans):
                spans.append((along, width))
                maker(room, number, along - width / 2, along + width / 2)


def _door(room, number, x0, x1):
    if not room.claim_wall(number, (x0 + x1) / 2, x1 - x0 + 0.1, 0.75):
        return
    _hang(room, number, box(x0, x1, 0, 0.03, 0, 2.02, 'trim', 'door'))
    _hang(room, number, box(x0 - 0.07, x0, 0, 0.05, 0, 2.1, 'trim'))
    _hang(room, number, box(x1, x1 + 0.07, 0, 0.05, 0, 2.1, 'trim'))
    _hang(room, number, box(x0, x1, 0, 0.05, 2.03, 2.1, 'trim'))


def _window(room, number, x0, x1):
    rng, middle, width = room.rng, (x0 + x1) / 2, x1 - x0
    z0 = rng.uniform(0.5, 1.1)
    z1 = min(z0 + rng.uniform(0.8, 1.5), room.height_m - 0.1)
    pane = _hang(room, number, box(x0, x1, 0, 0.02, z0, z1, 'trim', 'window'))
    sill = box(x0 - 0.05, x1 + 0.05, 0, rng.uniform(0.05, 0.2), z0 - 0.04, z0, 'trim')
    _hang(room, number, sill)
    glow = room.paint.textures[pane.faces[3]].glow
    if glow and len(room.lights) < 2:
        place, _ = room.wall(number)
        position = np.array(place.at(middle, 0.25, (z0 + z1) / 2))
        inwards = np.array(place.at(middle, 1.25, (z0 + z1) / 2 - 0.4)) - position
        power = np.array([0.9, 0.97, 1.1]) * glow * width * rng.uniform(0.8, 2.0)
        room.lights.append(Light(position, inwards, power, rng.uniform(3, 6)))
        if rng.random() < 0.5:
            room.lights.append(_sun(room, place, middle, width / 2, z0, z1, glow))
    if rng.random() < 0.4:
        for x in (x0, x1):
            low = rng.uniform(0.02, z0)
            cloth = box(x - 0.18, x + 0.18, 0.04, 0.12, low, z1 + 0.12, 'curtain', 'curtain')
            _hang(room, number, cloth, shadow=True)
    if rng.random() < 0.3 and room.claim_wall(number, middle, width * 0.8, 0.12):
        a, b = middle - width * 0.4, middle + width * 0.4
        heater = box(a, b, 0.03, 0.11, 0.12, z0 - 0.12, 'white', 'panels')
        _hang(room, number, heater, shadow=True)


def _sun(room, place, middle, half, z0, z1, glow) -> Light:
    """The sun through one window: a far lamp, and the wall about the window as its screen."""
    rng, far, center = room.rng, 15.0, (z0 + z1) / 2
    height, aside = math.radians(rng.uniform(15, 50)), math.radians(rng.uniform(-50, 50))
    level = far * math.cos(height)
    sun = (middle + level * math.sin(aside), -level * math.cos(aside))
    position = np.array(place.at(*sun, center + far * math.sin(height)))
    # Mullions cut the patch of light in two; the outside lies at y < 0.
    rims = (
        box(middle - 6, middle - half, -0.06, 0, z0 - 6, z1 + 6, 'wall'),
        box(middle + half, middle + 6, -0.06, 0, z0 - 6, z1 + 6, 'wall'),
        box(middle - half, middle + half, -0.06, 0, z0 - 6, z0, 'wall'),
        box(middle - half, middle + half, -0.06, 0, z1, z1 + 6, 'wall'),
        box(middle - 0.03, middle + 0.03, -0.06, 0, z0, z1, 'wall'),
    )
    screens = tuple(
        Solid.upright('box', place.at(*rim.center), rim.half, place.yaw_rad) for rim in rims
    )
    power = np.array([1.25, 1.05, 0.8]) * far**2 * glow * rng.uniform(0.8, 2.0)
    return Light(
        position,
        np.array(place.at(middle, 0, center)) - position,
        power,
        1.0,
        spread_tan=1.05 * math.hypot(half, (z1 - z0) / 2) / far,
        beyond=0.0,
        screens=screens,
    )


def _picture(room, number, x0, x1):
    half = (x1 - x0) * room.rng.uniform(0.3, 0.75)
    z = room.rng.uniform(1.35, 1.75)
    z0, z1 = max(z - half, 0.9), min(z + half, room.height_m - 0.1)
    thick = room.rng.uniform(0.01, 0.04)
    _hang(room, number, box(x0, x1, 0, thick, z0, z1, 'dark', 'picture'))


def _board(room, number, x0, x1):
    rng, middle, width = room.rng, (x0 + x1) / 2, x1 - x0
    z, depth = rng.uniform(1.3, 1.8), rng.uniform(0.18, 0.3)
    _hang(room, number, box(x0, x1, 0, depth, z, z + 0.025, 'wood'), shadow=True)
    x2 = middle + width * rng.uniform(-0.3, 0.4)
    books = box(x0 + 0.02, x2, 0.01, depth * 0.8, z + 0.025, z + 0.24, 'goods', 'books')
    _hang(room, number, books, shadow=True)
    place, _ = room.wall(number)
    x, y, _ = place.at((x2 + x1) / 2, 0)
    for part in clutter(rng, (x1 - x2) * 0.8, depth, z + 0.025, 5):
        room.put(part, place._replace(x_m=x, y_m=y))


def _hang(room, number, part, shadow=False):
    place, _ = room.wall(number)
    return room.put(part, place, np.ones(3), shadow)


_WIDTHS_M = {_door: (0.75, 1.0), _window: (0.7, 2.2), _picture: (0.2, 0.9), _board: (0.5, 1.4)}
