"""What a head costs on a CPU in fp32: parameters, operations, time, memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import os
from typing import Any
import weakref

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools.bench_floor import work_of
from vlm_depth_ros.tools.bench_timing import clock_of, time_calls

ON_CPU = RuntimeConfig(device='cpu', precision='fp32')
IMAGE_HW = (480, 640)
"""Of the camera image of which the whole latency is measured."""
ROUNDS = 30


@dataclass(frozen=True)
class HeadCosts:
    """Of one network, for one image of its own input size."""

    parameters: int
    """Of the head, as a weights file keeps them."""
    head_flops: int
    """Floating point operations of convolutions, products of matrices and attention, a
    multiplication and an addition as two; other work is not counted."""
    flops: int
    """The same of tower and head."""
    head_bytes: int
    """Most memory of tensors alive at once while the head runs, beside its weights and its input;
    what libraries take for themselves is not seen."""
    head_ms: float
    """Median time of the head, from features to its own depth map."""
    ms: float
    """Median time of the estimator, from a camera image to depth of its size."""


def head_costs(models: Sequence[DepthModel], rounds: int = ROUNDS) -> list[HeadCosts]:
    """Measure networks side by side, on as many threads as there are cores.

    Each is timed once a round, so that other work on the machine meets all of them alike.

    Args:
        models: As `load_model` answers them; they end on the CPU.
        rounds: How many times each is timed, after the first rounds, which are not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())  # torchrun leaves one
    try:
        return _measured(models, rounds)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _measured(models: Sequence[DepthModel], rounds: int) -> list[HeadCosts]:
    timed, counted = [], []
    grey = np.full((*IMAGE_HW, 3), 127, np.uint8)
    for model in models:
        estimator = DepthEstimator(model, ON_CPU)
        image = torch.zeros(1, 3, *model.config.input_hw)
        image = image.contiguous(memory_format=torch.channels_last)
        features = model.backbone(image, model.head.layers, change=model.head.tower_change)
        timed += [_call(model.head, features), _call(estimator, grey)]
        counted.append({
            'parameters': sum(p.numel() for p in model.head.parameters()),
            'head_flops': work_of(timed[-2]).flops,
            'flops': work_of(_call(model, image)).flops,
            'head_bytes': peak_bytes(timed[-2]),
        })  # fmt: skip
    found = time_calls(dict(enumerate(timed)), rounds, clock_of(torch.device('cpu')))
    medians = (found[place].median_ms for place in range(len(timed)))
    return [HeadCosts(**c, head_ms=next(medians), ms=next(medians)) for c in counted]


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes of tensors that `call` makes and that are alive at once."""
    with _LiveBytes() as live:
        call()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that makes them to their end."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and look at what it answers."""
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        found = func(*args, **kwargs or {})
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return found

    def _gone(self, size: int) -> None:
        self.now -= size


def _tensors(values) -> list[torch.Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]


def _call(function: Callable, *args) -> Callable[[], Any]:
    return lambda: function(*args)
