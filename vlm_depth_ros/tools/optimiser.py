"""How weights move: AdamW, its learning rate over the steps, and the average that is judged."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from vlm_depth_ros.core.config import require
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig

WARM_SHARE = 20
"""Of the steps, one in so many warms up."""
LEAST_RATE = 0.01


def rate(step: int, steps: int) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then a cosine."""
    warm = max(1, steps // WARM_SHARE)
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    wave = 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item())
    return LEAST_RATE + (1 - LEAST_RATE) * wave


def build_optimiser(module: nn.Module, stage: StageConfig) -> torch.optim.AdamW:
    """Weight decay on matrices and kernels only, not on norms and biases, unless asked for."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    require(
        bool(wanted),
        f'stage {stage.name!r} has nothing to train: the head has no parameters in this mode and '
        'the tower is frozen. Heads that are only filled come from vlm-depth prompt-weights.',
    )
    decayed = [p for p in wanted if stage.decay_all or p.ndim > 1]
    others = [p for p in wanted if not (stage.decay_all or p.ndim > 1)]
    groups = [
        {'params': decayed, 'weight_decay': stage.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.lr)


class MovingAverage(AveragedModel):
    """Exponential average of all floating state, statistics of normalisations too.

    Args:
        module: What is averaged; ``self.module`` is a copy of it.
        config: Decay, and whether the average starts before the first step.
    """

    def __init__(self, module: nn.Module, config: TrainConfig):
        super().__init__(
            module, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
        )
        if config.ema_from_start:
            self.n_averaged += 1  # else the first update is a copy

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move a step towards `model`; counts become its own, for they have no average."""
        super().update_parameters(model)
        for kept, now in zip(self.module.buffers(), model.buffers()):
            if not kept.is_floating_point():
                kept.copy_(now)
