"""A warehouse: pallet racks along aisles, pallets, stacks of cartons, a pallet jack.

A Euro pallet is 1.2 x 0.8 x 0.144 m (EN 13698-1). A rack bay is 2.7 m between its uprights, for
three pallets side by side, and 1.1 m deep; levels are 1.3 to 1.9 m apart, beams 0.12 m high and
orange, uprights 0.1 m and blue, aisles 1.8 to 3 m (common practice).
"""

import math

import numpy as np
from vlm_depth_ros.tools.furniture import beam, box, moved, Part, pole
from vlm_depth_ros.tools.place import Place

_BAY_M, _DEEP_M, _POST_M = 2.7, 1.1, 0.1
_PALLET_M = (0.8, 1.2, 0.144)


def racks(room) -> None:
    """Rows of racks along both long walls, and a double row between where there is space."""
    rng, w = room.rng, room.width_m / 2
    levels_m = rng.uniform(1.3, 1.9)
    count = int((room.length_m - 1.5 - _POST_M) / (_BAY_M + _POST_M))
    length = count * (_BAY_M + _POST_M) + _POST_M
    rows = [Place(-w + 0.1, 0, yaw_rad=-math.pi / 2), Place(w - 0.1, 0, yaw_rad=math.pi / 2)]
    if room.width_m > 2 * (2 * _DEEP_M + 2.0):
        rows += [Place(0.1, 0, yaw_rad=-math.pi / 2), Place(-0.1, 0, yaw_rad=math.pi / 2)]
    shift = rng.uniform(-0.7, 0.7)
    for row in rows:
        if rng.random() < 0.12:
            continue
        row = row._replace(y_m=shift)
        room.keep_free(row, -length / 2, length / 2, 0, _DEEP_M)
        _row(room, row, count, levels_m)
        line = box(-length / 2, length / 2, _DEEP_M + 0.1, _DEEP_M + 0.2, 0, 0.002, 'marking')
        room.put(line, row, np.ones(3), shadow=False)
    wide = min(3.0, room.width_m - 2 * _DEEP_M - 0.6)
    for number in (0, 2):
        place, _ = room.wall(number)
        if rng.random() < 0.6:
            gate = box(-wide / 2, wide / 2, 0, 0.06, 0, 3.0, 'metal', 'gate')
            room.put(gate, place, np.ones(3), shadow=False)


def _row(room, place, count, level_m):
    rng, step = room.rng, _BAY_M + _POST_M
    levels = max(1, int((room.height_m - 1.0) / level_m))
    height = levels * level_m
    x0 = -count * step / 2
    for i in range(count + 1):
        x = x0 + i * step
        for y in (0.0, _DEEP_M - _POST_M):
            upright = box(x - 0.05, x + 0.05, y, y + _POST_M, 0, height, 'upright')
            room.put(upright, place, np.ones(3))
        if i in (0, count):
            # Braces, where a row ends and one sees them.
            for z in np.arange(0.2, height - 0.9, 0.9):
                room.put(beam((x, 0.05, z), (x, 1.05, z + 0.8), 0.03, 0.03, 'upright'), place)
    for i in range(count):
        left = x0 + i * step + 0.05
        for level in range(levels):
            z = level * level_m
            if level:
                y = _DEEP_M - 0.07
                bar = box(left, left + _BAY_M, y, y + 0.05, z - 0.12, z, 'rack beam')
                room.put(bar, place, np.ones(3))
            for k in range(3):
                if rng.random() < 0.78:
                    x = left + (k + 0.5) * _BAY_M / 3 + rng.normal(0, 0.015)
                    high = min(level_m - 0.35, 1.5) if level < levels - 1 else 1.2
                    load = moved(_loaded(rng, high, simple=level > 1), x, -0.05)
                    room.stand(load, place._replace(z_m=z))


def _loaded(rng, most_m, simple):
    """A pallet seen from its narrow side, with one wrapped load or a few cartons: few solids."""
    w, d, z = _PALLET_M
    yield box(-w / 2, w / 2, 0, d, 0, z, 'pallet side', 'pallet side')
    kind = rng.random()
    if kind < 0.15:
        return
    high = z + rng.uniform(0.25, 1.0) * (most_m - z)
    if kind < 0.7 or simple:
        yield box(-w / 2 + 0.02, w / 2 - 0.02, 0.03, d - 0.03, z, high, 'load', 'load')
        return
    x = rng.uniform(-0.1, 0.1)
    middle = z + rng.uniform(0.4, 0.7) * (high - z)
    yield box(-w / 2 + 0.02, x, 0.03, d - 0.05, z, high, 'boxes', 'boxes')
    yield box(x + 0.01, w / 2 - 0.02, 0.03, d - rng.uniform(0.02, 0.4), z, middle, 'boxes')


def stack(rng):
    """A pallet on the floor with true boards and blocks, bare, stacked or with cartons on it."""
    w, d, z = _PALLET_M
    parts, base = [], 0.0
    for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 6))):
        for x in (-w / 2 + 0.05, 0, w / 2 - 0.05):
            parts.append(box(x - 0.05, x + 0.05, 0, d, base, base + 0.1, 'board'))
        for y in np.linspace(0.07, d - 0.07, 4):
            top = base + z
            parts.append(box(-w / 2, w / 2, y - 0.07, y + 0.07, base + 0.1, top, 'board'))
        base += z
    if rng.random() < 0.65:
        rows, columns = int(rng.integers(1, 4)), int(rng.integers(2, 4))
        high = rng.uniform(0.2, 0.4)
        for i in range(columns):
            for j in range(2):
                y0 = i * d / columns
                for k in range(int(rng.integers(1, rows + 1))):
                    x0, z0 = (j - 1) * w / 2, base + k * high
                    carton = box(x0 + 0.01, x0 + w / 2 - 0.01, y0 + 0.01, y0 + d / columns - 0.01,
                                 z0, z0 + high, 'carton', 'labelled')  # fmt: skip
                    parts.append(carton)
    return w, d, parts


def jack(rng):
    """A hand pallet truck: two forks 1.15 m long, 0.54 m over both, a tiller 1.2 m high."""
    parts = [box(x - 0.08, x + 0.08, 0.4, 1.55, 0.06, 0.12, 'rack beam') for x in (-0.19, 0.19)]
    parts += [box(-0.2, 0.2, 0.15, 0.42, 0.05, 0.4, 'rack beam')]
    parts += [pole(x, 0.25, 0, 0.18, 0.09, 'dark') for x in (-0.1, 0.1)]
    top = (0.0, rng.uniform(-0.1, 0.15), 1.2)
    parts += [beam((0, 0.25, 0.35), top, 0.05, 0.05, 'dark')]
    parts += [Part('box', top, (0.18, 0.02, 0.02), 'dark')]
    return 0.6, 1.6, parts
