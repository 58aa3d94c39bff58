"""Training losses against their plain formulas, and where they must be blind."""

import numpy as np
import pytest
import torch
from vlm_depth_ros.tools.losses import correlation, log_gradient, relative, silog


@pytest.fixture
def pair():
    """Prediction, truth with holes, and where the truth is valid."""
    rng = torch.Generator().manual_seed(3)
    depth = torch.rand((2, 1, 16, 24), generator=rng) * 5 + 0.5
    truth = torch.rand((2, 1, 16, 24), generator=rng) * 5 + 0.5
    truth[torch.rand(truth.shape, generator=rng) < 0.4] = torch.nan
    return depth, truth, torch.isfinite(truth)


@pytest.mark.parametrize('focus', [0.0, 0.5, 0.85, 1.0])
def test_silog_equals_the_plain_formula(pair, focus):
    depth, truth, valid = pair
    d = np.log(depth[valid].double().numpy()) - np.log(truth[valid].double().numpy())
    expected = 10 * np.sqrt(np.var(d) + (1 - focus) * np.mean(d) ** 2)
    assert silog(depth, truth, valid, focus).item() == pytest.approx(expected, rel=1e-5)


def test_silog_with_focus_one_forgives_any_scale(pair):
    depth, truth, valid = pair
    assert silog(depth * 7, truth, valid, 1.0).item() == pytest.approx(
        silog(depth, truth, valid, 1.0).item(), rel=1e-4
    )


@pytest.mark.parametrize('loss', [silog, log_gradient])
def test_gradient_is_finite_and_zero_where_truth_is_missing(pair, loss):
    depth, truth, valid = pair
    depth[0, 0, 0, 0] = 0.0  # a dead ReLU
    depth.requires_grad_(True)
    loss(depth, truth, valid).backward()
    assert torch.isfinite(depth.grad).all()
    assert (depth.grad[~valid] == 0).all()
    assert (depth.grad[valid] != 0).float().mean() > 0.5


@pytest.mark.parametrize('loss', [silog, log_gradient])
def test_image_without_truth_adds_no_gradient(loss):
    depth = torch.ones(1, 1, 8, 8, requires_grad=True)
    truth = torch.full((1, 1, 8, 8), torch.nan)
    value = loss(depth, truth, torch.isfinite(truth))
    value.backward()
    assert 0 <= value.item() < 0.01 and (depth.grad == 0).all()


def test_log_gradient_is_zero_for_scaled_truth(pair):
    _, truth, valid = pair
    assert log_gradient(truth.nan_to_num(1.0) * 3, truth, valid).item() < 1e-6


def test_log_gradient_equals_values_by_hand():
    # Log error 0 0 1 1: one step of 1 in three differences at stride 1, one in one at stride 2.
    truth = torch.ones(1, 1, 1, 4)
    depth = torch.tensor([0.0, 0.0, 1.0, 1.0]).exp()[None, None, None]
    found = log_gradient(depth, truth, torch.ones_like(truth, dtype=torch.bool), scales=2)
    assert found.item() == pytest.approx((1 / 3 + 1) / 2)


def test_log_gradient_skips_differences_across_a_hole():
    truth = torch.tensor([1.0, torch.nan, 1.0])[None, None, None]
    depth = torch.tensor([1.0, 5.0, 9.0])[None, None, None]
    assert log_gradient(depth, truth, torch.isfinite(truth), scales=1).item() == 0


def test_correlation_ignores_offset_and_gain_of_a_channel():
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn((4, 3, 16, 16), generator=rng)
    gain = torch.tensor([0.5, 2.0, 9.0])[:, None, None]
    assert correlation(teacher * gain - 4, teacher).item() == pytest.approx(0, abs=2e-3)
    assert correlation(-teacher, teacher).item() == pytest.approx(2, abs=2e-3)
    stranger = torch.randn((4, 3, 16, 16), generator=rng)
    assert correlation(stranger, teacher).item() == pytest.approx(1, abs=0.1)


def test_relative_is_abs_rel_over_the_valid_pixels():
    truth = torch.tensor([[[[1.0, 2.0], [4.0, float('nan')]]]])
    depth = torch.tensor([[[[1.5, 1.0], [4.0, 9.0]]]], requires_grad=True)
    loss = relative(depth, truth, torch.isfinite(truth))
    assert abs(loss.item() - (0.5 + 0.5 + 0.0) / 3) < 1e-6
    loss.backward()
    assert torch.isfinite(depth.grad).all() and depth.grad[0, 0, 1, 1] == 0
