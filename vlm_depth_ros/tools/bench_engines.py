"""Networks behind every engine and precision that is to be measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
from types import SimpleNamespace

import torch
from torch import nn
from vlm_depth_ros.core.config import ENGINES
from vlm_depth_ros.core.cuda_graphs import CudaGraphs
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.engines import CONVERTED, Engine, installed, OnnxRuntime, OpenVino
from vlm_depth_ros.core.errors import ConfigError, reason_of
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported

PRECISIONS = {
    'cpu': {
        'eager': ('fp32', 'bf16'),
        'compiled': ('fp32', 'bf16'),
        'openvino': tuple(OpenVino.HINTS),
        'onnxruntime': OnnxRuntime.PRECISIONS,
    },
    'cuda': dict.fromkeys(('eager', 'auto', 'compiled'), ('fp32', 'fp16', 'bf16')),
}
"""What is measured of each engine, by the kind of device; ``auto`` is eager as CUDA graphs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """One way to run a network."""

    engine: str
    precision: str

    def __str__(self) -> str:
        """As tables call it."""
        return f'{self.engine} {self.precision}'


def choices_of(
    text: str | None, device: torch.device, is_exported: bool = False
) -> list[Choice]:
    """Every way to run a network here.

    Args:
        text: Engines, as ``eager,openvino``; None: eager, and what is installed.
        device: Where.
        is_exported: Whether it is a file that ``vlm-depth export`` wrote.

    Raises:
        ConfigError: If one is not known, or not on this device, or nothing runs an exported file.
    """
    known = PRECISIONS[device.type]
    if is_exported:
        known = {name: precisions for name, precisions in known.items() if name in CONVERTED}
    found = [name for name in ('eager', *installed()) if name in known]
    names = text.split(',') if text else found
    if not names:
        raise ConfigError(
            f'an exported file takes one of {", ".join(CONVERTED)}, on the CPU, and none is here: '
            "pip install 'vlm_depth_ros[engines]', --device cpu, or give the .safetensors file."
        )
    for name in names:
        if name not in known:
            where = f'on {device.type}' if name in ENGINES else 'at all'
            where = 'for an exported file' if is_exported and name in ENGINES else where
            raise ConfigError(
                f'engines {text!r}: {name!r} is not measured {where}. Expected some of '
                f'{",".join(known) or "none"}.'
            )
    return [Choice(name, p) for name in dict.fromkeys(names) for p in known[name]]


class Ready:
    """What runs a network for an estimator, in its place: its share of the time can be told.

    Args:
        network: What it stands for.
    """

    def __init__(self, network: Callable[..., HeadOutput]):
        self.network = network
        self.clock: Callable[[], float] | None = None
        """In seconds; asked before and after each call where there is one."""
        self.marks: list[float] = []
        """What it said."""

    def __call__(self, image: torch.Tensor) -> HeadOutput:
        """As the network, without an embedding."""
        self._mark()
        found = self.network(image)
        self._mark()
        return found

    def _mark(self) -> None:
        if self.clock is not None:
            self.marks.append(self.clock())


class Foreign(nn.Module):
    """A network of others, in the form that our export and engines take.

    Args:
        model: Its module.
        depth_of: Calls it: (B, 3, h, w) to (B, 1, h', w').
        spec: With ``input_hw`` and ``is_hierarchical`` of a `BackboneSpec`.
    """

    def __init__(self, model: nn.Module, depth_of: Callable, spec: object):
        super().__init__()
        self.model, self._depth_of = model, depth_of
        self.backbone = nn.Module()
        self.backbone.spec = spec
        self.config = SimpleNamespace(depth_range_m=(0.1, 10.0))  # for what compares answers

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """What `depth_of` says."""
        return HeadOutput(self._depth_of(self.model, image))


def unchecked(
    model: nn.Module, choices: Sequence[Choice]
) -> tuple[dict[Choice, Callable[[torch.Tensor], HeadOutput]], dict[Choice, str]]:
    """A network behind each engine, without a look at what that answers: weights are random.

    Args:
        model: With ``backbone.spec``, in evaluation mode.
        choices: How to run it.

    Returns:
        The networks, and why some of them cannot run.
    """
    runs, failed, graph = {}, {}, None
    for choice in choices:
        try:
            if choice.engine == 'eager':
                runs[choice] = model
            elif choice.engine == 'auto':
                runs[choice] = CudaGraphs(model, choice.precision, type(model).__name__)
            elif choice.engine == 'compiled':
                runs[choice] = torch.compile(model)
            else:
                graph = graph or exported(model)
                runs[choice] = Engine(CONVERTED[choice.engine](graph, choice.precision))
        except Exception as err:  # converters fail in ways of their own
            failed[choice] = reason_of(err)
            log.warning('%s: %s', choice, failed[choice])
    return runs, failed


def call_of(
    network: Callable[[torch.Tensor], HeadOutput], image: torch.Tensor, precision: str
) -> Callable[[], HeadOutput]:
    """A call of a network alone, in the precision that the estimator would run it in."""

    @torch.inference_mode()
    def call() -> HeadOutput:
        with torch.autocast(image.device.type, DTYPES[precision], enabled=precision != 'fp32'):
            return network(image)

    return call
