"""What a training recipe says: the stages, the sets, and how the samples are weighed."""

from dataclasses import dataclass, field
from pathlib import Path

from vlm_depth_ros.core.config import from_mapping, require
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.tools.losses import SSIM_WINDOWS
from vlm_depth_ros.tools.metrics import PROTOCOLS
from vlm_depth_ros.tools.samples import VIEWS
import yaml

PRECISIONS = ('bf16', 'fp32')


@dataclass(frozen=True)
class StageConfig:
    """One run of the optimiser."""

    name: str
    lr: float
    """Peak of a linear warm-up over 5 % of the steps and a cosine to 1 % of it."""
    constant_lr: bool = False
    """`lr` from the first step to the last instead."""
    frozen_tower: bool = True
    """False also trains the tower; only for one of our own."""
    steps: int | None = None
    """Steps of random samples, sets by their weights; or `epochs`."""
    epochs: int | None = None
    """Shuffled passes over all samples; the rest that fills no batch is left out of a pass."""
    weight_decay: float = 0.02
    decay_all: bool = False
    """Weight decay on norms and biases too."""
    teacher_weight: float = 0.0
    """Weight of the feature teacher; only where the tower learns."""
    only_features: bool = False
    """Learn the feature teacher's maps and nothing else: no head runs, three times as many views
    in the same time. The selection rows judge how well they are met."""
    is_guide: bool = False
    """Train a depth head on the feature teacher's own maps instead; it is not shipped, but guides
    later stages."""
    guide_weight: float = 0.0
    """Weight of the difference of log depth from that of the guide."""
    mixed: float = 0.0
    """Share of views that are blended with another one; only teacher and guide know their truth
    (Beyer et al. 2022)."""
    relative_weight: float = 0.0
    """Weight of the loss `losses.relative`, beside SILog."""

    def __post_init__(self):
        """Check bounds."""
        where = f'stage {self.name}'
        require(
            (self.steps is None) != (self.epochs is None),
            f'{where}: steps = {self.steps}, epochs = {self.epochs}, expected one of the two.',
        )
        for what in ('steps', 'epochs'):
            value = getattr(self, what)
            require(
                value is None or value > 0, f'{where}: {what} = {value}, expected at least 1.'
            )
        require(self.lr > 0, f'{where}: lr = {self.lr}, expected a positive number.')
        require(
            not (self.frozen_tower and self.teacher_weight),
            f'{where}: a frozen tower cannot follow a teacher.',
        )
        require(
            self.frozen_tower or not self.is_guide,
            f'{where}: is_guide, but frozen_tower = false: the teacher itself does not learn.',
        )
        require(
            self.teacher_weight or not self.only_features,
            f'{where}: only_features, but teacher_weight = {self.teacher_weight}.',
        )
        require(0 <= self.mixed <= 1, f'{where}: mixed = {self.mixed}, expected 0 to 1.')
        require(
            self.teacher_weight or self.guide_weight or not self.mixed,
            f'{where}: mixed = {self.mixed}, but nobody knows the truth of blended views. Give '
            'teacher_weight or guide_weight.',
        )


def is_taught(stage: StageConfig) -> bool:
    """Whether the ONNX teacher runs in this stage."""
    return bool(stage.is_guide or stage.teacher_weight or stage.guide_weight)


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
    tower_from: str | None = None
    """Shipped name or weights file whose tower to train on, if it is not a published one."""
    held_out: tuple[dict, ...] = ()
    """`SetConfig` each: rows that judge the result. Training refuses to find one of their images
    among those that train or choose."""
    confidence: dict | None = None
    """`ConfidenceConfig`: how the confidence of a head that has one is trained in the end."""
    batch: int = 16
    """Samples of a step, in all processes together."""
    accumulate: int = 1
    """Parts of a batch that go through the network one after the other. Losses and the statistics
    of normalisations are those of a part; gradients are averaged."""
    precision: str = 'bf16'
    """``bf16`` (autocast) or ``fp32``."""
    cache_hw: tuple[int, int] = (240, 320)
    """Working size of the images in memory."""
    views: str = 'camera'
    """How a sample becomes what the network sees: a key of `samples.VIEWS`."""
    augment: dict = field(default_factory=dict)
    """Options of these views: `AugmentConfig` for ``camera``."""
    feature_views: int = 0
    """Fixed views of each image, whose features of the frozen tower are computed once and kept on
    disk; 0: a fresh view at every draw, and nothing is kept."""
    silog_weight: float = 1.0
    ssim_weight: float = 0.0
    ssim_windows: str = 'whole'
    """``whole``: only windows without a missing pixel count; ``all``: as published."""
    gradient_weight: float = 2.0
    aux_weights: tuple[float, ...] = (0.1, 0.05, 0.0)
    """SPACE-CLIP's weights of the auxiliary heads, coarse to fine."""
    moa_weight: float = 0.0
    """Weight of the loss `losses_moa.moa_loss`, for the head ``moa_depthclip``."""
    ema: float = 0.998
    """Decay of the averaged weights that are judged beside the raw ones."""
    ema_from_start: bool = False
    """Average from the untrained state on; False: from the first step's."""
    check_every: int = 200
    """Steps between checks on the selection rows; in a stage of epochs they follow each epoch."""
    protocol: str = 'nyu'
    """By which the selection rows judge: a key of `metrics.PROTOCOLS`."""
    seed: int = 42
    teacher: str | None = None
    """ONNX file, relative to the data root."""
    licence: str = 'not stated'
    notice: str = ''

    def __post_init__(self):
        """Check counts and names."""
        for what in ('sets', 'stages'):
            require(len(getattr(self, what)) > 0, f'{self.name}: {what} is empty.')
        for what in ('batch', 'check_every', 'accumulate'):
            value = getattr(self, what)
            require(value > 0, f'{self.name}: {what} = {value}, expected at least 1.')
        require(
            self.feature_views >= 0,
            f'{self.name}: feature_views = {self.feature_views}, expected 0 or more.',
        )
        require(0 <= self.ema < 1, f'{self.name}: ema = {self.ema}, expected 0 to below 1.')
        for what, known in (
            ('precision', PRECISIONS),
            ('views', tuple(VIEWS)),
            ('ssim_windows', SSIM_WINDOWS),
            ('protocol', tuple(PROTOCOLS)),
        ):
            value = getattr(self, what)
            require(value in known, f'{self.name}: {what} = {value!r}, expected one of {known}.')


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
