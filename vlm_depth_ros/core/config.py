"""The dataclasses that describe a network and how to run it; strict loading from a mapping."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
import difflib
import math
import re
from typing import Any, TypeVar

from vlm_depth_ros.core.errors import ConfigError

T = TypeVar('T')


def from_mapping(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a mapping; unknown keys are refused, naming the nearest.

    Args:
        cls: A dataclass whose ``__post_init__`` checks its own values.
        options: Plain values, as read from YAML or JSON; lists become tuples.
        where: What the mapping is, for the message (``'head'``, ``'config/train/x.yaml'``).

    Raises:
        ConfigError: If a key is unknown or missing, or a value is refused.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f'{where}: expected a mapping of options, got {type(options).__name__}.')
    names = [f.name for f in fields(cls)]
    for key in options:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else f' Options: {", ".join(names)}.'
            raise ConfigError(f'{where}: {key!r} is not an option.{hint}')
    plain = {k: _tuples(v) for k, v in options.items()}
    try:
        return cls(**plain)
    except TypeError as err:
        raise ConfigError(f'{where}: {err}. Options: {", ".join(names)}.') from err


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_within(options: object, bounds: dict[str, tuple[float, float]]) -> None:
    """Refuse a field of `options` that is no number from low to high; raises ConfigError."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name)
        require(
            isinstance(value, int | float) and low <= value <= high,
            f'{name} = {value!r}: expected a number from {low:g} to {high:g}.',
        )


@dataclass(frozen=True)
class TrainingCamera:
    """The camera that depth was learned for: focal lengths over image width and height."""

    fx_per_width: float
    fy_per_height: float

    def __post_init__(self):
        """Refuse focal lengths that are no positive number."""
        for name in ('fx_per_width', 'fy_per_height'):
            value = getattr(self, name)
            require(
                isinstance(value, int | float) and math.isfinite(value) and value > 0,
                f'camera.{name} = {value!r}: expected a positive number.',
            )

    @property
    def focal(self) -> float:
        """One normalised focal length: the geometric mean of both axes."""
        return math.sqrt(self.fx_per_width * self.fy_per_height)


@dataclass(frozen=True)
class ModelConfig:
    """What a network is; travels inside the weights file and nowhere else."""

    tower: str
    """Architecture name: one of our own configs in ``assets/``, or any that open_clip knows."""
    head: dict = field(default_factory=lambda: {'name': 'space_clip'})
    """Head name and its options."""
    pretrained: str | None = None
    """open_clip tag of the frozen tower's weights; None when the file embeds the tower."""
    input_hw: tuple[int, int] = (224, 224)
    """Size of the network input, height first."""
    depth_range_m: tuple[float, float] = (0.001, 10.0)
    """Depths that the head was trained on."""
    camera: TrainingCamera | None = None
    """Camera the depth scale belongs to; None means unknown: no focal correction."""
    size_by_focal: float = 0.0
    """How much of a difference in focal length the size of the input takes up, as an exponent; the
    rest is a factor on depth. 0: the input is always `input_hw`. Only towers of any size."""
    preprocess: str = 'squash-bicubic-v1'
    """Name and version of the preprocessing in ``core.preprocess``."""
    tower_activation: str | None = None
    """``gelu_tanh`` where the tower was trained with it and open_clip builds another (SigLIP as
    Hugging Face runs it); None: as open_clip builds it."""

    def __post_init__(self):
        """Check names, sizes and ranges."""
        require(
            isinstance(self.tower, str), f'tower = {self.tower!r}: expected an architecture name.'
        )
        require(
            isinstance(self.head, Mapping) and 'name' in self.head,
            f"head = {self.head!r}: expected a mapping with 'name'.",
        )
        bounds = self.depth_range_m
        require(
            len(bounds) == 2 and 0 < bounds[0] < bounds[1] < math.inf,
            f'depth_range_m = {bounds}: expected 0 < minimum < maximum, two numbers of metres.',
        )
        require(
            len(self.input_hw) == 2 and all(isinstance(n, int) and n >= 16 for n in self.input_hw),
            f'input_hw = {self.input_hw}: expected two integers of at least 16, height first.',
        )
        require(
            0 <= self.size_by_focal <= 1,
            f'size_by_focal = {self.size_by_focal}: expected 0 to 1.',
        )

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = 'model') -> 'ModelConfig':
        """Read the form that `to_dict` writes."""
        if isinstance(options, Mapping) and options.get('camera') is not None:
            camera = from_mapping(TrainingCamera, options['camera'], f'{where}.camera')
            options = {**options, 'camera': camera}
        return from_mapping(cls, options, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


PRECISIONS = ('auto', 'fp32', 'fp16', 'bf16')
COMPILES = ('auto', 'off', 'on')
ENGINES = ('auto', 'eager', 'compiled', 'openvino', 'onnxruntime')


@dataclass(frozen=True)
class RuntimeConfig:
    """How to run a network here; never stored with the weights."""

    device: str = 'auto'
    """``auto`` takes CUDA where there is one; ``cuda:1`` names a device."""
    precision: str = 'auto'
    """``auto`` is fp16 on a GPU of compute capability 7.0 or more, else fp32."""
    compile: str = 'auto'
    """``on`` is another word for the engine ``compiled``; ``auto`` and ``off`` are not."""
    engine: str = 'auto'
    """What runs the network (`core.engines`). ``auto`` is eager, which needs no conversion at
    start, on a GPU as CUDA graphs; on a CPU the node replaces it while it runs, if another is
    faster (`core.trial`). Of an exported file ``auto`` is the first of openvino and onnxruntime
    that is installed."""
    tower_weights: str = ''
    """File with the frozen tower, in open_clip's or Hugging Face's naming. Empty: what the weights
    file embeds, else the towers folder, else open_clip's download."""

    def __post_init__(self):
        """Check every choice."""
        require(
            re.fullmatch(r'auto|cpu|cuda(:\d+)?', str(self.device)) is not None,
            f'device = {self.device!r}: expected auto, cpu, cuda or cuda:N.',
        )
        for name, choices in (
            ('precision', PRECISIONS), ('compile', COMPILES), ('engine', ENGINES)
        ):  # fmt: skip
            value = getattr(self, name)
            require(value in choices, f'{name} = {value!r}: expected one of {choices}.')
        allowed = {'on': ('auto', 'compiled'), 'off': tuple(e for e in ENGINES if e != 'compiled')}
        require(
            self.engine in allowed.get(self.compile, ENGINES),
            f'engine = {self.engine!r} with compile = {self.compile!r}: they contradict each '
            'other. Leave compile at auto.',
        )

    @property
    def engine_name(self) -> str:
        """The engine that runs a weights file, or runs it first."""
        if self.engine != 'auto':
            return self.engine
        return 'compiled' if self.compile == 'on' else 'eager'
