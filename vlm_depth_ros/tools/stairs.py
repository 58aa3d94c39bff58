"""Stairs, galleries, ramps and ladders.

Steps rise 0.16 to 0.19 m over treads of 0.25 to 0.30 m, which is twice a rise plus a tread within
0.59 to 0.65 m (the rule of DIN 18065); handrails stand 0.9 m above the treads (DIN 18065).
"""

import math

import numpy as np
from vlm_depth_ros.tools.furniture import beam, box, pole
from vlm_depth_ros.tools.place import Place

_RAIL_M = 0.9


def flight(rng, steps=None):
    """A straight flight along a wall, rising to the right: solid, or treads between stringers."""
    rise = rng.uniform(0.16, 0.19)
    tread, width = rng.uniform(0.59, 0.65) - 2 * rise, rng.uniform(0.8, 1.2)
    count = steps or int(rng.integers(3, 11))
    run, x0 = count * tread, -count * tread / 2
    slope = rise / tread
    is_open = rng.random() < 0.4
    step, side = rng.choice(['wood', 'stone', 'white'], 2)
    parts = []
    for i in range(count):
        x, z = x0 + i * tread, (i + 1) * rise
        if is_open:
            parts.append(box(x - 0.02, x + tread, 0.03, width - 0.03, z - 0.04, z, step))
        else:
            parts.append(box(x, x + tread, 0, width, 0, z - 0.03, side))
            parts.append(box(x - 0.02, x + tread, 0, width + 0.01, z - 0.03, z, step))
    if is_open:
        for y in (0.015, width - 0.015):
            start = (x0, y, 0.02)
            parts.append(beam(start, (x0 + run, y, run * slope), 0.03, 0.24, side))
    if rng.random() < 0.7:
        parts += list(_rail((x0, width, rise), (x0 + run, width, run * slope + rise)))
    return run, width + 0.02, parts


def _rail(start, end):
    """Posts with a handrail between two points of a floor or of a slope."""
    a, b = np.array(start, float), np.array(end, float)
    count = max(1, math.ceil(math.hypot(*(b - a)[:2]) / 0.5))
    for share in np.linspace(0.02, 0.98, count + 1):
        x, y, z = a + share * (b - a)
        yield pole(x, y, z - 0.1, z + _RAIL_M, 0.012, 'frame')
    for height in (_RAIL_M, _RAIL_M / 2):
        shift = np.array([0, 0, height])
        yield beam(tuple(a + shift), tuple(b + shift), 0.045, 0.03, 'frame')


def ramp(rng):
    """A wheelchair ramp to a low platform; 6 % is the rule, 15 % is seen."""
    width, run = rng.uniform(0.9, 1.3), rng.uniform(1.5, 3.0)
    height = run * rng.uniform(0.06, 0.15)
    x0, low = -run / 2 - 0.5, -0.025
    parts = [
        beam((x0, width / 2, low), (x0 + run, width / 2, height + low), width, 0.05, 'stone'),
        box(x0 + run, x0 + run + 1.0, 0, width, 0, height, 'stone'),
    ]
    if rng.random() < 0.5:
        parts += list(_rail((x0, width, 0), (x0 + run, width, height)))
    return run + 1.0, width + 0.03, parts


def leaning(rng):
    """A ladder or a few boards that lean against the wall."""
    parts, depth = [], rng.uniform(0.35, 0.7)
    height = rng.uniform(1.4, 2.1)
    if rng.random() < 0.5:
        half = rng.uniform(0.19, 0.25)
        for x in (-half, half):
            parts.append(beam((x, depth, 0), (x, 0.05, height), 0.03, 0.06, 'metal'))
        # Rungs are 0.28 m apart (EN 131-1: 0.25 to 0.30 m).
        for z in np.arange(0.28, height - 0.1, 0.28):
            y = depth + (0.05 - depth) * z / height
            parts.append(box(-half, half, y - 0.015, y + 0.015, z - 0.015, z + 0.015, 'metal'))
        return 2 * half + 0.1, depth + 0.05, parts
    for i in range(int(rng.integers(1, 4))):
        x, foot = rng.uniform(-0.25, 0.25), depth - 0.08 * i
        wide = rng.uniform(0.1, 0.4)
        top = (x + rng.normal(0, 0.08), 0.03, height * rng.uniform(0.6, 1))
        parts.append(beam((x, foot, 0), top, wide, 0.022, rng.choice(['wood', 'white', 'carton'])))
    return 1.0, depth + 0.05, parts


def gallery(room) -> None:
    """A floor above one end of the room, a flight that leads up to it, a rail along its edge."""
    rng, w, d = room.rng, room.width_m / 2, room.length_m / 2
    steps = int(rng.integers(13, 17))
    run, width, parts = flight(rng, steps)
    top = max(p.center[2] + p.half[2] for p in parts if p.material != 'frame' and not p.pitch)
    edge = max(run - d + 0.9, d - rng.uniform(1.2, 2.5))
    slab = box(-w, w, edge, d, top - 0.25, top, 'white', 'stone')
    room.put(slab, Place())
    side = rng.choice([-1, 1])
    # The flight rises towards +y along one long wall.
    yaw = math.pi / 2
    wall = Place(side * w if side > 0 else -w + width, edge - run / 2, 0.0, yaw)
    room.stand(parts, wall)
    room.keep_free(wall, -run / 2 - 0.8, run / 2, 0, width)
    stop = side * (w - width)
    a, b = sorted((stop, -side * w))
    for part in _rail((a, edge + 0.05, top), (b, edge + 0.05, top)):
        room.put(part, Place())
    for x in (-0.55 * w, 0.55 * w):
        if room.claim(x - 0.12, edge, x + 0.12, edge + 0.24):
            room.put(pole(x, edge + 0.12, 0, top - 0.25, 0.1, 'white'), Place())
