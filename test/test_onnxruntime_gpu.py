"""ONNX Runtime on a GPU: what is asked of it, and what goes on where it fails.

A stand-in offers the providers of its library for GPUs, and runs on the CPU whatever it is asked.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import towers  # noqa: F401  registers tiny-vit
from vlm_depth_ros.core import engines, exported
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.engines import engine_of, gpu_providers, OnnxRuntime
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.exported import ExportedModel
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.tools.cli import main

for _library in ('onnx', 'onnxscript'):
    pytest.importorskip(_library)
onnxruntime = pytest.importorskip('onnxruntime')

SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
TINY = ModelConfig('tiny-vit', SLIM, input_hw=(64, 96), camera=TrainingCamera(0.8, 1.1))
TENSORRT, CUDA, CPU = (f'{name}ExecutionProvider' for name in ('Tensorrt', 'CUDA', 'CPU'))
GPU = torch.device('cuda:0')


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return DepthModel(TINY).eval().requires_grad_(False)


@pytest.fixture(scope='module')
def path(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('gpu')
    save_model(folder / 'tiny.safetensors', model, name='tiny', embed_tower=True)
    assert main(['export', str(folder / 'tiny.safetensors'), str(folder / 'tiny.onnx')]) == 0
    return folder / 'tiny.onnx'


@pytest.fixture
def gpu(monkeypatch):
    """Providers that the library offers, those whose own libraries are there, and what came."""

    class Library:
        offered, working, factor, asked = [TENSORRT, CUDA, CPU], [TENSORRT, CUDA], 1.0, []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, source, options, providers):
            Library.asked.append(providers)
            super().__init__(source, options, providers=[CPU])
            named = [p if isinstance(p, str) else p[0] for p in providers]
            self.used = [p for p in named if p in (*Library.working, CPU)]

        def get_providers(self):
            return self.used

        def run(self, *args):
            found = super().run(*args)
            return found if self.used == [CPU] else [answer * Library.factor for answer in found]

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: Library.offered)
    monkeypatch.setattr(exported, 'num_cuda', lambda: 1)
    monkeypatch.setattr(exported, 'capability_of', lambda device: (9, 0))
    Library.asked.clear()
    return Library


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_tensorrt_goes_before_cuda_and_keeps_its_engines(
    gpu, path, precision, tmp_path, monkeypatch
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    OnnxRuntime(path, precision, torch.device('cuda:1'))
    (((first, tensorrt), (second, cuda), last),) = gpu.asked
    assert (first, second, last) == (TENSORRT, CUDA, CPU)
    assert tensorrt['trt_fp16_enable'] is (precision == 'fp16')
    folder = Path(tensorrt['trt_engine_cache_path'])
    assert folder.is_relative_to(tmp_path) and folder.is_dir()
    assert cuda == {'device_id': 1, 'use_tf32': int(precision == 'fp16')}


def test_only_what_the_library_offers_is_asked_for(gpu):
    gpu.offered = [CUDA, CPU]
    assert [name for name, _ in gpu_providers('fp32', GPU)] == [CUDA]


def test_a_library_for_the_cpu_is_an_error_that_says_what_to_install(gpu, model):
    gpu.offered = [CPU]
    with pytest.raises(ConfigError, match='runs on the CPU, .* install onnxruntime-gpu'):
        engine_of(model, RuntimeConfig('cuda', engine='onnxruntime'), 'fp32', GPU)
    with pytest.raises(ConfigError, match="precision = 'bf16': engine onnxruntime takes"):
        OnnxRuntime(Path('tiny.onnx'), 'bf16', GPU)


def test_where_libraries_of_cuda_are_missing_eager_goes_on_after_one_warning(
    gpu, model, path, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(engines, 'exported', lambda model: None)  # seconds, spent for `path`
    monkeypatch.setattr(engines.graph_cache, 'keep', lambda program, slot: path)
    gpu.working = []
    runtime = RuntimeConfig('cuda', engine='onnxruntime')
    assert engine_of(model, runtime, 'fp32', GPU) is model
    warned = [r.getMessage() for r in caplog.records if r.name == engines.__name__]
    assert warned == ['engine onnxruntime cannot run this network (its libraries for CUDA are '
                      'missing or do not fit): eager goes on.']  # fmt: skip


def test_an_exported_file_runs_on_the_gpu_where_it_can(gpu, path, caplog):
    model = ExportedModel(path, RuntimeConfig(precision='fp32'))
    assert (model.engine, model.device) == ('onnxruntime', torch.device('cuda'))
    assert model(torch.zeros(1, 3, *TINY.input_hw)).depth_m.isfinite().all()
    assert not [r for r in caplog.records if r.levelname == 'WARNING']
    assert ExportedModel(path, RuntimeConfig('cpu')).device == torch.device('cpu')


@pytest.mark.parametrize(
    'working, factor, said',
    [([], 1.0, 'cannot run it .its libraries for CUDA are missing'),
     ([CUDA], 1.2, 'on cuda in fp16 differs from eager fp32 by 0.2 of the depth'),
     ([CUDA], np.nan, 'on cuda in fp16 differs')],
)  # fmt: skip
def test_else_the_cpu_runs_it_after_a_warning(gpu, path, caplog, working, factor, said):
    gpu.working, gpu.factor = working, np.float32(factor)
    model = ExportedModel(path, RuntimeConfig())
    assert model.device == torch.device('cpu') and model.engine in ('openvino', 'onnxruntime')
    first = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING'][0]
    assert first.endswith('The CPU runs it.')
    assert said.replace('.its', '(its') in first
