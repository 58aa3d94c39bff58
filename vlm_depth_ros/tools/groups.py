"""Pieces that belong together: chairs about a table, a chair at a desk, things left on the floor.

Sizes are those of the pieces; small things: shoes 0.28 x 0.1 m, bottles 0.07 x 0.25 m, balls
0.06 to 0.22 m, a cable 8 mm (common practice).
"""

import math

from vlm_depth_ros.tools.furniture import chair, moved, Part, pole, table
from vlm_depth_ros.tools.storage import desk


def dining(rng):
    """A table with up to six chairs, pushed in or pulled out."""
    width, depth, parts = table(rng)
    parts = list(moved(parts, 0, 0.55))
    count = max(1, int(width / 0.6))
    for i in range(count):
        x = ((i + 0.5) / count - 0.5) * width
        for y, yaw in ((0.55, 0.0), (0.55 + depth, math.pi)):
            if rng.random() < 0.7:
                away = rng.uniform(0.1, 0.5) * (1 if yaw else -1)
                turn = yaw + rng.normal(0, 0.2)
                parts += list(moved(chair(rng)[2], x, y + away, turn))
    return width, depth + 1.1, parts


def workplace(rng):
    """A desk with its chair."""
    width, depth, parts = desk(rng)
    x, turn = rng.uniform(-0.2, 0.2) * width, math.pi + rng.normal(0, 0.5)
    parts = [*parts, *moved(chair(rng)[2], x, depth + rng.uniform(0.2, 0.6), turn)]
    return width, depth + 0.6, parts


def litter(rng):
    """Small things on the floor that a robot must see: shoes, toys, bottles, paper, a cable."""
    parts = []
    for _ in range(int(rng.integers(3, 10))):
        x, y, yaw = rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.95), rng.uniform(0, 6.3)
        kind = int(rng.integers(6))
        if kind == 0:
            for side in (-0.07, 0.07):
                pair = [
                    Part('ellipsoid', (side, 0.0, 0.04), (0.05, 0.14, 0.05), 'goods'),
                    Part('ellipsoid', (side, -0.07, 0.07), (0.045, 0.06, 0.06), 'goods'),
                ]
                parts += list(moved(pair, x, y, yaw))
        elif kind == 1:
            for i in range(int(rng.integers(1, 5))):
                at = x + rng.normal(0, 0.08), y + rng.normal(0, 0.08), 0.025 + 0.05 * (i % 2)
                parts.append(Part('box', at, (0.025, 0.04, 0.025), 'goods', None, yaw + i))
        elif kind == 2:
            parts += [pole(x, y, 0, 0.18, 0.035, 'goods'), pole(x, y, 0.18, 0.25, 0.014, 'goods')]
        elif kind == 3:
            r = rng.uniform(0.03, 0.11)
            parts.append(Part('ellipsoid', (x, y, r), (r, r, r), 'cushion'))
        elif kind == 4:
            parts.append(Part('box', (x, y, 0.002), (0.105, 0.15, 0.002), 'paper', None, yaw))
        else:
            for _ in range(4):
                end = x + 0.2 * math.cos(yaw), y + 0.2 * math.sin(yaw)
                middle = (x + end[0]) / 2, (y + end[1]) / 2, 0.004
                parts.append(Part('box', middle, (0.1, 0.004, 0.004), 'dark', None, yaw))
                (x, y), yaw = end, yaw + rng.normal(0, 0.5)
    return 1.0, 1.0, parts
