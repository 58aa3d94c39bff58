"""One wait for all that a call copies from a GPU; by a stand-in, since a GPU is not to be had."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.downloads import host_bytes, one_wait
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.options import OutputOptions

CUDA = torch.device('cuda')


class OnGpu(torch.Tensor):
    """Says that it lies there."""

    device = property(lambda self: CUDA)


@pytest.fixture
def waits(monkeypatch):
    """How often was waited."""
    found, empty_like = [], torch.empty_like

    def pinned(like, device, pin_memory):
        assert (device, pin_memory) == ('cpu', True)
        return empty_like(like.as_subclass(torch.Tensor))

    stream = SimpleNamespace(synchronize=lambda: found.append(1))
    monkeypatch.setattr(torch, 'empty_like', pinned)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: stream)
    return found


def on_gpu(*values):
    return torch.tensor(values).as_subclass(OnGpu)


def test_a_copy_alone_is_waited_for(waits):
    assert host_bytes(on_gpu(1.5)).view(np.float32) == [1.5]
    assert len(waits) == 1


def test_many_copies_are_waited_for_once(waits):
    with one_wait(CUDA):
        copies = [host_bytes(on_gpu(float(i), 2.0)) for i in range(5)]
        assert not waits
    assert len(waits) == 1
    assert [copy.view(np.float32)[0] for copy in copies] == [0, 1, 2, 3, 4]
    host_bytes(on_gpu(1.0))
    assert len(waits) == 2


def test_after_an_error_copies_are_waited_for_again(waits):
    with pytest.raises(RuntimeError), one_wait(CUDA):
        raise RuntimeError
    host_bytes(on_gpu(1.0))
    assert len(waits) == 1


def test_a_call_of_the_estimator_waits_once_for_all_cameras(waits, monkeypatch):
    """Depth, colours and the valid share of two frames; the network itself runs on the CPU."""
    from vlm_depth_ros.core import outputs, packing

    def copied(tensor):
        return host_bytes(tensor.clone().as_subclass(OnGpu))

    for module in (outputs, packing):
        monkeypatch.setattr(module, 'host_bytes', copied)
    monkeypatch.setattr(outputs, 'one_wait', lambda device: one_wait(CUDA))
    estimator = DepthEstimator.from_weights('pocket', RuntimeConfig('cpu'))
    frames = [Frame(np.full((48, 64, 3), grey, np.uint8), wants=frozenset({'depth', 'color'}))
              for grey in (60, 200)]  # fmt: skip
    for found in estimator.process(frames, OutputOptions()):
        assert isinstance(found.valid_share, float) and 0 <= found.valid_share <= 1
        assert found.depth.data.size == 48 * 64 * 4 and found.color.data.size == 48 * 64 * 3
    assert len(waits) == 1
