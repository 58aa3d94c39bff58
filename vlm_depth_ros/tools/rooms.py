"""Random rooms: sizes and contents by kind, the shell, furniture on the floor, lamps."""

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np
from vlm_depth_ros.tools import furniture, groups, layouts, stairs, storage, walls, warehouse
from vlm_depth_ros.tools.furniture import box, Part
from vlm_depth_ros.tools.materials import Painter
from vlm_depth_ros.tools.place import Place
from vlm_depth_ros.tools.raycast import Solid
from vlm_depth_ros.tools.shading import Light


class Plan(NamedTuple):
    """Sizes of a kind of room in metres, and what may stand in it, likelier things named twice."""

    width_m: tuple[float, float]
    length_m: tuple[float, float]
    height_m: tuple[float, float]
    along_walls: tuple
    free: tuple
    layout: Callable = layouts.dwelling
    lamps: tuple[int, int] = (1, 2)


_F, _G, _S, _T, _W = furniture, groups, storage, stairs, warehouse
_SEATS = (_F.chair, _F.chair, _G.litter)
_HOME = (_F.sofa, _F.bed, _S.shelf, _S.cabinet, _S.cabinet, _S.desk, _F.lamp, _F.plant, _F.heap)
PLANS = {
    'room': Plan(
        (2.8, 6.0),
        (3.2, 8.0),
        (2.3, 3.0),
        (*_HOME, *_HOME, _F.table, _G.litter, _T.leaning, _T.flight),
        (_F.table, _G.dining, _F.chair, _F.sofa, _F.heap, _F.plant, _G.litter),
    ),
    'office': Plan(
        (3.0, 6.5),
        (3.5, 9.0),
        (2.3, 3.0),
        (_G.workplace, _S.desk, _S.shelf, _S.shelf, _S.cabinet, _F.heap, _F.plant, _F.chair),
        (_G.workplace, _S.desk, _G.dining, *_SEATS, _F.heap),
    ),
    'kitchen': Plan(
        (2.4, 4.5),
        (2.8, 6.0),
        (2.3, 3.0),
        (_S.counter, _S.counter, _S.counter, _S.cabinet, _S.shelf, _F.heap),
        (_F.table, _G.dining, *_SEATS, _F.heap),
    ),
    'corridor': Plan(
        (1.3, 2.4),
        (5.0, 14.0),
        (2.3, 3.0),
        (_S.cabinet, _S.shelf, _F.plant, _F.heap, _F.chair, _T.leaning),
        (_F.heap, _G.litter),
        layouts.passage,
        (1, 3),
    ),
    'hall': Plan(
        (5.0, 9.0),
        (6.0, 9.8),
        (2.5, 3.8),
        (_S.shelf, _S.shelf, _S.cabinet, _S.desk, _F.sofa, _F.plant, _S.aisle, _T.ramp),
        (_S.aisle, _S.aisle, _F.table, _G.dining, *_SEATS, _F.sofa, _F.heap, _F.plant),
        layouts.hall,
        (2, 4),
    ),
    'flat': Plan(
        (5.5, 8.0),
        (7.0, 12.0),
        (2.3, 2.8),
        (*_HOME, _S.counter, _F.table, _G.litter, _T.leaning),
        (_F.table, _G.dining, *_SEATS, _F.heap, _F.plant),
        layouts.flat,
        (3, 5),
    ),
    'stairs': Plan(
        (3.6, 6.5),
        (7.5, 10.0),
        (4.9, 5.8),
        (_T.flight, _S.cabinet, _F.sofa, _F.plant, _F.heap, _T.ramp, _S.shelf),
        (_F.table, *_SEATS, _F.plant, _F.heap),
        stairs.gallery,
        (2, 3),
    ),
    'warehouse': Plan(
        (5.4, 9.5),
        (10.0, 18.0),
        (4.5, 7.0),
        (_W.stack, _W.stack, _F.heap, _T.leaning),
        (_W.stack, _W.stack, _W.jack, _F.heap),
        warehouse.racks,
        (3, 5),
    ),
}
STYLES = tuple(PLANS)


class Room:
    """A room under construction: solids, lamps, palette, and a plan of what is occupied.

    The origin is the middle of the floor; x runs over the width, y over the length.
    """

    def __init__(self, rng, style):
        """Build the whole room."""
        plan = PLANS[style]
        self.rng, self.style, self.paint = rng, style, Painter(rng)
        self.width_m, self.length_m = rng.uniform(*plan.width_m), rng.uniform(*plan.length_m)
        self.height_m = rng.uniform(*plan.height_m)
        self.solids, self.lights, self._taken = [], [], []
        # Lamps hang within this share of the width on either side of the middle.
        self.lamp_reach = 0.3
        self._shell()
        plan.layout(self)
        walls.decorate(self)
        self._furnish_walls(plan.along_walls)
        self._furnish_middle(plan.free)
        self._lamps(int(rng.integers(plan.lamps[0], plan.lamps[1] + 1)))

    @property
    def area_m2(self) -> float:
        """Size of the floor."""
        return self.width_m * self.length_m

    @property
    def _filled_m2(self) -> float:
        """What counts towards the furniture: large rooms are emptier, and time is not lost."""
        return min(self.area_m2, 40.0)

    def wall(self, number: int) -> tuple[Place, float]:
        """Middle of one of four walls on the floor, +y into the room; and the wall's length."""
        w, d = self.width_m / 2, self.length_m / 2
        return (
            (Place(0.0, -d), self.width_m),
            (Place(w, 0.0, yaw_rad=math.pi / 2), self.length_m),
            (Place(0.0, d, yaw_rad=math.pi), self.width_m),
            (Place(-w, 0.0, yaw_rad=-math.pi / 2), self.length_m),
        )[number]

    def put(self, part: Part, place: Place, tint=None, shadow=True) -> Solid:
        """Add a part; without a tint, things of one material differ a little."""
        body = self.paint.index(part.material)
        faces = [body] * 6
        if part.front:
            faces[3] = self.paint.index(part.front)
        tint = np.full(3, self.rng.uniform(0.75, 1.1)) if tint is None else np.asarray(tint)
        solid = Solid.upright(
            part.kind,
            place.at(*part.center),
            part.half,
            place.yaw_rad + part.yaw,
            part.pitch,
            faces=tuple(faces),
            tint=tint.astype(np.float32),
            casts_shadow=shadow,
        )
        self.solids.append(solid)
        return solid

    def claim(self, x0, y0, x1, y1, gap=0.03) -> bool:
        """Occupy a rectangle of the floor unless it leaves the room or something stands there."""
        w, d = self.width_m / 2 + 1e-6, self.length_m / 2 + 1e-6
        inside = -w <= x0 and x1 <= w and -d <= y0 and y1 <= d
        free = inside and all(
            x1 + gap < a or x0 - gap > c or y1 + gap < b or y0 - gap > d
            for a, b, c, d in self._taken
        )
        if free:
            self._taken.append((x0, y0, x1, y1))
        return free

    def block(self, place, x0, x1, y0, y1, z0, z1):
        """A piece of inner wall; none where it would be thinner than a millimetre."""
        if min(x1 - x0, y1 - y0, z1 - z0) < 1e-3:
            return
        part = box(x0, x1, y0, y1, z0, z1, 'wall')
        self.solids.append(
            Solid.upright(
                'box', place.at(*part.center), part.half, place.yaw_rad, faces=self._plain
            )
        )
        if z0 < 0.3:
            self.keep_free(place, x0, x1, y0, y1)

    def keep_free(self, place, x0, x1, y0, y1):
        """Let nothing more stand on a rectangle of a frame turned by a multiple of 90 degrees."""
        ends = [place.at(x, y)[:2] for x in (x0, x1) for y in (y0, y1)]
        self._taken.append((*np.min(ends, axis=0), *np.max(ends, axis=0)))

    def claim_wall(self, number: int, along: float, width: float, depth: float) -> bool:
        """Occupy the floor in front of a wall."""
        place, run = self.wall(number)
        if abs(along) + width / 2 > run / 2:
            return False
        ends = [place.at(along + k * width / 2, y)[:2] for k in (-1, 1) for y in (0, depth)]
        return self.claim(*np.min(ends, axis=0), *np.max(ends, axis=0))

    def _shell(self):
        rng, paint = self.rng, self.paint
        industrial = 'industrial ' if self.style == 'warehouse' else ''
        wall = paint.index(f'{industrial}wall')
        self._plain = (wall,) * 6
        faces = [wall] * 4 + [paint.index(f'{industrial}floor'), paint.index('ceiling')]
        if not industrial and rng.random() < 0.35:
            faces[int(rng.integers(4))] = paint.fresh('wall')
        half = np.array([self.width_m, self.length_m, self.height_m]) / 2
        self.solids.append(Solid.upright('room', (0, 0, half[2]), half, faces=tuple(faces)))
        if rng.random() < 0.8:
            height = rng.uniform(0.05, 0.14)
            for number in range(4):
                place, run = self.wall(number)
                skirting = box(-run / 2, run / 2, 0, 0.015, 0, height, 'trim')
                self.put(skirting, place, np.ones(3), shadow=False)

    def _furnish_walls(self, makers):
        rng = self.rng
        for _ in range(int(rng.integers(4, 8) + self._filled_m2 * rng.uniform(0.3, 0.8))):
            width, depth, parts = makers[int(rng.integers(len(makers)))](rng)
            for number in rng.integers(4, size=6):
                place, run = self.wall(number)
                narrow = self.style == 'corridor' and (depth > 0.45 or number in (0, 2))
                if width > run or narrow:
                    continue
                along = rng.uniform(-1, 1) * (run - width) / 2
                if self.claim_wall(number, along, width, depth + 0.02):
                    x, y, z = place.at(along, 0.02)
                    self.stand(parts, Place(x, y, z, place.yaw_rad))
                    break

    def _furnish_middle(self, makers):
        rng = self.rng
        for _ in range(int(rng.integers(1, 4) + self._filled_m2 * rng.uniform(0.1, 0.4))):
            width, depth, parts = makers[int(rng.integers(len(makers)))](rng)
            r = math.hypot(width, depth) / 2
            for _ in range(5):
                x, y = rng.uniform(-0.5, 0.5, 2) * (self.width_m, self.length_m)
                if self.claim(x - r, y - r, x + r, y + r, gap=0.0):
                    middle = Place(x, y, 0.0, rng.uniform(0, 2 * math.pi))
                    self.stand(parts, Place(*middle.at(0, -depth / 2), middle.yaw_rad))
                    break
        if self.style != 'warehouse' and rng.random() < 0.4:
            w, d = self.width_m * rng.uniform(0.2, 0.4), self.length_m * rng.uniform(0.15, 0.35)
            rug = box(-w, w, -d, d, 0, 0.008, 'rug')
            self.put(rug, Place(yaw_rad=rng.uniform(-0.1, 0.1)))

    def stand(self, parts, place):
        """Put a piece of furniture."""
        # One shade for a piece, a little difference between its parts.
        shade = self.rng.uniform(0.7, 1.1)
        for part in parts:
            self.put(part, place, np.full(3, shade * self.rng.uniform(0.93, 1.07)))

    def _lamps(self, count):
        """Lamps under the ceiling, most with a visible body; dim ones where the sun shines in."""
        rng = self.rng
        warmth = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.05)])
        power = warmth * rng.uniform(2.0, 5.0) * (0.6 + self.area_m2 / 25) / count
        if self.lights and rng.random() < 0.5:
            power *= 0.15
        # As bright on the floor of a high room.
        power *= max(self.height_m / 2.7, 1) ** 2
        square = rng.random() < 0.5
        body = box(-0.3, 0.3, -0.3, 0.3, -0.02, 0, 'panel light')
        if not square:
            body = Part('ellipsoid', (0, 0, 0), (0.15, 0.15, 0.1), 'panel light')
        for i in range(count):
            x = rng.uniform(-self.lamp_reach, self.lamp_reach) * self.width_m
            y = ((i + 0.5) / count - 0.5) * self.length_m * 0.9 + rng.uniform(-0.3, 0.3)
            drop = 0.0 if square else rng.uniform(0.1, 0.5)
            if square or rng.random() < 0.7:
                self.put(body, Place(x, y, self.height_m - drop), warmth, shadow=False)
            # A shadow map costs time; two are enough to see where things stand.
            position = np.array([x, y, self.height_m - drop - 0.2])
            down, shadowed = np.array([0, 0.001, -1.0]), len(self.lights) < 3
            self.lights.append(Light(position, down, power, rng.uniform(1.0, 3.5), shadowed))
        self.ambient = warmth * rng.uniform(0.15, 0.6) + np.array([0.05, 0.05, 0.06])
