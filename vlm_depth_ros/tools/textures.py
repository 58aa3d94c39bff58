"""Procedural textures with random palettes: small square images, read through a pyramid."""

import colorsys
from functools import lru_cache
import math

import cv2
import numpy as np

SIZE_PX = 256
_LINEAR = (np.linspace(0, 1, 256) ** 2.2).astype(np.float32)


class Texture:
    """A picture for surfaces.

    Args:
        image: (S, S, 3) float, sRGB values 0 to 1; wraps around unless `fit`.
        tile_m: Size of one tile in metres; unused with `fit`.
        fit: Stretch the picture over the whole face (doors, pictures, book spines).
        glow: Light that the surface sends out itself, as a multiple of its colour.
        gloss: Strength of highlights.
        grained: Runs its first axis along the longer side of a board.
    """

    def __init__(self, image, tile_m=1.0, fit=False, glow=0.0, gloss=0.0, grained=False):
        """Build the pyramid, halving by area."""
        level = (np.clip(image, 0.01, 1) * 255 + 0.5).astype(np.uint8)
        self.pyramid = [level]
        while level.shape[0] > 4:
            level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            self.pyramid.append(level)
        self.tile_m, self.fit, self.glow, self.gloss = tile_m, fit, glow, gloss
        self.grained = grained

    def sample(self, at_m, size_m, footprint_m, seed) -> np.ndarray:
        """Linear RGB (N, 3) at places on faces.

        Args:
            at_m: Places (N, 2), measured from the middle of the face.
            size_m: Size (N, 2) of the face that each place lies on.
            footprint_m: Size of a pixel on the surface (N,): chooses the level of the pyramid.
            seed: Shifts the texture, so that two boards do not look alike.
        """
        if self.fit:
            tile = size_m
            at = at_m / tile + np.float32(0.5)
        else:
            tile = np.float32(self.tile_m)
            at = at_m / tile + np.float32([seed * 0.377 % 1, seed * 0.619 % 1])
            if self.grained:
                at = np.where((size_m[:, 1] > size_m[:, 0])[:, None], at[:, ::-1], at)
            tile = np.broadcast_to(tile, at.shape)
        texel_m = tile.mean(axis=1) / self.pyramid[0].shape[0]
        level = np.log2(np.maximum(footprint_m / texel_m, 1)).astype(np.intp)
        level = np.minimum(level, len(self.pyramid) - 1)
        out = np.empty((len(at), 3), np.float32)
        for number in np.flatnonzero(np.bincount(level, minlength=1)):
            mine = np.flatnonzero(level == number)
            image = self.pyramid[number]
            n = np.float32(image.shape[0])
            place = at[mine] * n if self.fit else np.mod(at[mine], 1) * n
            place -= np.float32(0.5)
            border = cv2.BORDER_REPLICATE if self.fit else cv2.BORDER_WRAP
            out[mine] = _LINEAR[remap(image, place[:, 0], place[:, 1], border)]
        return out


def remap(
    image: np.ndarray, u: np.ndarray, v: np.ndarray, border=cv2.BORDER_REPLICATE
) -> np.ndarray:
    """Bilinear look-up of N places; OpenCV wants them as an image no longer than 32767."""
    width = 1024
    rows = -(-len(u) // width)
    grid = np.zeros((2, rows * width), np.float32)
    grid[0, : len(u)], grid[1, : len(u)] = u, v
    grid = grid.reshape(2, rows, width)
    found = cv2.remap(image, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=border)
    return found.reshape(rows * width, -1)[: len(u)]


def noise(rng, slope=1.5, stretch=1.0) -> np.ndarray:
    """(S, S) noise that wraps, amplitude falling as frequency^-slope, mean 0, deviation 1."""
    field = _field(round(slope * 4) / 4, stretch, int(rng.integers(4)))
    down, across, flip = rng.integers(SIZE_PX), rng.integers(SIZE_PX), rng.integers(4)
    return np.roll(field, (down, across), (0, 1))[:: 1 - 2 * (flip & 1), :: 1 - (flip & 2)]


@lru_cache(maxsize=128)
def _field(slope, stretch, variant) -> np.ndarray:
    """One of the few fields that all noise is shifted or mirrored from: transforms are slow."""
    rng = np.random.default_rng([int(slope * 4), int(stretch * 4), variant])
    fy, fx = np.fft.fftfreq(SIZE_PX)[:, None], np.fft.rfftfreq(SIZE_PX)[None]
    radius = np.hypot(fx * stretch, fy / stretch)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE_PX, SIZE_PX))) * radius**-slope
    field = np.fft.irfft2(spectrum, s=(SIZE_PX, SIZE_PX))
    return (field / field.std()).astype(np.float32)


def tone(rng, family='any') -> np.ndarray:
    """A random sRGB colour (3,) of a family: wall, wood, fabric, white, dark, metal, any."""
    hue, u = rng.random(), rng.random()
    if family == 'wall':
        hue, saturation, value = (
            rng.choice([0.09, 0.12, 0.14, hue]),
            u**2 * 0.5,
            rng.uniform(0.55, 0.95),
        )
    elif family == 'wood':
        hue, saturation, value = (
            rng.uniform(0.03, 0.11),
            rng.uniform(0.3, 0.75),
            rng.uniform(0.2, 0.8),
        )
    elif family == 'white':
        hue, saturation, value = rng.uniform(0.05, 0.6), u * 0.1, rng.uniform(0.75, 0.97)
    elif family == 'dark':
        saturation, value = u * 0.4, rng.uniform(0.05, 0.3)
    elif family == 'metal':
        hue, saturation, value = 0.6, u * 0.1, rng.uniform(0.35, 0.8)
    elif family == 'fabric':
        saturation, value = 0.7 * u, rng.uniform(0.12, 0.85)
    else:
        saturation, value = rng.uniform(0.1, 0.85), rng.uniform(0.2, 0.95)
    if family in ('fabric', 'any') and rng.random() < 0.5:
        # Green and violet are rare indoors.
        hue = rng.choice([rng.uniform(-0.03, 0.13), rng.uniform(0.55, 0.66)]) % 1
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


# Place of every texel, 0 to 1.
DOWN, ACROSS = (np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5) / SIZE_PX


def canvas(color) -> np.ndarray:
    """(S, S, 3) of one colour."""
    return np.broadcast_to(np.asarray(color, float), (SIZE_PX, SIZE_PX, 3)).copy()


def grain(image, field, amount) -> np.ndarray:
    """Lighten and darken an image by noise."""
    return image * (1 + amount * field[..., None])


def _cells(rng, columns, rows, offset=0.0):
    """Random value per cell of a brick pattern that wraps, and the distance to its border."""
    row = np.floor(DOWN * rows).astype(int)
    u = ACROSS * columns + offset * (row % 2)
    column = np.floor(u).astype(int) % columns
    value = rng.standard_normal((rows, columns))[row, column]
    gap_u = np.abs((u % 1) - 0.5) * 2
    gap_v = np.abs((DOWN * rows % 1) - 0.5) * 2
    return value, np.minimum((1 - gap_u) / columns, (1 - gap_v) / rows) / 2


def plaster(rng, color, amount=None):
    """Painted plaster."""
    amount = 0.04 * rng.random() ** 2 if amount is None else amount
    return Texture(
        grain(canvas(color), noise(rng, rng.uniform(0.6, 1.8)), amount), rng.uniform(1, 3)
    )


def wallpaper(rng, color):
    """Stripes or a repeated ornament on a wall."""
    other = color * rng.uniform(0.7, 1.1) + rng.uniform(-0.08, 0.08, 3)
    repeat = int(rng.choice([4, 8, 16]))
    wave = np.sin(2 * math.pi * repeat * ACROSS)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * math.pi * repeat * DOWN) + 0.5 * noise(rng, 1.0)
    mask = (wave > rng.uniform(-0.3, 0.5))[..., None]
    return Texture(np.where(mask, color, other), rng.uniform(0.8, 2))


def wood(rng, color, planks=0, gloss=0.0):
    """Grain along u; `planks` boards beside each other with joints."""
    field = noise(rng, 1.2, stretch=5.0)
    rings = np.sin(2 * math.pi * (DOWN * rng.integers(4, 14) + 0.35 * field))
    image = grain(canvas(color), rings, rng.uniform(0.03, 0.12))
    image = grain(image, noise(rng, 0.8, stretch=8.0), rng.uniform(0.02, 0.08))
    if planks:
        value, border = _cells(rng, 2, planks, 0.5)
        image = grain(image, value, rng.uniform(0.03, 0.15))
        image *= np.where(border < 0.004, rng.uniform(0.3, 0.7), 1)[..., None]
    return Texture(image, rng.uniform(0.8, 1.6), gloss=gloss, grained=not planks)


def tiles(rng, color, grout, brick=False, gloss=0.0):
    """Tiles, or bricks in running bond."""
    count = int(rng.choice([4, 6, 8]))
    value, border = _cells(rng, count, count * 2 if brick else count, 0.5 if brick else 0.0)
    image = grain(canvas(color), value, rng.uniform(0.01, 0.12))
    image = grain(image, noise(rng, 1.0), rng.uniform(0.01, 0.08))
    image[border < rng.uniform(0.004, 0.01)] = grout
    return Texture(image, count * rng.uniform(0.1, 0.4 if not brick else 0.15), gloss=gloss)


def checks(rng, color, other, tile_range_m):
    """A chess board, or checked cloth where the rows and columns mix."""
    n = int(rng.choice([2, 4, 8]))
    a, b = (np.sin(2 * math.pi * n * ACROSS) > 0), (np.sin(2 * math.pi * n * DOWN) > 0)
    share = (a ^ b) * 1.0 if rng.random() < 0.5 else (a * 0.5 + b * 0.5)
    image = color + share[..., None] * (other - color)
    return Texture(grain(image, noise(rng, 0.7), 0.04), rng.uniform(*tile_range_m))


def stripes(rng, color, other):
    """Striped cloth."""
    n = int(rng.integers(3, 14))
    wave = np.sin(2 * math.pi * n * ACROSS) + 0.6 * np.sin(2 * math.pi * 3 * n * ACROSS + 1)
    image = np.where((wave > 0.2)[..., None], color, other)
    return Texture(grain(image, noise(rng, 0.5), 0.05), rng.uniform(0.3, 1.2))


def cloth(rng, color):
    """Carpet, felt, upholstery: fine noise over coarse folds."""
    image = grain(canvas(color), noise(rng, 0.3), rng.uniform(0.03, 0.12))
    return Texture(grain(image, noise(rng, 1.7), rng.uniform(0.02, 0.15)), rng.uniform(0.5, 1.5))


def concrete(rng, color):
    """A worn floor or a rough wall: stains, fine grain, joints between slabs, tyre marks."""
    image = grain(canvas(color), noise(rng, 1.7), rng.uniform(0.04, 0.12))
    image = grain(image, noise(rng, 0.4), rng.uniform(0.02, 0.06))
    worn = np.clip(noise(rng, 1.5, 6.0) - 1, 0, 1)
    image *= (1 - rng.uniform(0, 0.35) * worn)[..., None]
    if rng.random() < 0.6:
        image[:2], image[:, :2] = image[:2] * 0.5, image[:, :2] * 0.5
    return Texture(image, rng.uniform(2.0, 5.0), gloss=rng.uniform(0, 0.25))


def corrugated(rng, color):
    """Sheet metal: upright folds, light on one flank and dark on the other."""
    wave = np.sin(2 * math.pi * int(rng.integers(6, 14)) * ACROSS)
    image = grain(canvas(color), wave, rng.uniform(0.08, 0.2))
    return Texture(grain(image, noise(rng, 1.2), 0.04), rng.uniform(1.5, 3.0), gloss=0.1)


def marbled(rng, color, other, gloss=0.2):
    """Stone, laminate, or leaves: two colours mixed by warped noise."""
    share = 1 / (1 + np.exp(-rng.uniform(1, 5) * noise(rng, rng.uniform(1, 1.8))))
    return Texture(color + share[..., None] * (other - color), rng.uniform(0.3, 1.5), gloss=gloss)
