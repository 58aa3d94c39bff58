"""A tiny BLIP-2 of real architecture, under a name that only the tests know."""

from functools import cache

import torch
from vlm_depth_ros.core.blip2_tower import BLIP2_TOWERS, Blip2Backbone
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.towers import OTHER_TOWERS

TOWER = 'tiny-blip2'
TAG = 'nowhere'
"""Of its weights; their file exists on no server."""
WIDTH = 48
"""Of the Q-Former: three squares of 4 x 4."""
BLIP2_TOWERS[TOWER] = {
    'num_queries': 5,
    # Published weights are far from transformers' own start, which lets no pixel through.
    'vision': {
        'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 4,
        'num_attention_heads': 2, 'image_size': 64, 'patch_size': 16, 'initializer_range': 0.3,
    },
    'qformer': {
        'hidden_size': WIDTH, 'intermediate_size': 96, 'num_hidden_layers': 3,
        'num_attention_heads': 4, 'initializer_range': 0.3,
    },
}  # fmt: skip
OTHER_TOWERS[TOWER] = {TAG: {'hf_hub': f'vlm-depth-test/{TOWER}/model.safetensors'}}


def vectors(count: int = 7, seed: int = 3) -> torch.Tensor:
    """(K, 8, W) phrases of 5 to 8 tokens, zeros behind their end."""
    found = torch.randn(count, 8, WIDTH, generator=torch.Generator().manual_seed(seed))
    for k in range(count):
        found[k, 5 + k % 4 :] = 0
    return found


def build(input_hw=None, seed: int = 0) -> Blip2Backbone:
    """A tower of random weights, the same ones for one `seed`, in evaluation mode."""
    torch.manual_seed(seed)
    return Blip2Backbone(TOWER, input_hw).eval()


@cache
def shared(input_hw=None) -> Blip2Backbone:
    """The same for tests that leave it as it is: built once."""
    return build(input_hw).requires_grad_(False)


def model_of(seed: int = 0, hw=(64, 96), **options) -> DepthModel:
    """A network with stored phrases, its tower frozen."""
    torch.manual_seed(seed)
    model = DepthModel(ModelConfig(TOWER, {'name': 'depthblip2', **options}, None, hw))
    model.freeze_tower()
    model.head.set_phrases(vectors(len(model.head.phrases)))
    return model.eval()
