"""Which global vector a head joins with its maps: the tower's pooled one, or class tokens.

DINOv2's depth study (Oquab et al., arXiv 2304.07193) joins each layer with its own class token, as
raw as the patch tokens are; ``Features.pooled`` is one vector for all layers, and every tower has
it.
"""

from collections.abc import Sequence

import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.features import BackboneSpec, Features

CLASS_TOKENS = ('pooled', 'own')


def check_class_token(choice: str) -> None:
    """Refuse a choice that does not exist; raises ConfigError."""
    require(choice in CLASS_TOKENS, f'class_token = {choice!r}: expected one of {CLASS_TOKENS}.')


def global_widths(
    choice: str, layers: Sequence[int], spec: BackboneSpec, head: str
) -> tuple[int, ...]:
    """Channels of the vector that is joined with each layer.

    Raises:
        ConfigError: If the tower has no class token to choose, naming head and tower.
    """
    if choice == 'pooled':
        return (spec.pooled_width,) * len(layers)
    require(
        spec.has_class_token,
        f'head {head} cannot read class tokens of tower {spec.tower!r}: it has none. Set '
        'class_token: pooled.',
    )
    return tuple(spec.widths[k] for k in layers)


def global_vectors(choice: str, layers: Sequence[int], features: Features) -> list[torch.Tensor]:
    """The (B, C) vector that is joined with each layer.

    Raises:
        InputError: If the features were made or kept without class tokens.
    """
    if choice == 'pooled':
        return [features.pooled] * len(layers)
    missing = [k for k in layers if k not in features.class_tokens]
    if missing:
        raise InputError(
            f'these features lack the class tokens of layers {missing}, which the head reads. '
            'Expected them in Features.class_tokens, as the tower answers them.'
        )
    return [features.class_tokens[k] for k in layers]
