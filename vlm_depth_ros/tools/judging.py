"""A model against measured depth, image by image, each image counting once."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.estimator import DepthEstimator, DepthPrediction
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.analyses import change, DepthBins, edge_errors, RatioHistogram
from vlm_depth_ros.tools.blind import BlindRows
from vlm_depth_ros.tools.ground import flatness
from vlm_depth_ros.tools.judged_confidence import ConfidencePool
from vlm_depth_ros.tools.metrics import compare, Compared, depth_metrics, mean_metrics, Protocol
from vlm_depth_ros.tools.progress import steps
from vlm_depth_ros.tools.rows import Row

MOST_GAP_S = 0.5
"""Frames of one scene with stamps no farther apart belong to a sequence."""


@dataclass(frozen=True)
class JudgedImage:
    """The errors of one image."""

    row: Row
    unscaled: dict[str, float]
    median_scaled: dict[str, float]
    blind: dict[str, dict[str, float]]
    edges: dict[str, float] | None
    ground: dict[str, float] | None


@dataclass
class Judgement:
    """The errors of a set."""

    images: list[JudgedImage] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """File and reason of each row that could not be judged."""
    bins: DepthBins = field(default_factory=DepthBins)
    blind_bins: dict[str, DepthBins] = field(default_factory=lambda: defaultdict(DepthBins))
    ratios: RatioHistogram = field(default_factory=RatioHistogram)
    confidence: ConfidencePool = field(default_factory=ConfidencePool)
    changes: list[dict[str, float]] = field(default_factory=list)
    """Of each pair of consecutive frames."""

    @property
    def best_blind(self) -> str:
        """The blind row with the lowest AbsRel."""
        means = self._blind_means(self.images)
        return min(means, key=lambda name: means[name]['abs_rel'])

    def worst(self, count: int) -> list[JudgedImage]:
        """The images with the highest AbsRel, worst first."""
        return sorted(self.images, key=lambda image: -image.unscaled['abs_rel'])[:count]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: the nine metrics of each row first, then where it is wrong.

        What the set cannot tell (no edges, no ground, no sequence) is None.
        """
        best = self.best_blind
        blind_bins = {row['from_m']: row['abs_rel'] for row in self.blind_bins[best].rows()}
        return {
            'images': len(self.images),
            'unscaled': mean_metrics([image.unscaled for image in self.images]),
            'median_scaled': mean_metrics([image.median_scaled for image in self.images]),
            'blind': self._blind_means(self.images),
            'best_blind': best,
            'by_depth': [
                row | {'blind_abs_rel': blind_bins[row['from_m']]} for row in self.bins.rows()
            ],
            'by_scene': self._by_scene(best),
            'edges': _mean([image.edges for image in self.images], 'images'),
            'ground': _mean([image.ground for image in self.images], 'images'),
            'temporal': _mean(self.changes, 'frame_pairs'),
            'confidence': self.confidence.as_dict(),
            'per_image': [
                {
                    'row': image.row.number,
                    'image': image.row.name,
                    'scene': image.row.scene,
                    'abs_rel': image.unscaled['abs_rel'],
                    'median_scaled_abs_rel': image.median_scaled['abs_rel'],
                    'blind_abs_rel': image.blind[best]['abs_rel'],
                }
                for image in self.images
            ],
            'failed': [{'image': file, 'reason': why} for file, why in self.failed.items()],
        }

    def _by_scene(self, best: str) -> dict[str, dict[str, float]]:
        scenes = defaultdict(list)
        for image in self.images:
            scenes[image.row.scene].append(image)
        return {
            scene: {
                'images': len(images),
                **mean_metrics([image.unscaled for image in images]),
                'blind_abs_rel': self._blind_means(images)[best]['abs_rel'],
            }
            for scene, images in scenes.items()
        }

    @staticmethod
    def _blind_means(images: list[JudgedImage]) -> dict[str, dict[str, float]]:
        return {
            name: mean_metrics([image.blind[name] for image in images])
            for name in images[0].blind
        }


def _mean(found: list[dict[str, float] | None], counted: str) -> dict[str, float] | None:
    known = [entry for entry in found if entry is not None]
    return {counted: len(known), **mean_metrics(known)} if known else None


def predicted(estimator: DepthEstimator, frame: SourceFrame, flip: bool) -> DepthPrediction:
    """Predict one image with its camera.

    With `flip` depth and confidence are the mean of this one's and of the mirrored image's,
    mirrored back (Godard et al. 2017 call it post-processing); where only one has an estimate,
    those of that one.
    """
    found = estimator(frame.rgb, frame.intrinsics)
    if not flip:
        return found
    camera = frame.intrinsics
    if camera is not None:
        camera = replace(camera, cx_px=camera.width_px - 1 - camera.cx_px)
    other = estimator(np.ascontiguousarray(frame.rgb[:, ::-1]), camera)
    has_one, has_other = ~np.isnan(found.depth_m), ~np.isnan(other.depth_m[:, ::-1])

    def mean(one, mirrored):
        turned = mirrored[:, ::-1]
        return np.where(has_one & has_other, (one + turned) / 2, np.where(has_one, one, turned))

    depth_m = mean(found.depth_m, other.depth_m)
    if found.confidence is None:
        return replace(found, depth_m=depth_m)
    return replace(found, depth_m=depth_m, confidence=mean(found.confidence, other.confidence))


def judge(
    estimator: DepthEstimator,
    rows: list[Row],
    protocol: Protocol,
    blind: BlindRows,
    *,
    flip: bool = False,
) -> Judgement:
    """Judge a model on measured depth, at the measured size.

    Args:
        estimator: The model; it is given each image's camera.
        rows: Images to judge on, sequences in order.
        protocol: Crop and range.
        blind: The predictors beside it.
        flip: Average with the mirrored image.

    Returns:
        The judgement; rows that could not be read, or have no truth, are in its ``failed``.

    Raises:
        InputError: If no row could be judged.
    """
    found = Judgement()
    last: tuple[Row, Compared] | None = None
    for row in steps(rows, f'judging {estimator.name}'):
        before, last = last, None
        try:
            frame, said, compared = _compared(estimator, row, protocol, flip)
        except InputError as err:
            found.failed[str(row.pair.rgb)] = str(err)
            continue
        last = row, compared
        if before is not None and follows(before[0], row):
            step = change(before[1], compared)
            found.changes += [step] if step else []
        blind_errors = {}
        for name, guess_m in blind.predictions(frame.depth_m.shape).items():
            blindly = compare(guess_m, frame.depth_m, protocol)
            blind_errors[name] = blindly.errors()
            found.blind_bins[name].add(blindly)
        found.bins.add(compared)
        found.ratios.add(compared)
        found.confidence.add(compared, said)
        found.images.append(
            JudgedImage(
                row,
                compared.errors(),
                depth_metrics(said.depth_m, frame.depth_m, protocol, median_scaled=True),
                blind_errors,
                edge_errors(compared),
                flatness(compared, frame.intrinsics),
            )
        )
    if not found.images:
        why = next(iter(found.failed.values()))
        raise InputError(f'none of the {len(rows)} images could be judged; the first: {why}')
    return found


def _compared(
    estimator: DepthEstimator, row: Row, protocol: Protocol, flip: bool
) -> tuple[SourceFrame, DepthPrediction, Compared]:
    frame = row.pair.load()
    try:
        said = predicted(estimator, frame, flip)
        return frame, said, compare(said.depth_m, frame.depth_m, protocol)
    except InputError as err:
        raise InputError(f'{row.pair.depth}: {err}') from err


def follows(before: Row, row: Row) -> bool:
    """Whether `row` is the next frame of the same sequence."""
    if before.scene != row.scene or None in (before.pair.stamp_s, row.pair.stamp_s):
        return False
    return 0 < row.pair.stamp_s - before.pair.stamp_s <= MOST_GAP_S
