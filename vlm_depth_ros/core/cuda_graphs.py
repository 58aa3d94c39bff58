"""What eager does on a GPU, recorded once for each size of input and launched as a whole.

A small network has hundreds of kernels of some microseconds each, and launching them one by one
from Python takes longer than they do. A CUDA graph repeats them on the same memory ("CUDA
Graphs" in PyTorch's notes on CUDA semantics): kernels, precision and results are those of eager.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
import logging
import threading

import torch
from torch import nn
from vlm_depth_ros.core.agreement import BOUNDS, difference_of
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.errors import reason_of, VlmDepthError
from vlm_depth_ros.core.heads.base import HeadOutput

log = logging.getLogger(__name__)

Replay = Callable[[torch.Tensor], HeadOutput]

REPEATS = 3
"""A shape that came so often is recorded: one that comes once is not worth it."""
MOST_KEPT = 8
"""Shapes; eager answers the others. None is dropped for another: eight cameras that send in turn
make eight sizes of batch, and recording them again and again would cost more than eager."""
WARM_UPS = 3
"""Calls before recording: libraries choose kernels and take memory then, which a graph cannot."""
_ONE_AT_A_TIME = threading.Lock()
"""A process can record but one graph at a time, and the input of a graph is one."""


class CudaGraphs:
    """A network on a GPU, behind its call: as graphs as far as these answer what eager does.

    Whatever fails meanwhile, one warning says so, and eager goes on for good.

    Args:
        model: On the device, in evaluation mode. Its parameters must stay where they are; values
            that are changed in place are seen.
        precision: Key of `DTYPES` that it runs in.
        name: What to call it in messages.
    """

    def __init__(self, model: nn.Module, precision: str, name: str):
        self._model, self._precision, self._name = model, precision, name
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._replays: dict[tuple[int, ...], Replay] = {}
        self._recorder: Recorder | None = None
        self._is_off = False

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor, want_embedding: bool = False) -> HeadOutput:
        """As `DepthModel.forward`; an embedding comes from eager. The answer is the caller's."""
        eager = partial(self._model, want_embedding=True) if want_embedding else self._model
        network = eager if want_embedding else self._network_for(image)
        if network is eager and not self._replays:
            return eager(image)
        try:
            with _ONE_AT_A_TIME:
                return network(image)
        except VlmDepthError:
            raise
        except Exception as err:  # whatever torch, CUDA and its libraries raise
            trouble = reason_of(err)
        # Only out here, since inside `except` the traceback holds the tensors of what failed.
        del network  # which may be a graph, with all its memory
        self._stop(trouble)
        return eager(image)

    def _network_for(self, image: torch.Tensor) -> Replay:
        """What is to answer this image."""
        shape = tuple(image.shape)
        if self._is_off or shape in self._replays:
            return self._replays.get(shape, self._model)
        self._calls[shape] += 1
        is_worth_it = self._calls[shape] >= REPEATS and len(self._replays) < MOST_KEPT
        return self._record if is_worth_it else self._model

    def _record(self, image: torch.Tensor) -> HeadOutput:
        """What eager answers; from now on the graph answers, unless it says something else."""
        # Casts that autocast keeps lie in memory that a graph would read after it was given away.
        with torch.autocast(
            image.device.type, DTYPES[self._precision], self._precision != 'fp32', False
        ):
            expected = self._model(image)
            if not expected.depth_m.isfinite().all():
                return expected  # Nothing to compare with: another image may do.
            self._recorder = self._recorder or Recorder()
            replay = self._recorder.record(self._model, torch.zeros_like(image))
        found = replay(image)  # Recorded on another one: what was frozen in by mistake shows.
        difference = difference_of(expected, found, self._model.config.depth_range_m[0])
        if not difference <= BOUNDS[self._precision]:
            raise _DiffersError(f'their answer differs by {difference:.2g} of the depth')
        self._replays[tuple(image.shape)] = replay
        log.info('%s: input %s is answered by a CUDA graph.', self._name, list(image.shape))
        return expected

    def _stop(self, trouble: str) -> None:
        self._is_off = True
        self._replays.clear()
        self._recorder = None
        torch.cuda.empty_cache()
        log.warning('%s: no CUDA graphs (%s): eager goes on. Set engine: eager to say so.',
                    self._name, trouble)  # fmt: skip


class _DiffersError(Exception):
    """A graph answers something else than eager."""


class Recorder:
    """Records graphs that share memory for what lies between input and output.

    That is safe because one is replayed after the other on one stream, and its answer copied
    before the next.
    """

    def __init__(self):
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, network: Callable[..., HeadOutput], image: torch.Tensor) -> Replay:
        """What answers as `network` does, for the shape of `image` and under today's autocast.

        Args:
            network: Waits for nothing and copies nothing to or from the host.
            image: On the current device; it becomes the input of the graph.

        Raises:
            RuntimeError: If the network cannot be recorded, or memory is short.
        """
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # Around the recording too: an older torch stays on that stream where one fails.
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                network(image)
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, self._pool, stream, 'thread_local'):
                found = network(image)

        def replay(other: torch.Tensor) -> HeadOutput:
            image.copy_(other)
            graph.replay()
            confidence = None if found.confidence is None else found.confidence.clone()
            return HeadOutput(found.depth_m.clone(), confidence)

        return replay
