"""Where a network runs, and in which precision."""

import logging
from pathlib import Path
import resource

import torch
from torch import nn
from vlm_depth_ros.core.errors import ConfigError

log = logging.getLogger(__name__)

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


def num_cuda() -> int:
    """How many CUDA devices work here: none where the driver is too old for this torch."""
    # The count alone may come from the driver's library, which sees devices that torch cannot use.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device; None for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == 'cuda' else None


HARDWARE = {'fp16': (5, 3), 'bf16': (8, 0)}
"""The compute capability from which on a GPU calculates in a precision."""
FAST_FP16 = (7, 0)
"""From here on GPUs have tensor cores; before, fp16 gains little, or is far slower (6.1)."""


def precision_on(
    device_type: str, wanted: str, capability: tuple[int, int] | None = None
) -> str:
    """The precision behind that of a `RuntimeConfig`: auto is fp16 on a fast GPU, else fp32.

    Args:
        device_type: ``cpu``, ``cuda``, ...
        wanted: As in `RuntimeConfig`.
        capability: Of a CUDA device; None: it is taken for one that has everything.

    Raises:
        ConfigError: If the GPU does not have what is wanted.
    """
    has = capability or (99, 0)
    if wanted == 'auto':
        return 'fp16' if device_type == 'cuda' and has >= FAST_FP16 else 'fp32'
    needs = HARDWARE.get(wanted, (0, 0))
    if device_type == 'cuda' and has < needs:
        raise ConfigError(
            f'precision = {wanted!r}: this GPU has compute capability {has[0]}.{has[1]}, '
            f'{wanted} takes {needs[0]}.{needs[1]}. Set precision: auto, or fp32.'
        )
    return wanted


def warn_of_idle_gpu(path: Path, wanted: str, num_cuda: int) -> None:
    """Say that an exported file leaves a GPU idle that nobody ruled out.

    Args:
        path: The file.
        wanted: Device of the `RuntimeConfig`.
        num_cuda: How many there are.
    """
    if wanted == 'auto' and num_cuda:
        log.warning(
            '%s runs on the CPU, and the GPU is not used. Give the .safetensors file, or install '
            'onnxruntime-gpu, to use it; or set device: cpu if this is meant.', path
        )  # fmt: skip


def num_threads() -> int:
    """How many threads PyTorch's operations have that the calling thread runs on a CPU."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Give them so many; those of other threads keep theirs, new threads begin with `count`."""
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


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
