"""Textures that cover one whole face: doors, drawers, windows, pictures, book spines, screens."""

import math

import cv2
import numpy as np
from vlm_depth_ros.tools.textures import (
    ACROSS,
    canvas,
    DOWN,
    grain,
    noise,
    SIZE_PX,
    Texture,
    tone,
)


def _rect(image, u0, v0, u1, v1, color):
    n = SIZE_PX
    image[
        int(v0 * n) : max(int(v1 * n), int(v0 * n) + 1),
        int(u0 * n) : max(int(u1 * n), int(u0 * n) + 1),
    ] = color


def panels(rng, color, columns, rows, knobs=True):
    """A front with doors or drawers: joints, shaded panels, handles."""
    image = canvas(color)
    image = grain(image, noise(rng, 1.2, 4.0), rng.uniform(0, 0.08))
    inset, handle = rng.random() < 0.5, tone(rng, rng.choice(['metal', 'dark']))
    long_handle = rng.random() < 0.5
    for i in range(columns):
        for j in range(rows):
            u0, v0, du, dv = i / columns, j / rows, 1 / columns, 1 / rows
            joint = image[:, int(u0 * SIZE_PX) : int(u0 * SIZE_PX) + 2]
            joint *= 0.4
            image[int(v0 * SIZE_PX) : int(v0 * SIZE_PX) + 2] *= 0.4
            if inset:
                _rect(
                    image,
                    u0 + du * 0.15,
                    v0 + dv * 0.15,
                    u0 + du * 0.85,
                    v0 + dv * 0.85,
                    color * 0.85,
                )
                _rect(
                    image,
                    u0 + du * 0.17,
                    v0 + dv * 0.18,
                    u0 + du * 0.85,
                    v0 + dv * 0.85,
                    color * 1.05,
                )
            if knobs:
                wide = 0.15 if long_handle else 0.03
                u = u0 + du * (0.5 if rows > columns else 0.88 - wide)
                _rect(image, u - du * wide, v0 + dv * 0.44, u + du * wide, v0 + dv * 0.5, handle)
    return Texture(image, fit=True, gloss=0.1)


def door(rng, color):
    """A door leaf: up to six panels and a knob."""
    texture = panels(rng, color, int(rng.integers(1, 3)), int(rng.integers(1, 4)), knobs=False)
    image = texture.pyramid[0] / 255.0
    _rect(image, 0.86, 0.5, 0.93, 0.53, tone(rng, 'metal'))
    for edge in ((0, 0, 0.06, 1), (0.94, 0, 1, 1), (0, 0, 1, 0.03)):
        _rect(image, *edge, color * rng.uniform(0.7, 1))
    return Texture(image, fit=True)


def window(rng, glow):
    """Panes with a bright or a dark view, frame, sometimes blinds."""
    top = tone(rng, 'white') if glow else tone(rng, 'dark')
    low = tone(rng, 'any') * (0.8 if glow else 0.2)
    edge = 0.5 + 0.06 * noise(rng, 1.5)[:1].T * 3
    image = np.where((DOWN[..., None] < edge[..., None] * rng.uniform(0.8, 1.8)), top, low)
    image = grain(image, noise(rng, 1.2), 0.15)
    frame, width = tone(rng, rng.choice(['white', 'wood', 'dark'])), rng.uniform(0.02, 0.05)
    if rng.random() < 0.4:
        n = int(rng.integers(14, 30))
        image = np.where((DOWN[..., None] * n % 1) < 0.7, tone(rng, 'white') * 0.9, image * 0.8)
    for u in np.linspace(0, 1, int(rng.integers(2, 4))):
        _rect(image, max(u - width, 0), 0, min(u + width, 1), 1, frame)
    for v in np.linspace(0, 1, int(rng.integers(2, 4))):
        _rect(image, 0, max(v - width, 0), 1, min(v + width, 1), frame)
    return Texture(image, fit=True, glow=glow, gloss=0.0 if glow else 0.5)


def picture(rng):
    """A framed print: a mat around blocks and blobs of colour."""
    image = canvas(tone(rng, 'dark') if rng.random() < 0.6 else tone(rng, 'wood'))
    _rect(image, 0.05, 0.05, 0.95, 0.95, tone(rng, 'white'))
    a, b, c = tone(rng), tone(rng), tone(rng, 'dark')
    field, other = noise(rng, rng.uniform(1.2, 2)), noise(rng, 1.6)
    inner = np.where(field[..., None] > rng.uniform(-1, 1), a, b)
    inner = np.where(other[..., None] > 1, c, inner)
    m = int(rng.uniform(0.06, 0.25) * SIZE_PX)
    image[m:-m, m:-m] = inner[m:-m, m:-m]
    return Texture(image, fit=True, gloss=0.2)


def notes(rng):
    """A pin board, a poster wall, a page: many small rectangles."""
    image = canvas(tone(rng, rng.choice(['white', 'wood', 'fabric'])))
    for _ in range(int(rng.integers(5, 25))):
        u, v, du, dv = rng.random(), rng.random(), rng.uniform(0.04, 0.3), rng.uniform(0.04, 0.3)
        _rect(image, u, v, u + du, v + dv, tone(rng, rng.choice(['white', 'any', 'dark'])))
    return Texture(image, fit=True)


def books(rng):
    """Spines of unequal width and height in front of a dark shelf; also boxes, files, goods."""
    image = canvas(tone(rng, 'dark') * 0.6)
    u, mixed = 0.0, rng.random() < 0.8
    base = tone(rng)
    while u < 1:
        du = rng.uniform(0.015, 0.06)
        if rng.random() < 0.93:
            color = tone(rng, rng.choice(['any', 'dark', 'white', 'fabric'])) if mixed else base
            v0 = rng.uniform(0.02, 0.3)
            _rect(image, u, v0, u + du * 0.92, 1, color * rng.uniform(0.8, 1.1))
            _rect(image, u, v0 + 0.1, u + du * 0.92, v0 + rng.uniform(0.12, 0.3), tone(rng))
        u += du
    return Texture(image, fit=True)


def cartons(rng, wrapped=False):
    """A load of cartons with tape and labels, seen from one side; `wrapped` in shiny foil."""
    color = tone(rng, 'wood') * 0.6 + np.array([0.3, 0.24, 0.15])
    image = canvas(color)
    rows, columns = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    for i in range(rows):
        for j in range(columns):
            u, v = j / columns, i / rows
            _rect(image, u, v, u + 1 / columns, v + 1 / rows, color * rng.uniform(0.85, 1.08))
            _rect(image, u, v + 0.46 / rows, u + 1 / columns, v + 0.54 / rows, color * 1.1)
            _rect(image, u, v, u + 0.006, v + 1 / rows, color * 0.45)
            _rect(image, u, v, u + 1 / columns, v + 0.012, color * 0.45)
            if rng.random() < 0.5:
                a, b = u + rng.uniform(0.1, 0.5) / columns, v + rng.uniform(0.1, 0.5) / rows
                _rect(image, a, b, a + 0.3 / columns, b + 0.3 / rows, tone(rng, 'white'))
    image = grain(image, noise(rng, 1.0), 0.04)
    if wrapped:
        foil = 0.25 + 0.08 * noise(rng, 1.3, 4.0)[..., None]
        image += foil * (np.array([0.75, 0.78, 0.8]) - image)
    return Texture(image, fit=True, gloss=0.4 if wrapped else 0.0)


def pallet_side(rng):
    """The side of a pallet: boards above and below, three blocks, dark between them."""
    wood = tone(rng, 'wood') * 0.7 + 0.2
    image = canvas(wood)
    for u in (0.13, 0.57):
        _rect(image, u, 0.3, u + 0.3, 0.85, wood * 0.08)
    return Texture(grain(image, noise(rng, 1.0, 5.0), 0.1), fit=True)


def screen(rng, on):
    """A monitor or a television."""
    image = canvas(np.full(3, 0.03))
    if on:
        inner = picture(rng).pyramid[0][16:-16, 16:-16] / 255.0
        image[8:-8, 8:-8] = cv2.resize(inner, (SIZE_PX - 16, SIZE_PX - 16))
    return Texture(image, fit=True, glow=0.6 if on else 0.0, gloss=0.8)


def curtain(rng, color):
    """Vertical folds, light and dark."""
    wave = np.sin(2 * math.pi * (ACROSS * rng.integers(5, 12)) + 0.8 * noise(rng, 2.0)[:1])
    return Texture(grain(canvas(color), wave, rng.uniform(0.15, 0.3)), fit=True)
