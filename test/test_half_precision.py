"""Half precision answers as fp32 does, or fp32 goes on and says so once; fp32 is whole fp32."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
from vlm_depth_ros.core import compiled, half_precision
from vlm_depth_ros.core.agreement import largest_difference
from vlm_depth_ros.core.compiled import CACHE_VARIABLE, Compiled, keep_kernels
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.errors import DeviceMemoryError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.exact_fp32 import exact_fp32
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.half_precision import checked_precision
from vlm_depth_ros.core.heads.base import HeadOutput

CPU = torch.device('cpu')
SPEC = BackboneSpec(
    'stand-in', True, (3,), (1,), 3, None, (32, 32), False, (0.0,) * 3, (1.0,) * 3
)


class Network(torch.nn.Module):
    """Answers one depth in fp32, and another one, or an error, under autocast."""

    def __init__(self, in_fp32=2.0, in_half=2.0):
        super().__init__()
        self.config = ModelConfig(tower='stand-in', input_hw=(32, 32))
        self.backbone = SimpleNamespace(spec=SPEC)
        self.in_fp32, self.in_half = in_fp32, in_half
        self.seen = []

    def forward(self, image):
        """Answer, and note whether fp32 was whole."""
        self.seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        answer = self.in_half if torch.is_autocast_enabled('cpu') else self.in_fp32
        if isinstance(answer, Exception):
            raise answer
        return HeadOutput(torch.full((len(image), 1, 32, 32), answer))


def half(model, precision, name='name'):
    """The precision that is chosen."""
    return checked_precision(model, precision, CPU, name)


# --- the check ----------------------------------------------------------------------------------


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_what_answers_as_fp32_does_is_taken(precision, caplog):
    model = Network(2.0, 2.05)
    assert half(model, precision, 'near') == precision
    assert len(model.seen) == 2 and not caplog.records


def test_fp32_needs_no_check():
    model = Network(float('nan'))
    assert half(model, 'fp32') == 'fp32' and not model.seen


@pytest.mark.parametrize(('in_half', 'said'), [
    (2.3, 'far in fp16 differs from eager fp32 by 0.15 of the depth, more than 0.05'),
    (float('inf'), 'differs from eager fp32 by inf'),
    (float('nan'), 'differs from eager fp32 by inf'),
    (RuntimeError('"conv" not implemented for \'Half\'\nmore'),
     'far cannot run in fp16 ("conv" not implemented for \'Half\')'),
], ids=['far', 'overflow', 'NaN', 'not there'])  # fmt: skip
def test_what_does_not_runs_in_fp32_and_is_told_once(in_half, said, caplog):
    with caplog.at_level(logging.WARNING, half_precision.__name__):
        assert half(Network(2.0, in_half), 'fp16', 'far') == 'fp32'
    (record,) = caplog.records
    text = record.getMessage()
    assert said in text and 'it runs in fp32' in text and '\n' not in text


def test_weights_that_answer_nothing_in_fp32_are_refused():
    with pytest.raises(WeightsError, match='no finite depth'):
        half(Network(float('nan')), 'bf16')


def test_an_estimator_falls_back_and_one_that_fits_does_not(caplog):
    runtime = RuntimeConfig('cpu', 'bf16')
    assert DepthEstimator(Network(), runtime, 'near').precision == 'bf16'
    with caplog.at_level(logging.WARNING):
        fallen = DepthEstimator(Network(2.0, 9.0), runtime, 'far')
    assert fallen.precision == 'fp32' and len(caplog.records) == 1
    rgb = torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()
    assert fallen(rgb).depth_m.max() == 2.0


def test_full_memory_in_the_check_is_no_reason_for_fp32():
    """Which would need more of it."""
    err = torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
    with pytest.raises(DeviceMemoryError):
        DepthEstimator(Network(2.0, err), RuntimeConfig('cpu', 'bf16'))


# --- whole fp32 ---------------------------------------------------------------------------------


@pytest.fixture
def with_tf32():
    """As somebody sets it who wants speed."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision('high')
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def settings():
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def test_comparisons_are_with_whole_fp32_and_leave_the_settings(with_tf32):
    model = Network()
    half(model, 'bf16')
    largest_difference(model, model, 'fp32', CPU)
    assert set(model.seen) == {(False, 'highest')} and settings() == (True, 'high')


def test_settings_come_back_after_an_error(with_tf32):
    with pytest.raises(KeyError), exact_fp32():
        raise KeyError
    assert settings() == (True, 'high')


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='torch before 2.9'
)
def test_who_set_it_by_the_newer_interface_keeps_it():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = 'tf32'
    try:
        with exact_fp32():
            assert matmul.fp32_precision == 'tf32'
        assert matmul.fp32_precision == 'tf32'
    finally:
        matmul.fp32_precision = before


# --- torch.compile ------------------------------------------------------------------------------


def test_an_embedding_is_answered_without_another_compilation(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model: lambda image: ('compiled', image))
    engine = Compiled(lambda image, want_embedding: ('plain', image, want_embedding))
    assert engine(1) == ('compiled', 1)
    assert engine(1, True) == ('plain', 1, True)


@pytest.mark.parametrize(('environment', 'expected'), [
    ({'XDG_CACHE_HOME': '/x'}, '/x/vlm_depth_ros/inductor'),
    ({'XDG_CACHE_HOME': '', 'HOME': '/h'}, '/h/.cache/vlm_depth_ros/inductor'),
    ({'XDG_CACHE_HOME': 'relative'}, None),
    ({'XDG_CACHE_HOME': '/x', CACHE_VARIABLE: '/mine'}, '/mine'),
])  # fmt: skip
def test_kernels_are_kept_for_the_next_start(environment, expected, monkeypatch):
    monkeypatch.setattr(compiled.os, 'environ', environment)
    keep_kernels()
    assert os.environ.get(CACHE_VARIABLE) == expected
