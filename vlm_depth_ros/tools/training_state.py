"""What lies beside a weights file while it is being made: the state to go on from, pictures."""

from dataclasses import asdict
from pathlib import Path

import torch
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.tools.recipe import TrainConfig


def beside(out: Path, suffix: str) -> Path:
    """The path of the weights file with `suffix` behind its whole name."""
    return out.with_name(out.name + suffix)


def resume_path(out: Path) -> Path:
    """Where the state of the training of `out` lies between checks."""
    return beside(out, '.resume')


def write_resume(out: Path, config: TrainConfig, state: dict) -> None:
    """Store what a stage needs to go on, whole or not at all."""
    with atomic_file(resume_path(out)) as path:
        torch.save({'recipe': asdict(config), **state}, path)


def read_resume(out: Path, config: TrainConfig) -> dict:
    """Read it on the CPU.

    Raises:
        InputError: If there is none.
        WeightsError: If it is damaged.
        ConfigError: If another recipe wrote it.
    """
    path = resume_path(out)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        # Options that came later had their defaults then.
        recipe = asdict(from_mapping(TrainConfig, state['recipe'], str(path)))
    except FileNotFoundError as err:
        raise InputError(f'{path}: nothing to resume. Start without --resume.') from err
    except Exception as err:
        raise WeightsError(f'{path}: not a readable training state ({err}).') from err
    changed = [k for k, v in asdict(config).items() if recipe[k] != v]
    if changed:
        raise ConfigError(
            f'{path}: was written by another recipe (other {", ".join(changed)}). Go on with that '
            'one, or start without --resume.'
        )
    return state
