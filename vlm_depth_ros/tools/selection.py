"""Judging a network on the selection rows while it trains, by the estimator's own door."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.preprocess import network_input
from vlm_depth_ros.tools.datasets import CachedSet
from vlm_depth_ros.tools.metrics import compare, depth_metrics, mean_metrics, PROTOCOLS
from vlm_depth_ros.tools.pictures import colour_bar, colour_rgb, fit, round_range_m, sheet, spread

SHOWN = 6
"""Images of the picture, evenly spread over the rows."""
CELL_HW = (144, 192)


@dataclass(frozen=True)
class Judged:
    """One network on the selection rows."""

    metrics: dict[str, float]
    shown_m: list[np.ndarray]
    """What it says of the images of the picture."""


class Selection:
    """The rows that choose a checkpoint.

    They are seen as a robot sees its images (preprocessing, focal correction, one at a time),
    except that images and truth are at the working size of the recipe.

    Args:
        chosen: The rows, in memory.
        protocol: A key of `metrics.PROTOCOLS`.
        device: Where the networks are.
    """

    def __init__(self, chosen: CachedSet, protocol: str, device: torch.device):
        self._rgb = [rgb.permute(1, 2, 0).numpy() for rgb in chosen.rgb]
        self._truth_m = [depth_m[0].numpy() for depth_m in chosen.depth_m]
        self._cameras = chosen.cameras
        self._protocol = PROTOCOLS[protocol]
        self._runtime = RuntimeConfig(device=str(device), precision='fp32')
        count = min(SHOWN, len(chosen))
        self._shown = np.linspace(0, len(chosen) - 1, count).round().astype(int).tolist()

    def judge(self, model: DepthModel) -> Judged:
        """Run a network on all rows; it is left in evaluation mode."""
        estimator = DepthEstimator(model, self._runtime)
        # Without a camera of its own there is nothing to correct, and nothing to warn of.
        cameras = self._cameras if model.config.camera else [None] * len(self._rgb)
        rows, shown = [], []
        for i, (rgb, truth_m, camera) in enumerate(zip(self._rgb, self._truth_m, cameras)):
            depth_m = estimator(rgb, camera).depth_m
            rows.append(depth_metrics(depth_m, truth_m, self._protocol))
            if i in self._shown:
                shown.append(depth_m)
        return Judged(mean_metrics(rows), shown)

    def views(self, hw: tuple[int, int], count: int) -> Iterator[torch.Tensor]:
        """Up to `count` rows at a time, (B, 3, h, w) RGB in 0..1, squashed to `hw`."""
        zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        for at in range(0, len(self._rgb), count):
            rgb = torch.from_numpy(np.stack(self._rgb[at : at + count])).permute(0, 3, 1, 2)
            yield network_input(rgb, hw, zero, one).to(self._runtime.device)

    def confidences(self, model: DepthModel) -> tuple[np.ndarray, np.ndarray]:
        """What a network with a confidence says of the pixels that judge, and what comes true.

        Returns:
            (N,) float32 confidence in 0..1, and (N,) bool: depth within a factor of 1.25.
        """
        estimator = DepthEstimator(model, self._runtime)
        said, is_right = [], []
        for rgb, truth_m, camera in zip(self._rgb, self._truth_m, self._cameras):
            prediction = estimator(rgb, camera if model.config.camera else None)
            compared = compare(prediction.depth_m, truth_m, self._protocol)
            ratio = compared.depth_m[compared.valid] / compared.truth_m[compared.valid]
            said.append(prediction.confidence[compared.valid])
            is_right.append(np.maximum(ratio, 1 / ratio) < 1.25)
        return np.concatenate(said), np.concatenate(is_right)

    def picture(self, judged: Judged) -> np.ndarray:
        """(H, W, 3) RGB: image, prediction and truth of always the same few rows.

        One colour is one depth everywhere; black has no truth.
        """
        truths = [self._truth_m[i] for i in self._shown]
        range_m = round_range_m(truths)
        rows = [
            [
                fit(self._rgb[i], CELL_HW),
                fit(colour_rgb(depth_m, range_m), CELL_HW, nearest=True),
                fit(colour_rgb(spread(truth_m, CELL_HW), range_m), CELL_HW, nearest=True),
            ]
            for i, depth_m, truth_m in zip(self._shown, judged.shown_m, truths)
        ]
        titles = ('image', 'predicted', 'measured')
        return sheet(rows, titles, colour_bar(range_m, (44, 3 * CELL_HW[1])))
