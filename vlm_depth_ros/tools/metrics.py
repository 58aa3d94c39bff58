"""Depth error measures, per image and averaged per image; definitions of Eigen et al. (2014).

Unscaled is the truth for a robot. Median-scaled forgives one factor per image and is shown beside
it only because much of the literature reports nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from vlm_depth_ros.core.errors import InputError

METRICS = (
    'abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'log10', 'silog', 'delta1', 'delta2', 'delta3',
)


@dataclass(frozen=True)
class Protocol:
    """Which pixels of an image count, and the largest depth."""

    crop: tuple[float, float, float, float]
    """Top, bottom, left, right as fractions of the image."""
    max_depth_m: float
    min_depth_m: float = 1e-3

    def mask(self, hw: tuple[int, int]) -> np.ndarray:
        """(H, W) bool: inside the crop."""
        height, width = hw
        top, bottom, left, right = self.crop
        inside = np.zeros(hw, bool)
        # Rounded down, as the published crops are; the margin is for 471 / 480 * 480 < 471.
        rows = slice(int(top * height + 1e-6), int(bottom * height + 1e-6))
        inside[rows, int(left * width + 1e-6) : int(right * width + 1e-6)] = True
        return inside


NYU_CROP = Protocol((45 / 480, 471 / 480, 41 / 640, 601 / 640), 10.0)
"""Eigen's NYU crop, rows 45:471 and columns 41:601 of 480x640, 10 m."""
GARG_CROP = Protocol((0.40810811, 0.99189189, 0.03594771, 0.96405229), 80.0)
"""Garg's KITTI crop, 80 m."""
PROTOCOLS = {
    'nyu': NYU_CROP,
    'kitti': GARG_CROP,
    'full': Protocol((0.0, 1.0, 0.0, 1.0), float('inf')),
}


@dataclass(frozen=True, eq=False)
class Compared:
    """A prediction beside the truth of one image."""

    depth_m: np.ndarray
    """(H, W) float64, inside the protocol's range."""
    truth_m: np.ndarray
    """(H, W) float64; meaningful where `valid`."""
    valid: np.ndarray
    """(H, W) bool: inside the crop, with a truth inside the range; at least one pixel."""

    def errors(self, where: np.ndarray | None = None) -> dict[str, float]:
        """The nine `METRICS` over the valid pixels, or over the (H, W) bool mask `where`."""
        where = self.valid if where is None else where
        p, t = self.depth_m[where], self.truth_m[where]
        d = np.log(p) - np.log(t)
        ratio = np.exp(np.abs(d))
        return {
            'abs_rel': float(np.mean(np.abs(p - t) / t)),
            'sq_rel': float(np.mean((p - t) ** 2 / t)),
            'rmse': float(np.sqrt(np.mean((p - t) ** 2))),
            'rmse_log': float(np.sqrt(np.mean(d**2))),
            'log10': float(np.mean(np.abs(d)) / np.log(10)),
            'silog': float(100 * np.sqrt(max(np.mean(d**2) - np.mean(d) ** 2, 0))),
            'delta1': float(np.mean(ratio < 1.25)),
            'delta2': float(np.mean(ratio < 1.25**2)),
            'delta3': float(np.mean(ratio < 1.25**3)),
        }


def compare(
    depth_m: np.ndarray,
    truth_m: np.ndarray,
    protocol: Protocol,
    median_scaled: bool = False,
) -> Compared:
    """Bring a prediction into the range of a protocol, and say where it counts.

    Args:
        depth_m: (H, W) prediction, metres; out-of-range values are clipped to the protocol's
            range. NaN and +Inf become its maximum or, without one, the truth's.
        truth_m: (H, W) metres; NaN or 0 where there is none.
        protocol: Crop and range.
        median_scaled: First multiply by median(truth) / median(prediction).

    Raises:
        InputError: If the sizes differ or no pixel has a truth.
    """
    if depth_m.shape != truth_m.shape:
        raise InputError(f'depth {depth_m.shape} and truth {truth_m.shape} differ in size.')
    low, high = protocol.min_depth_m, protocol.max_depth_m
    with np.errstate(invalid='ignore'):
        valid = protocol.mask(truth_m.shape) & (truth_m > low) & (truth_m < high)
    if not valid.any():
        raise InputError('no pixel inside the crop has a truth within the range.')
    t, p = truth_m.astype(np.float64), depth_m.astype(np.float64)
    top = high if np.isfinite(high) else t[valid].max()
    # Before the median: an infinite or a zero one would scale everything to NaN.
    p = np.maximum(np.nan_to_num(p, nan=top, posinf=top, neginf=low), low)
    if median_scaled:
        p = p * (np.median(t[valid]) / np.median(p[valid]))
    return Compared(np.clip(p, low, high), t, valid)


def depth_metrics(
    depth_m: np.ndarray,
    truth_m: np.ndarray,
    protocol: Protocol,
    median_scaled: bool = False,
) -> dict[str, float]:
    """Errors of one image: the nine `METRICS`; silog is 100 sqrt(var(d)), d = ln depth - ln truth.

    Arguments and errors are those of `compare`.
    """
    return compare(depth_m, truth_m, protocol, median_scaled).errors()


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average over images, each image counting once."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
