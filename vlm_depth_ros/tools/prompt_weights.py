"""``vlm-depth prompt-weights``: weights files of the heads that compare images with phrases.

Nothing of them is trained, so the tower's published weights and the phrases make the file; only
the bins of DepthBLIP-2 can be fitted to a few images.
"""

import argparse
import logging
import re

from vlm_depth_ros.core.config import require, RuntimeConfig
from vlm_depth_ros.core.devices import choose_device, num_cuda
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.model import Card, save_model
from vlm_depth_ros.core.towers import tower_tags
from vlm_depth_ros.files.samples import open_samples
from vlm_depth_ros.tools.datasets import parse_rows, select_rows
from vlm_depth_ros.tools.few_shot import fit_bins
from vlm_depth_ros.tools.metrics import PROTOCOLS
from vlm_depth_ros.tools.prompt_embeddings import depthblip2_model, phrases, zero_shot_weights

log = logging.getLogger(__name__)

OFFICIAL = {
    'depthclip': ('RN50-quickgelu', 'openai', (416, 544), 'faithful'),
    'depthblip2': ('blip2-itm-vit-g', 'salesforce', (224, 224), 'v1'),
}
"""Tower, who published its weights, input size and variant, by head."""
OFFICIAL_ROWS = '0:16'
"""As many as were fitted to; which they were is not published."""


def run(args: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    if args.out.is_dir():
        raise ConfigError(f'{args.out}: is a folder; name the weights file to write.')
    tower, tag, input_hw, variant = OFFICIAL[args.head]
    tower = args.tower or tower
    towers = {
        'tower': tower,
        'tag': tag if tag in tower_tags(tower) else None,
        'file': args.tower_weights,
        'input_hw': _size(args.size) if args.size else input_hw,
    }
    require(
        args.fit is not None or args.rows is None,
        '--rows are rows of a set to fit to: name it by --fit.',
    )
    make = _depthclip if args.head == 'depthclip' else _depthblip2
    card = make(args, args.variant or variant, towers)
    log.info('%s: %s, %d phrases stored; %s', args.out, card.name, len(card.training['phrases']),
             'its tower is inside' if card.tower_embedded else
             f"its tower {card.model['tower']!r} is not inside",
    )  # fmt: skip
    return 0


def _depthclip(args: argparse.Namespace, variant: str, towers: dict) -> Card:
    require(
        args.fit is None and not args.vocabulary,
        'depthclip takes neither --fit nor --vocabulary: its phrases are read by its own text '
        'tower, and its bins are fixed.',
    )
    return zero_shot_weights(args.out, variant, embed_tower=args.embed_tower, **towers)


def _depthblip2(args: argparse.Namespace, variant: str, towers: dict) -> Card:
    device = choose_device(RuntimeConfig(args.device).device, num_cuda())
    images = _images(args)
    options = {'channel_order': variant, 'bins': 'learned' if images else 'preset'}
    model = depthblip2_model(options, vocabulary=args.vocabulary, **towers)
    record = {'trained': 'nothing: zero-shot'}
    if images:
        record = fit_bins(model.to(device), images, PROTOCOLS['nyu'])
        model.cpu()
        log.info('loss %.3f m, %.3f m before; bins %s', record['loss_m'], record['loss_before_m'],
                 ' '.join(f'{b:.2f}' for b in record['bins_m']))  # fmt: skip
    return save_model(
        args.out, model, name=f'depthblip2-{variant}-{options["bins"]}',
        embed_tower=args.embed_tower, training={'phrases': phrases(), **record},
    )  # fmt: skip


def _images(args: argparse.Namespace) -> list:
    if args.fit is None:
        return []
    rows = parse_rows(OFFICIAL_ROWS if args.rows is None else args.rows)
    samples = open_samples(args.fit)
    try:
        return select_rows(samples, rows)
    except InputError as err:
        raise InputError(f'{args.fit}: {err}') from err


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'(\d+)x(\d+)', text)
    require(found is not None, f'--size {text!r}: expected HxW in pixels, such as 416x544.')
    return int(found[1]), int(found[2])
