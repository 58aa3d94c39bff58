"""A GPU that is full or gone is one line; no more is asked of one that is gone.

No GPU is needed: the texts are those of PyTorch, and networks raise them.
"""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from vlm_depth_ros.core import device_failures, devices, exported
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.device_failures import DeviceGuard, failure_of
from vlm_depth_ros.core.devices import num_cuda, precision_on, warn_of_idle_gpu
from vlm_depth_ros.core.errors import (
    ConfigError,
    DeviceLostError,
    DeviceMemoryError,
    InputError,
    VlmDepthError,
)
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.model import find_weights, load_model
from vlm_depth_ros.core.options import OutputOptions

GPU = torch.device('cuda:0')
RAW = (
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB of '
    'which 12.00 MiB is free.\nIf reserved but unallocated memory is large try setting ...'
)
ADVICE = 'use fewer cameras, a smaller network, or precision: fp16.'
AcceleratorError = getattr(torch, 'AcceleratorError', RuntimeError)

# --- what a library says ------------------------------------------------------------------------


@pytest.mark.parametrize('err', [
    torch.cuda.OutOfMemoryError(RAW),
    RuntimeError(RAW),
    AcceleratorError('CUDA error: out of memory\nCUDA kernel errors might be ...'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
    RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'),
    RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED'),
    RuntimeError('Triton Error [CUDA]: out of memory'),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":995'),
], ids=lambda err: str(err)[:30])  # fmt: skip
def test_full_memory_is_one_line_with_advice(err):
    found = failure_of(err, GPU)
    assert isinstance(found, DeviceMemoryError)
    assert str(found).startswith('device cuda:0 is out of memory')
    assert str(found).endswith(ADVICE) and '\n' not in str(found)
    assert ('tried to allocate 2.00 GiB' in str(found)) == ('2.00 GiB' in str(err))


@pytest.mark.parametrize('text', [
    'CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously ...',
    'CUDA error: an illegal memory access was encountered',
    'CUDA error: unspecified launch failure',
    'CUDA error: uncorrectable ECC error encountered',
    'CUDA error: no CUDA-capable device is detected',
    'CUDA error: unknown error',
    'Triton Error [CUDA]: an illegal memory access was encountered',
])  # fmt: skip
def test_a_device_that_is_gone_is_one_line_with_advice(text):
    found = failure_of(RuntimeError(text), GPU)
    assert isinstance(found, DeviceLostError) and '\n' not in str(found)
    reason = text.partition('\n')[0]
    assert str(found).startswith(f'device cuda:0 is gone ({reason}): restart the node.')


@pytest.mark.skipif(AcceleratorError is RuntimeError, reason='torch before 2.8')
def test_an_accelerator_error_needs_no_known_text():
    found = failure_of(AcceleratorError('the card fell out of its slot'), GPU)
    assert isinstance(found, DeviceLostError) and 'fell out of its slot' in str(found)


@pytest.mark.parametrize('err', [
    RuntimeError('The size of tensor a (3) must match the size of tensor b (4)'),
    RuntimeError('CUDA error: invalid argument'),
    RuntimeError('CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`'),
    RuntimeError('CUDA error: no kernel image is available for execution on the device'),
    InputError('image of float64: expected uint8, 0 to 255.'),
    DeviceLostError('device cuda:0 is gone (CUDA error: unknown error): restart the node.'),
], ids=lambda err: str(err)[:40])  # fmt: skip
def test_other_errors_are_no_failure_of_the_device(err):
    assert failure_of(err, GPU) is None


# --- calls on a device --------------------------------------------------------------------------


def failing(err, calls):
    def call(*_):
        calls.append(err)
        raise err

    return call


def test_a_device_that_is_gone_is_not_touched_again():
    guard, calls = DeviceGuard(torch.device('cpu')), []
    for _ in range(3):
        with pytest.raises(DeviceLostError, match='CUDA error: unspecified launch failure'):
            guard.run(failing(RuntimeError('CUDA error: unspecified launch failure'), calls))
    assert len(calls) == 1 and 'restart the node' in guard.loss


def test_after_other_failures_a_device_goes_on():
    guard, calls = DeviceGuard(torch.device('cpu')), []
    for err, kind in ((RuntimeError(RAW), DeviceMemoryError), (InputError('bad'), InputError),
                      (ValueError('odd'), ValueError)):  # fmt: skip
        with pytest.raises(kind):
            guard.run(failing(err, calls))
    assert len(calls) == 3 and not guard.loss
    assert guard.run(lambda: 'an answer') == 'an answer'


class Holder:
    """What a failed attempt holds; unlike a tensor, it tells that it is gone."""


def test_nothing_of_a_failed_attempt_is_held_while_its_error_is_handled():
    held = []

    def call():
        large = Holder()
        held.append(weakref.ref(large))
        raise torch.cuda.OutOfMemoryError(RAW)

    gc.disable()  # Counting references has to do, as it has to in the node.
    try:
        with pytest.raises(DeviceMemoryError) as raised:
            DeviceGuard(torch.device('cpu')).run(call)
        assert held[0]() is None
    finally:
        gc.enable()
    assert raised.value.__cause__ is None and raised.value.__context__ is None


@pytest.mark.parametrize(('text', 'emptied'), [
    (RAW, 1), ('CUDA error: unknown error', 0), ('something else', 0),
])  # fmt: skip
def test_what_a_gpu_keeps_for_later_is_given_back_when_it_is_full(text, emptied, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: calls.append('emptied'))
    monkeypatch.setattr(device_failures, '_made_current', lambda device: torch.no_grad())
    with pytest.raises((VlmDepthError, RuntimeError)):
        DeviceGuard(GPU).run(failing(RuntimeError(text), []))
    assert len(calls) == emptied


def test_every_call_has_its_own_gpu_as_the_current_one():
    context = device_failures._made_current(torch.device('cuda:1'))
    assert isinstance(context, torch.cuda.device) and context.idx == 1
    with device_failures._made_current(torch.device('cpu')):
        pass


def test_an_estimator_says_it_in_either_call(estimator_of_pocket, monkeypatch):
    rgb = np.zeros((48, 64, 3), np.uint8)
    estimator = estimator_of_pocket
    for text, kind in ((RAW, DeviceMemoryError), ('CUDA error: unknown error', DeviceLostError)):
        monkeypatch.setattr(estimator.model, 'forward', failing(RuntimeError(text), []))
        with pytest.raises(kind):
            estimator(rgb)
        estimator.guard.loss = ''
        with pytest.raises(kind):
            estimator.process([Frame(rgb)], OutputOptions())


@pytest.fixture
def estimator_of_pocket():
    return DepthEstimator.from_weights('pocket', RuntimeConfig('cpu'))


# --- what a GPU can do --------------------------------------------------------------------------


@pytest.mark.parametrize(('wanted', 'capability', 'expected'), [
    ('auto', (9, 0), 'fp16'), ('auto', (7, 2), 'fp16'), ('auto', (6, 1), 'fp32'),
    ('auto', (5, 0), 'fp32'), ('auto', None, 'fp16'), ('fp32', (5, 0), 'fp32'),
    ('fp16', (5, 3), 'fp16'), ('bf16', (8, 0), 'bf16'), ('bf16', (12, 0), 'bf16'),
])  # fmt: skip
def test_precision_of_a_gpu_is_one_that_it_has(wanted, capability, expected):
    assert precision_on('cuda', wanted, capability) == expected


@pytest.mark.parametrize(('wanted', 'capability', 'said'), [
    ('bf16', (7, 5), "precision = 'bf16': this GPU has compute capability 7.5, bf16 takes 8.0."),
    ('fp16', (5, 2), "precision = 'fp16': this GPU has compute capability 5.2, fp16 takes 5.3."),
])  # fmt: skip
def test_precision_that_a_gpu_lacks_is_refused(wanted, capability, said):
    with pytest.raises(ConfigError) as refused:
        precision_on('cuda', wanted, capability)
    assert str(refused.value).startswith(said) and 'auto, or fp32' in str(refused.value)


def test_precision_of_a_cpu_is_what_is_wanted():
    for wanted, expected in (('auto', 'fp32'), ('bf16', 'bf16'), ('fp16', 'fp16')):
        assert precision_on('cpu', wanted) == expected


@pytest.mark.parametrize(('usable', 'listed', 'expected'), [
    (False, 1, 0),  # The driver lists a GPU that it is too old to use.
    (True, 2, 2),
])  # fmt: skip
def test_a_gpu_that_torch_cannot_use_does_not_count(usable, listed, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: usable)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: listed)
    assert num_cuda() == expected


@pytest.mark.parametrize(('wanted', 'count', 'lines'), [
    ('auto', 1, 1), ('cpu', 1, 0), ('auto', 0, 0),
])  # fmt: skip
def test_an_exported_file_beside_a_gpu_is_told_once(wanted, count, lines, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, devices.__name__):
        warn_of_idle_gpu(tmp_path / 'depth.onnx', wanted, count)
    assert len(caplog.records) == lines
    if lines:
        text = caplog.records[0].getMessage()
        assert 'depth.onnx runs on the CPU' in text and 'set device: cpu' in text


def test_loading_an_exported_file_beside_a_gpu_warns(monkeypatch, caplog, tmp_path):
    record = exported.record_of(load_model(find_weights('pocket')))

    def in_openvino(path, precision):
        return lambda image: [np.ones((len(image), 1, 8, 8), np.float32)]

    monkeypatch.setattr(exported, 'read_metadata', lambda path: record)
    monkeypatch.setattr(exported, 'num_cuda', lambda: 1)
    monkeypatch.setattr(exported, 'installed', lambda: ['openvino'])
    monkeypatch.setitem(exported.CONVERTED, 'openvino', in_openvino)
    with caplog.at_level(logging.WARNING):
        exported.ExportedModel(tmp_path / 'depth.onnx', RuntimeConfig())
    assert [r.getMessage().endswith('if this is meant.') for r in caplog.records] == [True]
