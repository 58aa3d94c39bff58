"""On a real GPU: the same depth as on the CPU, from any thread, in bounded memory.

Skipped where there is none, which is where all of it was written.
"""

import logging
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.agreement import BOUNDS
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.cuda_graphs import REPEATS
from vlm_depth_ros.core.devices import FAST_FP16
from vlm_depth_ros.core.errors import DeviceMemoryError
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.exact_fp32 import exact_fp32
from vlm_depth_ros.core.options import OutputOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')

WANTS = frozenset({'depth', 'color', 'compressed'})
OPTIONS = OutputOptions()


def picture(height, width, seed=0):
    """Smooth, so that the rounding of two ways to resize hardly shows."""
    y, x = np.mgrid[:height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = np.sin(x[..., None] / 40 + phase) + np.cos(y[..., None] / 30 + phase)
    return np.uint8(np.rint(127 + 60 * waves))


@pytest.fixture(scope='module')
def on_cpu():
    return DepthEstimator.from_weights('pocket', RuntimeConfig('cpu'))


@pytest.fixture(scope='module')
def on_gpu():
    return DepthEstimator.from_weights('pocket', RuntimeConfig('cuda', 'fp32'))


def depth_m(output):
    return np.frombuffer(output.depth.data, np.float32).reshape(
        output.depth.height, output.depth.width
    )


def test_depth_is_that_of_the_cpu(on_cpu, on_gpu):
    height, width = on_cpu.config.input_hw  # No resize, which has another rounding on each.
    images = [picture(height, width, seed) for seed in range(3)]
    with exact_fp32():
        for found, expected in zip(on_gpu(images), on_cpu(images)):
            np.testing.assert_allclose(found.depth_m, expected.depth_m, rtol=1e-3)


@pytest.mark.parametrize('hw', [(480, 640), (376, 1241), (97, 131)])
def test_packed_outputs_are_those_of_the_cpu(hw, on_cpu, on_gpu):
    frames = [Frame(picture(*hw, seed), wants=WANTS) for seed in range(2)]
    for found, expected in zip(on_gpu.process(frames, OPTIONS), on_cpu.process(frames, OPTIONS)):
        near, truth = depth_m(found), depth_m(expected)
        assert near.shape == truth.shape == hw
        assert abs(found.valid_share - expected.valid_share) < 0.01
        known = np.isfinite(near) & np.isfinite(truth)
        assert np.median(np.abs(near - truth)[known] / truth[known]) < 0.01
        assert found.color.data.shape == expected.color.data.shape
        assert found.compressed is not None


def test_half_precision_is_near_fp32(on_gpu):
    rgb = picture(480, 640)
    expected = on_gpu(rgb).depth_m
    half = DepthEstimator.from_weights('pocket', RuntimeConfig('cuda'))
    is_fast = torch.cuda.get_device_capability() >= FAST_FP16
    assert half.precision == ('fp16' if is_fast else 'fp32')
    np.testing.assert_allclose(half(rgb).depth_m, expected, rtol=0.05)


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('batch', [1, 3])
def test_cuda_graphs_answer_as_eager_does(precision, batch, caplog):
    with caplog.at_level(logging.INFO, logger='vlm_depth_ros'):
        graphs = DepthEstimator.from_weights('pocket', RuntimeConfig('cuda', precision))
        for seed in range(REPEATS):
            graphs([picture(480, 640, seed)] * batch)
    assert [r.getMessage() for r in caplog.records if 'CUDA graph' in r.getMessage()] == [
        f'pocket: input [{batch}, 3, {", ".join(map(str, graphs.config.input_hw))}] is answered '
        'by a CUDA graph.'
    ], caplog.text
    eager = DepthEstimator.from_weights(
        'pocket', RuntimeConfig('cuda', precision, engine='eager')
    )
    images = [picture(480, 640, seed) for seed in range(10, 10 + batch)]
    for found, expected in zip(graphs(images), eager(images)):
        np.testing.assert_allclose(found.depth_m, expected.depth_m, rtol=BOUNDS[precision])


def test_a_graph_launches_faster_than_eager():
    """One call from Python instead of hundreds; the bound is loose, docs have the figures."""
    took_ms = {}
    for engine in ('auto', 'eager'):
        runtime = RuntimeConfig('cuda', 'fp32', engine=engine)
        estimator = DepthEstimator.from_weights('pocket', runtime)
        image = torch.zeros(1, 3, *estimator.config.input_hw, device='cuda')
        network, times_ms = estimator.ways.at_hand.network, []
        with torch.inference_mode():
            for _ in range(30):
                torch.cuda.synchronize()
                start_s = time.perf_counter()
                network(image)
                torch.cuda.synchronize()
                times_ms.append((time.perf_counter() - start_s) * 1e3)
        took_ms[engine] = min(times_ms[10:])
    assert took_ms['auto'] < took_ms['eager'], took_ms


def test_packing_waits_once_for_all(on_gpu, monkeypatch):
    waits, synchronize = [], torch.cuda.Stream.synchronize

    def counted(stream):
        waits.append(1)
        synchronize(stream)

    frames = [Frame(picture(480, 640, seed), wants=frozenset({'depth', 'color'}))
              for seed in range(2)]  # fmt: skip
    for _ in range(REPEATS):  # to record takes waits of its own
        expected = [depth_m(found).copy() for found in on_gpu.process(frames, OPTIONS)]
    monkeypatch.setattr(torch.cuda.Stream, 'synchronize', counted)
    with warnings.catch_warnings():  # of any operation that waits behind our back
        warnings.filterwarnings('error', message='.*synchronizing CUDA operation')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            found = on_gpu.process(frames, OPTIONS)
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert len(waits) == 1
    for answer, depth in zip(found, expected):
        np.testing.assert_allclose(depth_m(answer), depth, rtol=1e-3)


def test_every_thread_gets_the_same_answer(on_gpu):
    rgb, found = picture(480, 640), {}

    def answer(name):
        for _ in range(5):
            found[name] = on_gpu(rgb).depth_m

    expected = on_gpu(rgb).depth_m
    for name in ('worker', 'loader'):  # One after the other, as the node has them.
        thread = threading.Thread(target=answer, args=(name,))
        thread.start()
        thread.join()
    for depth in found.values():
        np.testing.assert_allclose(depth, expected, rtol=1e-3)
    assert len(found) == 2


def test_an_image_may_be_overwritten_once_its_answer_is_there(on_gpu):
    """The upload does not wait: it has to be done, or copied, before the call returns."""
    rgb = picture(480, 640)
    expected = on_gpu(rgb.copy()).depth_m
    for _ in range(5):
        found = on_gpu(rgb).depth_m
        kept = rgb.copy()
        rgb[:] = 0
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        rgb[:] = kept


def test_memory_does_not_grow_with_frames(on_gpu):
    frames = [Frame(picture(480, 640), wants=WANTS)]
    for _ in range(3):
        on_gpu.process(frames, OPTIONS)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        on_gpu.process(frames, OPTIONS)
    assert torch.cuda.memory_allocated() <= before


def test_full_memory_fails_in_our_words_and_less_works_at_once(on_gpu):
    rgb = picture(480, 640)
    frames = [Frame(rgb, wants=WANTS) for _ in range(128)]
    on_gpu.process(frames[:1], OPTIONS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    on_gpu.process(frames[:1], OPTIONS)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    limit = 3 * torch.cuda.max_memory_reserved()  # Enough for one, not for 128.
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
    try:
        with pytest.raises(DeviceMemoryError, match='device cuda.* is out of memory .*fp16'):
            on_gpu.process(frames, OPTIONS)
        assert depth_m(on_gpu.process(frames[:1], OPTIONS)[0]).shape == (480, 640)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not on_gpu.guard.loss


PROGRAM = """
import torch
from vlm_depth_ros.core.device_failures import DeviceGuard
from vlm_depth_ros.core.errors import DeviceLostError

device, calls = torch.device('cuda'), []
guard = DeviceGuard(device)

def out_of_bounds():
    calls.append(1)
    table, where = torch.zeros(4, device=device), torch.tensor([99], device=device)
    return table[where].cpu()

for _ in range(2):
    try:
        guard.run(out_of_bounds)
    except DeviceLostError as err:
        print(err)
print('calls', len(calls))
"""


def test_a_failed_assertion_on_the_device_is_the_end_of_it():
    """In a process of its own, which it spoils."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM], capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[-1] == 'calls 1', done.stderr
    assert lines[0] == lines[1] and 'is gone (' in lines[0] and 'restart the node' in lines[0]
