"""A frozen tower and a head as one network, and the weights file that knows what it is.

A weights file is safetensors: ``head.*`` tensors, ``tower.*`` when the tower is embedded, and one
JSON record in the metadata (`Card`). Nothing is ever unpickled.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
import json
import logging
import os
from pathlib import Path

from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
import torch
from torch import nn
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.blip2_tower import BLIP2_TOWERS, Blip2Backbone
from vlm_depth_ros.core.config import from_mapping, ModelConfig, require
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.preprocess import normalisation_of
from vlm_depth_ros.core.tower_naming import hugging_face_clip_sha256

log = logging.getLogger(__name__)

METADATA_KEY = 'vlm_depth_ros'
FORMAT = 1
HUGGING_FACE = 'huggingface:'


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself."""

    name: str
    model: dict
    """`ModelConfig` as plain values."""
    tower_sha256: str
    """`Backbone.frozen_sha256`; with the prefix `HUGGING_FACE` the hash that transformers' state
    of the tower has; empty where the head came without a record of its tower."""
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

    def __init__(self, config: ModelConfig, tower: Backbone | nn.Module | None = None):
        """Build the network; `tower` is one to share instead of building one (`load_model`).

        What has a ``spec`` answers as a `Backbone` and is taken for one.
        """
        super().__init__()
        normalisation = normalisation_of(config.preprocess)
        self.config = config
        kind = Blip2Backbone if config.tower in BLIP2_TOWERS else Backbone
        self.backbone = tower if hasattr(tower, 'spec') else kind(
            config.tower, config.input_hw, config.pretrained, config.tower_activation, tower
        )
        require(
            self.backbone.spec.is_hierarchical or not config.size_by_focal,
            f'size_by_focal = {config.size_by_focal}, but tower {config.tower!r} takes inputs of '
            'one size only. Set 0.',
        )
        self.head = build_head(config.head, self.backbone.spec, config.depth_range_m)
        if self.head.tower_change is not None:
            self.head.tower_change.take(self.backbone.blocks)
        if normalisation is not None:
            require(
                tower is None,
                f'preprocess {config.preprocess!r} brings its own mean and std: a shared tower '
                'sees images with its own. Let the model build its tower.',
            )
            # Its embedding would be that of another picture than the tower was taught with.
            changes = dict(zip(('mean', 'std'), normalisation), embedding_width=None)
            self.backbone.spec = replace(self.backbone.spec, **changes)
        self.card: Card | None = None

    def forward(self, image: torch.Tensor, want_embedding: bool = False) -> HeadOutput:
        """(B, 3, h, w) normalised image to depth in metres at the head's size.

        With `want_embedding`, ``extras['embedding']`` is the tower's (B, E) image embedding.
        """
        change = self.head.tower_change
        if change is None:
            features = self.backbone(image, self.head.layers, want_embedding)
            embedding = features.embedding
        else:
            features = self.backbone(image, self.head.layers, change=change)
            # The tower's own embedding takes a pass of its own: a changed one is another space.
            embedding = self.backbone(image, (), True).embedding if want_embedding else None
        found = self.head(features)
        if want_embedding:
            found.extras['embedding'] = embedding
        return found

    def freeze_tower(self) -> None:
        """Declare the tower frozen: no gradients, evaluation mode, also while the head trains.

        Blocks that a head tunes are copies, which start here as the tower has them.
        """
        self.backbone.requires_grad_(False).eval()
        if self.head.tower_change is not None:
            self.head.tower_change.start_at(self.backbone.blocks)

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
    tower_sha256: str | None = None,
) -> Card:
    """Write one weights file, complete or not at all; training-only heads stay out of it.

    Args:
        path: File to write.
        model: The network.
        name: What it is called.
        embed_tower: Put the tower into the file.
        licence: Terms of the weights.
        notice: One line for people who start it.
        training: How it was made.
        tower_sha256: What `Card` says of the tower, if not that of the tower at hand.

    Raises:
        WeightsError: If the file cannot be written (full disk, no permission).
    """
    head_options = dict(model.config.head)
    if 'aux_heads' in model.head.Config.__dataclass_fields__:
        head_options['aux_heads'] = False
    config = model.config.to_dict() | {'head': head_options}
    if tower_sha256 is None:
        backbone = model.backbone
        tower_sha256 = backbone.fitted_sha256() if embed_tower else backbone.frozen_sha256()
    card = Card(
        name, config, tower_sha256, embed_tower, licence, notice, training or {}
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
    try:
        path = Path(name_or_path).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # No file can have such a name, no user this one.
        is_file = False
    if not is_file:
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


def load_model(
    name_or_path: str | Path,
    tower: Backbone | nn.Module | None = None,
    tower_weights: str | Path = '',
) -> DepthModel:
    """Read a weights file strictly: every tensor fits, the tower is the one it was trained on.

    Args:
        name_or_path: Shipped name or file.
        tower: One that somebody else owns and keeps using: a `Backbone`, an open_clip image
            tower, or a model with such a one as ``visual``. None: built here, and filled from the
            weights file itself, else from `tower_weights`, else as published.
        tower_weights: File with the tower, in open_clip's or Hugging Face's naming.

    Returns:
        The network on the CPU (a shared tower stays where it is) in evaluation mode, its tower
        frozen, ``model.card`` filled.

    Raises:
        WeightsError: If the file is missing, damaged, foreign, incomplete, or for another tower.
    """
    path = find_weights(name_or_path)
    card = read_card(path)
    try:
        config = ModelConfig.from_dict(card.model, str(path))
        _check_spec(tower, config)
        model = DepthModel(config, tower)
    except ConfigError as err:
        raise WeightsError(f'{path}: describes a network that cannot be built: {err}') from err
    groups = _read_tensors(path)
    load_head(model.head, groups['head'], f'{path}: head')
    if bool(groups['tower']) != card.tower_embedded:
        raise WeightsError(
            f'{path}: has {len(groups["tower"])} tower tensors, but its record says that the '
            f'tower is {"" if card.tower_embedded else "not "}embedded. The file was edited; '
            'write it again.'
        )
    if tower is None and card.tower_embedded:
        model.backbone.load_embedded_state(groups['tower'], f'{path}: tower')
    elif tower is None:
        model.backbone.load_published(model.config.pretrained, tower_weights)
    _check_tower(model.backbone, card, path)
    model.card = card
    if tower is None:
        model.freeze_tower()
    return model.eval()


def _read_tensors(path: Path) -> dict[str, dict[str, torch.Tensor]]:
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
    return groups


def _check_spec(tower: Backbone | nn.Module | None, config: ModelConfig) -> None:
    """Refuse a given `Backbone` that is not the one that the config names."""
    if isinstance(tower, Backbone):
        spec, wanted = tower.spec, (config.tower, tuple(config.input_hw))
        if (spec.tower, tuple(spec.input_hw)) != wanted:
            raise ConfigError(
                f'the given backbone is {spec.tower!r} for {spec.input_hw} input, the file needs '
                f'{wanted[0]!r} for {wanted[1]}.'
            )


def _check_tower(backbone: Backbone, card: Card, path: Path) -> None:
    expected, found = card.tower_sha256, {backbone.frozen_sha256()}
    if not expected:
        log.warning('%s does not say which weights its tower had: not checked.', path)
        return
    if expected.startswith(HUGGING_FACE):
        expected = expected.removeprefix(HUGGING_FACE)
        found = hugging_face_clip_sha256(backbone.tower.state_dict())
    if expected not in found:
        raise WeightsError(
            f'{path}: its head was trained on another tower (SHA-256 {expected[:12]}…, '
            f'here {min(found)[:12]}…). Use the tower {card.model["tower"]!r}, tag '
            f'{card.model.get("pretrained")!r}, that it names.'
        )


def load_head(head: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load a head's tensors strictly.

    Raises:
        WeightsError: If one is missing, unknown or of another shape; the head is left as it was.
    """
    expected = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    misfit = [k for k in expected if k in state and tuple(state[k].shape) != expected[k]]
    for problem, keys in (('lacks', missing), ('has unknown', unexpected), ('misfits', misfit)):
        if keys:
            raise WeightsError(
                f'{where} {problem} {len(keys)} tensors ({", ".join(keys[:3])}, …). The file '
                'belongs to another version or network.'
            )
    head.load_state_dict(state)
