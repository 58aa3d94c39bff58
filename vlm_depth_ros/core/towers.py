"""Image towers by open_clip's names: their configs, what they were trained with, their files.

A config of our own in ``assets/`` counts as a name too. Text towers are not read.
"""

from dataclasses import dataclass
from importlib import resources
import json
import logging
import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
import open_clip
from open_clip.factory import load_state_dict
from open_clip.pretrained import (
    download_pretrained,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from safetensors import safe_open
import torch
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.tower_naming import image_tower_keys, to_open_clip

log = logging.getLogger(__name__)

SUFFIXES = ('.safetensors', '.bin', '.pt')
"""Of tower files; the first that lies there is read."""
HUB_NAMES = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
"""What open_clip calls the file in a repository of Hugging Face's hub; it asks in this order."""


OTHER_TOWERS = {
    'blip2-itm-vit-g': {'salesforce': {'hf_hub': 'Salesforce/blip2-itm-vit-g/model.safetensors'}},
}
"""Published weights that open_clip does not know, by tower and tag, as it would list them."""


def own_tower_config(name: str) -> dict | None:
    """The tower config that ships in ``assets/`` under this name, or None."""
    entry = resources.files('vlm_depth_ros') / 'assets' / f'{name}.json'
    return json.loads(entry.read_text()) if entry.is_file() else None


def tower_config(name: str) -> dict:
    """open_clip's config of an architecture, or our own from ``assets/``.

    Raises:
        ConfigError: If nobody knows the name.
    """
    config = own_tower_config(name) or open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(
            f'tower {name!r} is unknown. Expected an open_clip architecture such as '
            'ViT-B-16-quickgelu, ViT-B-16-SigLIP or MobileCLIP2-S0; vlm-depth models --all lists '
            'them.'
        )
    return config


def normalisation(name: str, tag: str | None) -> tuple[tuple, tuple]:
    """Mean and std that the tower was pretrained with, as its config or open_clip records them."""
    own = tower_config(name).get('preprocess_cfg')
    if own:
        return tuple(own['mean']), tuple(own['std'])
    tags = [tag] if tag else list_pretrained_tags_by_model(name)
    for candidate in tags:
        entry = get_pretrained_cfg(name, candidate)
        if entry.get('mean'):
            return tuple(entry['mean']), tuple(entry['std'])
    return tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD)


def check_activation(name: str, tag: str | None) -> None:
    """Refuse a tower whose activation differs from the one its weights were trained with.

    Raises:
        ConfigError: On an unknown tag or a QuickGELU mismatch; open_clip would only warn.
    """
    if tag is None:
        return
    entry = get_pretrained_cfg(name, tag)
    if not entry:
        known = ', '.join(list_pretrained_tags_by_model(name)) or 'none'
        raise ConfigError(f'tower {name!r} has no pretrained tag {tag!r}. Known tags: {known}.')
    if tower_config(name).get('vision_cfg', {}).get('timm_model_name'):
        return
    built, trained = tower_config(name).get('quick_gelu', False), entry.get('quick_gelu', False)
    if built != trained:
        other = name.removesuffix('-quickgelu') if built else f'{name}-quickgelu'
        raise ConfigError(
            f'tower {name!r} {"uses" if built else "lacks"} QuickGELU but tag {tag!r} was trained '
            f'{"with" if trained else "without"} it. Use tower {other!r}.'
        )


def towers_folder() -> Path:
    """Where tower files may be put by hand: ``$VLM_DEPTH_TOWERS`` or the user's cache."""
    default = Path.home() / '.cache' / 'vlm_depth_ros' / 'towers'
    return Path(os.environ.get('VLM_DEPTH_TOWERS', default))


def tower_tags(tower: str) -> list[str]:
    """Tags under which weights of a tower are published; none for our own."""
    return list(OTHER_TOWERS.get(tower, ())) or list_pretrained_tags_by_model(tower)


def published_state(tower: str, tag: str | None) -> tuple[dict[str, torch.Tensor], Path]:
    """Read pretrained tower weights from the `published_file`.

    Returns:
        The image tower's tensors under open_clip's names, and the file they came from.

    Raises:
        WeightsError: As `published_file`, or if it cannot be read.
    """
    path = published_file(tower, tag)
    return tower_state(path), path


def published_file(tower: str, tag: str | None) -> Path:
    """The file with pretrained weights: one put there by hand, else a download.

    Raises:
        WeightsError: If there is no tag, no file and no way to fetch one.
    """
    if tag is None:
        raise WeightsError(
            f'tower {tower!r} has neither embedded weights nor a pretrained tag to fetch: name a '
            'file with its weights (tower_weights).'
        )
    file = _tower_file(tower, tag)
    if file.here:
        return file.here
    log.info('Fetching the tower %s, %s, from %s.', tower, tag, file.page)
    try:
        return Path(download_pretrained(_published(tower, tag)))
    except Exception as err:  # every network library fails in its own way
        raise WeightsError(
            f'weights of tower {tower!r}, tag {tag!r}, could not be fetched '
            f'({type(err).__name__}). Copy {file.name} of {file.page} to {file.copy_to}.'
        ) from err


def tensors_of(path: Path | str, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a local safetensors file whose names begin so, in float32; no other is read.

    Raises:
        WeightsError: If there is no such file, or it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f'tower weights {path}: no such file. Expected a .safetensors file.')
    try:
        with safe_open(path, 'pt') as file:
            wanted = [key for key in file.keys() if key.startswith(prefixes)]
            return {key: file.get_tensor(key).float() for key in wanted}
    except Exception as err:
        reason = str(err) or type(err).__name__
        raise WeightsError(
            f'{path}: not a readable tower file ({reason}). Fetch it again.'
        ) from err


def tower_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the image tower from a local file in open_clip's or Hugging Face's naming.

    Tensors of a text tower stay on the disk where the format allows it (``.safetensors``).

    Raises:
        WeightsError: If there is no such file, it cannot be read, or is a pickle with code in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(
            f'tower weights {path}: no such file. Expected a {" or ".join(SUFFIXES)} file with an '
            "image tower in open_clip's or Hugging Face's naming."
        )
    try:
        if path.suffix == '.safetensors':
            with safe_open(path, 'pt') as file:
                wanted = image_tower_keys(file.keys())
                state = {name: file.get_tensor(key) for key, name in wanted.items()}
        else:
            found = load_state_dict(str(path), weights_only=True)
            state = {name: found[key] for key, name in image_tower_keys(found).items()}
        return to_open_clip(state)
    except Exception as err:
        reason = str(err) or type(err).__name__
        raise WeightsError(
            f'{path}: not a readable tower file ({reason}). Fetch it again.'
        ) from err


@dataclass(frozen=True)
class TowerFile:
    """The file with a tower's published weights under one tag: where it is, or comes from."""

    tag: str
    name: str
    """What it is called where it is published."""
    page: str
    """Address of the repository that holds it; it says under which licence."""
    copy_to: Path
    """Where a copy is found without a network."""
    here: Path | None
    """What would be read now without a network: a copy, or an earlier download."""


def tower_names() -> list[str]:
    """Every architecture that `tower_config` knows, our own first."""
    own = (resources.files('vlm_depth_ros') / 'assets').iterdir()
    own = sorted(entry.name.removesuffix('.json') for entry in own if entry.name.endswith('.json'))
    return [*own, *open_clip.list_models()]


def tower_files(tower: str) -> list[TowerFile]:
    """The published weights of a tower, one file for each of its tags; none for our own."""
    return [_tower_file(tower, tag) for tag in tower_tags(tower)]


def _tower_file(tower: str, tag: str) -> TowerFile:
    repository, name = os.path.split(_published(tower, tag)['hf_hub'])
    names = (name,) if name else HUB_NAMES
    wanted = towers_folder() / f'{tower}.{tag}'
    places = [wanted.with_name(f'{wanted.name}{suffix}') for suffix in SUFFIXES]
    cached = [try_to_load_from_cache(repository, n) for n in names]
    places += [Path(path) for path in cached if isinstance(path, str)]
    return TowerFile(
        tag=tag,
        name=names[0],
        page=f'https://huggingface.co/{repository}',
        copy_to=wanted.with_name(f'{wanted.name}{Path(names[0]).suffix}'),
        here=next((p for p in places if p.is_file()), None),
    )


def _published(tower: str, tag: str) -> dict:
    return OTHER_TOWERS.get(tower, {}).get(tag) or get_pretrained_cfg(tower, tag)
