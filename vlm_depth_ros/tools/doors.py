"""Inner walls with doorways: frames, leaves open at any angle or shut, the next room behind.

A leaf is 0.86 x 1.985 m (DIN 18101), its frame 0.06 m wide (common practice).
"""

import math

import numpy as np
from vlm_depth_ros.tools.furniture import box, Part

LEAF_M = 0.86
_TOP_M = 2.0


def inner_wall(room, place, length_m, thick_m, openings=()) -> None:
    """A wall from floor to ceiling along x of `place`, open at (left end, width) pairs in metres.

    Openings are sorted; a door hangs in those no wider than a leaf, and the floor before each
    stays free. `place` is turned by a multiple of 90 degrees.
    """
    rng, half = room.rng, thick_m / 2
    top = _TOP_M + (0.0 if rng.random() < 0.7 else rng.uniform(0, 0.2))
    left = 0.0
    for x0, width in openings:
        x1 = x0 + width
        room.block(place, left, x0, -half, half, 0, room.height_m)
        room.block(place, x0, x1, -half, half, top, room.height_m)
        _frame(room, place, x0, x1, half, top)
        if width <= LEAF_M + 0.1 and rng.random() < 0.75:
            _leaf(room, place, x0, x1, half, top)
        room.keep_free(place, x0, x1, -0.75, 0.75)
        left = x1
    room.block(place, left, length_m, -half, half, 0, room.height_m)


def _frame(room, place, x0, x1, half, top):
    y = half + 0.02
    for a in (x0 - 0.04, x1 - 0.02):
        room.put(box(a, a + 0.06, -y, y, 0, top + 0.04, 'trim'), place, np.ones(3))
    room.put(box(x0, x1, -y, y, top - 0.02, top + 0.04, 'trim'), place, np.ones(3))


def _leaf(room, place, x0, x1, half, top):
    """The leaf: shut, ajar or wide open, hinged left or right, into either room."""
    rng, width = room.rng, x1 - x0 - 0.05
    angle = 0.0 if rng.random() < 0.3 else math.radians(rng.uniform(15, 110))
    hinge, turn = (x0 + 0.025, angle) if rng.random() < 0.5 else (x1 - 0.025, math.pi - angle)
    side = rng.choice([-1, 1])
    turn, y = side * turn, side * half
    height = top - 0.03
    middle = (hinge + math.cos(turn) * width / 2, y + math.sin(turn) * width / 2, height / 2)
    room.put(Part('box', middle, (width / 2, 0.02, height / 2), 'door', yaw=turn), place)
    handle = hinge + math.cos(turn) * width * 0.92, y + math.sin(turn) * width * 0.92, 1.05
    room.put(Part('box', handle, (0.06, 0.06, 0.01), 'metal', yaw=turn), place, shadow=False)
