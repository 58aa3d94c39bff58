"""What hangs on the walls of a room: doors, windows with curtains, pictures, boards with books."""

import numpy as np
from vlm_depth_ros.tools.furniture import box, clutter
from vlm_depth_ros.tools.shading import Light


def decorate(room) -> None:
    """Hang things on all four walls of a `rooms.Room`, none over another."""
    rng = room.rng
    makers = (_door, _window, _window, _picture, _picture, _picture, _board)
    for number in range(4):
        place, run = room.wall(number)
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
    if rng.random() < 0.4:
        for x in (x0, x1):
            low = rng.uniform(0.02, z0)
            cloth = box(x - 0.18, x + 0.18, 0.04, 0.12, low, z1 + 0.12, 'curtain', 'curtain')
            _hang(room, number, cloth, shadow=True)
    if rng.random() < 0.3 and room.claim_wall(number, middle, width * 0.8, 0.12):
        a, b = middle - width * 0.4, middle + width * 0.4
        heater = box(a, b, 0.03, 0.11, 0.12, z0 - 0.12, 'white', 'panels')
        _hang(room, number, heater, shadow=True)


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
