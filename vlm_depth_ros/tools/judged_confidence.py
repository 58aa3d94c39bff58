"""Whether a model knows where it is wrong: errors without its least sure pixels, and calibration.

A confidence is the probability that a depth is within a factor of 1.25 of the truth. The pixels of
all images are pooled, of each at most `MOST_PIXELS`: what is dropped is dropped from the set, not
from each image, since a robot also has to know which pictures not to trust.
"""

from typing import Any

import numpy as np
from vlm_depth_ros.core.estimator import DepthPrediction
from vlm_depth_ros.tools.metrics import Compared

MOST_PIXELS = 20_000
"""Of an image; 654 images then take 170 MB."""
DROPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the pixels that are left out."""
AT_20_PERCENT = DROPPED.index(0.2)
ORDERS = {
    'confidence': 'the least confident',
    'farness': 'the farthest',
    'nearness': 'the nearest',
    'oracle': 'the most wrong',
}
"""Keys ``abs_rel_by_...``, and which pixels are dropped first."""
TENTHS = 10


class ConfidencePool:
    """The pixels of all images that have a confidence."""

    def __init__(self):
        """Start empty."""
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, compared: Compared, said: DepthPrediction) -> None:
        """Take pixels of one image: of more than `MOST_PIXELS` so many, evenly spaced by row.

        Args:
            compared: Where it counts, and the error there.
            said: Its confidence is taken, as 0 where it gives no depth; without one, nothing is.
        """
        if said.confidence is None:
            return
        confidence = np.where(np.isnan(said.depth_m), 0, np.nan_to_num(said.confidence))
        valid = np.flatnonzero(compared.valid)
        chosen = valid[np.linspace(0, len(valid) - 1, min(len(valid), MOST_PIXELS)).astype(int)]
        p, t = compared.depth_m.ravel()[chosen], compared.truth_m.ravel()[chosen]
        self._parts.append((
            np.clip(confidence.ravel()[chosen], 0, 1).astype(np.float32),
            p.astype(np.float32),
            (np.abs(p - t) / t).astype(np.float32),
            np.maximum(p / t, t / p) < 1.25,
        ))  # fmt: skip

    def as_dict(self) -> dict[str, Any] | None:
        """AbsRel of what is left, by what was dropped first, and the calibration.

        Beside the confidence three other orders: the nearest and the farthest predictions first,
        which need no confidence, and the largest errors first, which nothing can beat.

        Returns:
            As docs/evaluation.md has it; None of a model without a confidence.
        """
        if not self._parts:
            return None
        confidence, depth_m, error, is_within = map(np.concatenate, zip(*self._parts))
        kept = abs_rel_of_kept(error, confidence)
        return {
            'dropped': list(DROPPED),
            'abs_rel_by_confidence': kept,
            'abs_rel_by_nearness': abs_rel_of_kept(error, depth_m),
            'abs_rel_by_farness': abs_rel_of_kept(error, -depth_m),
            'abs_rel_by_oracle': abs_rel_of_kept(error, -error),
            'gain_at_20_percent': 1 - kept[AT_20_PERCENT] / kept[0] if kept[0] else 0.0,
            **calibration(confidence, is_within),
        }


def at_20_percent(judged: dict[str, Any]) -> dict[str, float]:
    """AbsRel without a fifth of the pixels, for each of `ORDERS`."""
    return {order: judged[f'abs_rel_by_{order}'][AT_20_PERCENT] for order in ORDERS}


def abs_rel_of_kept(error: np.ndarray, dropped_first: np.ndarray) -> list[float]:
    """Mean error of what is left when the pixels with the lowest (N,) `dropped_first` go.

    Of pixels that share one value a part may go: the others then count with the mean of all of
    them, so that the answer does not depend on their order.

    Returns:
        One mean for each of `DROPPED`.
    """
    total, kept = len(error), []
    counts = [round(share * total) for share in DROPPED]
    # Partitioned, not sorted: a test set has ten million pixels.
    for count, limit in zip(counts, np.partition(dropped_first, counts)[counts]):
        above, tied = dropped_first > limit, dropped_first == limit
        sum_above = error[above].sum(dtype=np.float64)
        sum_tied = error[tied].mean(dtype=np.float64) * (total - count - above.sum())
        kept.append(float((sum_above + sum_tied) / (total - count)))
    return kept


def calibration(confidence: np.ndarray, is_within: np.ndarray) -> dict[str, Any]:
    """Compare what was claimed with what came true.

    Args:
        confidence: (N,) in 0..1.
        is_within: (N,) bool: within a factor of 1.25 of the truth.

    Returns:
        ``calibration``, a row for each tenth of the confidence that has pixels, and
        ``calibration_error``: the mean over pixels of the difference in their tenth, the expected
        calibration error of Guo et al. (2017, arXiv 1706.04599).
    """
    tenth = np.minimum((confidence * TENTHS).astype(int), TENTHS - 1)
    counts = np.bincount(tenth, minlength=TENTHS)
    filled = counts > 0
    claimed = np.bincount(tenth, confidence, TENTHS)[filled] / counts[filled]
    true = np.bincount(tenth, is_within, TENTHS)[filled] / counts[filled]
    return {
        'calibration': [
            {'confidence': float(c), 'within_1.25': float(t), 'pixels': int(n)}
            for c, t, n in zip(claimed, true, counts[filled])
        ],
        'calibration_error': float(np.average(np.abs(true - claimed), weights=counts[filled])),
    }
