"""Depth losses over pixels that have a truth; everything else is ignored, not zero."""

import math

import torch
import torch.nn.functional as F

NEAREST_M = 1e-7
"""Logarithms take nothing nearer (SPACE-CLIP's constant)."""
LOG_WITHIN = math.log(1.25)
"""Error of ln(depth) up to which a depth counts as right: the measure delta1."""
SSIM_WINDOWS = ('whole', 'all')
SSIM_SIDE, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""Wang et al. 2004, for values in 0..1."""


def silog(depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor, focus: float = 0.85):
    """Scale-invariant log loss over all valid pixels of the batch (Eigen et al. 2014, as in BTS).

    ``10 sqrt(var(d) + (1 - focus) mean(d)^2)`` with ``d = ln depth - ln truth``.

    Args:
        depth_m: (B, 1, H, W) prediction, metres.
        truth_m: (B, 1, H, W) metres; whatever outside `valid`.
        valid: (B, 1, H, W) bool.
        focus: 1 ignores the absolute scale, 0 is the plain RMS of log errors.

    Returns:
        A scalar, at least 0.003 (the root of 0 has no gradient), so also when nothing is valid.
    """
    # Sums under a mask: picking the valid pixels out costs several times as much.
    d = torch.where(valid, _log_error(depth_m, truth_m), 0.0)
    count = valid.sum().clamp(min=1)
    mean = d.sum() / count
    variance = (d**2).sum() / count - mean**2
    return 10 * torch.sqrt((variance + (1 - focus) * mean**2).clamp(min=1e-7))


def relative(depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of |depth - truth| / truth over the valid pixels: the measure AbsRel as a loss.

    A log loss settles at the geometric mean of what a pixel may be; this one lower, since an
    estimate that is too far costs without bound.
    """
    truth_m = truth_m.nan_to_num(nan=1.0)
    error = (depth_m - truth_m).abs() / truth_m.clamp(min=1e-6)
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)


def log_difference(depth_m: torch.Tensor, guide_m: torch.Tensor) -> torch.Tensor:
    """Mean of |ln depth - ln guide| over all pixels."""
    return _log_error(depth_m, guide_m).abs().mean()


def doubt(
    logit: torch.Tensor, depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of a confidence: that a depth is within a factor of 1.25 of the truth.

    Args:
        logit: (B, 1, H, W) of the confidence.
        depth_m: (B, 1, H, W) prediction, metres; it gets no gradient.
        truth_m: (B, 1, H, W) metres; whatever outside `valid`.
        valid: (B, 1, H, W) bool.

    Returns:
        A scalar, the mean over valid pixels.
    """
    is_right = _log_error(depth_m.detach(), truth_m).abs() < LOG_WITHIN
    terms = F.binary_cross_entropy_with_logits(logit, is_right.float(), reduction='none')
    return torch.where(valid, terms, 0.0).sum() / valid.sum().clamp(min=1)


def log_gradient(depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor, scales=4):
    """Mean absolute difference of log-depth gradients over several scales (MegaDepth, Li 2018).

    Args:
        depth_m: (B, 1, H, W) prediction, metres.
        truth_m: (B, 1, H, W) metres.
        valid: (B, 1, H, W) bool.
        scales: Number of strides 1, 2, 4, ...

    Returns:
        A scalar; it sharpens edges and flattens surfaces.
    """
    error = torch.where(valid, _log_error(depth_m, truth_m), 0.0)
    total = depth_m.new_zeros(())
    for step in (2**i for i in range(scales)):
        e, v = error[..., ::step, ::step], valid[..., ::step, ::step]
        for axis in (-1, -2):
            n = e.shape[axis] - 1
            both = v.narrow(axis, 1, n) & v.narrow(axis, 0, n)
            slope = (e.narrow(axis, 1, n) - e.narrow(axis, 0, n)).abs()
            total = total + (slope * both).sum() / both.sum().clamp(min=1)
    return total / scales


def _log_error(depth_m: torch.Tensor, truth_m: torch.Tensor) -> torch.Tensor:
    # clamp() lets NaN pass; the masks above drop it, and nan_to_num keeps it out of gradients.
    truth_m = truth_m.nan_to_num(nan=1.0)
    return depth_m.clamp(min=NEAREST_M).log() - truth_m.clamp(min=NEAREST_M).log()


def dissimilarity(
    depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor, windows: str = 'whole'
) -> torch.Tensor:
    """Mean of 1 - SSIM (Wang et al. 2004) of two depth maps, as SPACE-CLIP scales them.

    Both are shifted and scaled so that the valid truth of each sample spans 0..1, then clipped to
    it. Windows are Gaussian, 11x11, sigma 1.5; beyond the picture lie zeros.

    Args:
        depth_m: (B, 1, H, W) prediction, metres.
        truth_m: (B, 1, H, W) metres; what is NaN counts as 0, as where nothing was measured.
        valid: (B, 1, H, W) bool.
        windows: ``all``: every window around a valid pixel, as published, where holes of the
            truth are the nearest depth; ``whole``: only those that are valid all over.

    Returns:
        A scalar in 0..2; 0 where no window counts.
    """
    truth_m = truth_m.nan_to_num(nan=0.0)
    some = valid.flatten(1).any(1)[:, None, None, None]
    low = torch.where(valid, truth_m, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(valid, truth_m, -torch.inf).amax((1, 2, 3), keepdim=True)
    low, span = torch.where(some, low, 0.0), torch.where(some, high - low, 1.0).clamp(min=1e-6)
    p, t = (((m - low) / span).clamp(0, 1) for m in (depth_m, truth_m))
    mean_p, mean_t = _window_mean(p), _window_mean(t)
    var_p = _window_mean(p * p) - mean_p**2
    var_t = _window_mean(t * t) - mean_t**2
    cov = _window_mean(p * t) - mean_p * mean_t
    ssim = (2 * mean_p * mean_t + SSIM_C1) * (2 * cov + SSIM_C2)
    ssim = ssim / ((mean_p**2 + mean_t**2 + SSIM_C1) * (var_p + var_t + SSIM_C2))
    counts = _whole_windows(valid) if windows == 'whole' else valid
    return torch.where(counts, 1 - ssim, 0.0).sum() / counts.sum().clamp(min=1)


def _window_mean(x: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(SSIM_SIDE, dtype=x.dtype, device=x.device) - SSIM_SIDE // 2
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    row = (weights / weights.sum())[None, None, None]
    x = F.conv2d(x, row, padding=(0, SSIM_SIDE // 2))
    return F.conv2d(x, row.transpose(2, 3), padding=(SSIM_SIDE // 2, 0))


def _whole_windows(valid: torch.Tensor) -> torch.Tensor:
    missing = F.pad(1.0 - valid.float(), [SSIM_SIDE // 2] * 4, value=1.0)
    return F.max_pool2d(missing, SSIM_SIDE, stride=1) == 0


def correlation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over channels of 1 - correlation of two (B, C, h, w) maps over batch and place."""
    mean, var = teacher.mean((0, 2, 3), keepdim=True), teacher.var((0, 2, 3), keepdim=True)
    teacher = (teacher - mean) / (var + 1e-6).sqrt()
    student = F.batch_norm(student, None, None, training=True)
    return 1 - (student * teacher).mean()
