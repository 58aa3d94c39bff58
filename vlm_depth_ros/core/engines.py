"""What can run a network besides PyTorch as it is, each checked against it before it may answer.

An engine is called like the network: (B, 3, h, w) normalised image to `HeadOutput`.
docs/engines.md says what each gains and costs.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
import logging
from pathlib import Path
import threading

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from vlm_depth_ros.core import graph_cache
from vlm_depth_ros.core.compiled import Compiled
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.errors import (
    ConfigError,
    DependencyError,
    reason_of,
    VlmDepthError,
    WeightsError,
)
from vlm_depth_ros.core.exact_fp32 import exact_fp32
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported, onnx_program

log = logging.getLogger(__name__)

BOUNDS = {'fp32': 1e-3, 'bf16': 0.05, 'fp16': 0.05}
"""Largest relative difference of depth from eager fp32, by precision."""

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


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    PRECISIONS = ('fp32',)

    def __init__(self, source: ExportedProgram | Path, precision: str):
        """Convert and load; `source` is a graph or an ONNX file."""
        if precision not in self.PRECISIONS:
            raise ConfigError(_precision_refused('onnxruntime', precision, self.PRECISIONS))
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
            model, options, providers=['CPUExecutionProvider']
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """Outputs in the order of the graph."""
        return self._session.run(None, {self._input: image})


CONVERTED: dict[str, Callable[[ExportedProgram | Path, str], Run]] = {
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
        """As `DepthModel.forward`; tensors on the CPU."""
        if want_embedding:
            return self._model(image, True)
        found = self._run(image.contiguous().numpy())
        return HeadOutput(*(torch.from_numpy(answer) for answer in found))


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
    if name in CONVERTED and device.type != 'cpu':
        raise ConfigError(f'engine = {name!r} runs on the CPU, but the device is {device}. Set '
                          'device: cpu, or engine: auto.')  # fmt: skip
    try:
        if name == 'compiled':
            return _checked(name, lambda: Compiled(model), model, precision, device)
        _library(name)
        return _converted(name, model, precision)
    except _UnfitError as err:
        log.warning('engine %s: eager goes on.', err)
        return model


class _UnfitError(Exception):
    """An engine cannot run a network, or answers something else."""


def _converted(name: str, model: nn.Module, precision: str) -> 'Engine':
    """One of `CONVERTED`, from the cache where the graph lies there and is sound."""

    def engine_from(find: Callable[[], ExportedProgram | Path]) -> Engine:
        def make() -> Engine:
            return Engine(CONVERTED[name](find(), precision), model)

        return _checked(name, make, model, precision, torch.device('cpu'))

    slot = graph_cache.slot_of(model)
    if slot.is_file():
        try:
            engine = engine_from(lambda: slot)
        except _UnfitError as err:
            log.warning('%s is dropped, and the network converted again: engine %s.', slot, err)
            graph_cache.drop(slot)
        else:
            graph_cache.mark_used(slot)
            return engine
    return engine_from(lambda: graph_cache.keep(exported(model), slot))


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
    if not difference <= BOUNDS[precision]:
        raise _UnfitError(
            f'{name} in {precision} differs from eager fp32 by {difference:.2g} of the depth, '
            f'more than {BOUNDS[precision]:g}'
        )
    return engine


def largest_difference(
    model: nn.Module, engine: Callable[..., HeadOutput], precision: str, device: torch.device
) -> float:
    """How far an engine is from eager fp32: of one image, and of two of another size.

    Raises:
        WeightsError: If the network itself answers no finite depth.
    """
    spec = model.backbone.spec
    grow = spec.size_multiple if spec.is_hierarchical else 0
    height, width = spec.input_hw
    noise = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in ((1, 3, height, width), (2, 3, height + grow, width + grow)):
        image = torch.randn(shape, generator=noise).to(device)
        with torch.inference_mode(), exact_fp32():
            expected = model(image)
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != 'fp32'):
                found = engine(image)
        largest = max(largest, difference_of(expected, found, model.config.depth_range_m[0]))
    return largest


def difference_of(expected: HeadOutput, found: HeadOutput, nearest_m: float) -> float:
    """Largest difference of depth, relative, or of confidence; infinite where one has no number.

    Args:
        expected: What eager fp32 answers.
        found: What is judged.
        nearest_m: Nothing nearer is divided by.

    Raises:
        WeightsError: If `expected` is nowhere finite.
    """
    depth_m = expected.depth_m
    if not depth_m.isfinite().any():
        raise WeightsError(
            'the network answers no finite depth: nothing to check an engine against. Its '
            'weights are damaged (NaN or Inf); fetch or train them again.'
        )
    differences = [(depth_m - found.depth_m).abs() / depth_m.clamp(min=nearest_m)]
    if (expected.confidence is None) != (found.confidence is None):
        return float('inf')
    if expected.confidence is not None:
        differences.append((expected.confidence - found.confidence).abs())
    return max(d.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item() for d in differences)


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
