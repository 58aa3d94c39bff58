"""``vlm-depth models``: weights, heads and towers; how large, under which terms, what to copy.

Networks are built on torch's meta device, where a tensor has a shape and no memory: every count
here is that of the real architecture, and nothing is loaded.
"""

import argparse
from dataclasses import asdict
import difflib
import json
from pathlib import Path

from rich.box import SIMPLE
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
import torch
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.errors import ConfigError, VlmDepthError
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.registry import build_head, HEADS
from vlm_depth_ros.core.model import read_card, shipped_weights
from vlm_depth_ros.core.towers import tower_files, tower_names, towers_folder
from vlm_depth_ros.files.atomic import atomic_file

TOWERS = {
    'ViT-B-32-quickgelu': ('openai', 'OpenAI'),
    'ViT-B-16-quickgelu': ('openai', 'OpenAI'),
    'ViT-L-14-quickgelu': ('openai', 'OpenAI'),
    'RN50-quickgelu': ('openai', 'OpenAI'),
    'ViT-B-16-SigLIP': ('webli', 'Apache-2.0'),
    'ViT-B-16-SigLIP2': ('webli', 'Apache-2.0'),
    'MobileCLIP-S1': ('datacompdr', 'Apple AMLR'),
    'MobileCLIP2-S0': ('dfndr2b', 'Apple AMLR'),
    'pocket-tower': (None, 'own'),
}
"""Towers that this project speaks of: tag of their weights, key of `LICENCES`."""
LICENCES = {
    'OpenAI': "not stated for the weights (the code is MIT); OpenAI's model card puts every "
    'deployed use out of scope',
    'Apache-2.0': "by Google's model cards and its code (big_vision), models included",
    'Apple AMLR': 'Apple Machine Learning Research Model licence: non-commercial research only, '
    'also for what is derived from them',
    'own': 'small and not a vision-language tower; its weights are only inside pocket and '
    'pocket-free, under the terms of those files',
}
"""Terms of weights, as their publishers state them."""
REFERENCE_TOWER = 'ViT-B-16-quickgelu'
"""On which the list counts a head's parameters; they depend on the tower."""


def list_weights() -> dict[str, dict]:
    """Shipped weights by name, with what their cards say."""
    found = {}
    for name, path in shipped_weights().items():
        card = read_card(path)
        found[name] = {
            'file': str(path),
            'size_mb': round(path.stat().st_size / 1e6, 1),
            'tower': card.model['tower'],
            'tower_embedded': card.tower_embedded,
            'head': card.model['head']['name'],
            'input_hw': card.model['input_hw'],
            'depth_range_m': card.model['depth_range_m'],
            'licence': card.licence,
        }
    return found


def describe_tower(name: str) -> dict:
    """A tower, the heads that can sit on it and its published weights, as plain values.

    Args:
        name: Architecture.

    Returns:
        Of a head that refuses the tower, ``refused`` says why; counts are of parameters.

    Raises:
        ConfigError: If nobody knows the name, or it cannot be built.
    """
    known = tower_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f'Did you mean {", ".join(near)}? ' if near else ''
        raise ConfigError(
            f'tower {name!r} is unknown. {hint}Expected one that vlm-depth models --all names.'
        )
    with torch.device('meta'):
        backbone = Backbone(name)
        heads = {head: _describe_head(head, backbone.spec) for head in HEADS}
    tag, licence = TOWERS.get(name, (None, None))
    return {
        **asdict(backbone.spec),
        'size_multiple': backbone.spec.size_multiple,
        'frozen': sum(p.numel() for p in backbone.parameters()),
        'heads': heads,
        'weights': [
            {
                'tag': file.tag,
                'licence': f'{licence}: {LICENCES[licence]}'
                if file.tag == tag
                else 'see the model card',
                'page': file.page,
                'file': file.name,
                'copy_to': str(file.copy_to),
                'here': str(file.here) if file.here else None,
            }
            for file in tower_files(name)
        ],
    }


def _describe_head(name: str, spec: BackboneSpec) -> dict:
    try:
        head = build_head({'name': name}, spec)
    except VlmDepthError as err:
        return {'refused': str(err)}
    sizes = {k: p.numel() for k, p in head.named_parameters() if p.requires_grad}
    return {
        'layers': list(head.layers),
        'trained': sum(sizes.values()),
        'of_them_kept': sum(n for k, n in sizes.items() if not k.startswith('aux_')),
    }


def list_models() -> dict:
    """All that ``vlm-depth models`` knows, as plain values."""
    towers = {name: describe_tower(name) for name in TOWERS}
    return {
        'weights': list_weights(),
        'heads': {
            name: {'answers': (head.__doc__ or '').splitlines()[0], 'tower': REFERENCE_TOWER}
            | towers[REFERENCE_TOWER]['heads'][name]
            for name, head in HEADS.items()
        },
        'towers': towers,
        'towers_folder': str(towers_folder()),
        'architectures': tower_names(),
    }


def run(args: argparse.Namespace) -> int:
    """Print what was asked for, and write it as JSON."""
    if args.all:
        found = {'architectures': tower_names()}
        Console().print(Columns(found['architectures']))
    elif args.tower:
        found = describe_tower(args.tower)
        _print_tower(found)
    else:
        found = list_models()
        _print_weights(found['weights'])
        _print_heads(found['heads'])
        _print_towers(found['towers'], found['weights'])
        _print_offline(found['towers'])
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(found, indent=2) + '\n')
    return 0


def _print_weights(weights: dict) -> None:
    table = _table('Weights in this package', 'name', 'tower', 'head', 'input', 'range m', '>MB')
    for name, w in weights.items():
        table.add_row(
            name, w['tower'], w['head'], _size(w['input_hw']),
            '{} to {}'.format(*w['depth_range_m']), str(w['size_mb']),
        )  # fmt: skip
    _say(table)
    for name, w in weights.items():
        where = 'inside the file' if w['tower_embedded'] else 'not inside the file'
        _say(f'{name}: the tower is {where}. Licence of these weights: {w["licence"]}.')


def _print_heads(heads: dict) -> None:
    _say()
    table = _table('Heads', 'name', '>trained', 'answers')
    for name, head in heads.items():
        table.add_row(name, _millions(head.get('trained')), head['answers'])
    _say(table)
    _say(f'Trained: parameters on {REFERENCE_TOWER}; the tower stays frozen.')


def _print_towers(towers: dict, shipped: dict) -> None:
    _say()
    inside = {w['tower'] for w in shipped.values() if w['tower_embedded']}
    table = _table(
        'Towers (image side only; never trained)',
        'name', 'weights', '>frozen', 'input', 'licence', 'here',
    )  # fmt: skip
    for name, tower in towers.items():
        tag, licence = TOWERS[name]
        is_here = name in inside or any(w['here'] for w in tower['weights'] if w['tag'] == tag)
        table.add_row(
            name, tag or '-', _millions(tower['frozen']), _size(tower['input_hw']), licence,
            'yes' if is_here else 'no',
        )  # fmt: skip
    _say(table)
    for name, terms in LICENCES.items():
        _say(f'{name}: {terms}.')
    _say()
    _say(
        f'There are {len(tower_names())} architectures: --all names them, and vlm-depth models '
        'TOWER tells of one its weights, its layers and which heads it takes.'
    )


def _print_offline(towers: dict) -> None:
    _say()
    _say('Without a network', style='bold')
    _say(
        'A weights file with its tower inside (pocket; vlm-depth import-weights --embed-tower) '
        'needs no other file. For any other copy the file of its tower into'
    )
    _say(f'  {towers_folder()}', soft_wrap=True)
    _say('or into a folder that VLM_DEPTH_TOWERS names, as it is called here:')
    for name, tower in towers.items():
        for weights in tower['weights']:
            if weights['tag'] == TOWERS[name][0]:
                _say_file(weights)


def _print_tower(tower: dict) -> None:
    _say(tower['tower'], style='bold')
    multiple, is_hierarchical = tower['size_multiple'], tower['is_hierarchical']
    freedom = 'any size' if is_hierarchical else 'positions are interpolated to any size'
    embedding = tower['embedding_width']
    for name, text in {
        'input': f'{_size(tower["input_hw"])}; {freedom} in steps of {multiple} pixels',
        'frozen': f'{tower["frozen"]:,} parameters',
        'kind': 'hierarchical' if is_hierarchical else 'plain transformer',
        'layers': f'0 to {len(tower["widths"]) - 1}; 0 is '
        + ('the stem' if is_hierarchical else 'the embedding before the first block'),
        'widths': _row(tower['widths']),
        'strides': _row(tower['strides']),
        'pooled': str(tower['pooled_width']),
        'embedding': str(embedding) if embedding else 'none: no trained projection',
        'mean, std': f'{_row(tower["mean"])}, {_row(tower["std"])}',
    }.items():
        _say(f'  {name:<10} {text}')
    _say()
    table = _table('Heads on it', 'name', '>trained', 'of them kept', 'reads layers')
    for name, head in tower['heads'].items():
        if 'refused' not in head:
            counts = f'{head["trained"]:,}', f'{head["of_them_kept"]:,}'
            table.add_row(name, *counts, _row(head['layers']))
    _say(table)
    for name, head in tower['heads'].items():
        if 'refused' in head:
            _say(f'not {name}: {head["refused"]}')
    _say()
    _say('Published weights', style='bold')
    if not tower['weights']:
        _say('none; a weights file must bring this tower along')
    for weights in tower['weights']:
        _say(f'{weights["tag"]}; licence: {weights["licence"]}')
        _say_file(weights)


def _say_file(weights: dict) -> None:
    """What to copy where; unwrapped, to be taken over by hand."""
    _say(f'  {Path(weights["copy_to"]).name}', soft_wrap=True)
    if weights['here']:
        _say(f'    is here: {weights["here"]}', soft_wrap=True)
        return
    _say(f'    is {weights["file"]} from', soft_wrap=True)
    _say(f'    {weights["page"]}', soft_wrap=True)


def _say(what='', **options) -> None:
    """Print in the width of the terminal; names may hold brackets, so nothing is markup."""
    Console(highlight=False, markup=False).print(what, **options)


def _table(title: str, *columns: str) -> Table:
    """Columns that begin with ``>`` stand to the right."""
    table = Table(title=title, box=SIMPLE, title_justify='left', title_style='bold', padding=0)
    for column in columns:
        is_number = column.startswith('>')
        table.add_column(column.lstrip('>'), justify='right' if is_number else 'left')
    return table


def _size(hw) -> str:
    return '{}x{}'.format(*hw)


def _millions(count: int | None) -> str:
    if count is None:
        return '-'
    return f'{count / 1e6:.1f} M' if count >= 1e6 else f'{count:,}'


def _row(values) -> str:
    """Equal neighbours once: ``13 times 768``."""
    if len(set(values)) == 1 and len(values) > 3:
        return f'{values[0]} ({len(values)} times)'
    return ' '.join(f'{v:.4g}' for v in values)
