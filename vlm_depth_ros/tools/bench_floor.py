"""The floor beneath a figure: what this machine needs at least for that arithmetic and traffic.

The roofline of Williams et al. (CACM 2009): time is no less than operations over the rate of
products of matrices, and no less than bytes over the bandwidth of the memory. Both rates are
measured in the run whose figures they judge.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, FlopCounterMode
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.tools.bench_timing import Clock

SIDE = {'cpu': 2048, 'cuda': 8192}
"""Of the square matrices whose product is timed, where there is memory for them."""
COPIED_BYTES = {'cpu': 2**28, 'cuda': 2**31}
"""Far more than caches hold; likewise."""
SHARE_OF_FREE = 0.25
"""What each of the two measurements takes of the memory that can be had, at most."""
ATTEMPTS = 10


@dataclass(frozen=True)
class Work:
    """What one call of a network has to do, however it is run."""

    flops: int
    """Of convolutions, products of matrices and attention, a multiplication and an addition as
    two."""
    elements: int
    """Numbers that those read and write: weights, maps in and maps out, each once. What stands
    between them (activations, sums) is taken to be fused and costs nothing."""
    products: int
    """How many operations those are."""
    operations: int
    """How many PyTorch calls in all; versions of it differ a little."""


@dataclass(frozen=True)
class Rates:
    """What the machine reached: the best of some attempts, for a floor is no average."""

    flops_per_s: dict[str, float]
    """By precision."""
    bytes_per_s: float
    """Read and written together, by copying."""


@dataclass(frozen=True)
class Floor:
    """The least time that a machine of such rates needs."""

    arithmetic_ms: float
    traffic_ms: float

    @property
    def ms(self) -> float:
        """The larger one: both could go on at once."""
        return max(self.arithmetic_ms, self.traffic_ms)


def floor_of(
    work: Work | None, precision: str, rates: Rates, more_bytes: int = 0
) -> Floor | None:
    """The floor of a call in one precision; None where its work is not known.

    Args:
        work: Of the call.
        precision: One of `DTYPES`.
        rates: Of the machine.
        more_bytes: Read or written besides, such as an image.
    """
    if work is None:
        return None
    num_bytes = work.elements * DTYPES[precision].itemsize + more_bytes
    return Floor(
        work.flops / rates.flops_per_s[precision] * 1e3, num_bytes / rates.bytes_per_s * 1e3
    )


@torch.no_grad()
def work_of(call: Callable[[], Any]) -> Work:
    """Count what eager PyTorch does in `call`.

    The fast path of `nn.MultiheadAttention` is one operation that no counter looks into, so it is
    off meanwhile: the same arithmetic is then seen product by product.
    """
    with _no_fast_path(), FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        call()
    return Work(
        flops.get_total_flops(), traffic.elements, traffic.products, traffic.operations
    )


@contextmanager
def _no_fast_path() -> Iterator[None]:
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


class _Traffic(TorchDispatchMode):
    """Counts operations, and numbers that products read and write."""

    def __init__(self):
        super().__init__()
        self.elements = self.products = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and look at its tensors."""
        found = func(*args, **kwargs or {})
        self.operations += 1
        if func._overloadpacket in flop_registry:
            self.products += 1
            touched = tree_leaves((args, kwargs, found))
            self.elements += sum(t.numel() for t in touched if isinstance(t, torch.Tensor))
        return found


@torch.inference_mode()
def measure_rates(device: torch.device, precisions: Sequence[str], clock: Clock) -> Rates:
    """Time a product of large matrices in each precision, and a copy that fits no cache."""
    bytes_per_s = _copied_per_s(device, clock)
    # Three of them, in fp32 while they are made.
    most = math.isqrt(int(SHARE_OF_FREE * free_bytes(device)) // (3 * 4))
    side = max(1, min(SIDE[device.type], most))
    flops_per_s = {p: 2 * side**3 / _product_s(side, p, device, clock) for p in precisions}
    return Rates(flops_per_s, bytes_per_s)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had, on a device or on this machine."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    lines = Path('/proc/meminfo').read_text().splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith('MemAvailable:'))
    return int(available) * 1024


def _copied_per_s(device: torch.device, clock: Clock) -> float:
    """Bytes a second; each is read once and written once."""
    most = int(SHARE_OF_FREE * free_bytes(device)) // 2  # there are two
    count = max(1, min(COPIED_BYTES[device.type], most) // 4)
    source = torch.ones(count, device=device)
    target = torch.zeros_like(source)
    return 2 * 4 * count / _best_s(lambda: target.copy_(source), clock)


def _product_s(side: int, precision: str, device: torch.device, clock: Clock) -> float:
    a, b, out = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(3))
    return _best_s(lambda: torch.mm(a, b, out=out), clock)


def _best_s(call: Callable[[], Any], clock: Clock) -> float:
    call()
    found = []
    for _ in range(ATTEMPTS):
        start_s = clock()[0]
        call()
        found.append(clock()[0] - start_s)
    return min(found)
