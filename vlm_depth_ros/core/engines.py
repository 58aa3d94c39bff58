"""What can run a network besides PyTorch as it is, each checked against it before it may answer.

An engine is called like the network: (B, 3, h, w) normalised image to `HeadOutput`.
docs/engines.md says what each gains and costs.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
import copy
from importlib.util import find_spec
import logging
from pathlib import Path
import threading

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from vlm_depth_ros.core import graph_cache
from vlm_depth_ros.core.agreement import largest_difference, too_far
from vlm_depth_ros.core.compiled import Compiled
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError, reason_of, VlmDepthError
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported, onnx_program

log = logging.getLogger(__name__)

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""(B, 3, h, w) float32 to depth and, where there is one, confidence."""


class OpenVino:
    """OpenVINO on the CPU; batch and sizes stay open, which cost no time in our measurements."""

    HINTS = {'fp32': 'f32', 'bf16': 'bf16'}

    def __init__(self, source: ExportedProgram | Path, precision: str):
        """Convert and compile; `source` is a graph or an ONNX file."""
        if precision not in self.HINTS:
            raise ConfigError(_precision_refused('openvino', precision, self.HINTS))
        openvino = _library('openvino')
        core = openvino.Core()
        is_file = isinstance(source, Path)
        graph = core.read_model(source) if is_file else openvino.convert_model(source)
        properties = {
            'INFERENCE_PRECISION_HINT': self.HINTS[precision],
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        }
        compiled = core.compile_model(graph, 'CPU', properties)
        self._request = compiled.create_infer_request()
        self._count = len(compiled.outputs)
        self._lock = threading.Lock()

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """Outputs in the order of the graph."""
        with self._lock:  # The request is one, and the next call overwrites its outputs.
            found = self._request.infer([image], share_inputs=True)
            return [found[i].copy() for i in range(self._count)]


CPU = torch.device('cpu')


def gpu_providers(precision: str, device: torch.device) -> list[tuple[str, dict[str, object]]]:
    """What ONNX Runtime here was built with for a GPU, with options: TensorRT, then CUDA.

    Empty unless onnxruntime-gpu is installed. TensorRT's engines are kept in the user's cache;
    ONNX Runtime makes those anew that are for another GPU or another TensorRT.
    """
    which, is_half = {'device_id': device.index or 0}, precision == 'fp16'
    options = {
        'TensorrtExecutionProvider': which | {
            'trt_fp16_enable': is_half, 'trt_engine_cache_enable': True,
            'trt_engine_cache_path': str(graph_cache.cache_folder('tensorrt')),
        },
        'CUDAExecutionProvider': which | {'use_tf32': int(is_half)},
    }  # fmt: skip
    offered = _library('onnxruntime').get_available_providers()
    return [(name, options[name]) for name in options if name in offered]


class OnnxRuntime:
    """ONNX Runtime on the CPU, or on a GPU, where what TensorRT cannot do falls to CUDA."""

    PRECISIONS = ('fp32',)
    GPU_PRECISIONS = ('fp32', 'fp16')

    def __init__(self, source: ExportedProgram | Path, precision: str, device: torch.device = CPU):
        """Convert and load; `source` is a graph or an ONNX file.

        Raises:
            RuntimeError: If no GPU can be used though one is asked for.
        """
        on_gpu = device.type != 'cpu'
        known = self.GPU_PRECISIONS if on_gpu else self.PRECISIONS
        if precision not in known:
            raise ConfigError(_precision_refused('onnxruntime', precision, known))
        providers = []
        if on_gpu:
            with suppress(OSError):  # TensorRT makes but the last folder of a path.
                graph_cache.cache_folder('tensorrt').mkdir(parents=True, exist_ok=True)
            providers = gpu_providers(precision, device)
        onnxruntime = _library('onnxruntime')
        if isinstance(source, Path):
            model = str(source)
        else:
            model = onnx_program(source).model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # A thread that waits by spinning takes the core from who else works on the machine.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model, options, providers=[*providers, 'CPUExecutionProvider']
        )
        # One whose libraries are missing (cuDNN, TensorRT) is left out without an error.
        used = self._session.get_providers()[0]
        if on_gpu and used == 'CPUExecutionProvider':
            raise RuntimeError('its libraries for CUDA are missing or do not fit')
        if on_gpu:
            log.info('onnxruntime runs by %s.', used)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """Outputs in the order of the graph."""
        return self._session.run(None, {self._input: image})


CONVERTED: dict[str, Callable[..., Run]] = {
    'openvino': OpenVino,
    'onnxruntime': OnnxRuntime,
}
"""What runs a graph of ours or an ONNX file, the faster one first."""


class Engine:
    """What runs in another library, behind the call of a network.

    Args:
        run: One of `CONVERTED`.
        model: The network itself, which still answers where an embedding is asked for.
    """

    def __init__(self, run: Run, model: nn.Module | None = None):
        self._run = run
        self._model = model

    def __call__(self, image: torch.Tensor, want_embedding: bool = False) -> HeadOutput:
        """As `DepthModel.forward`; from a GPU through the host and back."""
        if want_embedding:
            return self._model(image, True)
        found = self._run(image.cpu().contiguous().numpy())
        return HeadOutput(*(torch.from_numpy(answer).to(image.device) for answer in found))


def engine_of(
    model: nn.Module, runtime: RuntimeConfig, precision: str, device: torch.device
) -> Callable[..., HeadOutput]:
    """What is to run the network: `model` itself unless `runtime` names another engine.

    Args:
        model: On `device`, in evaluation mode.
        runtime: Names the engine.
        precision: What ``auto`` of `runtime` became.
        device: Where the estimator works.

    Raises:
        DependencyError: If the library of the engine is not installed.
        ConfigError: If the engine does not know the device or the precision.
        WeightsError: If the network itself answers nothing finite.
    """
    name = runtime.engine_name
    if name == 'eager':
        return model
    on_gpu = device.type != 'cpu'
    if on_gpu and (
        name == 'openvino' or (name == 'onnxruntime' and not gpu_providers(precision, device))
    ):
        raise ConfigError(
            f'engine = {name!r} runs on the CPU, but the device is {device}. Set device: cpu, or '
            'engine: auto; or install onnxruntime-gpu and set engine: onnxruntime.'
        )
    try:
        if name == 'compiled':
            return _checked(name, lambda: Compiled(model), model, precision, device)
        _library(name)
        return _converted(name, model, precision, device)
    except _UnfitError as err:
        log.warning('engine %s: eager goes on.', err)
        return model


class _UnfitError(Exception):
    """An engine cannot run a network, or answers something else."""


def _converted(
    name: str, model: nn.Module, precision: str, device: torch.device
) -> 'Engine':
    """One of `CONVERTED`, from the cache where the graph lies there and is sound."""
    where = () if device.type == 'cpu' else (device,)
    # A graph has no device: that of a copy on the CPU is what a CPU would find in the cache too.
    source = copy.deepcopy(model).cpu() if where else model

    def engine_from(find: Callable[[], ExportedProgram | Path]) -> Engine:
        def make() -> Engine:
            return Engine(CONVERTED[name](find(), precision, *where), model)

        return _checked(name, make, model, precision, device)

    slot = graph_cache.slot_of(source)
    if slot.is_file():
        try:
            engine = engine_from(lambda: slot)
        except _UnfitError as err:
            log.warning('%s is dropped, and the network converted again: engine %s.', slot, err)
            graph_cache.drop(slot)
        else:
            graph_cache.mark_used(slot)
            return engine
    return engine_from(lambda: graph_cache.keep(exported(source), slot))


def _checked(
    name: str,
    make: Callable[[], Callable[..., HeadOutput]],
    model: nn.Module,
    precision: str,
    device: torch.device,
) -> Callable[..., HeadOutput]:
    """What `make` makes, if it answers as eager fp32 does."""
    try:
        engine = make()
        difference = largest_difference(model, engine, precision, device)
    except VlmDepthError:
        raise
    except Exception as err:  # compilers and converters fail in ways of their own
        raise _UnfitError(f'{name} cannot run this network ({reason_of(err)})') from err
    if trouble := too_far(difference, precision):
        raise _UnfitError(f'{name} {trouble}')
    return engine


def installed() -> list[str]:
    """Those of `CONVERTED` whose library is here, in that order."""
    return [name for name in CONVERTED if _is_installed(name)]


def convertible(precision: str) -> list[str]:
    """Those of `installed` that know a precision; none where nothing here writes ONNX."""
    if not all(_is_installed(name) for name in ('onnx', 'onnxscript')):
        return []
    known = {'openvino': OpenVino.HINTS, 'onnxruntime': OnnxRuntime.PRECISIONS}
    return [name for name in installed() if precision in known[name]]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec, or None in its place
        return False


def _library(name: str):
    """Import the library of an engine.

    Raises:
        DependencyError: If it is not installed.
    """
    try:
        if name == 'openvino':
            import openvino as library
        else:
            import onnxruntime as library
    except ImportError as err:
        raise DependencyError(
            f"engine = {name!r}: {err}. Install it: pip install 'vlm_depth_ros[engines]', or set "
            'engine: auto.'
        ) from err
    return library


def _precision_refused(engine: str, precision: str, known: Sequence[str]) -> str:
    return (
        f'precision = {precision!r}: engine {engine} takes one of {tuple(known)}. Set one of '
        'them, or engine: auto.'
    )
