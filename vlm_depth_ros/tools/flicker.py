"""Flicker: how much published depth changes from frame to frame where the picture does not.

Beside the temporal figures of ``vlm-depth evaluate`` (`analyses.change`) this needs no truth and
looks at what a robot gets: filtered, scaled, with what is missing left out.
"""

import cv2
import numpy as np
from vlm_depth_ros.core.options import TemporalOptions
from vlm_depth_ros.tools.analyses import LEAST_PIXELS
from vlm_depth_ros.tools.judging import follows
from vlm_depth_ros.tools.rows import Row

AROUND_PX = 8
"""So far around a still pixel everything is still: what is plain looks still while it moves."""


class StillPixels:
    """Which pixels of a sequence look as they did one frame before."""

    def __init__(self):
        self._before: tuple[Row, np.ndarray] | None = None

    def __call__(self, row: Row, rgb: np.ndarray) -> np.ndarray | None:
        """Take the next frame.

        Args:
            row: Where it stands in the list.
            rgb: (H, W, 3) uint8.

        Returns:
            (H, W) bool, True where luma, to `AROUND_PX` around, changed by less than what the
            temporal filter takes for the same thing; None for a frame that follows none.
        """
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.int16)
        before, self._before = self._before, (row, grey)
        if before is None or not follows(before[0], row) or before[1].shape != grey.shape:
            return None
        still = np.abs(grey - before[1]) < TemporalOptions().max_grey
        square = np.ones((2 * AROUND_PX + 1,) * 2, np.uint8)
        return cv2.erode(still.view(np.uint8), square) > 0


class Flicker:
    """The changes of depth of one way to publish it, frame after frame."""

    def __init__(self):
        self.medians: list[float] = []
        """Median of abs(ln(depth after / before)), about the relative change, of each frame that
        follows another and has enough still pixels with depth in both."""
        self._before_m: np.ndarray | None = None

    def add(self, depth_m: np.ndarray, still: np.ndarray | None) -> None:
        """Take in the next frame.

        Args:
            depth_m: (H, W) metres; what is not finite is missing. It is kept until the next.
            still: (H, W) bool as `StillPixels` gives it.
        """
        before_m, self._before_m = self._before_m, depth_m
        if still is None or before_m is None:
            return
        both = still & np.isfinite(depth_m) & np.isfinite(before_m)
        if both.sum() >= LEAST_PIXELS:
            change = np.log(depth_m[both] / before_m[both])
            self.medians.append(float(np.median(np.abs(change))))

    def as_dict(self) -> dict[str, float | int | None]:
        """Mean over the pairs of frames, None without any, and how many there are."""
        mean = float(np.mean(self.medians)) if self.medians else None
        return {'flicker': mean, 'flicker_pairs': len(self.medians)}
