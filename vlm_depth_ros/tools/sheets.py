"""Contact sheets of judged images: what the camera saw, what was said, what is true."""

from collections.abc import Sequence

import numpy as np
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.tools.judging import JudgedImage, predicted
from vlm_depth_ros.tools.pictures import (
    colour_bar,
    colour_rgb,
    error_rgb,
    fit,
    round_range_m,
    sheet,
    spread,
)
from vlm_depth_ros.tools.progress import steps

CELL_WIDTH_PX = 272
MOST_CELL_HEIGHT_PX = 240
TITLES = ('image', 'predicted', 'measured', 'red too near, blue too far')


def judged_sheet(
    estimator: DepthEstimator, images: Sequence[JudgedImage], best_blind: str, flip: bool
) -> np.ndarray:
    """Draw some judged images, each with its place in the set and its error.

    One colour means one depth in all of them. In the error pictures white is right and full
    colour wrong by a factor of two or more; where nothing was measured, they are grey.

    Args:
        estimator: The model that was judged; it predicts these once more.
        images: At least one.
        best_blind: Whose AbsRel stands beside the model's.
        flip: As it was judged.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shown = []
    for image in steps(images, 'drawing'):
        frame = image.row.pair.load()
        shown.append((frame.rgb, predicted(estimator, frame, flip).depth_m, frame.depth_m))
    range_m = round_range_m([truth_m for _, _, truth_m in shown])
    height = max(round(CELL_WIDTH_PX * rgb.shape[0] / rgb.shape[1]) for rgb, _, _ in shown)
    hw = min(height, MOST_CELL_HEIGHT_PX), CELL_WIDTH_PX
    rows, captions = [], []
    for image, (rgb, depth_m, truth_m) in zip(images, shown):
        maps = (
            colour_rgb(depth_m, range_m),
            colour_rgb(spread(truth_m, hw), range_m),
            error_rgb(spread(depth_m / truth_m, hw)),
        )
        rows.append([fit(rgb, hw), *(fit(picture, hw, nearest=True) for picture in maps)])
        captions.append(
            f'row {image.row.number}, {image.row.pair.rgb.name}: '
            f'AbsRel {image.unscaled["abs_rel"]:.3f} '
            f'(blind {image.blind[best_blind]["abs_rel"]:.3f}), '
            f'median-scaled {image.median_scaled["abs_rel"]:.3f}'
        )
    return sheet(rows, TITLES, colour_bar(range_m, (44, 3 * hw[1])), captions)
