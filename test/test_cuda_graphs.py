"""CUDA graphs beside eager: by a stand-in that repeats operations on the same memory.

What only a GPU can say (that CUDA records these networks, and what it gains) is in test_cuda.py.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vlm_depth_ros.core import first_way
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.cuda_graphs import CudaGraphs, MOST_KEPT, REPEATS
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import load_model


class Tape(TorchDispatchMode):
    """Does and remembers every operation; `replay` does them again, into the same tensors."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again)):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def gpu(monkeypatch):
    """What the stand-in was asked for; ``error`` makes it fail to record."""
    seen = SimpleNamespace(recorded=[], emptied=0, error=None)

    @contextmanager
    def recording(graph, pool, stream, mode):
        assert mode == 'thread_local' and not torch.is_autocast_cache_enabled()
        seen.recorded.append((graph, pool))
        if seen.error:
            raise seen.error
        with graph:
            yield

    def empty_cache():
        seen.emptied += 1

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        'CUDAGraph': Tape, 'graph': recording, 'Stream': lambda: stream,
        'current_stream': lambda: stream, 'stream': lambda _: nullcontext(),
        'graph_pool_handle': object, 'empty_cache': empty_cache,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return seen


class Network(nn.Module):
    """Depth by one factor, and a confidence; counts the calls of Python."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.config = SimpleNamespace(depth_range_m=(0.1, 10.0))
        self.calls, self.errors = 0, []

    def depth_of(self, image):
        return image[:, :1].abs() * self.factor + 1

    def forward(self, image, want_embedding=False):
        self.calls += 1
        if self.errors:
            raise self.errors.pop()
        depth_m = self.depth_of(image)
        extras = {'embedding': depth_m.mean((1, 2, 3))} if want_embedding else {}
        return HeadOutput(depth_m, 1 / depth_m, extras)


def image(seed=0, shape=(1, 3, 8, 12)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recorded(network, shape=(1, 3, 8, 12)):
    """Graphs that have recorded this shape."""
    graphs = CudaGraphs(network, 'fp32', 'it')
    for seed in range(REPEATS):
        graphs(image(seed, shape))
    return graphs


def same(found, expected):
    torch.testing.assert_close(found.depth_m, expected.depth_m, rtol=0, atol=0)
    torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=0)


@pytest.fixture(scope='module')
def pocket():
    return load_model('pocket')


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_graph_answers_as_eager_and_python_is_left_out(gpu, pocket, precision):
    """With the real network: nothing of it may depend on what Python saw of one image."""
    hw, calls = pocket.config.input_hw, []
    pocket.register_forward_pre_hook(lambda *_: calls.append(1))
    graphs = CudaGraphs(pocket, precision, 'pocket')
    low = {'dtype': torch.bfloat16, 'enabled': precision != 'fp32'}
    with torch.inference_mode(), torch.autocast('cpu', **low):
        for seed in range(REPEATS):
            graphs(image(seed, (1, 3, *hw)))
        assert len(gpu.recorded) == 1
        for seed in range(10, 12):
            before = len(calls)
            found = graphs(image(seed, (1, 3, *hw)))
            assert len(calls) == before
            same(found, pocket(image(seed, (1, 3, *hw))))


def test_an_answer_stays_while_the_next_image_is_answered(gpu):
    graphs = recorded(Network())
    first = graphs(image(7))
    kept = HeadOutput(first.depth_m.clone(), first.confidence.clone())
    graphs(image(8))
    same(first, kept)


def test_weights_changed_in_place_are_seen(gpu):
    network = Network()
    graphs = recorded(network)
    with torch.no_grad():
        network.factor.mul_(3)
    same(graphs(image(9)), network(image(9)))


def test_only_a_shape_that_comes_again_and_again_is_recorded_and_not_too_many(gpu):
    network = Network()
    graphs = CudaGraphs(network, 'fp32', 'it')
    shapes = [(batch, 3, 8, 12) for batch in range(1, MOST_KEPT + 3)]
    for times in range(1, REPEATS + 3):
        for shape in shapes:
            same(graphs(image(times, shape)), network(image(times, shape)))
        assert len(gpu.recorded) == (MOST_KEPT if times >= REPEATS else 0)
    assert len({id(pool) for _, pool in gpu.recorded}) == 1


def test_an_embedding_comes_from_eager(gpu):
    network = Network()
    graphs = recorded(network)
    before = network.calls
    assert 'embedding' in graphs(image(1), True).extras
    assert network.calls == before + 1 and len(gpu.recorded) == 1


@pytest.mark.parametrize(
    'error', [RuntimeError('CUDA error: operation not permitted when stream is capturing\nmore'),
              torch.cuda.OutOfMemoryError('CUDA out of memory.')]
)  # fmt: skip
def test_what_cannot_be_recorded_goes_on_in_eager_after_one_warning(gpu, caplog, error):
    network = Network()
    gpu.error = error
    graphs = CudaGraphs(network, 'fp32', 'it')
    for seed in range(3 * REPEATS):
        same(graphs(image(seed)), network(image(seed)))
    assert len(gpu.recorded) == 1 and gpu.emptied == 1
    (record,) = caplog.records
    reason = str(error).partition('\n')[0].rstrip('.')
    assert record.getMessage() == (
        f'it: no CUDA graphs ({reason}): eager goes on. Set engine: eager to say so.'
    )


def test_a_graph_that_answers_something_else_is_not_used(gpu, caplog):
    class Frozen(Network):
        def depth_of(self, image):
            return super().depth_of(image) * float(image.abs().max() + 1)  # a number of Python

    network = Frozen()
    graphs = CudaGraphs(network, 'fp32', 'it')
    for seed in range(2 * REPEATS):
        same(graphs(image(seed)), network(image(seed)))
    (record,) = caplog.records
    assert '(their answer differs by ' in record.getMessage()


def test_where_memory_ends_the_graphs_give_theirs_back_and_it_is_tried_again(gpu, caplog):
    network = Network()
    graphs = recorded(network)
    network.errors = [torch.cuda.OutOfMemoryError('CUDA out of memory.')]
    same(graphs(image(1, (2, 3, 8, 12))), network(image(1, (2, 3, 8, 12))))
    assert gpu.emptied == 1 and len(caplog.records) == 1
    network.errors = [torch.cuda.OutOfMemoryError('CUDA out of memory.')]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs(image(1))
    assert gpu.emptied == 1 and len(caplog.records) == 1


def test_an_error_of_eager_alone_is_that_of_eager(gpu, caplog):
    network = Network()
    network.errors = [RuntimeError('broken')]
    graphs = CudaGraphs(network, 'fp32', 'it')
    with pytest.raises(RuntimeError, match='broken'):
        graphs(image())
    graphs = recorded(network)
    network.errors = [ConfigError('a size that it does not take.')]
    with pytest.raises(ConfigError, match='a size'):
        graphs(image(1, (2, 3, 8, 12)))
    assert not caplog.records


def test_an_image_without_an_answer_is_not_recorded_and_the_next_may_be(gpu, caplog):
    network = Network()
    graphs = CudaGraphs(network, 'fp32', 'it')
    for _ in range(REPEATS):
        assert graphs(image() * torch.nan).depth_m.isnan().all()
    assert not gpu.recorded and not caplog.records
    graphs(image())
    assert len(gpu.recorded) == 1


@pytest.mark.parametrize(
    'device, engine, owns_tower, has_graphs',
    [('cuda', 'auto', True, True), ('cuda', 'eager', True, False),
     ('cuda', 'auto', False, False), ('cpu', 'auto', True, False)],
)  # fmt: skip
def test_graphs_are_for_a_gpu_and_a_tower_of_our_own(
    monkeypatch, device, engine, owns_tower, has_graphs
):
    monkeypatch.setattr(first_way, 'capability_of', lambda device: (9, 0))
    network, runtime = Network(), RuntimeConfig(device, 'fp32', engine=engine)
    way, _ = first_way.first_way(network, runtime, torch.device(device), 'it', owns_tower)
    assert way.engine == 'eager'
    assert isinstance(way.network, CudaGraphs) == has_graphs
    assert has_graphs or way.network is network
