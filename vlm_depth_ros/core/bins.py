"""Depth as classification: a fixed set of depths, a weight for each, and their mean.

AdaBins (Bhat et al., arXiv 2011.14141): ``d = sum_n p_n c_n``, p a softmax, c learned for each
image. The DINOv2 study (Oquab et al., arXiv 2304.07193) fixes the depths c, and takes for p the
linear normalisation that AdaBins' code has for the widths of its bins:
``p_n = (relu(l_n) + eps) / sum_m (relu(l_m) + eps)``, eps = 0.1.
Every answer lies between the first and the last depth.
"""

import math

import torch
from vlm_depth_ros.core.config import require

KINDS = ('uniform', 'log')
EPS = 0.1


def check_bins(num_bins: int, kind: str, depth_range_m: tuple[float, float]) -> None:
    """Refuse options that describe no set of depths.

    Raises:
        ConfigError: If one is of another type or outside its bounds.
    """
    require(
        type(num_bins) is int and num_bins >= 2,
        f'num_bins = {num_bins!r}: expected an integer of at least 2.',
    )
    require(kind in KINDS, f'bins = {kind!r}: expected one of {KINDS}.')
    require(
        isinstance(depth_range_m, tuple)
        and len(depth_range_m) == 2
        and all(type(d) in (int, float) for d in depth_range_m)
        and 0 < depth_range_m[0] < depth_range_m[1] < math.inf,
        f'depth_range_m = {depth_range_m!r}: expected 0 < minimum < maximum, two numbers of '
        'metres, as in the depth_range_m of the model.',
    )


def bin_depths_m(num_bins: int, kind: str, depth_range_m: tuple[float, float]) -> torch.Tensor:
    """(N,) float32 depths in metres, ascending, both ends of the range among them.

    ``uniform`` is the study's: evenly spaced. ``log`` spaces them evenly in the logarithm (the
    spacing-increasing discretisation of Fu et al., arXiv 1806.02446).
    """
    near, far = depth_range_m
    if kind == 'uniform':
        depths_m = torch.linspace(near, far, num_bins, dtype=torch.float64)
    else:
        depths_m = torch.linspace(
            math.log(near), math.log(far), num_bins, dtype=torch.float64
        ).exp()
    return depths_m.float()


def expected_depth_m(logits: torch.Tensor, depths_m: torch.Tensor) -> torch.Tensor:
    """Mean of N depths under the linear normalisation of N logits.

    Args:
        logits: (B, N, h, w), of any floating type.
        depths_m: (N,) metres.

    Returns:
        (B, 1, h, w) metres, float32 or wider. No product of matrices is taken: under autocast it
        would round depths to three digits.
    """
    weights = logits.to(depths_m.dtype).relu() + EPS
    total_m = (weights * depths_m[:, None, None]).sum(dim=1, keepdim=True)
    return total_m / weights.sum(dim=1, keepdim=True)
