"""Depth losses over pixels that have a truth; everything else is ignored, not zero."""

import torch
import torch.nn.functional as F


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
    return depth_m.clamp(min=1e-6).log() - truth_m.nan_to_num(nan=1.0).clamp(min=1e-6).log()


def correlation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over channels of 1 - correlation of two (B, C, h, w) maps over batch and place."""
    mean, var = teacher.mean((0, 2, 3), keepdim=True), teacher.var((0, 2, 3), keepdim=True)
    teacher = (teacher - mean) / (var + 1e-6).sqrt()
    student = F.batch_norm(student, None, None, training=True)
    return 1 - (student * teacher).mean()
