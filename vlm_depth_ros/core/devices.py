"""Where a network runs, and in which precision."""

from pathlib import Path
import resource

import torch
from torch import nn
from vlm_depth_ros.core.errors import ConfigError

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def choose_device(name: str, num_cuda: int) -> torch.device:
    """The device behind a `RuntimeConfig` name, where there are `num_cuda` CUDA devices.

    Raises:
        ConfigError: If CUDA is asked for and absent.
    """
    if name == 'auto':
        return torch.device('cuda' if num_cuda else 'cpu')
    device = torch.device(name)
    if device.type == 'cuda' and (device.index or 0) >= num_cuda:
        found = f'only {num_cuda} CUDA device(s)' if num_cuda else 'no CUDA device'
        raise ConfigError(
            f'device {name!r}: torch sees {found}. Use cpu or auto, or install the driver.'
        )
    return device


def precision_on(device_type: str, wanted: str) -> str:
    """The precision behind that of a `RuntimeConfig`: auto is fp16 on CUDA, fp32 elsewhere."""
    if wanted != 'auto':
        return wanted
    return 'fp16' if device_type == 'cuda' else 'fp32'


def device_of_tower(tower: nn.Module, wanted: str) -> torch.device:
    """Where a tower of somebody else is, if that is the device that a `RuntimeConfig` names.

    Raises:
        ConfigError: If it names another one.
    """
    here = next(tower.parameters()).device
    asked = here if wanted == 'auto' else torch.device(wanted)
    if asked.type != here.type or asked.index not in (None, here.index):
        raise ConfigError(
            f'device {wanted!r}, but the given tower is on {here}. Move it there before, or use '
            'auto, which goes where it is.'
        )
    return here


def memory_mb(device: torch.device) -> float:
    """Megabytes that tensors hold on a CUDA device, or that this process holds on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.memory_allocated(device) / 1e6
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
