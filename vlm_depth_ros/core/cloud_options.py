"""What a robot may say about points, free space and scans; free of torch."""

from dataclasses import dataclass
import math
from numbers import Integral
from typing import ClassVar

from vlm_depth_ros.core.config import require, require_within

FRAMES = ('base', 'optical')
UNBOUNDED_M = 1000.0
"""A side of the box that lies so far out is no side."""
STEP_M = 0.1
"""A scan looks for free space at distances no farther apart."""
MOST_PLACES = 800_000
"""Bins times distances of a scan. Its tables, kept for eight poses, are 48 MB each if the camera
sees the whole turn, and 8 MB at 60 degrees."""


@dataclass(frozen=True)
class CloudOptions:
    """Which points a cloud keeps; all of them by default."""

    voxel_m: float = 0.0
    """Side of the cubes, along the axes of the optical frame, of which each keeps one point, the
    mean of its points and of their colours; 0 keeps every point. For unorganised clouds only."""
    crop_min_m: tuple[float, float, float] = (-UNBOUNDED_M,) * 3
    """Least x, y and z of the box that keeps its points, faces included; -1000 is no bound."""
    crop_max_m: tuple[float, float, float] = (UNBOUNDED_M,) * 3
    """Greatest x, y and z; 1000 is no bound."""
    crop_in: str = 'base'
    """The frame of the box: ``base`` or ``optical``. The points are in the optical frame."""

    BOUNDS: ClassVar = {
        'voxel_m': (0.0, 1.0),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)
        require(
            self.voxel_m == 0 or self.voxel_m >= 0.01,
            f'voxel_m = {self.voxel_m!r}: expected 0 (off), or from 0.01 to 1 m.',
        )
        for name in ('crop_min_m', 'crop_max_m'):
            corner = getattr(self, name)
            require(
                isinstance(corner, tuple)
                and len(corner) == 3
                and all(isinstance(m, int | float) and abs(m) <= UNBOUNDED_M for m in corner),
                f'{name} = {corner!r}: expected three numbers (x, y, z) of metres, each from '
                f'{-UNBOUNDED_M:g} to {UNBOUNDED_M:g}.',
            )
        require(
            all(low < high for low, high in zip(self.crop_min_m, self.crop_max_m)),
            f'crop_min_m = {self.crop_min_m} and crop_max_m = {self.crop_max_m}: expected each '
            'minimum below its maximum, or the box holds nothing.',
        )
        require(self.crop_in in FRAMES, f'crop_in = {self.crop_in!r}: expected one of {FRAMES}.')

    @property
    def crops(self) -> bool:
        """Whether the box has a side at all."""
        box, everything = (self.crop_min_m, self.crop_max_m), UNBOUNDED_M
        return box != ((-everything,) * 3, (everything,) * 3)

    def require_form(self, organized: bool) -> None:
        """Refuse a form of cloud that the options cannot give; raises ConfigError."""
        require(
            not (organized and self.voxel_m),
            f'voxel_m = {self.voxel_m:g} with an organised cloud: expected one of the two, as the '
            'mean point of a voxel belongs to no pixel. Set voxel_m = 0 or cloud_organized = '
            'false.',
        )


@dataclass(frozen=True)
class ClearingOptions:
    """Where rays end that see free space."""

    range_m: float = 3.0
    """Distance from the camera along the ray: a few centimetres or more beyond the
    ``obstacle_max_range`` of Nav2 (2.5 m unless set), which then marks nothing there, and no more
    than its ``raytrace_max_range`` (3.0 m), up to which it clears."""
    stride: int = 4
    """Every n-th pixel and row gets a ray."""

    BOUNDS: ClassVar = {
        'range_m': (0.1, UNBOUNDED_M),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)
        require(
            isinstance(self.stride, Integral) and 1 <= self.stride <= 32,
            f'stride = {self.stride!r}: expected an integer from 1 to 32.',
        )


@dataclass(frozen=True)
class ScanOptions:
    """What part of the world a scan shows."""

    min_height_m: float = 0.1
    """Bottom of the band, in the base frame; above the floor by more than depth errs."""
    max_height_m: float = 1.0
    """Top of the band: about the robot's own."""
    range_min_m: float = 0.3
    """Distance from the z axis of the base. Nearer points are dropped, and nearer space needs not
    be seen to be free: no less than the camera's blind zone, or nothing ever is."""
    range_max_m: float = 5.0
    """Farther points are dropped; free is free up to here, so depth has to go as far."""
    angle_min_rad: float = 0.0
    """First bin, counted to the left from the x axis; both 0: from the rightmost to the leftmost
    direction in which the camera sees the band."""
    angle_max_rad: float = 0.0
    """The last bin is no farther."""
    angle_increment_rad: float = math.pi / 360
    """Between the middles of two bins."""
    stride: int = 2
    """Every n-th pixel and row is looked at."""

    BOUNDS: ClassVar = {
        'min_height_m': (-100.0, 100.0),
        'max_height_m': (-100.0, 100.0),
        'range_min_m': (0.0, 100.0),
        'range_max_m': (0.1, 100.0),
        'angle_min_rad': (-2 * math.pi, 2 * math.pi),
        'angle_max_rad': (-2 * math.pi, 2 * math.pi),
        'angle_increment_rad': (0.001, 0.2),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)
        for low, high in (('min_height_m', 'max_height_m'), ('range_min_m', 'range_max_m')):
            below, above = getattr(self, low), getattr(self, high)
            require(
                below < above, f'{low} = {below:g} and {high} = {above:g}: expected {low} below.'
            )
        turn = self.angle_max_rad - self.angle_min_rad
        require(
            self.derives_angles or 0 < turn <= 2 * math.pi,
            f'angle_min_rad = {self.angle_min_rad:g} and angle_max_rad = {self.angle_max_rad:g}: '
            'expected the first below the second by one turn at most, or both 0 to take what the '
            'camera sees.',
        )
        require(
            isinstance(self.stride, Integral) and 1 <= self.stride <= 16,
            f'stride = {self.stride!r}: expected an integer from 1 to 16.',
        )
        require(
            self.bins * self.steps <= MOST_PLACES,
            f'angle_increment_rad = {self.angle_increment_rad:g} and range_max_m = '
            f'{self.range_max_m:g}: {self.bins} bins of {self.steps} places each to look for free '
            f'space, expected at most {MOST_PLACES} in all. Raise angle_increment_rad, or lower '
            'range_max_m.',
        )

    @property
    def bins(self) -> int:
        """How many there are, of a whole turn where the bounds come from the camera."""
        if self.derives_angles:
            return 2 * math.ceil(math.pi / self.angle_increment_rad)
        turn = self.angle_max_rad - self.angle_min_rad
        return int(turn / self.angle_increment_rad + 1e-6) + 1

    @property
    def steps(self) -> int:
        """At how many distances free space is looked for."""
        return math.ceil((self.range_max_m - self.range_min_m) / STEP_M) + 1

    @property
    def derives_angles(self) -> bool:
        """Whether the bounds come from the camera."""
        return self.angle_min_rad == self.angle_max_rad == 0
