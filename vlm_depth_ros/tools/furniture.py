"""Furniture as lists of parts, in the piece's own frame.

The frame lies on the floor at the middle of the back edge: x along the width, y from the back to
the front, z up, metres. A maker gets the random generator and answers (width, depth, parts).
"""

from dataclasses import dataclass, replace
import math


@dataclass
class Part:
    """One body of a piece of furniture; material names are those of `materials.MATERIALS`."""

    kind: str
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: str
    front: str | None = None
    """Another material for the face towards +y."""
    yaw: float = 0.0
    pitch: float = 0.0


def box(x0, x1, y0, y1, z0, z1, material, front=None, yaw=0.0) -> Part:
    """A box by its bounds."""
    center = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
    half = (max(x1 - x0, 1e-3) / 2, max(y1 - y0, 1e-3) / 2, max(z1 - z0, 1e-3) / 2)
    return Part('box', center, half, material, front, yaw)


def pole(x, y, z0, z1, radius, material) -> Part:
    """A standing cylinder."""
    return Part('cylinder', (x, y, (z0 + z1) / 2), (radius, radius, (z1 - z0) / 2), material)


def beam(start, end, width, thick, material) -> Part:
    """A straight bar between two points of any height: handrails, ladders, slanted roofs."""
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    level = math.hypot(x, y)
    center = tuple((a + b) / 2 for a, b in zip(start, end, strict=True))
    half = (width / 2, math.hypot(level, z) / 2, thick / 2)
    return Part('box', center, half, material, None, math.atan2(-x, y), math.atan2(z, level))


def moved(parts, x, y, yaw=0.0):
    """The parts of a piece, turned about the origin of its frame and then shifted."""
    c, s = math.cos(yaw), math.sin(yaw)
    for part in parts:
        u, v, z = part.center
        yield replace(part, center=(x + c * u - s * v, y + s * u + c * v, z), yaw=part.yaw + yaw)


def legs(rng, w, d, z, material, inset=0.03, thick=None):
    """Four legs under a top of size w x d."""
    t = thick or rng.uniform(0.02, 0.05)
    round_legs = rng.random() < 0.4
    for x in (-w / 2 + inset + t / 2, w / 2 - inset - t / 2):
        for y in (inset + t / 2, d - inset - t / 2):
            if round_legs:
                yield pole(x, y, 0, z, t / 2, material)
            else:
                yield box(x - t / 2, x + t / 2, y - t / 2, y + t / 2, 0, z, material)


def clutter(rng, w, d, z, most=6, y0=0.0):
    """Things on a top of size w x d at height z: books, cups, boxes, balls, paper."""
    for _ in range(int(rng.integers(0, most + 1))):
        x, y = rng.uniform(-0.42, 0.42) * w, y0 + rng.uniform(0.15, 0.85) * d
        kind, yaw = rng.integers(0, 7), rng.uniform(0, 3.1)
        a, b, h = rng.uniform(0.03, 0.16), rng.uniform(0.03, 0.12), rng.uniform(0.02, 0.3)
        if kind == 0:
            top = z
            for i in range(int(rng.integers(1, 6))):
                half = rng.uniform(0.008, 0.02)
                yield Part(
                    'box', (x, y, top + half), (0.12, 0.085, half), 'goods', None, yaw + 0.1 * i
                )
                top += 2 * half
        elif kind == 1:
            yield Part('box', (x, y, z + 0.004), (0.15, 0.105, 0.004), 'paper', None, yaw)
        elif kind == 2:
            yield pole(x, y, z, z + 0.4 * h + 0.04, rng.uniform(0.025, 0.06), 'goods')
        elif kind == 3:
            yield Part('ellipsoid', (x, y, z + a * 0.7), (a * 0.7, a * 0.7, a * 0.7), 'goods')
        elif kind == 4:
            yield pole(x, y, z, z + h * 0.7, 0.035, 'goods')
            yield pole(x, y, z + h * 0.7, z + h, 0.014, 'goods')
        else:
            yield Part('box', (x, y, z + h / 2), (a, b, h / 2), 'goods', None, yaw)


def table(rng):
    """A dining table, a desk without drawers, or a low table."""
    w, d = rng.uniform(0.7, 1.9), rng.uniform(0.5, 1.0)
    z = rng.uniform(0.68, 0.78) if rng.random() < 0.75 else rng.uniform(0.35, 0.5)
    top = rng.uniform(0.02, 0.05)
    parts = []
    if rng.random() < 0.25:
        w = d = rng.uniform(0.6, 1.2)
        parts += [
            pole(0, d / 2, z - top, z, d / 2, 'wood'),
            pole(0, d / 2, 0, z - top, 0.05, 'frame'),
        ]
        parts += [pole(0, d / 2, 0, 0.03, d / 4, 'frame')]
        parts += list(clutter(rng, w * 0.6, d * 0.6, z, 5, d * 0.2))
        return w, d, parts
    parts += [box(-w / 2, w / 2, 0, d, z - top, z, 'wood'), *legs(rng, w, d, z - top, 'frame')]
    if rng.random() < 0.5:
        parts.append(box(-w / 2 + 0.05, w / 2 - 0.05, 0.05, 0.07, z - 0.14, z - top, 'frame'))
        parts.append(
            box(-w / 2 + 0.05, w / 2 - 0.05, d - 0.07, d - 0.05, z - 0.14, z - top, 'frame')
        )
    return w, d, parts + list(clutter(rng, w, d, z, 9))


def chair(rng):
    """A chair with a slatted or a full back; sometimes an office chair or a stool."""
    w, d, z = rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.52), rng.uniform(0.42, 0.48)
    back = rng.uniform(0.8, 1.05)
    seat = rng.choice(['fabric', 'wood', 'frame'])
    parts = [box(-w / 2, w / 2, 0, d, z - 0.05, z, seat)]
    style = rng.random()
    if style < 0.25:
        parts += [pole(0, d / 2, 0.06, z - 0.05, 0.03, 'dark')]
        parts += [
            Part('box', (0, d / 2, 0.05), (0.28, 0.025, 0.02), 'dark', None, i * 1.047)
            for i in range(3)
        ]
        parts += [box(-w / 2 + 0.03, w / 2 - 0.03, 0, 0.06, z + 0.12, back, seat)]
        parts += [box(-0.03, 0.03, 0, 0.03, z - 0.03, z + 0.2, 'dark')]
        if rng.random() < 0.5:
            for x in (-w / 2 - 0.02, w / 2 + 0.02):
                parts += [box(x - 0.025, x + 0.025, 0.08, d - 0.08, z + 0.18, z + 0.22, 'dark')]
                parts += [box(x - 0.02, x + 0.02, 0.18, 0.24, z - 0.03, z + 0.18, 'dark')]
        return w + 0.1, d, parts
    parts += list(legs(rng, w, d, z - 0.05, 'frame', 0.0, 0.035))
    if style < 0.9:
        for x in (-w / 2 + 0.02, w / 2 - 0.02):
            parts.append(box(x - 0.02, x + 0.02, 0, 0.035, z, back, 'frame'))
        if rng.random() < 0.5:
            parts.append(box(-w / 2 + 0.04, w / 2 - 0.04, 0, 0.03, z + 0.15, back, seat))
        else:
            for i in range(3):
                top = back - i * 0.13
                parts.append(
                    box(-w / 2 + 0.04, w / 2 - 0.04, 0.005, 0.025, top - 0.06, top, 'frame')
                )
    return w, d, parts


def sofa(rng):
    """An armchair or a sofa with cushions."""
    seats = int(rng.choice([1, 2, 3]))
    seat_w, arm, d = rng.uniform(0.5, 0.65), rng.uniform(0.1, 0.22), rng.uniform(0.75, 0.95)
    z, back = rng.uniform(0.36, 0.46), rng.uniform(0.7, 0.95)
    w = seats * seat_w + 2 * arm
    arm_z = z + rng.uniform(0.1, 0.22)
    parts = [
        box(-w / 2, w / 2, 0, d, 0.06, z - 0.14, 'fabric'),
        box(-w / 2, w / 2, 0, 0.2, 0.06, back, 'fabric'),
    ]
    for x in (-w / 2, w / 2 - arm):
        parts.append(box(x, x + arm, 0, d, 0.04, arm_z, 'fabric'))
        if rng.random() < 0.5:
            half = (arm / 2, d / 2, arm / 3)
            parts.append(Part('ellipsoid', (x + arm / 2, d / 2, arm_z), half, 'fabric'))
    for i in range(seats):
        x = -w / 2 + arm + i * seat_w
        parts.append(box(x + 0.005, x + seat_w - 0.005, 0.2, d + 0.02, z - 0.14, z, 'fabric'))
        half = (seat_w / 2, 0.12, (back - z) / 2 + 0.03)
        parts.append(Part('ellipsoid', (x + seat_w / 2, 0.22, (z + back) / 2), half, 'fabric'))
    for _ in range(int(rng.integers(0, 4))):
        x = rng.uniform(-0.4, 0.4) * (w - 2 * arm)
        size = rng.uniform(0.17, 0.25)
        parts.append(
            Part(
                'ellipsoid',
                (x, 0.38, z + size * 0.85),
                (size, 0.09, size),
                'cushion',
                None,
                rng.uniform(-0.4, 0.4),
            )
        )
    return w, d, parts


def bed(rng):
    """A bed with a headboard, blanket and pillows."""
    w, d, z = rng.choice([0.9, 1.4, 1.6, 1.8]), rng.uniform(1.9, 2.1), rng.uniform(0.4, 0.6)
    parts = [
        box(-w / 2, w / 2, 0, d, 0.12, z - 0.2, 'wood'),
        box(-w / 2 + 0.02, w / 2 - 0.02, 0.03, d - 0.02, z - 0.2, z, 'paper'),
        box(
            -w / 2 - 0.01,
            w / 2 + 0.01,
            rng.uniform(0.4, 0.9),
            d,
            z - rng.uniform(0.1, 0.35),
            z + 0.04,
            'cushion',
        ),
        box(-w / 2 - 0.03, w / 2 + 0.03, 0, 0.05, 0, rng.uniform(0.7, 1.2), 'wood'),
        *legs(rng, w, d, 0.12, 'wood'),
    ]
    for _ in range(int(rng.integers(0, 4))):
        half = (rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.4), rng.uniform(0.06, 0.14))
        center = (rng.uniform(-0.35, 0.35) * w, rng.uniform(0.8, 1.8), z + 0.05)
        parts.append(
            Part(
                'ellipsoid',
                center,
                half,
                rng.choice(['cushion', 'fabric', 'paper']),
                None,
                rng.uniform(0, 3),
            )
        )
    count = 1 if w < 1.2 else 2
    for i in range(count):
        x = (i + 0.5) / count * w - w / 2
        parts.append(
            Part(
                'ellipsoid',
                (x, 0.28, z + 0.08),
                (0.32, 0.2, 0.09),
                rng.choice(['paper', 'cushion']),
            )
        )
    return w, d, parts


def lamp(rng):
    """A floor lamp."""
    h, r = rng.uniform(1.3, 1.8), rng.uniform(0.12, 0.22)
    return (
        0.35,
        0.35,
        [
            pole(0, 0.17, 0, 0.03, 0.13, 'frame'),
            pole(0, 0.17, 0.03, h - 0.2, 0.012, 'frame'),
            pole(0, 0.17, h - 0.25, h, r, 'shade'),
        ],
    )


def plant(rng):
    """A pot with leaves."""
    h, r = rng.uniform(0.2, 0.4), rng.uniform(0.1, 0.18)
    parts = [pole(0, 0.25, 0, h, r, 'goods'), pole(0, 0.25, h, h + 0.4, 0.015, 'wood')]
    for _ in range(int(rng.integers(8, 20))):
        x, y, z = rng.normal(0, 0.14), 0.25 + rng.normal(0, 0.12), h + rng.uniform(0.1, 0.9)
        size = rng.uniform(0.05, 0.14)
        parts.append(
            Part(
                'ellipsoid',
                (x, y, z),
                (size, size * 0.4, size * 0.7),
                'leaf',
                None,
                rng.uniform(0, 3),
            )
        )
    return 0.5, 0.5, parts


def heap(rng):
    """Cartons, bags, a bin, a ball on the floor."""
    parts = []
    for _ in range(int(rng.integers(1, 5))):
        x, y, yaw = rng.uniform(-0.25, 0.25), rng.uniform(0.1, 0.5), rng.uniform(0, 3)
        a, b, h = rng.uniform(0.08, 0.3), rng.uniform(0.08, 0.25), rng.uniform(0.08, 0.45)
        kind = rng.integers(0, 4)
        if kind == 0:
            parts.append(pole(x, y, 0, h, a * 0.6, 'goods'))
        elif kind == 1:
            parts.append(Part('ellipsoid', (x, y, h * 0.5), (a, b, h * 0.55), 'fabric', None, yaw))
        else:
            parts.append(
                Part(
                    'box',
                    (x, y, h / 2),
                    (a, b, h / 2),
                    rng.choice(['goods', 'carton', 'cushion']),
                    None,
                    yaw,
                )
            )
    return 0.8, 0.6, parts
