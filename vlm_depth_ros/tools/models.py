"""``vlm-depth models``: the weights that ship, the heads, and the towers they can sit on."""

import argparse
import json

from vlm_depth_ros.core.heads.registry import HEADS
from vlm_depth_ros.core.model import read_card, shipped_weights
from vlm_depth_ros.files.atomic import atomic_file


def list_models() -> dict:
    """Shipped weights with what their cards say, heads with their first docstring line."""
    weights = {}
    for name, path in shipped_weights().items():
        card = read_card(path)
        weights[name] = {
            'file': str(path),
            'size_mb': round(path.stat().st_size / 1e6, 1),
            'tower': card.model['tower'],
            'tower_embedded': card.tower_embedded,
            'head': card.model['head']['name'],
            'input_hw': card.model['input_hw'],
            'depth_range_m': card.model['depth_range_m'],
            'licence': card.licence,
        }
    heads = {name: (head.__doc__ or '').splitlines()[0] for name, head in HEADS.items()}
    return {'weights': weights, 'heads': heads}


def run(args: argparse.Namespace) -> int:
    """Print the lists."""
    from rich.console import Console
    from rich.table import Table

    found, console = list_models(), Console()
    table = Table(title='weights in this package')
    for column in ('name', 'tower', 'head', 'input', 'range m', 'MB', 'licence'):
        table.add_column(column)
    for name, w in found['weights'].items():
        table.add_row(
            name, w['tower'], w['head'], '{}x{}'.format(*w['input_hw']),
            '{} to {}'.format(*w['depth_range_m']), str(w['size_mb']), w['licence'],
        )  # fmt: skip
    console.print(table)
    table = Table(title='heads')
    table.add_column('name')
    table.add_column('answers')
    for name, line in found['heads'].items():
        table.add_row(name, line)
    console.print(table)
    console.print(
        'towers: any image tower of open_clip (open_clip.list_models()), frozen, or pocket-tower, '
        'a small one of our own that is not a vision-language tower.'
    )
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps(found, indent=2) + '\n')
    return 0
