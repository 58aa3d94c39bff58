"""What a training recipe says: the stages, the sets, and how the samples are weighed."""

from dataclasses import dataclass, field
from pathlib import Path

from vlm_depth_ros.core.config import from_mapping, require
from vlm_depth_ros.core.errors import ConfigError
import yaml


@dataclass(frozen=True)
class StageConfig:
    """One run of the optimiser."""

    name: str
    frozen_tower: bool
    steps: int
    lr: float
    """Peak of a linear warm-up over 5 % of the steps and a cosine to 1 % of it."""
    weight_decay: float = 0.02
    teacher_weight: float = 0.0
    """Weight of the feature teacher; only where the tower learns."""
    relative_weight: float = 0.0
    """Weight of the loss `losses.relative`, beside SILog."""

    def __post_init__(self):
        """Check bounds."""
        require(self.steps > 0, f'stage {self.name}: steps = {self.steps}, expected at least 1.')
        require(self.lr > 0, f'stage {self.name}: lr = {self.lr}, expected a positive number.')
        require(
            not (self.frozen_tower and self.teacher_weight),
            f'stage {self.name}: a frozen tower cannot follow a teacher.',
        )


@dataclass(frozen=True)
class TrainConfig:
    """How a weights file is made; travels inside it as a record."""

    name: str
    model: dict
    sets: tuple[dict, ...]
    """`SetConfig` each."""
    select: dict
    """The rows that choose the checkpoint; never those that judge it."""
    stages: tuple[dict, ...]
    """`StageConfig` each."""
    batch: int = 16
    cache_hw: tuple[int, int] = (240, 320)
    """Working size of the images in memory."""
    augment: dict = field(default_factory=dict)
    """`AugmentConfig`."""
    gradient_weight: float = 2.0
    aux_weights: tuple[float, ...] = (0.1, 0.05, 0.0)
    """SPACE-CLIP's weights of the auxiliary heads, coarse to fine."""
    ema: float = 0.998
    """Decay of the averaged weights that are judged and saved."""
    check_every: int = 200
    """Steps between checks on the selection rows."""
    seed: int = 42
    teacher: str | None = None
    """ONNX file, relative to the data root."""
    licence: str = 'not stated'
    notice: str = ''

    def __post_init__(self):
        """Check counts."""
        for what in ('sets', 'stages'):
            require(len(getattr(self, what)) > 0, f'{self.name}: {what} is empty.')
        for what in ('batch', 'check_every'):
            value = getattr(self, what)
            require(value > 0, f'{self.name}: {what} = {value}, expected at least 1.')
        require(0 <= self.ema < 1, f'{self.name}: ema = {self.ema}, expected 0 to below 1.')


def read_recipe(path: Path) -> TrainConfig:
    """Read a YAML recipe such as ``config/train/pocket.yaml``.

    Raises:
        ConfigError: If the file cannot be read, or an option is unknown or out of bounds.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f'{path}: not a readable YAML file ({err}).') from err
    return from_mapping(TrainConfig, options, str(path))
