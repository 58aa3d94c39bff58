"""Depth errors against values worked out by hand, and the published crops."""

import math

import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.tools.metrics import (
    depth_metrics,
    GARG_CROP,
    mean_metrics,
    METRICS,
    NYU_CROP,
    Protocol,
    PROTOCOLS,
)

FULL = PROTOCOLS['full']
TRUTH = np.array([[1.0, 2.0], [4.0, np.nan]], np.float32)
DEPTH = np.array([[2.0, 2.0], [3.0, 9.0]], np.float32)


def test_metrics_equal_values_by_hand():
    found = depth_metrics(DEPTH, TRUTH, FULL)
    a, b = math.log(2), math.log(3 / 4)  # log errors of the first and the third pixel
    mean, square = (a + b) / 3, (a * a + b * b) / 3
    assert list(found) == list(METRICS)
    assert found == pytest.approx(
        {
            'abs_rel': (1 + 0 + 1 / 4) / 3,
            'sq_rel': (1 + 0 + 1 / 4) / 3,
            'rmse': math.sqrt(2 / 3),
            'rmse_log': math.sqrt(square),
            'log10': (math.log10(2) + math.log10(4 / 3)) / 3,
            'silog': 100 * math.sqrt(square - mean * mean),
            'delta1': 1 / 3,  # 4 / 3 is above 1.25
            'delta2': 2 / 3,
            'delta3': 2 / 3,
        }
    )


def test_perfect_depth_has_no_error():
    found = depth_metrics(TRUTH, TRUTH, FULL)
    assert [found[n] for n in METRICS] == [0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_median_scaling_forgives_one_factor_only():
    assert depth_metrics(TRUTH * 3, TRUTH, FULL, median_scaled=True)['abs_rel'] == pytest.approx(
        0, abs=1e-7
    )
    # Medians 2 and 2: nothing to forgive, so the same as unscaled.
    assert depth_metrics(DEPTH, TRUTH, FULL, median_scaled=True) == pytest.approx(
        depth_metrics(DEPTH, TRUTH, FULL)
    )
    # Medians 4 and 2: 6, 4, 2 becomes 3, 2, 1.
    depth = np.array([[6.0, 4.0], [2.0, 1.0]])
    found = depth_metrics(depth, TRUTH, FULL, median_scaled=True)
    assert found['abs_rel'] == pytest.approx((2 + 0 + 3 / 4) / 3)


@pytest.mark.parametrize('hw, rows, columns', [
    ((480, 640), (45, 471), (41, 601)),
    ((240, 320), (22, 235), (20, 300)),
])  # fmt: skip
def test_nyu_crop_is_eigens(hw, rows, columns):
    expected = np.zeros(hw, bool)
    expected[slice(*rows), slice(*columns)] = True
    assert (NYU_CROP.mask(hw) == expected).all()


def test_kitti_crop_is_gargs():
    expected = np.zeros((375, 1242), bool)
    expected[153:371, 44:1197] = True  # truncated, as in the published evaluation code
    assert (GARG_CROP.mask((375, 1242)) == expected).all()


def test_only_truth_inside_crop_and_range_counts():
    truth = np.full((480, 640), 2.0, np.float32)
    depth = truth.copy()
    truth[:45] = truth[471:] = 5.0  # outside the crop
    truth[100, 100], truth[101, 101], truth[102, 102] = 10.5, 0.0, np.inf
    assert depth_metrics(depth, truth, NYU_CROP)['abs_rel'] == 0


@pytest.mark.parametrize('wrong, becomes', [
    (np.nan, 10.0), (np.inf, 10.0), (99.0, 10.0), (-np.inf, 1e-3), (-1.0, 1e-3), (0.0, 1e-3),
])  # fmt: skip
def test_impossible_predictions_are_clipped_into_the_range(wrong, becomes):
    protocol = Protocol((0, 1, 0, 1), 10.0)
    truth = np.array([[2.0, 2.0, 2.0, 2.0]])
    depth = np.array([[2.0, 2.0, 2.0, wrong]])
    found = depth_metrics(depth, truth, protocol)
    assert found['abs_rel'] == pytest.approx(abs(becomes - 2) / 2 / 4)


@pytest.mark.parametrize('wrong, becomes', [(np.nan, 4.0), (np.inf, 4.0), (9.0, 9.0)])
def test_without_a_range_only_what_is_no_number_becomes_the_largest_truth(wrong, becomes):
    found = depth_metrics(np.array([[wrong, 2.0]]), np.array([[1.0, 4.0]]), FULL)
    assert found['abs_rel'] == pytest.approx(((becomes - 1) / 1 + 2 / 4) / 2)


@pytest.mark.parametrize('everywhere', [np.nan, np.inf, -np.inf, 0.0, -3.0])
@pytest.mark.parametrize('median_scaled', [False, True])
def test_hopeless_prediction_still_gives_finite_errors(everywhere, median_scaled):
    found = depth_metrics(np.full((2, 2), everywhere), TRUTH, FULL, median_scaled)
    assert all(math.isfinite(v) for v in found.values())


def test_mean_counts_each_image_once():
    rows = [depth_metrics(TRUTH * k, TRUTH, FULL) for k in (1.0, 1.5)]
    assert mean_metrics(rows)['delta1'] == (rows[0]['delta1'] + rows[1]['delta1']) / 2


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match=r'depth \(2, 3\) and truth \(2, 2\) differ in size'):
        depth_metrics(np.ones((2, 3)), TRUTH, FULL)


def test_image_without_truth_is_refused():
    with pytest.raises(InputError, match='no pixel inside the crop has a truth'):
        depth_metrics(DEPTH, np.full((2, 2), np.nan), FULL)
