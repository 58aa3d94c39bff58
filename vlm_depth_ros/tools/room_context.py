"""The context vector of MoA-DepthCLIP, computed once at a desk by CLIP's text tower.

It is one constant for all images; `store` puts it into a head, whose weights file carries it, so
that no text tower is needed where depth is estimated.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.heads.base import DepthHead
from vlm_depth_ros.core.heads.moa_depthclip import MoaDepthClipHead
from vlm_depth_ros.tools.text_towers import clip_with_text

NYU_ROOMS = (
    'bathroom', 'bedroom', 'bookstore', 'classroom', 'computer lab', 'dining room', 'foyer',
    'home office', 'kitchen', 'living room', 'office', 'office kitchen', 'playroom',
    'reception room', 'study', 'study room',
)  # fmt: skip
"""Room types of NYU's test list; the paper names only kitchen and classroom of its own."""
PROMPT = 'a photo of a {}'


def fill_context(head: DepthHead, tower: str, tag: str) -> None:
    """Compute and `store` the context of a head that takes one and has none; else do nothing.

    Args:
        head: Any.
        tower: Architecture, such as ``ViT-B-32-quickgelu``.
        tag: open_clip's tag of its weights, text side included; fetched if need be.

    Raises:
        WeightsError: If they cannot be had.
    """
    if isinstance(head, MoaDepthClipHead) and head.config.context == 'rooms':
        if not head.context.any():
            store(head, mean_of_rooms(*clip_with_text(tower, tag)))


@torch.no_grad()
def mean_of_rooms(
    model: nn.Module,
    tokenizer: Callable[[list[str]], torch.Tensor],
    rooms: Sequence[str] = NYU_ROOMS,
    renormalise: bool = False,
) -> torch.Tensor:
    """Plain mean of the unit-length text embeddings of the room prompts.

    Args:
        model: With ``encode_text``.
        tokenizer: That of the model.
        rooms: What fills the prompt; at least one.
        renormalise: Bring the mean to unit length; the paper speaks of a mean only.

    Returns:
        (E,) float32.

    Raises:
        ConfigError: If there are no rooms.
    """
    if not rooms:
        raise ConfigError('no rooms were named: expected at least one, such as kitchen.')
    found = model.encode_text(tokenizer([PROMPT.format(room) for room in rooms]))
    context = F.normalize(found.float(), dim=-1).mean(dim=0)
    return F.normalize(context, dim=0) if renormalise else context


def store(head: MoaDepthClipHead, context: torch.Tensor) -> None:
    """Put a context into a head that was built with ``context = 'rooms'``.

    Raises:
        ConfigError: If the head takes none, or one of another width.
    """
    if head.config.context != 'rooms':
        raise ConfigError("this head was built with context = 'none': it stores no room context.")
    if context.shape != head.context.shape:
        raise ConfigError(
            f'the context has shape {tuple(context.shape)}, expected '
            f'{tuple(head.context.shape)}. Compute it by the text tower of {head.spec.tower!r}.'
        )
    head.context.copy_(context)
