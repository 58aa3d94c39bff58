"""What a GPU says when it fails, in one line each: out of memory, or gone for good.

A CUDA error such as a failed assertion is sticky: every later call of the process fails with it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
import re
from typing import TypeVar

import torch
from vlm_depth_ros.core.errors import (
    DeviceLostError,
    DeviceMemoryError,
    reason_of,
    VlmDepthError,
)

T = TypeVar('T')

MEMORY_TEXTS = (
    'cuda error: out of memory',
    'cuda out of memory',
    'hip out of memory',
    '[cuda]: out of memory',  # Triton
    'status_alloc_failed',  # cuBLAS, cuDNN
    'allocation_failed',  # cuDNN 9
    # What torch says on a Jetson (pytorch/pytorch issue 185240).
    'nvml_success == r internal assert failed',
)
UNDECIDED_TEXTS = (
    'cublas_status', 'cudnn_status', 'cusolver_status', 'invalid argument',
    'invalid configuration argument', 'invalid device', 'no kernel image',
)  # fmt: skip
"""Errors of one call or of the installation; if the device is gone, the next call says so."""
LOST_TEXTS = (
    'cuda error', 'hip error', 'triton error [cuda]', 'device-side assert',
    'no cuda-capable device', 'device lost', 'gpu is lost', 'uncorrectable ecc', 'launch failure',
    'illegal memory access',
)  # fmt: skip


def failure_of(err: Exception, device: torch.device) -> VlmDepthError | None:
    """Our error for one of a library, without its traceback; None: it is no failure of a device.

    Args:
        err: Whatever a computation raised.
        device: Where it ran.
    """
    if isinstance(err, VlmDepthError):
        return None
    text = str(err).lower()
    if isinstance(err, torch.cuda.OutOfMemoryError) or _has(text, MEMORY_TEXTS):
        tried = re.search(r'tried to allocate ([\d.]+) (\w+)', str(err), re.IGNORECASE)
        wanted = f' (it tried to allocate {tried[1]} {tried[2]})' if tried else ''
        return DeviceMemoryError(
            f'device {device} is out of memory{wanted}: use fewer cameras, a smaller network, or '
            'precision: fp16.'
        )
    if _has(text, UNDECIDED_TEXTS):
        return None
    # The type is there from torch 2.8 on.
    is_from_device = isinstance(err, getattr(torch, 'AcceleratorError', ()))
    if is_from_device or _has(text, LOST_TEXTS):
        return DeviceLostError(
            f'device {device} is gone ({reason_of(err)}): restart the node. If that does not '
            'help, restart the machine and read what its kernel says of the GPU (dmesg).'
        )
    return None


class DeviceGuard:
    """Runs calls on a device as long as it is there.

    Args:
        device: Where the calls work.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.loss = ''
        """Why it is gone for good; empty while it works."""

    def run(self, call: Callable[[], T]) -> T:
        """What `call` returns.

        After a `DeviceMemoryError` as much memory is free as before, so that a smaller call can
        follow at once.

        Raises:
            DeviceMemoryError: If the device has no memory left for it.
            DeviceLostError: If the device is gone; without a call if it was before.
            Exception: Whatever else `call` raises.
        """
        if self.loss:
            raise DeviceLostError(self.loss)
        try:
            with _made_current(self.device):
                return call()
        except Exception as err:
            failure = failure_of(err, self.device)
            if failure is None:
                raise
        # Only out here, since inside `except` the traceback holds the tensors of what failed; so
        # would an error raised there, by its context.
        if isinstance(failure, DeviceLostError):
            self.loss = str(failure)
        elif self.device.type == 'cuda':
            torch.cuda.empty_cache()
        raise failure


def _made_current(device: torch.device) -> AbstractContextManager:
    """Of several GPUs the one that pinned memory and compiled kernels of this thread belong to."""
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()


def _has(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)
