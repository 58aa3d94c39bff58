"""Predictors that never look at the image; a model that does not beat them sees nothing."""

from dataclasses import dataclass

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.tools.metrics import Protocol
from vlm_depth_ros.tools.progress import steps
from vlm_depth_ros.tools.rows import Row

BLIND_HW = (240, 320)
"""Grid on which the per-pixel blind maps are averaged; resized to each image."""


@dataclass(frozen=True)
class BlindRows:
    """One constant and two per-pixel means: fitted once, the same for every image."""

    constant_m: float
    """Median over images of the median depth."""
    arithmetic_mean_m: np.ndarray
    """(h, w) per-pixel mean."""
    geometric_mean_m: np.ndarray
    """(h, w) per-pixel exponential of the mean logarithm."""

    def predictions(self, hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """Depth of each row as (H, W) float32 metres."""
        def at(map_m):
            return cv2.resize(map_m, hw[::-1], interpolation=cv2.INTER_LINEAR)

        return {
            'constant': np.full(hw, self.constant_m, np.float32),
            'arithmetic_mean': at(self.arithmetic_mean_m),
            'geometric_mean': at(self.geometric_mean_m),
        }


def fit_blind(rows: list[Row], protocol: Protocol, failed: dict[str, str]) -> BlindRows:
    """Fit the blind predictors on measured depth.

    Args:
        rows: The images to fit on; best none of the judged ones.
        protocol: Its range limits which depths count; a pixel never measured gets the constant.
        failed: Gets file and reason of each row that could not be read.

    Raises:
        InputError: If no depth was measured at all.
    """
    total, total_log, count = (np.zeros(BLIND_HW) for _ in range(3))
    medians = []
    for row in steps(rows, 'fitting the blind rows'):
        try:
            depth = row.pair.load_depth_m()
        except InputError as err:
            failed[str(row.pair.rgb)] = str(err)
            continue
        depth = cv2.resize(depth, BLIND_HW[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        with np.errstate(invalid='ignore'):
            valid = (depth > protocol.min_depth_m) & (depth < protocol.max_depth_m)
        if not valid.any():
            continue
        medians.append(np.median(depth[valid]))
        total[valid] += depth[valid]
        total_log[valid] += np.log(depth[valid])
        count += valid
    if not medians:
        raise InputError('no depth was measured in the images for the blind rows.')
    constant, seen = float(np.median(medians)), np.maximum(count, 1)
    return BlindRows(
        constant,
        np.where(count > 0, total / seen, constant).astype(np.float32),
        np.where(count > 0, np.exp(total_log / seen), constant).astype(np.float32),
    )
