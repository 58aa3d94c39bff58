"""Errors without the least sure pixels, calibration and their picture, against values by hand."""

import numpy as np
import pytest
from vlm_depth_ros.core.estimator import DepthPrediction
from vlm_depth_ros.tools.confidence_picture import confidence_picture
from vlm_depth_ros.tools.judged_confidence import (
    abs_rel_of_kept,
    at_20_percent,
    calibration,
    ConfidencePool,
    DROPPED,
    MOST_PIXELS,
    ORDERS,
)
from vlm_depth_ros.tools.metrics import compare, PROTOCOLS

ERRORS = np.array([[0.0, 0.1, 0.3, 0.8]])
DEPTH_M = np.array([[2.0, 3.0, 1.0, 4.0]])
CONFIDENCE = np.array([[0.1, 0.6, 0.9, 0.2]])


def pooled(*images, protocol='full'):
    """The judged confidence of images given as depth, truth and confidence."""
    pool = ConfidencePool()
    for depth_m, truth_m, confidence in images:
        depth_m, truth_m = np.float32(depth_m), np.float32(truth_m)
        confidence = None if confidence is None else np.float32(confidence)
        compared = compare(depth_m, truth_m, PROTOCOLS[protocol])
        pool.add(compared, DepthPrediction(depth_m, confidence, None, 1.0))
    return pool.as_dict()


def test_every_order_equals_values_by_hand():
    found = pooled((DEPTH_M, DEPTH_M / (1 + ERRORS), CONFIDENCE))
    # Of four pixels 5 and 10 % are none, 20 and 30 % one, 50 % two.
    assert found['dropped'] == [0.0, 0.05, 0.1, 0.2, 0.3, 0.5]
    for order, one, two in (
        ('confidence', 1.2 / 3, 0.2),  # without 0.0, and without 0.8
        ('nearness', 0.9 / 3, 0.45),  # without 0.3 at 1 m, and without 0.0 at 2 m
        ('farness', 0.4 / 3, 0.15),  # without 0.8 at 4 m, and without 0.1 at 3 m
        ('oracle', 0.4 / 3, 0.05),  # without 0.8, and without 0.3
    ):
        assert found[f'abs_rel_by_{order}'] == pytest.approx([0.3, 0.3, 0.3, one, one, two])
        assert at_20_percent(found)[order] == pytest.approx(one)
    assert found['gain_at_20_percent'] == pytest.approx(1 - 0.4 / 0.3)


def test_calibration_equals_values_by_hand():
    confidence = np.float32([0.05, 0.5, 0.52, 0.58, 0.58, 0.9, 1.0])
    found = calibration(confidence, np.array([0, 1, 0, 0, 1, 1, 1], bool))
    expected = [(0.05, 0.0, 1), (0.545, 0.5, 4), (0.95, 1.0, 2)]  # 1.0 belongs to the last tenth
    for row, (claimed, true, pixels) in zip(found['calibration'], expected, strict=True):
        assert row == pytest.approx(
            {'confidence': claimed, 'within_1.25': true, 'pixels': pixels}
        )
    assert found['calibration_error'] == pytest.approx((1 * 0.05 + 4 * 0.045 + 2 * 0.05) / 7)


def test_a_depth_is_within_when_the_larger_ratio_is_below_one_and_a_quarter():
    truth = np.full((1, 4), 4.0)
    found = pooled(([[4.9, 5.1, 3.3, 3.1]], truth, [[0.05, 0.25, 0.45, 0.65]]))
    assert [row['within_1.25'] for row in found['calibration']] == [1.0, 0.0, 1.0, 0.0]


def test_images_are_pooled_and_the_protocol_says_which_pixels_count():
    depth_m, truth_m = np.full((48, 64), 2.0), np.full((48, 64), 2.0)
    truth_m[:, 32:] = 50.0  # beyond 10 m
    sure, unsure = np.full((48, 64), 0.95), np.full((48, 64), 0.15)
    found = pooled((depth_m, truth_m, sure), (depth_m * 1.5, truth_m, unsure), protocol='nyu')
    rows, columns = slice(4, 47), slice(4, 32)  # 45 / 480 of 48 rows and so on
    count = np.zeros((48, 64))[rows, columns].size
    assert [row['pixels'] for row in found['calibration']] == [count, count]
    # What is left out comes from the second image alone, which is wrong by a half.
    assert found['abs_rel_by_confidence'] == pytest.approx(
        [0.5 * (0.5 - share) / (1 - share) for share in DROPPED], abs=1e-3
    )
    assert found['abs_rel_by_confidence'][-1] == 0.0


def test_pixels_of_one_value_are_dropped_by_halves():
    error = np.array([0.0, 1.0, 2.0, 5.0])
    assert abs_rel_of_kept(error, np.ones(4)) == [2.0] * len(DROPPED)
    # The first goes with half of the tie: its other half counts with the mean of 1 and 5.
    kept = abs_rel_of_kept(error, np.array([0.1, 0.5, 0.9, 0.5]))
    assert kept[-1] == pytest.approx((3.0 + 2.0) / 2)


def test_of_a_large_image_evenly_spaced_pixels_count_and_of_a_small_one_all():
    large, small = np.full((200, 300), 2.0), np.full((10, 10), 2.0)
    wrong = large.copy()
    wrong[100:] = 4.0
    found = pooled(
        (wrong, large, np.full((200, 300), 0.5)), (small, small, np.full((10, 10), 0.7))
    )
    assert [row['pixels'] for row in found['calibration']] == [MOST_PIXELS, 100]
    assert found['calibration'][0]['within_1.25'] == 0.5


def test_no_estimate_counts_as_no_confidence():
    confidence = [[0.9, np.nan, 0.9]]
    found = pooled(([[np.nan, 2.0, 2.0]], [[2.0, 2.0, 2.0]], confidence))
    assert [(r['confidence'], r['pixels']) for r in found['calibration']] == [
        (0.0, 2), (pytest.approx(0.9), 1),
    ]  # fmt: skip


def test_model_without_a_confidence_is_not_judged_by_it():
    assert pooled((DEPTH_M, DEPTH_M, None)) is None


def test_perfect_depth_gains_nothing():
    assert pooled((DEPTH_M, DEPTH_M, CONFIDENCE))['gain_at_20_percent'] == 0.0


def test_picture_shows_every_line_and_the_calibration():
    judged = pooled((DEPTH_M, DEPTH_M / (1 + ERRORS), CONFIDENCE))
    picture = confidence_picture(judged)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    left, right = np.split(picture, 2, axis=1)
    blue = np.array([37, 99, 168])
    for half in (left, right):
        assert (np.abs(half.astype(int) - blue).max(axis=-1) < 3).sum() > 100
    assert len(ORDERS) == 4
    other = confidence_picture(judged | {'abs_rel_by_farness': [0.3] * len(DROPPED)})
    assert (other != picture).any() and (np.split(other, 2, axis=1)[1] == right).all()
    # A model without errors has axes too.
    assert confidence_picture(pooled((DEPTH_M, DEPTH_M, CONFIDENCE))).shape == picture.shape
