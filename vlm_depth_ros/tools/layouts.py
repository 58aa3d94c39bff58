"""What makes a plan other than an empty rectangle: partitions, a flat, closets, columns, roofs."""

import math

import numpy as np
from vlm_depth_ros.tools.doors import inner_wall, LEAF_M
from vlm_depth_ros.tools.furniture import beam, box, pole
from vlm_depth_ros.tools.place import Place


def dwelling(room) -> None:
    """One room, often divided in two; sometimes beams, sometimes a slanted roof."""
    if room.rng.random() < 0.5:
        _partition(room)
    _closets(room)
    _overhead(room)


def passage(room) -> None:
    """A corridor: closets and pillars narrow it."""
    _closets(room)
    _overhead(room)


def hall(room) -> None:
    """A large room with columns."""
    dwelling(room)
    rng = room.rng
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(-0.35, 0.35, 2) * (room.width_m, room.length_m)
        r = rng.uniform(0.15, 0.35)
        if room.claim(x - r, y - r, x + r, y + r):
            room.put(pole(0, 0, 0, room.height_m, r, 'white'), Place(x, y))


def flat(room) -> None:
    """A corridor between rows of rooms, each with a doorway to it and furniture behind.

    Corridors are 1.1 to 1.8 m wide (common practice: 1.2 m at home, 1.5 m and more in offices).
    """
    rng, w, d = room.rng, room.width_m / 2, room.length_m / 2
    wide, thick = rng.uniform(1.1, 1.8), rng.uniform(0.1, 0.2)
    middle = rng.uniform(-0.15, 0.15) * room.width_m
    for side in (-1, 1):
        x = middle + side * (wide + thick) / 2
        # A row along the corridor; the ends are where walls across divide it.
        count = max(1, round(room.length_m / rng.uniform(2.8, 4.5)))
        ends = np.linspace(-d, d, count + 1)
        ends[1:-1] += rng.uniform(-0.4, 0.4, count - 1)
        openings = []
        for a, b in zip(ends[:-1], ends[1:], strict=True):
            width = LEAF_M if rng.random() < 0.8 else rng.uniform(1.0, 1.6)
            width = min(width, b - a - 0.7)
            openings.append((rng.uniform(a + 0.3, b - 0.3 - width) + d, width))
        inner_wall(room, Place(x, -d, yaw_rad=math.pi / 2), room.length_m, thick, openings)
        outer, inner = (w if side > 0 else -w), x + side * thick / 2
        for y in ends[1:-1]:
            room.block(Place(), *sorted((outer, inner)), y - 0.06, y + 0.06, 0, room.height_m)


def _partition(room):
    """A wall across the room with a doorway, so that one sees into the next room."""
    rng, w = room.rng, room.width_m
    y, thick = rng.uniform(-0.25, 0.25) * room.length_m, rng.uniform(0.08, 0.2)
    width = LEAF_M if rng.random() < 0.6 else rng.uniform(1.0, min(2.2, w - 0.8))
    x0 = rng.uniform(0.3, w - 0.3 - width)
    inner_wall(room, Place(-w / 2, y), w, thick, [(x0, width)])


def _closets(room):
    """Closets and chimneys in front of the long walls."""
    rng, w, d = room.rng, room.width_m / 2, room.length_m / 2
    for _ in range(int(rng.integers(0, 3))):
        a, b = rng.uniform(0.2, 0.3 * w + 0.2), rng.uniform(0.2, 1.2)
        x0 = float(rng.choice([-w, w - a]))
        middle = rng.uniform(-d, d) if rng.random() < 0.5 else rng.choice([-d, d])
        y0 = float(np.clip(middle - b / 2, -d, d - b))
        if room.claim(x0, y0, x0 + a, y0 + b):
            room.block(Place(), x0, x0 + a, y0, y0 + b, 0, room.height_m)


def _overhead(room):
    """Beams across the ceiling, or a roof that slants down to one or both long walls."""
    rng, w, d, h = room.rng, room.width_m / 2, room.length_m / 2, room.height_m
    if rng.random() < 0.12:
        for y in np.arange(-d + 0.5, d, rng.uniform(0.8, 1.6)):
            room.put(box(-w, w, y - 0.06, y + 0.06, h - 0.2, h, 'wood'), Place(), shadow=False)
    elif rng.random() < 0.12:
        knee, run = rng.uniform(0.9, 1.7), rng.uniform(0.3, 0.6) * w
        for side in (-1, 1)[: int(rng.integers(1, 3))]:
            roof = beam((side * w, 0, knee), (side * (w - run), 0, h), 2 * d, 0.02, 'ceiling')
            room.put(roof, Place(), np.ones(3), shadow=False)
            room.lamp_reach = min(room.lamp_reach, (w - run) / (2 * w) * 0.8)
