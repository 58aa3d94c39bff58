"""Networks behind every engine and precision that is to be measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging

import torch
from torch import nn
from vlm_depth_ros.core.config import ENGINES, RuntimeConfig
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.engines import CONVERTED, Engine, engine_of, installed, OpenVino
from vlm_depth_ros.core.errors import ConfigError, reason_of
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported

PRECISIONS = {
    'cpu': {
        'eager': ('fp32', 'bf16'),
        'compiled': ('fp32', 'bf16'),
        'openvino': tuple(OpenVino.HINTS),
        'onnxruntime': ('fp32',),
    },
    'cuda': {'eager': ('fp32', 'fp16', 'bf16'), 'compiled': ('fp32', 'fp16', 'bf16')},
}
"""What is measured of each engine, by the kind of device."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """One way to run a network."""

    engine: str
    precision: str

    def __str__(self) -> str:
        """As tables call it."""
        return f'{self.engine} {self.precision}'


def choices_of(text: str | None, device: torch.device) -> list[Choice]:
    """Every way to run a network here.

    Args:
        text: Engines, as ``eager,openvino``; None: eager, and what is installed.
        device: Where.

    Raises:
        ConfigError: If one is not known, or not on this device.
    """
    known = PRECISIONS[device.type]
    names = text.split(',') if text else ['eager', *(n for n in installed() if n in known)]
    for name in names:
        if name not in known:
            where = f'on {device.type}' if name in ENGINES else 'at all'
            raise ConfigError(
                f'engines {text!r}: {name!r} is not measured {where}. Expected some of '
                f'{",".join(known)}.'
            )
    return [Choice(name, p) for name in dict.fromkeys(names) for p in known[name]]


class Ready(nn.Module):
    """A network behind an engine, in place of the network itself.

    `DepthEstimator` takes it as a model; what it does besides can then be told from the network.

    Args:
        model: A `DepthModel` on `device`, channels-last as the estimator keeps it.
        choice: How to run it.
        device: Where.

    Raises:
        DependencyError: If the library of the engine is not installed.
    """

    def __init__(self, model: nn.Module, choice: Choice, device: torch.device):
        super().__init__()
        self.model, self.backbone, self.config = model, model.backbone, model.config
        runtime = RuntimeConfig(str(device), choice.precision, engine=choice.engine)
        self._engine = engine_of(model, runtime, choice.precision, device)
        self.is_asked_for = choice.engine == 'eager' or self._engine is not model
        """False where the engine failed its check, so that eager answers."""
        self.clock: Callable[[], float] | None = None
        """In seconds; asked before and after each call where there is one."""
        self.marks: list[float] = []
        """What it said."""

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """As the network, without an embedding."""
        self._mark()
        found = self._engine(image)
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
