"""Errors by distance, at edges and over time, against values worked out by hand."""

import math

import numpy as np
import pytest
from vlm_depth_ros.tools.analyses import change, DepthBins, edge_band, edge_errors, RatioHistogram
from vlm_depth_ros.tools.metrics import compare, PROTOCOLS

FULL = PROTOCOLS['full']


def compared(depth_m, truth_m):
    return compare(np.array(depth_m, np.float32), np.array(truth_m, np.float32), FULL)


def halves(left, right, hw=(12, 20)):
    found = np.full(hw, left, np.float32)
    found[:, hw[1] // 2 :] = right
    return found


def test_bins_equal_values_by_hand():
    bins = DepthBins()
    bins.add(compared([[1.0, 1.5]], [[0.5, 1.5]]))
    bins.add(compared([[3.0, 3.0, 9.0]], [[1.5, 6.0, np.nan]]))
    expected = [
        {'from_m': 0, 'to_m': 1, 'pixels': 1, 'abs_rel': 1, 'bias': 1, 'rmse': 0.5, 'delta1': 0},
        {'from_m': 1, 'to_m': 2, 'pixels': 2, 'abs_rel': 0.5, 'bias': 0.5,
         'rmse': math.sqrt(1.5**2 / 2), 'delta1': 0.5},
        {'from_m': 5, 'to_m': 10, 'pixels': 1, 'abs_rel': 0.5, 'bias': -0.5, 'rmse': 3,
         'delta1': 0},
    ]  # fmt: skip
    assert len(bins.rows()) == 3
    for found, row in zip(bins.rows(), expected):
        assert found == pytest.approx(row)


def test_edge_of_a_bin_belongs_to_the_farther_one_and_the_last_has_no_end():
    bins = DepthBins()
    bins.add(compared([[1.0, 90.0]], [[1.0, 90.0]]))
    assert [(row['from_m'], row['to_m']) for row in bins.rows()] == [(1.0, 2.0), (80.0, None)]


def test_ratios_are_counted_in_eighths_of_octaves_with_open_ends():
    ratios = RatioHistogram()
    ratios.add(compared([[1.0, 2.0, 0.5, 100.0, 0.01, 1.03]], [[1.0] * 6]))
    counted = {float(r): int(n) for r, n in zip(ratios.ratios, ratios.counts) if n}
    assert counted == pytest.approx({0.25: 1, 0.5: 1, 1.0: 2, 2.0: 1, 4.0: 1})


def test_edge_band_reaches_three_pixels_and_keeps_off_the_border():
    band, interior = edge_band(compared(np.ones((12, 20)), halves(1.0, 2.0)))
    expected_band, expected_interior = np.zeros((2, 12, 20), bool)
    expected_band[3:9, 6:14] = True
    expected_interior[3:9, 3:6] = expected_interior[3:9, 14:17] = True
    assert (band == expected_band).all() and (interior == expected_interior).all()
    turned, _ = edge_band(compared(np.ones((20, 12)), halves(1.0, 2.0).T))
    assert (turned == expected_band.T).all()


@pytest.mark.parametrize('ratio, is_edge', [(1.05, False), (1.06, True)])
def test_edge_is_a_jump_of_five_hundredths_in_log_depth(ratio, is_edge):
    assert edge_band(compared(np.ones((12, 20)), halves(2.0, 2.0 * ratio)))[0].any() == is_edge


def test_hole_is_no_edge_and_nothing_near_it_counts():
    truth = halves(1.0, 1.0)
    truth[6, 10] = np.nan
    band, interior = edge_band(compared(np.ones((12, 20)), truth))
    assert not band.any()
    assert not interior[3:9, 7:14].any() and interior[3:9, 3:7].all()


def test_edge_errors_equal_values_by_hand():
    truth = halves(1.0, 2.0)
    depth = truth.copy()
    depth[:, 6:14] *= 1.5
    depth[:, 3:6] *= 1.2  # half of the interior
    assert edge_errors(compared(depth, truth)) == pytest.approx(
        {'abs_rel': 0.5, 'interior_abs_rel': 0.1}
    )


def test_edges_are_none_where_truth_is_flat_or_sparse():
    sparse = np.full((12, 20), np.nan)
    sparse[::2, ::2] = halves(1.0, 2.0)[::2, ::2]
    for truth in (halves(2.0, 2.0), sparse):
        assert edge_errors(compared(np.ones((12, 20)), truth)) is None


def test_change_equals_values_by_hand():
    before = compared(halves(2.0, 2.0), halves(3.0, 3.0))
    steady = compared(halves(2.0, 2.0), halves(3.3, 3.3))
    assert change(before, steady) == pytest.approx(
        {'predicted': 0, 'true': math.log(1.1), 'excess': -math.log(1.1),
         'flicker': math.log(1.1)},
        abs=1e-6,
    )  # fmt: skip
    # As much change as there should be, but on the wrong sides: only the flicker sees it.
    after = compared(halves(2.2, 2.0 / 1.1), halves(3.0 / 1.1, 3.3))
    assert change(before, after) == pytest.approx(
        {'predicted': math.log(1.1), 'true': math.log(1.1), 'excess': 0,
         'flicker': 2 * math.log(1.1)},
        abs=1e-6,
    )  # fmt: skip


def test_change_looks_where_both_frames_have_a_truth():
    truth = halves(3.0, np.nan)
    before = compared(halves(2.0, 2.0), truth)
    after = compared(halves(2.0, 4.0), truth)
    assert change(before, after)['predicted'] == 0
    assert change(before, compared(halves(2.0, 2.0), halves(np.nan, 3.0))) is None
    assert change(before, compared(halves(2.0, 2.0, (6, 40)), halves(3.0, 3.0, (6, 40)))) is None
