"""Memory that a call of a network takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vlm_depth_ros.tools.bench_engines import Choice
from vlm_depth_ros.tools.head_costs import peak_bytes


def memory_mb(
    call: Callable[[], Any], network: nn.Module, choice: Choice, device: torch.device
) -> float | None:
    """Megabytes at the moment when most are taken; None where that cannot be told.

    On CUDA all that PyTorch has reserved there, other networks of this process included, without
    CUDA's own context and what other libraries take. On a CPU weights and tensors of eager that
    are alive at once; other engines have memory of their own, which nobody counts.

    Args:
        call: Runs once.
        network: What it runs; of eager the weights count, as it has them.
        choice: How it is run.
        device: Where.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) / 1e6
    if choice.engine != 'eager':
        return None
    weights = (t.nbytes for t in (*network.parameters(), *network.buffers()))
    return (sum(weights) + peak_bytes(call)) / 1e6
