"""Depth as a costmap uses it: cells of a level grid that it marks, beside what a sensor marks.

The grid lies in the body frame of the camera (REP-103: x ahead, y left, z up), whose height is 0.
A point of a depth image *marks* the cell that it falls into if its height is in a band; one point
is enough, as for Nav2's layers. Cells whose middle is farther from the camera than `range_m` do
not count, as with Nav2's ``obstacle_max_range``.

Two cells agree within a tolerance if their middles are no farther apart than so many cells. So
that no border turns agreement into an error, marks beyond the range agree with those within, and
a mark all of whose points are as near to an end of the band as the tolerance is agrees with points
as far outside; neither are counted themselves.

* A *sensor mark* is **missed** without a predicted mark within the tolerance.
* A *predicted mark* is **confirmed** by a sensor mark within the tolerance. Without one it is
  **false** if the sensor saw free space there: if at least one of its points is nearer to the
  camera than what the sensor measured in the same pixel. Both depths have one centre, so a point
  lies on the ray of its own pixel and on no other: this is exact, no ray has to be traced through
  a grid. Anything else (hidden behind what the sensor saw, or the sensor measured nothing) is
  **unjudged**: nobody knows.

False-obstacle rate = false / (false + confirmed); missed-obstacle rate = missed / sensor marks.
"""

from collections import defaultdict
from dataclasses import dataclass, field
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.geometry import CameraIntrinsics, require_size
from vlm_depth_ros.tools.flicker import Flicker

TOLERANCES = (0, 1, 2, 3, 4)
"""In cells: each is judged."""
TABLE_TOLERANCE = 2
"""The one that stands in a table."""
MOST_CELLS = 2000
"""From the camera to the end of the grid."""


@dataclass(frozen=True)
class GridOptions:
    """Grid and band."""

    cell_m: float = 0.05
    range_m: float = 3.0
    heights_m: tuple[float, float] = (-0.3, 0.3)
    """Least and greatest height above the camera that is an obstacle."""

    def __post_init__(self):
        """Check every bound."""
        for name in ('cell_m', 'range_m'):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value > 0,
                f'{name} = {value}: expected a positive number of metres.',
            )
        require(
            self.cell_m <= self.range_m <= MOST_CELLS * self.cell_m,
            f'range_m = {self.range_m}: expected 1 to {MOST_CELLS} cells of {self.cell_m} m.',
        )
        require(
            all(map(math.isfinite, self.heights_m)) and self.heights_m[0] < self.heights_m[1],
            f'heights_m = {self.heights_m}: expected two numbers of metres above the camera, the '
            'lower one first.',
        )

    @property
    def reach(self) -> int:
        """Cells from the camera to the end of the arrays: the range, and what confirms it."""
        return math.ceil(self.range_m / self.cell_m) + max(TOLERANCES) + 1


class JudgedCells(NamedTuple):
    """Bool maps (reach, 2 reach) at one tolerance: row 0 at the camera, column 0 at the right."""

    found: np.ndarray
    """Sensor marks that were predicted."""
    missed: np.ndarray
    confirmed: np.ndarray
    false: np.ndarray
    unjudged: np.ndarray

    def counts(self) -> dict[str, int]:
        """Number of cells of each."""
        return {name: int(np.count_nonzero(cells)) for name, cells in self._asdict().items()}


class _Points:
    """The pixels of a depth image that lie in or about the band, as cells of the grid."""

    def __init__(self, depth_m: np.ndarray, camera: CameraIntrinsics, options: GridOptions):
        require_size(depth_m.shape, camera)
        self._options, reach = options, options.reach
        (low, high), cell_m = options.heights_m, np.float32(options.cell_m)
        right, down = camera.axis_rays()
        with np.errstate(invalid='ignore'):
            up_m = depth_m * -down[:, None]
            inward_m = np.minimum(up_m - np.float32(low), np.float32(high) - up_m)
            chosen = (inward_m >= -max(TOLERANCES) * cell_m) & (depth_m > 0)
            self._pixel = np.flatnonzero(chosen & (depth_m / cell_m < reach))
        column = self._pixel % camera.width_px
        depth_m, inward_m = depth_m.ravel()[self._pixel], inward_m.ravel()[self._pixel]
        aside = np.floor(-depth_m * right[column] / cell_m).astype(np.intp) + reach
        inside = (aside >= 0) & (aside < 2 * reach)
        ahead = np.floor(depth_m[inside] / cell_m).astype(np.intp)
        self._pixel, self._inward_m = self._pixel[inside], inward_m[inside]
        self._cell = ahead * (2 * reach) + aside[inside]
        self._deepest_m = np.full(2 * reach * reach, -np.inf, np.float32)
        np.maximum.at(self._deepest_m, self._cell, self._inward_m)

    def marks(self, wider_m: float = 0.0) -> np.ndarray:
        """(reach, 2 reach) cells with a point in the band, made wider by this at both ends."""
        reach = self._options.reach
        return (self._deepest_m >= -wider_m).reshape(reach, 2 * reach)

    def marks_of(self, pixels: np.ndarray) -> np.ndarray:
        """(reach, 2 reach) cells with a point in the band of the (H, W) bool `pixels`."""
        reach = self._options.reach
        marked = np.zeros(2 * reach * reach, bool)
        marked[self._cell[pixels.ravel()[self._pixel] & (self._inward_m >= 0)]] = True
        return marked.reshape(reach, 2 * reach)

    def near(self, others: '_Points', tolerance: int) -> np.ndarray:
        """(reach, 2 reach) cells where a mark of ours agrees with one of `others`."""
        margin_m = tolerance * self._options.cell_m
        inner = self.marks(-margin_m)
        near = _distance_to(others.marks()) <= tolerance
        return near | (~inner & (_distance_to(others.marks(margin_m)) <= tolerance))


class SensorGrid:
    """What a sensor marks and sees free in one frame; judges any number of predictions.

    Args:
        truth_m: (H, W) float32 metres by the sensor, NaN where it measured nothing.
        camera: Of exactly this image; it looks ahead, level with the grid.
        options: Grid and band.

    Raises:
        InputError: If the sizes differ.
    """

    def __init__(self, truth_m: np.ndarray, camera: CameraIntrinsics, options: GridOptions):
        self._camera, self.options = camera, options
        self._truth_m, self._sensor = truth_m, _Points(truth_m, camera, options)
        reach = options.reach
        middle = (np.arange(2 * reach) - reach + 0.5) * options.cell_m
        self._in_range = np.hypot(middle[reach:, None], middle) <= options.range_m
        self._marks = self._sensor.marks() & self._in_range

    def judge(self, depth_m: np.ndarray) -> list[JudgedCells]:
        """Judge a prediction at each of `TOLERANCES`.

        Args:
            depth_m: (H, W) float32 metres; what is not finite marks nothing.

        Raises:
            InputError: If the sizes differ.
        """
        said = _Points(depth_m, self._camera, self.options)
        with np.errstate(invalid='ignore'):
            before = depth_m < self._truth_m
        marks, free = said.marks() & self._in_range, said.marks_of(before)
        judged = []
        for tolerance in TOLERANCES:
            found = self._sensor.near(said, tolerance)
            near = said.near(self._sensor, tolerance)
            judged.append(
                JudgedCells(
                    self._marks & found,
                    self._marks & ~found,
                    marks & near,
                    marks & ~near & free,
                    marks & ~near & ~free,
                )
            )
        return judged

    @property
    def aside(self) -> int:
        """Cells to either side that hold all that the camera sees within the grid."""
        right, _ = self._camera.axis_rays()
        return min(math.ceil(self.options.reach * float(np.abs(right).max())) + 1,
                   self.options.reach)  # fmt: skip

    def seen_free(self, stride: int = 4) -> np.ndarray:
        """(reach, 2 reach) cells that the sensor saw free at some height; for pictures only.

        Args:
            stride: Takes the rays of every n-th pixel and row.
        """
        step = np.float32(self.options.cell_m / 2)
        truth_m = self._truth_m[::stride, ::stride]
        camera = self._camera.strided(stride)
        free = np.zeros_like(self._marks)
        for depth in np.arange(step, self.options.range_m, step, dtype=np.float32):
            with np.errstate(invalid='ignore'):
                through = np.where(truth_m > depth, depth, np.float32(np.nan))
            free |= _Points(through, camera, self.options).marks()
        return free & self._in_range


def _distance_to(marks: np.ndarray) -> np.ndarray:
    """Cells from each cell to the next mark."""
    if not marks.any():
        return np.full(marks.shape, np.inf, np.float32)
    return cv2.distanceTransform((~marks).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


@dataclass
class ObstacleScore:
    """The frames of one row of the table."""

    counts: dict[int, list[dict[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """By tolerance, frame after frame."""
    kept: list[float] = field(default_factory=list)
    abs_rel: list[float] = field(default_factory=list)
    flicker: Flicker = field(default_factory=Flicker)

    def add(
        self,
        depth_m: np.ndarray,
        truth_m: np.ndarray,
        judged: list[JudgedCells],
        still: np.ndarray | None = None,
    ) -> None:
        """Take in one frame; `still` as `flicker.StillPixels` gives it."""
        self.flicker.add(depth_m, still)
        for tolerance, cells in zip(TOLERANCES, judged):
            self.counts[tolerance].append(cells.counts())
        kept = np.isfinite(depth_m)
        self.kept.append(float(kept.mean()))
        both = kept & np.isfinite(truth_m)
        if both.any():
            error = np.abs(depth_m[both] - truth_m[both]) / truth_m[both]
            self.abs_rel.append(float(error.mean()))

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: means over frames at `TABLE_TOLERANCE`, then all tolerances.

        A rate is the mean over the frames that have one; None where none has.
        """
        by_tolerance = {t: _means(frames) for t, frames in self.counts.items()}
        return {
            **by_tolerance[TABLE_TOLERANCE],
            'kept_share': float(np.mean(self.kept)),
            'abs_rel': float(np.mean(self.abs_rel)) if self.abs_rel else None,
            **self.flicker.as_dict(),
            'by_tolerance': [{'cells': t, **row} for t, row in by_tolerance.items()],
        }


def _means(frames: list[dict[str, int]]) -> dict[str, Any]:
    false, missed = [], []
    for n in frames:
        false += _share(n['false'], n['confirmed'])
        missed += _share(n['missed'], n['found'])
    return {
        'false_rate': float(np.mean(false)) if false else None,
        'missed_rate': float(np.mean(missed)) if missed else None,
        'frames_with_judged_marks': len(false),
        'frames_with_sensor_marks': len(missed),
        **{f'{name}_cells': float(np.mean([n[name] for n in frames])) for name in frames[0]},
    }


def _share(part: int, rest: int) -> list[float]:
    return [part / (part + rest)] if part + rest else []
