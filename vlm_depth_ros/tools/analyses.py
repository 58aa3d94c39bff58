"""Where and when depth is wrong: by distance, at edges, and from one frame to the next."""

import cv2
import numpy as np
from vlm_depth_ros.tools.metrics import Compared

DEPTH_EDGES_M = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0, np.inf)
"""True distances between which errors are summed up."""
EDGE_LOG_JUMP = 0.05
"""Neighbours whose log depth differs by more stand on two sides of an edge."""
EDGE_BAND_PX = 3
"""How far the band reaches from an edge, and how far from it every truth has to be known."""
RATIO_PER_OCTAVE = 8
RATIO_OCTAVES = 2
"""The histogram of prediction over truth reaches from 1/4 to 4; what is beyond is in its ends."""
LEAST_PIXELS = 100
"""Fewer that two frames have in common say nothing about how they differ."""


class DepthBins:
    """Errors over all pixels of all images by true distance; each pixel counts once."""

    def __init__(self):
        """Start empty."""
        self._sums = np.zeros((5, len(DEPTH_EDGES_M) - 1))

    def add(self, compared: Compared) -> None:
        """Sum up one image."""
        p, t = compared.depth_m[compared.valid], compared.truth_m[compared.valid]
        place = np.digitize(t, DEPTH_EDGES_M) - 1
        error = p - t
        good = np.maximum(p / t, t / p) < 1.25
        parts = (np.ones_like(t), np.abs(error) / t, error / t, error**2, good)
        for total, values in zip(self._sums, parts):
            total += np.bincount(place, values, len(total))

    def rows(self) -> list[dict[str, float]]:
        """Pixels, AbsRel, signed relative error, RMSE and delta1 of each bin that has pixels.

        The last bin's ``to_m`` is None: no end.
        """
        found = []
        for low, high, sums in zip(DEPTH_EDGES_M, DEPTH_EDGES_M[1:], self._sums.T):
            if not sums[0]:
                continue
            abs_rel, bias, square, delta1 = sums[1:] / sums[0]
            found.append({
                'from_m': low,
                'to_m': high if np.isfinite(high) else None,
                'pixels': int(sums[0]),
                'abs_rel': float(abs_rel),
                'bias': float(bias),
                'rmse': float(np.sqrt(square)),
                'delta1': float(delta1),
            })  # fmt: skip
        return found


class RatioHistogram:
    """How often prediction over truth is how much, over all pixels of all images."""

    def __init__(self):
        """Start empty."""
        self.counts = np.zeros(2 * RATIO_OCTAVES * RATIO_PER_OCTAVE + 1, np.int64)

    def add(self, compared: Compared) -> None:
        """Count one image."""
        octaves = np.log2(compared.depth_m[compared.valid] / compared.truth_m[compared.valid])
        place = np.rint(octaves * RATIO_PER_OCTAVE).astype(int) + RATIO_OCTAVES * RATIO_PER_OCTAVE
        self.counts += np.bincount(
            np.clip(place, 0, len(self.counts) - 1), minlength=len(self.counts)
        )

    @property
    def ratios(self) -> np.ndarray:
        """Prediction over truth at the middle of each bin."""
        reach = RATIO_OCTAVES * RATIO_PER_OCTAVE
        return 2.0 ** (np.arange(-reach, reach + 1) / RATIO_PER_OCTAVE)


def edge_band(compared: Compared) -> tuple[np.ndarray, np.ndarray]:
    """Find what lies beside a step of the true depth, and what lies apart from all.

    The definition is that of SPACE-CLIP's controlled study (github.com/taewan2002/SPACE-CLIP,
    scripts/layer_study/metrics.py), whose boundary AbsRel this repeats: two valid neighbours in a
    row or column whose log depths differ by more than 0.05 are an edge, the band is all within 3
    pixels (a square of 7), and only pixels with a complete square of valid truth belong to band or
    interior, so that neither holes nor the crop count as edges.

    Returns:
        Band and interior, (H, W) bool; both empty for sparse truth (LiDAR).
    """
    valid = compared.valid
    log_t = np.log(np.where(valid, compared.truth_m, 1.0))
    edge = np.zeros(valid.shape, bool)
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        step = valid[here] & valid[there] & (np.abs(log_t[here] - log_t[there]) > EDGE_LOG_JUMP)
        edge[here] |= step
        edge[there] |= step
    square = np.ones((2 * EDGE_BAND_PX + 1,) * 2, np.uint8)
    border = {'borderType': cv2.BORDER_CONSTANT, 'borderValue': 0}
    near = cv2.dilate(edge.astype(np.uint8), square, **border) > 0
    known = cv2.erode(valid.astype(np.uint8), square, **border) > 0
    return near & known, known & ~near


def edge_errors(compared: Compared) -> dict[str, float] | None:
    """AbsRel at edges and away from them; None where an image has not both."""
    band, interior = edge_band(compared)
    if not (band.any() and interior.any()):
        return None
    return {
        'abs_rel': compared.errors(band)['abs_rel'],
        'interior_abs_rel': compared.errors(interior)['abs_rel'],
    }


def change(before: Compared, after: Compared) -> dict[str, float] | None:
    """How depth changes from one frame of a sequence to the next, beside how it should.

    Over the pixels with a truth in both frames, c = ln(after / before) of the prediction and c' of
    the truth, which is nearly the relative change: ``predicted`` = median of abs(c), ``true`` =
    median of abs(c'), ``excess`` their difference, ``flicker`` = median of abs(c - c'), which also
    sees changes of the right size in the wrong places. Noise of the measured depth is part of c'.

    Returns:
        The four numbers, or None where too few pixels have a truth in both.
    """
    if before.valid.shape != after.valid.shape:
        return None
    both = before.valid & after.valid
    if both.sum() < LEAST_PIXELS:
        return None
    c = np.log(after.depth_m[both] / before.depth_m[both])
    true_c = np.log(after.truth_m[both] / before.truth_m[both])
    predicted, true = np.median(np.abs(c)), np.median(np.abs(true_c))
    return {
        'predicted': float(predicted),
        'true': float(true),
        'excess': float(predicted - true),
        'flicker': float(np.median(np.abs(c - true_c))),
    }
