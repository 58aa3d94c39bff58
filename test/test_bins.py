"""Depth over bins, against the formulas computed again in float64 NumPy."""

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.bins import bin_depths_m, check_bins, expected_depth_m
from vlm_depth_ros.core.errors import ConfigError

RANGES = [(0.001, 10.0), (0.5, 80.0)]


@pytest.mark.parametrize('range_m', RANGES)
def test_uniform_depths_are_evenly_spaced_and_hold_both_ends(range_m):
    near, far = range_m
    expected = [near + (far - near) * n / 255 for n in range(256)]
    found = bin_depths_m(256, 'uniform', range_m)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize('range_m', RANGES)
def test_log_depths_grow_by_one_factor_and_hold_both_ends(range_m):
    near, far = range_m
    expected = [near * (far / near) ** (n / 255) for n in range(256)]
    np.testing.assert_allclose(bin_depths_m(256, 'log', range_m).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['uniform', 'log'])
@pytest.mark.parametrize('range_m', RANGES)
def test_expected_depth_is_the_formula(kind, range_m):
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((2, 256, 3, 5))).astype(np.float32)
    depths_m = bin_depths_m(256, kind, range_m)
    weights = np.maximum(logits.astype(np.float64), 0) + 0.1
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum('bnhw,n->bhw', weights, depths_m.numpy().astype(np.float64))
    found = expected_depth_m(torch.from_numpy(logits), depths_m)
    assert found.shape == (2, 1, 3, 5)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5)


def test_one_loud_bin_is_the_depth_and_silence_is_the_mean():
    depths_m = bin_depths_m(256, 'uniform', (0.001, 10.0))
    logits = torch.full((1, 256, 1, 2), -1.0)
    logits[0, 40, 0, 1] = 1e9
    silent, loud = expected_depth_m(logits, depths_m).flatten().tolist()
    assert silent == pytest.approx(10.001 / 2, rel=1e-6)
    assert loud == pytest.approx(float(depths_m[40]), rel=1e-6)


@pytest.mark.parametrize('kind', ['uniform', 'log'])
def test_no_logits_lead_out_of_the_range(kind):
    depths_m = bin_depths_m(16, kind, (0.5, 4.0))
    logits = 1e4 * torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    found = expected_depth_m(logits, depths_m)
    assert found.min() >= 0.5 and found.max() <= 4.0 + 1e-6


def test_depths_are_not_rounded_where_logits_are():
    """Half precision may reach the weights, never the metres."""
    depths_m = bin_depths_m(256, 'uniform', (0.001, 80.0))
    logits = torch.zeros(1, 256, 1, 1, dtype=torch.bfloat16)
    logits[0, 200] = 1e6
    with torch.autocast('cpu', torch.bfloat16):
        found = expected_depth_m(logits, depths_m)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(float(depths_m[200]), rel=1e-4)


@pytest.mark.parametrize(('num_bins', 'kind', 'range_m', 'message'), [
    (1, 'uniform', (1.0, 2.0), 'num_bins = 1: expected an integer of at least 2'),
    (2.0, 'uniform', (1.0, 2.0), 'num_bins = 2.0: expected an integer'),
    (True, 'uniform', (1.0, 2.0), 'num_bins = True: expected an integer'),
    (256, 'even', (1.0, 2.0), "bins = 'even': expected one of ('uniform', 'log')"),
    (256, 'log', (0.0, 2.0), 'depth_range_m = (0.0, 2.0): expected 0 < minimum < maximum'),
    (256, 'log', (2.0, 1.0), 'depth_range_m = (2.0, 1.0): expected'),
    (256, 'log', (1.0, float('inf')), 'depth_range_m = (1.0, inf): expected'),
    (256, 'log', (1.0,), 'depth_range_m = (1.0,): expected'),
    (256, 'log', 10, 'depth_range_m = 10: expected'),
    (256, 'log', ('1', '2'), "depth_range_m = ('1', '2'): expected"),
])  # fmt: skip
def test_options_that_describe_no_bins_are_refused_in_one_line(num_bins, kind, range_m, message):
    with pytest.raises(ConfigError) as caught:
        check_bins(num_bins, kind, range_m)
    assert message in str(caught.value) and '\n' not in str(caught.value)
