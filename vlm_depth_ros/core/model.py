"""A frozen tower and a head as one network, and the weights file that knows what it is.

A weights file is safetensors: ``head.*`` tensors, ``tower.*`` when the tower is embedded, and one
JSON record in the metadata (`Card`). Nothing is ever unpickled.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import resources
import json
import os
from pathlib import Path

from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
import torch
from torch import nn
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import from_mapping, ModelConfig
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.preprocess import check_version

METADATA_KEY = 'vlm_depth_ros'
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself."""

    name: str
    model: dict
    """`ModelConfig` as plain values."""
    tower_sha256: str
    tower_embedded: bool
    licence: str = 'not stated'
    """Terms of the weights, which are not those of the code."""
    notice: str = ''
    """One line for people who start it."""
    training: dict = field(default_factory=dict)
    """How it was made: recipe, data, seed, versions."""
    format: int = FORMAT


class DepthModel(nn.Module):
    """Tower and head; ``model(image)`` is the whole network."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        check_version(config.preprocess)
        self.config = config
        self.backbone = Backbone(config.tower, config.input_hw, config.pretrained)
        self.head = build_head(config.head, self.backbone.spec)
        self.card: Card | None = None

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """(B, 3, h, w) normalised image to depth in metres at the head's size."""
        return self.head(self.backbone(image, self.head.layers))

    def freeze_tower(self) -> None:
        """Declare the tower frozen: no gradients, evaluation mode, also while the head trains."""
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'DepthModel':
        """Set the mode; a frozen tower stays in evaluation, or its statistics would move."""
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self


def save_model(
    path: Path,
    model: DepthModel,
    *,
    name: str,
    embed_tower: bool,
    licence: str = 'not stated',
    notice: str = '',
    training: dict | None = None,
) -> Card:
    """Write one weights file, complete or not at all; training-only heads stay out of it.

    Raises:
        WeightsError: If the file cannot be written (full disk, no permission).
    """
    head_options = dict(model.config.head)
    if 'aux_heads' in model.head.Config.__dataclass_fields__:
        head_options['aux_heads'] = False
    config = model.config.to_dict() | {'head': head_options}
    card = Card(
        name, config, model.backbone.state_sha256(), embed_tower, licence, notice, training or {}
    )
    tensors = {
        f'head.{k}': v.contiguous()
        for k, v in model.head.state_dict().items()
        if not k.startswith('aux_')
    }
    if embed_tower:
        tower = model.backbone.tower.state_dict()
        tensors |= {f'tower.{k}': v.contiguous() for k, v in tower.items()}
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {METADATA_KEY: json.dumps(asdict(card))})
        partial.chmod(0o644)  # safetensors writes for the owner's eyes only
        partial.replace(path)
    except (OSError, SafetensorError) as err:
        raise WeightsError(
            f'{path}: could not be written ({err}). Free space or choose another place.'
        ) from err
    finally:
        with suppress(OSError):
            partial.unlink()
    return card


def shipped_weights() -> dict[str, Path]:
    """Weights files that come with the package, by name."""
    folder = Path(str(resources.files('vlm_depth_ros') / 'assets'))
    return {p.stem: p for p in sorted(folder.glob('*.safetensors'))}


def find_weights(name_or_path: str | Path) -> Path:
    """The file behind a shipped name or a path.

    Raises:
        WeightsError: If there is none.
    """
    shipped = shipped_weights()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise WeightsError(
            f'weights {str(name_or_path)!r}: neither a file nor a shipped name '
            f'({", ".join(shipped) or "none shipped"}). Give a .safetensors file.'
        )
    return path


def read_card(path: Path) -> Card:
    """The record inside a weights file, without reading its tensors.

    Raises:
        WeightsError: If the file is damaged or not one of ours.
    """
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as err:
        raise WeightsError(
            f'{path}: not a readable safetensors file ({err}). It is truncated or of another '
            'kind; .pt files come in by vlm-depth import-weights.'
        ) from err
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f'{path}: a safetensors file, but not a depth model of this package (no '
            f'{METADATA_KEY!r} record). Expected a file written by vlm-depth train.'
        )
    try:
        record = json.loads(metadata[METADATA_KEY])
        if record.get('format') != FORMAT:
            raise WeightsError(
                f'{path}: format {record.get("format")!r}, this version reads {FORMAT}. '
                'Update the package.'
            )
        return from_mapping(Card, record, str(path))
    except (ValueError, AttributeError, ConfigError) as err:
        raise WeightsError(f'{path}: its record cannot be read ({err}).') from err


def load_model(name_or_path: str | Path) -> DepthModel:
    """Read a weights file strictly: every tensor fits, the tower is the one it was trained on.

    Returns:
        The network on the CPU in evaluation mode, its tower frozen, ``model.card`` filled.

    Raises:
        WeightsError: If the file is missing, damaged, foreign, incomplete, or for another tower.
    """
    path = find_weights(name_or_path)
    card = read_card(path)
    try:
        model = DepthModel(ModelConfig.from_dict(card.model, str(path)))
    except ConfigError as err:
        raise WeightsError(f'{path}: describes a network that cannot be built: {err}') from err
    groups: dict[str, dict[str, torch.Tensor]] = {'head': {}, 'tower': {}}
    try:
        with safe_open(path, 'pt') as file:
            for key in file.keys():
                group, _, rest = key.partition('.')
                if group not in groups:
                    raise WeightsError(f'{path}: unexpected tensor {key!r}.')
                groups[group][rest] = file.get_tensor(key)
    except (SafetensorError, OSError) as err:
        raise WeightsError(f'{path}: damaged ({err}). Fetch it again.') from err
    _load_strictly(model.head, groups['head'], f'{path}: head')
    if card.tower_embedded:
        _load_strictly(model.backbone.tower, groups['tower'], f'{path}: tower')
    elif groups['tower']:
        raise WeightsError(
            f'{path}: has {len(groups["tower"])} tower tensors, but its record says that the '
            'tower is not embedded. The file was edited; write it again.'
        )
    else:
        model.backbone.load_published(model.config.pretrained)
    found = model.backbone.state_sha256()
    if found != card.tower_sha256:
        raise WeightsError(
            f'{path}: its head was trained on another tower (SHA-256 {card.tower_sha256[:12]}…, '
            f'here {found[:12]}…). Use the tower {model.config.tower!r}, tag '
            f'{model.config.pretrained!r}, that it names.'
        )
    model.card = card
    model.freeze_tower()
    return model.eval()


def _load_strictly(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    misfit = [k for k in expected if k in state and tuple(state[k].shape) != expected[k]]
    for problem, keys in (('lacks', missing), ('has unknown', unexpected), ('misfits', misfit)):
        if keys:
            raise WeightsError(
                f'{where} {problem} {len(keys)} tensors ({", ".join(keys[:3])}, …). The file '
                'belongs to another version or network.'
            )
    module.load_state_dict(state)
