"""Phrases as vectors, computed once at a desk and stored in a weights file.

DepthCLIP's by CLIP's text tower, so that none is needed where depth is estimated; DepthBLIP-2's by
BLIP-2's table of words, in front of the Q-Former that reads them there. Words, order and template
are those of the official codes, to the letter. ``vlm-depth prompt-weights`` is the way in.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.model import Card, DepthModel, save_model
from vlm_depth_ros.core.towers import published_file, tensors_of
from vlm_depth_ros.tools.text_towers import clip_with_text

TEMPLATE = 'This {} is {}'
THING = 'object'
CLASSES = (
    'giant', 'extremely close', 'close', 'not in distance', 'a little remote', 'far', 'unseen',
)  # fmt: skip
LEARNED_TEMPLATE = 'This {} appears to be {}'
"""Auty and Mikolajczyk's, around their learned tokens."""
BERT = 'google-bert/bert-base-uncased'
"""Whose words BLIP-2's Q-Former reads."""
_WORDS, _PLACES = (f'embeddings.{kind}_embeddings.weight' for kind in ('word', 'position'))


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
    official = {'preprocess': 'squash-bicubic-imagenet-v1'} if mode == 'faithful' else {}
    head = {'name': 'depthclip', 'mode': mode}
    model = DepthModel(ModelConfig(tower, head, tag, input_hw, **official))
    clip, tokenizer = clip_with_text(tower, tag, file)
    model.backbone.load_native_state(clip.visual.state_dict(), str(file or tag or tower))
    model.head.set_text(class_embeddings(clip, tokenizer))
    return save_model(
        path, model.eval(), name=f'depthclip-{mode}', embed_tower=embed_tower,
        training={'phrases': phrases(), 'trained': 'nothing: zero-shot'},
    )  # fmt: skip


def depthblip2_model(
    options: dict,
    *,
    tower: str = 'blip2-itm-vit-g',
    tag: str | None = 'salesforce',
    file: str | Path = '',
    vocabulary: str | Path = '',
    input_hw: tuple[int, int] = (224, 224),
) -> DepthModel:
    """Build DepthBLIP-2 with its phrases stored and its tower loaded and frozen.

    Args:
        options: Of the head.
        tower: Architecture.
        tag: Who published its weights.
        file: The whole BLIP-2, where it is not to be downloaded.
        vocabulary: BERT's ``vocab.txt``, likewise.
        input_hw: Multiples of 14; the default is the official one.

    Raises:
        ConfigError: If an option, the tower or the size does not fit.
        DependencyError: If transformers is not installed.
        WeightsError: If a file cannot be had or read.
    """
    head = {'name': 'depthblip2', **options}
    model = DepthModel(ModelConfig(tower, head, tag, input_hw))
    file = file or published_file(tower, tag)
    model.head.set_phrases(phrase_vectors(phrases(), file, vocabulary or _bert_vocabulary()))
    model.backbone.load_published(tag, file)
    model.freeze_tower()
    return model.eval()


def phrase_vectors(texts: Sequence[str], file: str | Path, vocabulary: str | Path) -> torch.Tensor:
    """What BLIP-2's Q-Former is given of phrases: of each token the sum of its word and place.

    Args:
        texts: The phrases.
        file: The whole BLIP-2 as Hugging Face publishes it, of which two tables are read.
        vocabulary: BERT's ``vocab.txt``.

    Returns:
        (K, L, W) float32, begin and end of a phrase included; zeros behind the end.

    Raises:
        WeightsError: If a file is missing or another one than is meant.
    """
    tokens = _bert_tokens(texts, Path(vocabulary).expanduser())
    tables = tensors_of(file, (_WORDS, _PLACES))
    if set(tables) != {_WORDS, _PLACES} or max(map(max, tokens)) >= len(tables[_WORDS]):
        raise WeightsError(
            f'{file}: has no words for these phrases. Expected BLIP-2 with its text side, such '
            'as model.safetensors of https://huggingface.co/Salesforce/blip2-itm-vit-g; the '
            'captioning ones lack it.'
        )
    words, places = tables[_WORDS], tables[_PLACES]
    vectors = torch.zeros(len(tokens), max(map(len, tokens)), words.shape[1])
    for vector, ids in zip(vectors, tokens):
        vector[: len(ids)] = words[ids] + places[: len(ids)]
    return vectors


def _bert_tokens(texts: Sequence[str], vocabulary: Path) -> list[list[int]]:
    """Numbers of BERT's word pieces, begin and end included; of plain words without accents."""
    try:
        lines = vocabulary.read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as err:
        raise WeightsError(
            f'{vocabulary}: not a readable vocabulary ({err}). Expected vocab.txt of '
            f'https://huggingface.co/{BERT}.'
        ) from err
    number = {line.rstrip('\r'): n for n, line in enumerate(lines)}
    tokens = []
    for text in texts:
        pieces = [piece for word in text.lower().split() for piece in _word_pieces(word, number)]
        tokens.append(['[CLS]', *pieces, '[SEP]'])
    unknown = sorted({piece for pieces in tokens for piece in pieces} - set(number))
    if unknown:
        raise WeightsError(
            f'{vocabulary}: lacks words of the phrases ({", ".join(unknown)}). Expected vocab.txt '
            f'of https://huggingface.co/{BERT}.'
        )
    return [[number[piece] for piece in pieces] for pieces in tokens]


def _word_pieces(word: str, known: Container[str]) -> Iterator[str]:
    """The longest known beginning, then that of the rest behind ``##``; an unknown rest whole."""
    mark = ''
    while word:
        cut = next((n for n in range(len(word), 0, -1) if mark + word[:n] in known), len(word))
        yield mark + word[:cut]
        mark, word = '##', word[cut:]


def _bert_vocabulary() -> str:
    try:
        return hf_hub_download(BERT, 'vocab.txt')
    except Exception as err:  # a network fails in many ways
        raise WeightsError(
            f"BERT's vocabulary could not be fetched ({type(err).__name__}). Copy vocab.txt of "
            f'https://huggingface.co/{BERT} and name it by --vocabulary.'
        ) from err
