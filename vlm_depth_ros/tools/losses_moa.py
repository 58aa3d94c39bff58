"""MoA-DepthCLIP's training loss: classified bins, regressed metres, and their log ratio."""

import torch
import torch.nn.functional as F
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.tools.losses import silog

CLASSIFY, REGRESS, SCALE = 1.0, 1.0, 0.5
"""The paper's weights."""


def moa_loss(
    found: HeadOutput,
    truth_m: torch.Tensor,
    valid: torch.Tensor,
    bin_edges_m: torch.Tensor,
    usual_silog: bool = False,
) -> torch.Tensor:
    """``1.0 CE + 1.0 L1 + 0.5 SILog`` over the valid pixels (arXiv 2604.01118).

    Args:
        found: What the head answers in training.
        truth_m: (B, 1, H, W) metres; whatever outside `valid`.
        valid: (B, 1, H, W) bool.
        bin_edges_m: (N + 1,), ascending; a truth outside counts to the first or last bin.
        usual_silog: ``10 sqrt(var + 0.15 mean^2)`` instead of the paper's printed form.

    Returns:
        A scalar.
    """
    logits, regressed_m = (
        F.interpolate(m.float(), truth_m.shape[-2:], mode='bilinear', align_corners=False)
        for m in (found.extras['bin_logits'], found.extras['regressed_m'])
    )
    count = valid.sum().clamp(min=1)
    known_m = torch.where(valid, truth_m, 1.0)
    bins = torch.bucketize(known_m, bin_edges_m[1:-1], right=True)[:, 0]
    surprise = F.cross_entropy(logits, bins, reduction='none')[:, None]
    classified = torch.where(valid, surprise, 0.0).sum() / count
    off_m = torch.where(valid, (regressed_m - known_m).abs(), 0.0).sum() / count
    scale = silog if usual_silog else printed_silog
    return CLASSIFY * classified + REGRESS * off_m + SCALE * scale(regressed_m, known_m, valid)


def printed_silog(
    depth_m: torch.Tensor, truth_m: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """``10 (var(g) + 0.85 mean(g)^2)`` with ``g = ln depth - ln truth``, as printed: no root.

    Args:
        depth_m: (B, 1, H, W) prediction, metres, above 0.
        truth_m: (B, 1, H, W) metres, above 0 also outside `valid`.
        valid: (B, 1, H, W) bool.
    """
    g = torch.where(valid, depth_m.clamp(min=1e-6).log() - truth_m.log(), 0.0)
    count = valid.sum().clamp(min=1)
    mean = g.sum() / count
    return 10 * ((g**2).sum() / count - mean**2 + 0.85 * mean**2)
