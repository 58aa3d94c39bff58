"""Training losses against their plain formulas, and where they must be blind."""

import numpy as np
import pytest
import torch
from vlm_depth_ros.tools.losses import (
    correlation,
    dissimilarity,
    doubt,
    log_difference,
    log_gradient,
    relative,
    silog,
)


def all_windows(*maps):
    """SSIM as SPACE-CLIP publishes it."""
    return dissimilarity(*maps, windows='all')


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


@pytest.mark.parametrize('loss', [silog, log_gradient, dissimilarity])
def test_gradient_is_finite_and_zero_where_truth_is_missing(pair, loss):
    depth, truth, valid = pair
    depth[0, 0, 0, 0] = 0.0  # a dead ReLU
    depth.requires_grad_(True)
    loss(depth, truth, valid).backward()
    assert torch.isfinite(depth.grad).all()
    assert (depth.grad[~valid] == 0).all()
    # Among holes this dense no window is whole.
    assert (depth.grad[valid] != 0).float().mean() > 0.5 or loss is dissimilarity


@pytest.mark.parametrize('loss', [silog, log_gradient, dissimilarity, all_windows])
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


def ssim_by_hand(depth, truth, valid, windows):
    """1 - SSIM window by window in float64, from Wang et al. 2004 and SPACE-CLIP's scaling."""
    offsets = np.arange(-5, 6)
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(row, row) / row.sum() ** 2
    c1, c2, terms = 0.01**2, 0.03**2, []
    for p, t, v in zip(depth, truth, valid):
        low, high = t[v].min(), t[v].max()
        p, t = (np.clip((m - low) / (high - low), 0, 1) for m in (p, np.where(v, t, 0.0)))
        p, t, whole = (np.pad(m, 5) for m in (p, t, v))
        for y, x in np.argwhere(v):
            a, b = p[y : y + 11, x : x + 11], t[y : y + 11, x : x + 11]
            if windows == 'whole' and not whole[y : y + 11, x : x + 11].all():
                continue
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a = (weights * a * a).sum() - mean_a**2
            var_b = (weights * b * b).sum() - mean_b**2
            cov = (weights * a * b).sum() - mean_a * mean_b
            ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            terms.append(1 - ssim / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(terms)


@pytest.mark.parametrize('windows', ['all', 'whole'])
def test_dissimilarity_equals_windows_by_hand(windows):
    rng = np.random.default_rng(5)
    truth = 1 + np.linspace(0, 4, 20)[None, :, None] + rng.random((2, 20, 24))
    depth = truth + rng.normal(0, 0.5, truth.shape)
    valid = np.ones(truth.shape, bool)
    valid[0, 4, 3:6] = valid[1, 10:12, 20] = False
    truth[~valid] = np.nan
    maps = (torch.from_numpy(m)[:, None] for m in (depth, truth, valid))
    expected = ssim_by_hand(depth, truth, valid, windows)
    assert 0.1 < expected < 1
    assert dissimilarity(*maps, windows).item() == pytest.approx(expected, rel=1e-9)


def test_dissimilarity_of_the_truth_itself_is_zero(pair):
    _, truth, valid = pair
    assert all_windows(truth.nan_to_num(0.0), truth, valid).item() == pytest.approx(0, abs=1e-5)


def test_whole_windows_see_no_hole_and_all_windows_do():
    """What a prediction says where nothing was measured must not count."""
    truth = torch.linspace(1, 5, 40).repeat(1, 1, 40, 1)
    truth[..., 20:, :] = torch.nan
    valid = torch.isfinite(truth)
    depth = truth.nan_to_num(3.0)
    other = torch.where(valid, depth, 9.0)
    assert torch.equal(*(dissimilarity(d, truth, valid) for d in (depth, other)))
    assert all_windows(other, truth, valid) - all_windows(depth, truth, valid) > 0.01
    depth.requires_grad_(True)
    dissimilarity(depth * 0.9, truth, valid).backward()
    assert (depth.grad[..., 20:, :] == 0).all() and (depth.grad[..., 8:12, 8:32] != 0).any()


def test_log_takes_nothing_nearer_than_a_tenth_of_a_micrometre():
    """SPACE-CLIP's constant: a pixel of exactly 0 weighs ln(1e-7)."""
    truth = torch.ones(1, 1, 1, 2)
    depth = torch.tensor([0.0, 1.0])[None, None, None]
    d = np.array([np.log(1e-7), 0.0])
    expected = 10 * np.sqrt(d.var() + 0.15 * d.mean() ** 2)
    assert silog(depth, truth, truth > 0).item() == pytest.approx(expected, rel=1e-5)


def test_silog_counts_the_pixels_of_the_whole_batch_together():
    """Two images, three pixels against one: not the mean of two losses."""
    truth = torch.tensor([[1.0, 1.0, 1.0], [1.0, torch.nan, torch.nan]])[:, None, None]
    depth = torch.tensor([[1.0, 2.0, 4.0], [8.0, 5.0, 5.0]])[:, None, None]
    d = np.log([1.0, 2.0, 4.0, 8.0])
    expected = 10 * np.sqrt(d.var() + 0.15 * d.mean() ** 2)
    found = silog(depth, truth, torch.isfinite(truth)).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_difference_from_the_guide_counts_every_pixel():
    depth, guide = torch.tensor([[[[1.0, 4.0]]]]), torch.tensor([[[[2.0, 1.0]]]])
    assert log_difference(depth, guide).item() == pytest.approx(np.log([2, 4]).mean(), rel=1e-6)


def test_doubt_is_least_where_confidence_is_the_share_of_right_depths():
    """A quarter of the pixels with a truth is within a factor of 1.25; those without count not."""
    truth = torch.tensor([1.0, 1.0, 1.0, 1.0, torch.nan])[None, None, None]
    depth = torch.tensor([1.2, 1.3, 0.7, 3.0, 1.0])[None, None, None].requires_grad_(True)
    valid = torch.isfinite(truth)

    def at(share):
        logit = torch.full_like(truth, share).logit()
        return doubt(logit, depth, truth, valid)

    expected = -(0.25 * np.log(0.3) + 0.75 * np.log(0.7))
    assert at(0.3).item() == pytest.approx(expected, rel=1e-5)
    assert at(0.25) < at(0.2) and at(0.25) < at(0.3)
    assert not at(0.3).requires_grad  # depth is not bent by it
