"""Random rooms: the shell, inner walls and columns, furniture on the floor, lamps."""

import math
from typing import NamedTuple

import numpy as np
from vlm_depth_ros.tools import furniture, storage, walls
from vlm_depth_ros.tools.furniture import box, Part, pole
from vlm_depth_ros.tools.materials import Painter
from vlm_depth_ros.tools.raycast import Solid
from vlm_depth_ros.tools.shading import Light


class Plan(NamedTuple):
    """Sizes of a kind of room in metres, and what may stand in it, likelier things named twice."""

    width_m: tuple[float, float]
    length_m: tuple[float, float]
    height_m: tuple[float, float]
    along_walls: tuple
    free: tuple


_F, _S = furniture, storage
_SEATS = (_F.chair, _F.chair, _F.chair)
PLANS = {
    'room': Plan(
        (2.8, 6.0),
        (3.2, 8.0),
        (2.3, 3.0),
        (_F.sofa, _F.bed, _S.shelf, _S.cabinet, _S.cabinet, _S.desk, _F.lamp, _F.plant, _F.heap)
        + (_F.table,),
        (_F.table, _F.chair, _F.chair, _F.sofa, _F.heap, _F.plant),
    ),
    'office': Plan(
        (3.0, 6.5),
        (3.5, 9.0),
        (2.3, 3.0),
        (_S.desk, _S.desk, _S.shelf, _S.shelf, _S.cabinet, _F.heap, _F.plant, _F.chair),
        (_S.desk, _F.table, *_SEATS, _F.heap),
    ),
    'kitchen': Plan(
        (2.4, 4.5),
        (2.8, 6.0),
        (2.3, 3.0),
        (_S.counter, _S.counter, _S.counter, _S.cabinet, _S.shelf, _F.heap),
        (_F.table, *_SEATS, _F.heap),
    ),
    'corridor': Plan(
        (1.3, 2.4),
        (5.0, 10.0),
        (2.3, 3.0),
        (_S.cabinet, _S.shelf, _F.plant, _F.heap, _F.chair),
        (_F.heap,),
    ),
    'hall': Plan(
        (5.0, 9.0),
        (6.0, 9.8),
        (2.5, 3.8),
        (_S.shelf, _S.shelf, _S.cabinet, _S.desk, _F.sofa, _F.plant, _S.aisle),
        (_S.aisle, _S.aisle, _F.table, _F.table, *_SEATS, _F.sofa, _F.heap, _F.plant),
    ),
}
STYLES = tuple(PLANS)


class Place(NamedTuple):
    """Where the frame of a piece of furniture lies in the room, and how it is turned."""

    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    yaw_rad: float = 0.0

    def at(self, x, y, z=0.0) -> tuple[float, float, float]:
        """A point of the piece's frame in the room's."""
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return self.x_m + c * x - s * y, self.y_m + s * x + c * y, self.z_m + z


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
        self._shell()
        if style != 'corridor' and rng.random() < 0.45:
            self._partition()
        self._closets()
        if style == 'hall':
            self._columns()
        if rng.random() < 0.12:
            self._beams()
        walls.decorate(self)
        self._furnish_walls(plan.along_walls)
        self._furnish_middle(plan.free)
        self._lamps()

    @property
    def area_m2(self) -> float:
        """Size of the floor."""
        return self.width_m * self.length_m

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

    def claim_wall(self, number: int, along: float, width: float, depth: float) -> bool:
        """Occupy the floor in front of a wall."""
        place, run = self.wall(number)
        if abs(along) + width / 2 > run / 2:
            return False
        ends = [place.at(along + k * width / 2, y)[:2] for k in (-1, 1) for y in (0, depth)]
        return self.claim(*np.min(ends, axis=0), *np.max(ends, axis=0))

    def _shell(self):
        rng, paint = self.rng, self.paint
        wall = paint.index('wall')
        self._plain = (wall,) * 6
        faces = [wall] * 4 + [paint.index('floor'), paint.index('ceiling')]
        if rng.random() < 0.35:
            faces[int(rng.integers(4))] = paint.fresh('wall')
        half = np.array([self.width_m, self.length_m, self.height_m]) / 2
        self.solids.append(Solid.upright('room', (0, 0, half[2]), half, faces=tuple(faces)))
        if rng.random() < 0.8:
            height = rng.uniform(0.05, 0.14)
            for number in range(4):
                place, run = self.wall(number)
                skirting = box(-run / 2, run / 2, 0, 0.015, 0, height, 'trim')
                self.put(skirting, place, np.ones(3), shadow=False)

    def _block(self, x0, x1, y0, y1, z0, z1):
        """A piece of wall."""
        part = box(x0, x1, y0, y1, z0, z1, 'wall')
        self.solids.append(Solid.upright('box', part.center, part.half, faces=self._plain))
        if z0 < 0.3:
            self._taken.append((x0, y0, x1, y1))

    def _partition(self):
        """A wall across the room with a doorway, so that one sees into the next room."""
        rng, w, h = self.rng, self.width_m / 2, self.height_m
        y, thick = rng.uniform(-0.25, 0.25) * self.length_m, rng.uniform(0.08, 0.2)
        opening = rng.uniform(0.8, min(2.2, self.width_m - 0.8))
        x0 = rng.uniform(-w + 0.3, w - 0.3 - opening)
        x1, top, y0, y1 = x0 + opening, rng.uniform(2.0, 2.2), y - thick / 2, y + thick / 2
        self._block(-w, x0, y0, y1, 0, h)
        self._block(x1, w, y0, y1, 0, h)
        self._block(x0, x1, y0, y1, top, h)
        for x in (x0 - 0.04, x1 - 0.02):
            post = box(x, x + 0.06, y0 - 0.02, y1 + 0.02, 0, top + 0.04, 'trim')
            self.put(post, Place(), np.ones(3))
        self._taken.append((x0, y - 0.7, x1, y + 0.7))

    def _closets(self):
        """Closets and chimneys: what makes a plan other than a rectangle."""
        rng, w, d = self.rng, self.width_m / 2, self.length_m / 2
        for _ in range(int(rng.integers(0, 3))):
            a, b = rng.uniform(0.2, 0.3 * w + 0.2), rng.uniform(0.2, 1.2)
            x0 = float(rng.choice([-w, w - a]))
            middle = rng.uniform(-d, d) if rng.random() < 0.5 else rng.choice([-d, d])
            y0 = float(np.clip(middle - b / 2, -d, d - b))
            if self.claim(x0, y0, x0 + a, y0 + b):
                self._block(x0, x0 + a, y0, y0 + b, 0, self.height_m)

    def _columns(self):
        rng = self.rng
        for _ in range(int(rng.integers(0, 4))):
            x, y, _ = rng.uniform(-0.35, 0.35, 3) * (self.width_m, self.length_m, 0)
            r = rng.uniform(0.15, 0.35)
            if self.claim(x - r, y - r, x + r, y + r):
                self.put(pole(0, 0, 0, self.height_m, r, 'white'), Place(x, y))

    def _beams(self):
        w, d, h = self.width_m / 2, self.length_m / 2, self.height_m
        for y in np.arange(-d + 0.5, d, self.rng.uniform(0.8, 1.6)):
            self.put(box(-w, w, y - 0.06, y + 0.06, h - 0.2, h, 'wood'), Place(), shadow=False)

    def _furnish_walls(self, makers):
        rng = self.rng
        for _ in range(int(rng.integers(4, 8) + self.area_m2 * rng.uniform(0.3, 0.8))):
            width, depth, parts = makers[int(rng.integers(len(makers)))](rng)
            for number in rng.integers(4, size=6):
                place, run = self.wall(number)
                narrow = self.style == 'corridor' and (depth > 0.45 or number in (0, 2))
                if width > run or narrow:
                    continue
                along = rng.uniform(-1, 1) * (run - width) / 2
                if self.claim_wall(number, along, width, depth + 0.02):
                    x, y, z = place.at(along, 0.02)
                    self._stand(parts, Place(x, y, z, place.yaw_rad))
                    break

    def _furnish_middle(self, makers):
        rng = self.rng
        for _ in range(int(rng.integers(1, 4) + self.area_m2 * rng.uniform(0.1, 0.4))):
            width, depth, parts = makers[int(rng.integers(len(makers)))](rng)
            r = math.hypot(width, depth) / 2
            for _ in range(5):
                x, y = rng.uniform(-0.5, 0.5, 2) * (self.width_m, self.length_m)
                if self.claim(x - r, y - r, x + r, y + r, gap=0.0):
                    middle = Place(x, y, 0.0, rng.uniform(0, 2 * math.pi))
                    self._stand(parts, Place(*middle.at(0, -depth / 2), middle.yaw_rad))
                    break
        if rng.random() < 0.4:
            w, d = self.width_m * rng.uniform(0.2, 0.4), self.length_m * rng.uniform(0.15, 0.35)
            rug = box(-w, w, -d, d, 0, 0.008, 'rug')
            self.put(rug, Place(yaw_rad=rng.uniform(-0.1, 0.1)))

    def _stand(self, parts, place):
        # One shade for a piece, a little difference between its parts.
        shade = self.rng.uniform(0.7, 1.1)
        for part in parts:
            self.put(part, place, np.full(3, shade * self.rng.uniform(0.93, 1.07)))

    def _lamps(self):
        """One to four lamps under the ceiling, most with a visible body."""
        rng = self.rng
        count = int(rng.integers(2, 5) if self.style == 'hall' else rng.integers(1, 3))
        warmth = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.05)])
        power = warmth * rng.uniform(2.0, 5.0) * (0.6 + self.area_m2 / 25) / count
        square = rng.random() < 0.5
        body = box(-0.3, 0.3, -0.3, 0.3, -0.02, 0, 'panel light')
        if not square:
            body = Part('ellipsoid', (0, 0, 0), (0.15, 0.15, 0.1), 'panel light')
        for i in range(count):
            x = rng.uniform(-0.3, 0.3) * self.width_m
            y = ((i + 0.5) / count - 0.5) * self.length_m * 0.9 + rng.uniform(-0.3, 0.3)
            drop = 0.0 if square else rng.uniform(0.1, 0.5)
            if square or rng.random() < 0.7:
                self.put(body, Place(x, y, self.height_m - drop), warmth, shadow=False)
            # A shadow map costs time; two are enough to see where things stand.
            position = np.array([x, y, self.height_m - drop - 0.2])
            down, shadowed = np.array([0, 0.001, -1.0]), len(self.lights) < 3
            self.lights.append(Light(position, down, power, rng.uniform(1.0, 3.5), shadowed))
        self.ambient = warmth * rng.uniform(0.15, 0.6) + np.array([0.05, 0.05, 0.06])
