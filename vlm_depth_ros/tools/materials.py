"""Materials by name, such as `wall` or `books`: random textures, the palette of one room."""

import numpy as np
from vlm_depth_ros.tools import prints
from vlm_depth_ros.tools import textures as t
from vlm_depth_ros.tools.textures import Texture, tone

_BRICK, _CARTON, _LAMP = np.array([(0.55, 0.27, 0.2), (0.62, 0.47, 0.3), (1, 0.9, 0.7)])
_ORANGE, _BLUE, _YELLOW, _CEMENT = np.array(
    [(0.85, 0.38, 0.08), (0.1, 0.22, 0.5), (0.85, 0.7, 0.1), (0.5, 0.5, 0.48)]
)
_DARK_LEAF, _LIGHT_LEAF = np.array([0.1, 0.3, 0.08]), np.array([0.3, 0.5, 0.15])


def _planks(rng):
    count, gloss = int(rng.integers(6, 12)), rng.uniform(0, 0.3)
    return t.wood(rng, tone(rng, 'wood'), planks=count, gloss=gloss)


def _fronts(family):
    def make(rng):
        return prints.panels(
            rng, tone(rng, family), int(rng.integers(1, 3)), int(rng.integers(1, 5))
        )

    return make


def _painted(family, roughness=0.02):
    return lambda rng: t.plaster(rng, tone(rng, family), roughness)


def _dyed(color, roughness=0.03):
    return lambda rng: t.plaster(rng, color * rng.uniform(0.7, 1.1), roughness)


def _wooden(family='wood', gloss=0.3):
    return lambda rng: t.wood(rng, tone(rng, family), gloss=rng.uniform(0, gloss))


_CLOTHS = (
    (0.55, lambda rng: t.cloth(rng, tone(rng, 'fabric'))),
    (0.17, lambda rng: t.stripes(rng, tone(rng, 'fabric'), tone(rng, 'fabric'))),
    (0.16, lambda rng: t.marbled(rng, tone(rng, 'fabric'), tone(rng, 'fabric'), gloss=0.0)),
    (0.12, lambda rng: t.checks(rng, tone(rng, 'fabric'), tone(rng, 'white'), (0.2, 0.5))),
)
# Per material: (share, maker) pairs; a maker gets the random generator.
MATERIALS = {
    'wall': (
        (0.76, lambda rng: t.plaster(rng, tone(rng, 'wall'))),
        (0.10, lambda rng: t.wallpaper(rng, tone(rng, 'wall'))),
        (0.05, lambda rng: t.tiles(rng, tone(rng, 'wall'), tone(rng, 'white'))),
        (0.03, lambda rng: t.tiles(rng, _BRICK, tone(rng, 'wall') * 0.8, brick=True)),
        (0.06, lambda rng: t.wood(rng, tone(rng, 'wood'), planks=8)),
    ),
    'floor': (
        (0.32, _planks),
        (0.08, lambda rng: t.concrete(rng, _CEMENT * rng.uniform(0.7, 1.4))),
        (0.27, lambda rng: t.cloth(rng, tone(rng, 'fabric') * 0.8)),
        (0.17, lambda rng: t.tiles(rng, tone(rng, 'wall'), tone(rng, 'metal') * 0.7, gloss=0.2)),
        (0.08, lambda rng: t.marbled(rng, tone(rng, 'metal'), tone(rng, 'metal') * 0.8)),
        (0.08, lambda rng: t.checks(rng, tone(rng, 'white') * 0.9, tone(rng, 'dark'), (0.8, 2.4))),
    ),
    'ceiling': (
        (0.8, _painted('white', 0.015)),
        (0.2, lambda rng: t.tiles(rng, tone(rng, 'white') * 0.9, tone(rng, 'metal'))),
    ),
    'fabric': _CLOTHS,
    'cushion': _CLOTHS,
    'rug': _CLOTHS,
    'goods': ((0.6, _painted('any', 0.05)), (0.2, prints.notes), (0.2, _painted('dark', 0.05))),
    'trim': ((0.7, _painted('white')), (0.3, _painted('wood'))),
    'wood': ((0.75, _wooden()), (0.25, _wooden('white'))),
    'frame': ((0.5, _wooden(gloss=0.0)), (0.25, _painted('dark')), (0.25, _painted('metal'))),
    'front': ((0.6, _wooden(gloss=0.1)), (0.4, _painted('white'))),
    'panels': ((0.6, _fronts('wood')), (0.4, _fronts('white'))),
    'stone': (
        (0.5, lambda rng: t.marbled(rng, tone(rng, 'metal'), tone(rng, 'wood'), 0.3)),
        (0.5, lambda rng: t.marbled(rng, tone(rng, 'metal'), tone(rng, 'dark'), 0.3)),
    ),
    'dark': ((1, _painted('dark', 0.03)),),
    'metal': ((1, _painted('metal', 0.04)),),
    'white': ((1, _painted('white')),),
    'paper': ((1, _painted('white', 0.03)),),
    'carton': ((1, lambda rng: t.plaster(rng, _CARTON, 0.06)),),
    'leaf': ((1, lambda rng: t.marbled(rng, _DARK_LEAF, _LIGHT_LEAF, 0.0)),),
    'books': ((1, prints.books),),
    'screen': (
        (0.25, lambda rng: prints.screen(rng, True)),
        (0.75, lambda rng: prints.screen(rng, False)),
    ),
    'door': (
        (0.5, lambda rng: prints.door(rng, tone(rng, 'white'))),
        (0.5, lambda rng: prints.door(rng, tone(rng, 'wood'))),
    ),
    'window': (
        (0.65, lambda rng: prints.window(rng, rng.uniform(0.6, 2.5))),
        (0.35, lambda rng: prints.window(rng, 0.0)),
    ),
    'curtain': (
        (0.5, lambda rng: prints.curtain(rng, tone(rng, 'fabric'))),
        (0.5, lambda rng: prints.curtain(rng, tone(rng, 'white'))),
    ),
    'picture': ((0.75, prints.picture), (0.25, prints.notes)),
    'industrial wall': (
        (0.5, lambda rng: t.corrugated(rng, tone(rng, 'metal'))),
        (0.3, lambda rng: t.concrete(rng, _CEMENT * rng.uniform(0.9, 1.6))),
        (0.2, lambda rng: t.tiles(rng, tone(rng, 'white') * 0.8, tone(rng, 'metal'), brick=True)),
    ),
    'industrial floor': (
        (0.8, lambda rng: t.concrete(rng, _CEMENT * rng.uniform(0.6, 1.4))),
        (0.2, lambda rng: t.concrete(rng, tone(rng, 'wall') * 0.6)),
    ),
    'gate': ((1, lambda rng: prints.panels(rng, tone(rng, 'metal'), 1, 8, knobs=False)),),
    'upright': ((0.7, _dyed(_BLUE)), (0.3, _painted('metal'))),
    'rack beam': ((0.75, _dyed(_ORANGE)), (0.25, _dyed(_YELLOW))),
    'marking': ((0.8, _dyed(_YELLOW, 0.08)), (0.2, _painted('white'))),
    'load': ((0.6, lambda rng: prints.cartons(rng, wrapped=True)), (0.4, prints.cartons)),
    'boxes': ((0.85, prints.cartons), (0.15, prints.notes)),
    'labelled': ((0.7, prints.cartons), (0.3, lambda rng: t.plaster(rng, _CARTON, 0.06))),
    'pallet side': ((1, prints.pallet_side),),
    'board': ((1, lambda rng: t.wood(rng, tone(rng, 'wood') * 0.7 + 0.2)),),
    'shade': (
        (1, lambda rng: Texture(np.full((8, 8, 3), 0.9) * _LAMP, glow=rng.uniform(0.5, 2))),
    ),
    'panel light': ((1, lambda rng: Texture(np.full((8, 8, 3), 0.97), glow=rng.uniform(1.5, 3))),),
}
# How many textures of one material a room may hold; the rest have one.
_VARIANTS = {
    'goods': 9, 'books': 5, 'picture': 4, 'fabric': 3, 'cushion': 3,
    'load': 5, 'boxes': 4, 'labelled': 3, 'panels': 2, 'screen': 2, 'door': 2, 'wood': 2,
    'frame': 2,
}  # fmt: skip


class Painter:
    """Makes textures when they are first asked for, and keeps them: one palette for a room."""

    def __init__(self, rng):
        """Begin with an empty palette."""
        self.textures, self._rng, self._known = [], rng, {}

    def index(self, material: str) -> int:
        """Number in `textures` of one of the room's textures of this material."""
        key = material, int(self._rng.integers(_VARIANTS.get(material, 1)))
        if key not in self._known:
            self._known[key] = self.fresh(material)
        return self._known[key]

    def fresh(self, material: str) -> int:
        """Number of a new texture of this material."""
        shares, makers = zip(*MATERIALS[material], strict=True)
        maker = makers[int(self._rng.choice(len(makers), p=shares))]
        self.textures.append(maker(self._rng))
        return len(self.textures) - 1
