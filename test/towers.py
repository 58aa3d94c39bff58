"""Tiny towers of every kind that open_clip builds, under names that only the tests know."""

from functools import cache
from pathlib import Path

import open_clip
from open_clip import pretrained
import torch
from vlm_depth_ros.core.backbone import Backbone

DATA = Path(__file__).parent / 'data'
open_clip.add_model_config(DATA)

TAG = 'nowhere'
"""A pretrained tag of `tiny-vit` and `tiny-siglip`; its file exists on no server."""
for _name, _mean in (('tiny-vit', (0.4, 0.5, 0.6)), ('tiny-siglip', (0.5, 0.5, 0.5))):
    pretrained._PRETRAINED[_name] = {
        TAG: {
            'hf_hub': f'vlm-depth-test/{_name}/',
            'quick_gelu': False,
            'mean': _mean,
            'std': (0.25, 0.25, 0.25),
        }
    }

PLAIN = ('tiny-vit', 'tiny-siglip', 'tiny-timm-vit')
HIERARCHICAL = ('pocket-tower', 'tiny-resnet', 'tiny-fastvit', 'tiny-convnext')
TOWERS = PLAIN + HIERARCHICAL


def build(tower: str, input_hw: tuple[int, int] | None = None, seed: int = 0) -> Backbone:
    """A tower of random weights, the same ones for one `seed`, in evaluation mode."""
    torch.manual_seed(seed)
    return Backbone(tower, input_hw).eval()


@cache
def shared(tower: str, input_hw: tuple[int, int] | None = None) -> Backbone:
    """The same for tests that leave it as it is: built once."""
    return build(tower, input_hw).requires_grad_(False)


def picture(hw: tuple[int, int], count: int = 1, seed: int = 0) -> torch.Tensor:
    """(B, 3, H, W) normalised noise."""
    return torch.randn(count, 3, *hw, generator=torch.Generator().manual_seed(seed))
