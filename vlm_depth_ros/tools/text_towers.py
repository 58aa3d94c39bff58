"""CLIP with its text side, for a desk: phrases become vectors there, once."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import nn
from vlm_depth_ros.core.errors import reason_of, WeightsError
from vlm_depth_ros.core.towers import published_file


def clip_with_text(
    tower: str, tag: str | None, file: str | Path = ''
) -> tuple[nn.Module, Callable[[list[str]], torch.Tensor]]:
    """An open_clip model with both sides, in evaluation mode, and its tokenizer.

    Args:
        tower: Architecture.
        tag: open_clip's tag of its weights.
        file: Image and text tower, where they are not to be downloaded.

    Raises:
        WeightsError: If the weights cannot be had, or hold no text side.
    """
    file = Path(file or published_file(tower, tag)).expanduser()
    if not file.is_file():
        raise WeightsError(
            f'tower weights {file}: no such file. Expected one with image and text side.'
        )
    try:
        clip = open_clip.create_model(tower, pretrained=str(file)).eval()
    except Exception as err:  # every format fails in its own way
        raise WeightsError(
            f'tower {tower!r}, {file}, could not be read with its text side ({reason_of(err)}). '
            'Give a file with both sides, as open_clip or OpenAI publish it.'
        ) from err
    return clip, open_clip.get_tokenizer(tower)
