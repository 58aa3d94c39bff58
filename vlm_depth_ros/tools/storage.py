"""Furniture that holds things: shelves with books, cabinets, desks, kitchen counters."""

from vlm_depth_ros.tools.furniture import box, clutter, legs, pole


def shelf(rng):
    """A book case: sides, boards, back, and rows of books or things."""
    w, d, h = rng.uniform(0.6, 1.6), rng.uniform(0.25, 0.42), rng.uniform(0.8, 2.2)
    return w, d, list(shelf_parts(rng, w, d, 0, h))


def shelf_parts(rng, w, d, z0, z1, material='wood'):
    """The body of a book case between two heights."""
    t, rows = 0.025, max(1, round((z1 - z0) / rng.uniform(0.28, 0.42)))
    yield box(-w / 2, -w / 2 + t, 0, d, z0, z1, material)
    yield box(w / 2 - t, w / 2, 0, d, z0, z1, material)
    yield box(-w / 2, w / 2, 0, 0.012, z0, z1, material)
    step = (z1 - z0 - t) / rows
    for i in range(rows + 1):
        z = z0 + i * step
        yield box(-w / 2 + t, w / 2 - t, 0.012, d, z, z + t, material)
        if i == rows:
            break
        x = -w / 2 + t
        while x < w / 2 - t - 0.05:
            run = min(rng.uniform(0.15, 0.6), w / 2 - t - x)
            depth, high = d * rng.uniform(0.5, 0.95), step * rng.uniform(0.5, 0.9) - t
            if rng.random() < 0.75:
                yield box(x, x + run - 0.01, 0.02, depth, z + t, z + t + high, 'goods', 'books')
            elif rng.random() < 0.6:
                yield from clutter(rng, run * 0.5, d * 0.6, z + t, 1, 0.1)
            x += run
    yield from clutter(rng, w, d, z1, 3)


def cabinet(rng):
    """A chest of drawers, a wardrobe, a sideboard, a refrigerator."""
    style = rng.integers(0, 4)
    w, d = rng.uniform(0.5, 1.6), rng.uniform(0.4, 0.62)
    h = (
        rng.uniform(0.6, 1.1),
        rng.uniform(1.7, 2.2),
        rng.uniform(0.6, 0.9),
        rng.uniform(1.4, 1.85),
    )[style]
    w = w if style != 3 else rng.uniform(0.55, 0.75)
    body = 'white' if style == 3 else 'front'
    parts = [box(-w / 2, w / 2, 0, d, 0.06, h, body, 'panels')]
    parts.append(box(-w / 2 + 0.02, w / 2 - 0.02, 0.02, d - 0.05, 0, 0.06, 'dark'))
    parts.append(box(-w / 2 - 0.015, w / 2 + 0.015, 0, d + 0.015, h, h + 0.025, body))
    if rng.random() < 0.25 and style in (0, 2):
        tw = rng.uniform(0.6, 1.2)
        parts += [box(-tw / 2, tw / 2, 0.15, 0.2, h + 0.1, h + 0.1 + tw * 0.57, 'dark', 'screen')]
        parts += [
            box(-0.15, 0.15, 0.08, 0.3, h + 0.025, h + 0.04, 'dark'),
            box(-0.04, 0.04, 0.13, 0.16, h + 0.03, h + 0.2, 'dark'),
        ]
    else:
        parts += list(clutter(rng, w, d, h + 0.025, 7 if h < 1.3 else 3))
    return w, d, parts


def counter(rng):
    """A kitchen run: base units, worktop, things on it, and wall units above."""
    w, d, z = rng.uniform(1.2, 3.2), 0.6, rng.uniform(0.86, 0.92)
    count = max(1, round(w / 0.6))
    parts = [
        box(-w / 2, w / 2, 0, d + 0.02, z - 0.04, z, 'stone'),
        box(-w / 2, w / 2, 0.05, d - 0.07, 0, 0.1, 'dark'),
    ]
    for i in range(count):
        x = -w / 2 + i * w / count
        front = 'screen' if rng.random() < 0.12 else 'panels'
        parts.append(box(x + 0.003, x + w / count - 0.003, 0, d, 0.1, z - 0.04, 'front', front))
        if rng.random() < 0.75:
            parts.append(
                box(
                    x + 0.003,
                    x + w / count - 0.003,
                    0,
                    0.33,
                    z + 0.55,
                    z + 1.25,
                    'front',
                    'panels',
                )
            )
    parts += list(clutter(rng, w, d * 0.7, z, 14, 0.05))
    if rng.random() < 0.6:
        x = rng.uniform(-0.3, 0.3) * w
        parts.append(box(x - 0.28, x + 0.28, 0.08, 0.52, z, z + 0.012, 'metal'))
        parts.append(pole(x, 0.07, z, z + 0.25, 0.015, 'metal'))
    return w, d + 0.02, parts


def desk(rng):
    """A desk with a monitor or a laptop and a drawer block."""
    w, d, z = rng.uniform(1.1, 1.8), rng.uniform(0.6, 0.8), rng.uniform(0.7, 0.76)
    parts = [box(-w / 2, w / 2, 0, d, z - 0.03, z, 'wood'), *legs(rng, w, d, z - 0.03, 'frame')]
    parts.append(
        box(w / 2 - 0.48, w / 2 - 0.06, 0.06, d - 0.03, 0.05, z - 0.06, 'front', 'panels')
    )
    for _ in range(int(rng.integers(1, 3))):
        x, sw = rng.uniform(-0.3, 0.3) * w, rng.uniform(0.4, 0.6)
        parts += [
            box(
                x - sw / 2, x + sw / 2, 0.2, 0.24, z + 0.12, z + 0.12 + sw * 0.62, 'dark', 'screen'
            )
        ]
        parts += [
            box(x - 0.03, x + 0.03, 0.16, 0.19, z, z + 0.25, 'dark'),
            box(x - 0.12, x + 0.12, 0.1, 0.32, z, z + 0.015, 'dark'),
        ]
    parts.append(box(-0.22, 0.22, d - 0.28, d - 0.14, z, z + 0.02, rng.choice(['dark', 'paper'])))
    if rng.random() < 0.4:
        parts += list(shelf_parts(rng, w, 0.28, z + 0.6, z + rng.uniform(0.9, 1.4)))
    return w, d, parts + list(clutter(rng, w, d, z, 8))


def aisle(rng):
    """A long shop or library shelf."""
    w, d, h = rng.uniform(2, 4), rng.uniform(0.35, 0.6), rng.uniform(1.3, 2.2)
    return w, d, list(shelf_parts(rng, w, d, 0, h, 'frame'))
