"""DepthCLIP's phrases as vectors, computed once at a desk by CLIP's text tower.

`zero_shot_weights` puts them into a weights file: no training, and no text tower where depth is
estimated. Words, order and template are those of the official code, to the letter.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.model import Card, DepthModel, save_model

TEMPLATE = 'This {} is {}'
THING = 'object'
CLASSES = (
    'giant', 'extremely close', 'close', 'not in distance', 'a little remote', 'far', 'unseen',
)  # fmt: skip
LEARNED_TEMPLATE = 'This {} appears to be {}'
"""Auty and Mikolajczyk's, around their learned tokens."""


def phrases(
    classes: Sequence[str] = CLASSES, template: str = TEMPLATE, thing: str = THING
) -> list[str]:
    """One sentence for each class."""
    return [template.format(thing, word) for word in classes]


@torch.no_grad()
def class_embeddings(
    model: nn.Module,
    tokenizer: Callable[[list[str]], torch.Tensor],
    classes: Sequence[str] = CLASSES,
    templates: Sequence[str] = (TEMPLATE,),
) -> torch.Tensor:
    """Of each class the mean over templates of unit vectors, brought to unit length again.

    Args:
        model: With ``encode_text``.
        tokenizer: That of the model.
        classes: What stands in the second gap of a template.
        templates: At least one.

    Returns:
        (K, E) float32.

    Raises:
        ConfigError: If there are no classes or no templates.
    """
    if not classes or not templates:
        raise ConfigError(
            f'{len(classes)} classes and {len(templates)} templates were given: expected at '
            'least one of each.'
        )
    found = [model.encode_text(tokenizer(phrases(classes, t))).float() for t in templates]
    mean = torch.stack([F.normalize(f, dim=1) for f in found]).mean(dim=0)
    return F.normalize(mean, dim=1)


def zero_shot_weights(
    path: Path,
    mode: str = 'faithful',
    *,
    tower: str = 'RN50-quickgelu',
    tag: str | None = 'openai',
    file: str | Path = '',
    input_hw: tuple[int, int] = (416, 544),
    embed_tower: bool = False,
) -> Card:
    """Write DepthCLIP as a weights file: the stored phrases, and the hash of the tower.

    Args:
        path: File to write.
        mode: ``faithful`` or ``projected``.
        tower: Architecture.
        tag: open_clip's tag of its weights.
        file: Image and text tower, where they are not to be downloaded.
        input_hw: Multiples of 32; the default is the official one.
        embed_tower: Put the image tower into the file.

    Raises:
        ConfigError: If mode, tower or size do not fit.
        WeightsError: If the towers cannot be had, or the file cannot be written.
    """
    if mode == 'learned':
        raise ConfigError("mode 'learned' is trained, expected faithful or projected. Train it.")
    model = DepthModel(ModelConfig(tower, {'name': 'depthclip', 'mode': mode}, tag, input_hw))
    try:
        clip = open_clip.create_model(tower, pretrained=str(file) or tag).eval()
    except Exception as err:  # a network, a format, a missing file: each fails in its own way
        reason = (str(err) or type(err).__name__).partition('\n')[0].rstrip('.')
        raise WeightsError(
            f'tower {tower!r}, {file or tag}, could not be read with its text side ({reason}). '
            'Give a file with both sides, as open_clip or OpenAI publish it.'
        ) from err
    model.backbone.load_native_state(clip.visual.state_dict(), str(file or tag))
    model.head.set_text(class_embeddings(clip, open_clip.get_tokenizer(tower)))
    return save_model(
        path, model.eval(), name=f'depthclip-{mode}', embed_tower=embed_tower,
        training={'phrases': phrases(), 'trained': 'nothing: zero-shot'},
    )  # fmt: skip
