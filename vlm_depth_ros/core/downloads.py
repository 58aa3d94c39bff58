"""From the device to the host: copies that go on while more is packed, and one wait for all."""

from collections.abc import Iterator
from contextlib import contextmanager
import threading

import numpy as np
import torch


class _Thread(threading.local):
    waits_later = False


_thread = _Thread()


def host_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Flat uint8 view of a contiguous tensor, copied to pinned host memory from a GPU.

    Within `one_wait` the copy from a GPU is in place only when that ends.
    """
    tensor = tensor.detach().view(-1)
    device = tensor.device
    if device.type == 'cuda':
        # torch keeps and reuses pinned blocks, each only after the copy to it is done.
        host = torch.empty_like(tensor, device='cpu', pin_memory=True)
        tensor = host.copy_(tensor, non_blocking=True)
        if not _thread.waits_later:
            torch.cuda.current_stream(device).synchronize()
    return tensor.cpu().numpy().view(np.uint8)


@contextmanager
def one_wait(device: torch.device) -> Iterator[None]:
    """Let all `host_bytes` of this thread wait together, when this ends, not one by one.

    Args:
        device: Where they come from.
    """
    _thread.waits_later = True
    try:
        yield
        if device.type == 'cuda':
            torch.cuda.current_stream(device).synchronize()
    finally:
        _thread.waits_later = False
