"""Data-parallel training: the processes that ``torchrun`` started, averaging their gradients.

On a CPU two single-threaded processes train faster than one with two threads: small convolutions
do not fill two cores.
"""

from collections.abc import Iterable
from datetime import timedelta
import os

import torch
from torch import nn
import torch.distributed as dist
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.devices import choose_device, num_cuda

LONGEST_WAIT = timedelta(hours=6)
"""For one process while it judges or computes features; torch gives up after minutes."""


class Team:
    """All processes of a run; one alone when ``torchrun`` did not start it.

    Args:
        device: As `RuntimeConfig.device`; with several processes ``auto`` and ``cuda`` take one
            CUDA device for each.

    Raises:
        ConfigError: If CUDA is asked for and absent.
    """

    def __init__(self, device: str = 'cpu'):
        self.size = int(os.environ.get('WORLD_SIZE', 1))
        self.rank = int(os.environ.get('RANK', 0))
        self.device = choose_device(RuntimeConfig(device=device).device, num_cuda())
        if self.device.type == 'cuda':
            if self.device.index is None:
                number = int(os.environ.get('LOCAL_RANK', 0))
                self.device = choose_device(f'cuda:{number}', num_cuda())
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():
            backend = 'nccl' if self.device.type == 'cuda' else 'gloo'
            dist.init_process_group(backend, timeout=LONGEST_WAIT)

    @property
    def is_first(self) -> bool:
        """Whether this process judges, reports and writes."""
        return self.rank == 0

    def average(self, loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> float:
        """Replace every gradient by its mean over the team; the mean loss."""
        if self.size == 1:
            return loss.item()
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in grads), loss.detach().reshape(1)])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad))
            at += grad.numel()
        return flat[-1].item()

    def share(self, module: nn.Module) -> None:
        """Give everybody the first process's parameters and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Go on when everybody is here."""
        if self.size > 1:
            dist.barrier()
