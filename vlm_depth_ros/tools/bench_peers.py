"""Networks that others publish for the same task, with random weights: their speed needs no more.

Architectures are spelled out here as their publishers' configurations have them, so that nothing
is downloaded and no default of a later transformers changes what is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools.bench_engines import Foreign

COMMON_HW = (224, 224)
"""What all of them take: DPT wants squares, and both sides must be multiples of the patches' 14
(Depth Anything), 16 (DPT, ZoeDepth, CLIP ViT-B/16) and of a hierarchical tower's 32."""
FAITHFUL = 'space-clip-vit-b-16'
FAITHFUL_CONFIG = ModelConfig('ViT-B-16-quickgelu', {'name': 'space_clip', 'aux_heads': False})


def _depth_anything(width: int, heads: int, neck: list[int], fusion: int) -> Callable:
    def build() -> nn.Module:
        library = _transformers()
        backbone = library.Dinov2Config(
            hidden_size=width, num_attention_heads=heads, num_hidden_layers=12, mlp_ratio=4,
            image_size=518, patch_size=14, out_indices=[3, 6, 9, 12], reshape_hidden_states=False,
        )  # fmt: skip
        return library.DepthAnythingForDepthEstimation(library.DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=width,
            reassemble_factors=[4, 2, 1, 0.5], neck_hidden_sizes=neck, fusion_hidden_size=fusion,
            head_in_index=-1, head_hidden_size=32, depth_estimation_type='relative',
        ))  # fmt: skip

    return build


_LARGE = {
    'hidden_size': 1024, 'num_hidden_layers': 24, 'num_attention_heads': 16,
    'intermediate_size': 4096, 'image_size': 384, 'patch_size': 16,
}  # fmt: skip
_NECK = {
    'readout_type': 'project', 'reassemble_factors': [4, 2, 1, 0.5],
    'neck_hidden_sizes': [256, 512, 1024, 1024], 'fusion_hidden_size': 256, 'head_in_index': -1,
}  # fmt: skip


def _dpt_large() -> nn.Module:
    library = _transformers()
    return library.DPTForDepthEstimation(library.DPTConfig(
        **_LARGE, **_NECK, is_hybrid=False, backbone_out_indices=[5, 11, 17, 23],
        use_auxiliary_head=False,
    ))  # fmt: skip


def _zoedepth() -> nn.Module:
    library = _transformers()
    backbone = library.BeitConfig(
        **_LARGE, use_relative_position_bias=True, reshape_hidden_states=False,
        out_indices=[6, 12, 18, 24],
    )  # fmt: skip
    bins = [{'n_bins': 64, 'min_depth': 0.001, 'max_depth': 10.0, 'name': 'nyu'}]
    return library.ZoeDepthForDepthEstimation(library.ZoeDepthConfig(
        backbone_config=backbone, **_NECK, num_relative_features=32, bottleneck_features=256,
        num_attractors=[16, 8, 4, 1], bin_embedding_dim=128, bin_configurations=bins,
    ))  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """One of them."""

    build: Callable[[], nn.Module]
    sizes_hw: dict[str, tuple[int, int]]
    """Inputs that it is measured at, by what they are, the common one apart."""


_SIZES = {'own, of 480x640': (518, 686), 'longest side 518': (392, 518)}
PEERS = {
    'depth-anything-v2-small': Peer(_depth_anything(384, 6, [48, 96, 192, 384], 64), _SIZES),
    'depth-anything-v2-base': Peer(_depth_anything(768, 12, [96, 192, 384, 768], 128), _SIZES),
    'dpt-large': Peer(_dpt_large, {'own': (384, 384)}),
    'zoedepth-nyu': Peer(_zoedepth, {'own, of 480x640': (384, 512)}),
}
"""By name: sizes are what their own preprocessing makes of a 480x640 image."""


def chosen_peers(names: Sequence[str]) -> list[str]:
    """Check what ``--peers`` names; nothing means all.

    Raises:
        ConfigError: If one is not known.
        DependencyError: If transformers is needed and missing.
    """
    known = (FAITHFUL, *PEERS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'peers: {unknown[0]!r} is not known. Expected some of '
                          f'{", ".join(known)}, or no name for all.')  # fmt: skip
    chosen = list(dict.fromkeys(names)) or list(known)
    if chosen != [FAITHFUL]:
        _transformers()
    return chosen


def build_peer(name: str, device: torch.device) -> nn.Module:
    """One of `PEERS` with random weights."""
    torch.manual_seed(0)
    return PEERS[name].build().eval().requires_grad_(False).to(device)


def peer_at(model: nn.Module, hw: tuple[int, int]) -> Foreign:
    """A peer as our export and engines take it, for one size of input."""
    return Foreign(model, _predicted, SimpleNamespace(input_hw=hw, is_hierarchical=False)).eval()


def build_faithful() -> DepthModel:
    """The published head on its tower at 224 x 224, random weights, as PyTorch makes it."""
    torch.manual_seed(0)
    model = DepthModel(FAITHFUL_CONFIG)
    model.freeze_tower()
    return model.eval().requires_grad_(False)


def _predicted(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(image).predicted_depth[:, None]


def _transformers():
    """Import it.

    Raises:
        DependencyError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as err:
        raise DependencyError(
            f"peers: {err}. Install it: pip install 'vlm_depth_ros[blip2]', or leave --peers out."
        ) from err
    return transformers
