"""A network that ``vlm-depth export`` wrote as ONNX: what it says of itself, and running it.

The record is read without any library, from the outermost fields of the file (protocol buffers:
a varint of field number and kind, then the content; ``ModelProto`` of ONNX keeps its
``metadata_props`` in field 14).
"""

from collections.abc import Iterator
from dataclasses import asdict
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import torch
from torch import nn
from vlm_depth_ros.core.agreement import difference_of, too_far
from vlm_depth_ros.core.config import from_mapping, ModelConfig, RuntimeConfig
from vlm_depth_ros.core.devices import (
    capability_of,
    choose_device,
    num_cuda,
    precision_on,
    warn_of_idle_gpu,
)
from vlm_depth_ros.core.engines import CONVERTED, CPU, Engine, gpu_providers, installed
from vlm_depth_ros.core.errors import (
    ConfigError,
    DependencyError,
    reason_of,
    VlmDepthError,
    WeightsError,
)
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import Card, DepthModel, FORMAT, METADATA_KEY

log = logging.getLogger(__name__)

SUFFIX = '.onnx'
SPEC_KEY = f'{METADATA_KEY}_tower'
METADATA_FIELD = 14


class ExportedModel(nn.Module):
    """An exported network in place of a `DepthModel`: depth and confidence, no embedding.

    Args:
        path: Written by ``vlm-depth export``.
        runtime: Names the engine; ``auto`` is the first of `CONVERTED` that is installed.

    Raises:
        WeightsError: If the file is damaged or foreign, or answers nothing finite.
        ConfigError: If `runtime` asks for what an exported file cannot have.
        DependencyError: If no engine for it is installed.
    """

    def __init__(self, path: Path, runtime: RuntimeConfig):
        super().__init__()
        metadata = read_metadata(path)
        self.card, self.config, spec = read_record(metadata, path)
        self.backbone = SimpleNamespace(spec=spec)
        self.device = _gpu_of(runtime) or CPU
        """Where it takes images and answers."""
        if self.device != CPU:
            try:
                return self._load(path, 'onnxruntime', runtime)
            except WeightsError as err:
                log.warning('%s The CPU runs it.', err)
            self.device = CPU
        name = _engine_name(runtime, path)
        warn_of_idle_gpu(path, runtime.device, num_cuda())
        self._load(path, name, runtime)

    def _load(self, path: Path, name: str, runtime: RuntimeConfig) -> None:
        """Make the engine and look at what it answers, on a GPU beside what the CPU does."""
        self.engine = name
        """What runs it."""
        device, image = self.device, torch.zeros(1, 3, *self.backbone.spec.input_hw)
        precision = precision_on(device.type, runtime.precision, capability_of(device))
        where = () if device == CPU else (device,)
        try:
            self._engine = Engine(CONVERTED[name](path, precision, *where))
            found = self._engine(image)
            expected = Engine(CONVERTED[name](path, 'fp32'))(image) if where else found
        except VlmDepthError:
            raise
        except Exception as err:  # each library has errors of its own
            raise WeightsError(
                f'{path}: {name} cannot run it ({reason_of(err)}). Export it again, or choose '
                'another engine.'
            ) from err
        if not expected.depth_m.isfinite().any():
            raise WeightsError(
                f'{path}: answers no finite depth. It is damaged; export it again.'
            )
        if where:
            difference = difference_of(expected, found, self.config.depth_range_m[0])
            if trouble := too_far(difference, precision):
                raise WeightsError(f'{path}: {name} on {device} {trouble}.')

    @property
    def head(self) -> nn.Module:
        """Not there.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            'an exported network has no head and tower apart, so it takes no features. Use its '
            '.safetensors file.'
        )

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """As `DepthModel.forward`, without an embedding."""
        return self._engine(image)


def record_of(model: DepthModel) -> dict[str, str]:
    """What `model` says of itself, as metadata of an ONNX file; `read_record` reads it."""
    spec = asdict(model.backbone.spec) | {'embedding_width': None}
    return {METADATA_KEY: json.dumps(asdict(model.card)), SPEC_KEY: json.dumps(spec)}


def read_record(metadata: dict[str, str], path: Path) -> tuple[Card, ModelConfig, BackboneSpec]:
    """The inverse of `record_of`.

    Raises:
        WeightsError: If there is none, or it cannot be read.
    """
    if not {METADATA_KEY, SPEC_KEY} <= set(metadata):
        raise WeightsError(
            f'{path}: an ONNX file, but no depth model of this package (no {METADATA_KEY!r} '
            'record). Expected a file written by vlm-depth export.'
        )
    try:
        record = json.loads(metadata[METADATA_KEY])
        if record.get('format') != FORMAT:
            raise WeightsError(
                f'{path}: format {record.get("format")!r}, this version reads {FORMAT}. '
                'Update the package.'
            )
        card = from_mapping(Card, record, str(path))
        spec = from_mapping(BackboneSpec, json.loads(metadata[SPEC_KEY]), str(path))
        return card, ModelConfig.from_dict(card.model, str(path)), spec
    except (ValueError, AttributeError, ConfigError) as err:
        raise WeightsError(f'{path}: its record cannot be read ({err}).') from err


def read_metadata(path: Path) -> dict[str, str]:
    """``metadata_props`` of an ONNX file, without reading its graph.

    Raises:
        WeightsError: If the file is truncated or of another kind.
    """
    try:
        with path.open('rb') as file:
            size = path.stat().st_size
            if not size:
                raise ValueError('empty')
            entries = [dict(_fields(entry)) for entry in _wanted(file, size)]
        return {entry[1].decode(): entry[2].decode() for entry in entries}
    except (OSError, ValueError, KeyError, IndexError) as err:
        raise WeightsError(
            f'{path}: not a readable ONNX file ({err}). It is truncated or of another kind; '
            'write it again by vlm-depth export.'
        ) from err


def _wanted(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Contents of the outermost fields `METADATA_FIELD`; the others are stepped over."""
    while file.tell() < size:
        number, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
            continue
        length = _varint(file) if kind == 2 else {1: 8, 5: 4}.get(kind)
        if length is None or not number or file.tell() + length > size:
            raise ValueError(f'field {number} of kind {kind} does not fit at byte {file.tell()}')
        if number == METADATA_FIELD:
            yield file.read(length)
        else:
            file.seek(length, 1)


def _fields(entry: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each field of a short message of strings."""
    at = 0
    while at < len(entry):
        number, at = entry[at] >> 3, at + 1
        length = shift = 0
        while True:
            length, more, at = length | (entry[at] & 127) << shift, entry[at] > 127, at + 1
            shift += 7
            if not more:
                break
        yield number, entry[at : at + length]
        at += length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError('it ends within a number')
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError('a number of more than 64 bits')


def _gpu_of(runtime: RuntimeConfig) -> torch.device | None:
    """The GPU that ONNX Runtime is to use; None: the CPU, or `_engine_name` says why not."""
    wants = runtime.device != 'cpu' and runtime.engine in ('auto', 'onnxruntime')
    if not (wants and num_cuda() and 'onnxruntime' in installed()):
        return None
    device = choose_device(runtime.device, num_cuda())
    return device if gpu_providers('fp32', device) else None


def _engine_name(runtime: RuntimeConfig, path: Path) -> str:
    if runtime.device.startswith('cuda'):
        raise ConfigError(
            f'device = {runtime.device!r}: {path} is run on the CPU. Set device: cpu, or give '
            'the .safetensors file.'
        )
    if runtime.engine == 'auto' and runtime.compile != 'on':
        if not installed():
            raise DependencyError(
                f'{path}: an ONNX file takes one of {", ".join(CONVERTED)}, and none is '
                "installed: pip install 'vlm_depth_ros[engines]'."
            )
        return installed()[0]
    if runtime.engine_name not in CONVERTED:
        raise ConfigError(
            f'engine = {runtime.engine_name!r} cannot run {path}: expected one of '
            f'{tuple(CONVERTED)}, or auto.'
        )
    return runtime.engine_name
