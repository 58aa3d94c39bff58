"""Open_clip's image tower as a module: built without its text side, or taken from its owner."""

from functools import partial

from open_clip.model import _build_vision_tower, CLIPVisionCfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, VisionTransformer
from timm.layers import Mlp, resample_abs_pos_embed
import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.tower_naming import PROJECTION
from vlm_depth_ros.core.towers import tower_config

ACTIVATIONS = {'gelu_tanh': partial(nn.GELU, approximate='tanh')}
"""What can stand in place of the activation that open_clip builds into a timm tower."""
_POSITIONS = ('positional_embedding', 'trunk.pos_embed')


def native_hw(name: str) -> tuple[int, int]:
    """Input size that open_clip's config of this architecture names."""
    size = _vision(name).image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def build_tower(name: str, activation: str | None = None) -> nn.Module:
    """The image tower of this open_clip name with random weights; no text tower is built.

    Args:
        name: Architecture.
        activation: One of `ACTIVATIONS`; None: as open_clip has it.

    Raises:
        ConfigError: If the name is unknown, or the activation cannot be put in.
    """
    config = tower_config(name)
    tower = _build_vision_tower(
        config['embed_dim'], _vision(name), config.get('quick_gelu', False)
    )
    if activation is None:
        return tower
    if activation not in ACTIVATIONS or not isinstance(tower, TimmModel):
        raise ConfigError(
            f'tower_activation {activation!r} on tower {name!r}: expected one of '
            f'{tuple(ACTIVATIONS)} on a timm tower, or none.'
        )
    for part in tower.modules():
        if isinstance(part, Mlp):
            part.act = ACTIVATIONS[activation]()
    return tower


def adopted_tower(module: nn.Module, name: str, activation: str | None = None) -> nn.Module:
    """A tower that somebody else owns, put into evaluation mode, if it is the one that is meant.

    Args:
        module: An open_clip image tower, or a model that has one as ``visual``.
        name: Architecture that it must be.
        activation: As in `build_tower`.

    Raises:
        ConfigError: If it is another architecture or activation, or is not held in float32.
    """
    module = getattr(module, 'visual', module)
    with torch.device('meta'):
        meant = build_tower(name, activation)
    found, expected = (dict(m.named_parameters()) for m in (module, meant))
    free = (*_POSITIONS, PROJECTION)  # of another input size, or absent
    wrong = [
        k
        for k in sorted({*found, *expected}.difference(free))
        if k not in found or k not in expected or found[k].shape != expected[k].shape
    ]
    if type(module) is not type(meant) or wrong:
        raise ConfigError(
            f'the given {type(module).__name__} is not a tower {name!r}: {len(wrong)} of its '
            f'{len(found)} tensors differ. Build it by that open_clip name.'
        )
    kinds = sorted({str(p.dtype).removeprefix('torch.') for p in found.values()})
    if kinds != ['float32']:
        raise ConfigError(
            f'the given tower {name!r} is held in {", ".join(kinds)}, expected float32, on which '
            'its head was trained. Load it so; lower precision is a matter of autocast.'
        )
    has, wants = _activations(module), _activations(meant)
    if has != wants:
        raise ConfigError(
            f'the given tower {name!r} has the activation {", ".join(has)}, expected '
            f'{", ".join(wants)}. Build it by that open_clip name.'
        )
    return module.eval()


def positions_hw(tower: nn.Module) -> tuple[int, int] | None:
    """Input size that a transformer's positions are for now; None where there are none."""
    if isinstance(tower, VisionTransformer):
        return tuple(tower.image_size)
    size = getattr(getattr(getattr(tower, 'trunk', None), 'patch_embed', None), 'img_size', None)
    return tuple(size) if size else None


def fitted_positions(
    tower: nn.Module, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A published state with its square grid of positions fitted to the grid of `tower`."""
    own = tower.state_dict()
    key = next((k for k in _POSITIONS if k in own and k in state), None)
    if key is None:
        return state
    is_native = isinstance(tower, VisionTransformer)
    grid = tower.grid_size if is_native else tower.trunk.patch_embed.grid_size
    num_prefix = own[key].shape[-2] - grid[0] * grid[1]  # class and register tokens
    num_cells = state[key].shape[-2] - num_prefix
    side = round(max(num_cells, 0) ** 0.5)
    if side**2 != num_cells or (side, side) == tuple(grid):
        return state
    if is_native:
        return state | {key: resize_position_grid(state[key], (side, side), grid)}
    fitting = resample_abs_pos_embed(state[key], grid, num_prefix_tokens=num_prefix)
    return state | {key: fitting}


def resize_position_grid(
    positions: torch.Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int]
) -> torch.Tensor:
    """Interpolate (1 + h*w, C) positions to another grid, bicubic; the class token stays."""
    token, grid = positions[:1], positions[1:]
    grid = grid.T.unflatten(1, old_hw)[None]
    grid = F.interpolate(grid, size=new_hw, mode='bicubic', align_corners=False)
    return torch.cat([token, grid[0].flatten(1).T])


def _activations(tower: nn.Module) -> list[str]:
    return sorted({repr(m) for m in tower.modules() if isinstance(m, nn.GELU | QuickGELU)})


def _vision(name: str) -> CLIPVisionCfg:
    return CLIPVisionCfg(**tower_config(name)['vision_cfg'])
