"""``vlm-depth compare``: heads trained alike, judged alike and measured side by side, as a table.

Under ``torchrun --nproc-per-node N -m vlm_depth_ros.tools.cli compare ...`` N processes train
together; the first judges. What is trained already stays as it is, so a broken comparison goes on
where it stopped, and a finished one is only judged again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
import json
import logging
import os
from pathlib import Path
import platform
import statistics
from typing import Any

import torch
from vlm_depth_ros.core.config import from_mapping, require, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.model import load_model, read_card
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.tools.blind import fit_blind
from vlm_depth_ros.tools.datasets import open_set, parse_rows, select_rows, SetConfig
from vlm_depth_ros.tools.head_costs import head_costs
from vlm_depth_ros.tools.judging import judge
from vlm_depth_ros.tools.metrics import Protocol, PROTOCOLS
from vlm_depth_ros.tools.recipe import read_recipe, TrainConfig
from vlm_depth_ros.tools.rows import open_rows, Row
from vlm_depth_ros.tools.team import Team
from vlm_depth_ros.tools.train import train
from vlm_depth_ros.tools.training_state import resume_path

MAY_DIFFER = {'name', 'model', 'model.head', 'licence', 'notice'}
"""What recipes of one table may say differently; options of the model are looked at singly."""
KINDS = ('unscaled', 'median_scaled')
SHOWN = {'abs_rel': 4, 'rmse': 3, 'delta1': 3}
"""Metrics of the table and their digits."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    config: TrainConfig
    out: Path
    """Its weights file."""


def run(args: argparse.Namespace) -> int:
    """Train what is not there, judge all, measure; print and write the table."""
    team = Team(args.device)
    runs = plan(args.recipes, args.seeds, args.out)
    judged, others = rows_of(args.judge, args.rows)
    require_unseen(judged, runs[0].config, args.data)
    missing = [r for r in runs if not is_trained(r)]
    for number, todo in enumerate(missing, 1):
        if team.is_first:
            log.info('%d of %d: %s', number, len(missing), todo.out.stem)
        train(todo.config, args.data, todo.out, resume_path(todo.out).is_file(), args.device)
    if not team.is_first:
        return 0
    result = {
        'data': str(args.judge), 'rows': args.rows, 'protocol': args.protocol,
        'budget': list(runs[0].config.stages), 'batch': runs[0].config.batch,
        'machine': {
            'processor': platform.machine(), 'threads': os.cpu_count(),
            'torch': torch.__version__,
        },
        **judge_all(runs, judged, others, PROTOCOLS[args.protocol], args.device),
    }  # fmt: skip
    text = table(result)
    for path, content in (
        (args.out / 'table.md', text),
        (args.json, json.dumps(result, indent=2) + '\n'),
    ):
        if path:
            with atomic_file(path) as partial:
                partial.write_text(content, encoding='utf-8')
    print(text)
    return 0


def plan(recipes: Sequence[Path], seeds: str | None, out: Path) -> list[Run]:
    """Every recipe with every seed, seed by seed: those of one seed share cached features.

    Args:
        recipes: YAML files, and folders of such.
        seeds: ``1,2,3``; None: the recipes' own.
        out: Folder of the weights files.

    Raises:
        ConfigError: If a recipe cannot be read or two of them cannot be compared.
        InputError: If there is no recipe, `seeds` has another form, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f'{out}: is a file; name the folder to keep the weights in.')
    paths = [p for r in recipes for p in (sorted(r.glob('*.yaml')) if r.is_dir() else [r])]
    if not paths:
        raise InputError(
            f'{", ".join(map(str, recipes))}: no recipe (*.yaml) in it. Name recipes or a folder '
            'of them.'
        )
    configs = [read_recipe(path) for path in paths]
    for path, config in zip(paths, configs):
        _check_alike(configs[0], config, f'{path} beside {paths[0]}')
    names = [config.name for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f'two recipes have the name {twice!r}; weights files are named by it.')
    return [
        Run(replace(config, seed=seed), out / f'{config.name}-seed{seed}.safetensors')
        for seed in _seeds(seeds, configs[0])
        for config in configs
    ]


def _check_alike(first: TrainConfig, other: TrainConfig, where: str) -> None:
    one, two = (
        asdict(c) | {f'model.{k}': v for k, v in c.model.items()} for c in (first, other)
    )
    different = sorted(k for k in {*one, *two} - MAY_DIFFER if one.get(k) != two.get(k))
    require(
        not different,
        f'{where}: other {", ".join(different)}. A table compares heads that are trained alike; '
        'only name, model.head, licence and notice may differ.',
    )


def _seeds(text: str | None, config: TrainConfig) -> list[int]:
    if text is None:
        return [config.seed]
    try:
        seeds = [int(part) for part in text.split(',')]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f'seeds {text!r}: expected different numbers from 0, such as 1,2,3.')
    return seeds


def rows_of(path: Path, text: str) -> tuple[list[Row], list[Row]]:
    """The rows of a set that judge, and the others, on which the blind rows are fitted.

    Raises:
        InputError: If there are none of the one kind or of the other.
    """
    rows = open_rows(path)
    judged = select_rows(rows, parse_rows(text))
    chosen = {row.number for row in judged}
    others = [row for row in rows if row.number not in chosen]
    if not others:
        raise InputError(
            f'rows {text} are all of {path}: none is left to fit the blind rows on. Leave some '
            'out.'
        )
    return judged, others


def require_unseen(judged: list[Row], config: TrainConfig, root: Path) -> None:
    """Refuse to judge on an image that trains; those that choose the checkpoint may judge.

    Raises:
        InputError: If there is one, or a set cannot be listed.
    """
    entries = [from_mapping(SetConfig, entry, f'{config.name}.sets') for entry in config.sets]
    trained = {sample.rgb.resolve() for entry in entries for sample in open_set(entry, root)}
    seen = [row for row in judged if row.pair.rgb.resolve() in trained]
    if seen:
        raise InputError(
            f'{len(seen)} of the {len(judged)} images that judge also train, the first is '
            f'{seen[0].pair.rgb}. Choose other rows.'
        )


def is_trained(run: Run) -> bool:
    """Whether its weights file is there already.

    Raises:
        ConfigError: If it is, but another recipe made it.
        WeightsError: If it is none of ours.
    """
    if not run.out.is_file():
        return False
    made = read_card(run.out).training
    wanted = json.loads(json.dumps(asdict(run.config)))  # as a file has it: lists, no tuples
    changed = [k for k, v in wanted.items() if made.get(k) != v]
    if changed:
        raise ConfigError(
            f'{run.out}: was made by another recipe (other {", ".join(changed)}). Delete it, or '
            'name another folder.'
        )
    return True


def judge_all(
    runs: Sequence[Run], rows: list[Row], others: list[Row], protocol: Protocol, device: str
) -> dict[str, Any]:
    """Metrics and costs of all runs, as JSON has them: ``images``, ``heads`` and the blind rows.

    Args:
        runs: Trained ones.
        rows: The images that judge.
        others: Of the same set; the blind rows are fitted on them.
        protocol: Crop and range.
        device: Where the networks are judged; costs are measured on the CPU.

    Raises:
        InputError: If one of the images cannot be read: tables of fewer are not comparable.
    """
    failed: dict[str, str] = {}
    blind = fit_blind(others, protocol, failed)
    heads: dict[str, list[dict]] = {}
    for one in runs:
        estimator = DepthEstimator.from_weights(one.out, RuntimeConfig(device))
        found = judge(estimator, rows, protocol, blind).as_dict()
        heads.setdefault(one.config.name, []).append({
            'seed': one.config.seed, 'weights': str(one.out),
            'head': one.config.model['head'],
            'selection': read_card(one.out).training['selection'],
            **{kind: found[kind] for kind in KINDS},
        })  # fmt: skip
        failed |= {f['image']: f['reason'] for f in found['failed']}
        if failed:
            raise InputError(
                f'{len(failed)} images cannot be judged or fitted on, and a table needs them all; '
                f'the first: {next(iter(failed.values()))}'
            )
    costs = head_costs([load_model(of_head[0]['weights']) for of_head in heads.values()])
    return {
        'images': found['images'],
        'heads': [
            {'name': name, 'costs': asdict(cost), 'runs': of_head, **_over_seeds(of_head)}
            for (name, of_head), cost in zip(heads.items(), costs)
        ],
        'blind': found['blind'],
        'best_blind': found['best_blind'],
    }


def _over_seeds(runs: list[dict]) -> dict[str, Any]:
    """Mean of each metric, and its standard deviation where there are several."""
    found = {}
    for kind in KINDS:
        values = {k: [run[kind][k] for run in runs] for k in runs[0][kind]}
        found[kind] = {k: statistics.mean(v) for k, v in values.items()}
        found[f'{kind}_deviation'] = (
            {k: statistics.stdev(v) for k, v in values.items()} if len(runs) > 1 else None
        )
    return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, the best AbsRel first and the blind rows last."""
    columns = (
        'head', 'AbsRel', 'RMSE (m)', 'δ1', 'AbsRel of best blind', 'AbsRel median-scaled',
        'parameters', 'MFLOP', 'MFLOP with tower', 'ms', 'ms with tower', 'memory (MB)',
    )  # fmt: skip
    blind_abs_rel = result['blind'][result['best_blind']]['abs_rel']
    lines = ['| ' + ' | '.join(columns) + ' |', '|---' * len(columns) + '|']
    for row in sorted(result['heads'], key=lambda row: row['unscaled']['abs_rel']):
        cost = row['costs']
        cells = [f'`{row["name"]}`', *(_spread(row, 'unscaled', name) for name in SHOWN)]
        cells += [
            f'{row["unscaled"]["abs_rel"] / blind_abs_rel:.3f}',
            _spread(row, 'median_scaled', 'abs_rel'), f'{cost["parameters"]:,}',
            f'{cost["head_flops"] / 1e6:,.1f}', f'{cost["flops"] / 1e6:,.1f}',
            f'{cost["head_ms"]:.1f}', f'{cost["ms"]:.1f}', f'{cost["head_bytes"] / 1e6:.1f}',
        ]  # fmt: skip
        lines.append('| ' + ' | '.join(cells) + ' |')
    for name, metrics in result['blind'].items():
        cells = [f'blind: {name.replace("_", " ")}']
        cells += [f'{metrics[k]:.{digits}f}' for k, digits in SHOWN.items()]
        cells += [f'{metrics["abs_rel"] / blind_abs_rel:.3f}']
        lines.append('| ' + ' | '.join(cells) + ' |' * (1 + len(columns) - len(cells)))
    seeds = [str(one['seed']) for one in result['heads'][0]['runs']]
    lengths = [(stage, unit) for stage in result['budget'] for unit in ('steps', 'epochs')]
    budget = ', '.join(f'{s[unit]} {unit}' for s, unit in lengths if s.get(unit))
    machine = result['machine']
    lines += [
        '',
        f'{result["images"]} images, rows {result["rows"]} of {Path(result["data"]).name}, '
        f'protocol {result["protocol"]}, unscaled but for one column. Trained: {budget} of '
        f'{result["batch"]} images, seeds {", ".join(seeds)}; mean ± standard deviation. '
        f'Costs are those of one image in fp32 on {machine["threads"]} threads '
        f'({machine["processor"]}, torch {machine["torch"]}): of the head from features to its '
        'own map; with tower from a 480 x 640 image to depth of its size. Times are medians.',
    ]
    return '\n'.join(lines) + '\n'


def _spread(row: dict[str, Any], kind: str, name: str) -> str:
    digits = SHOWN[name]
    text, deviation = f'{row[kind][name]:.{digits}f}', row[f'{kind}_deviation']
    return f'{text} ± {deviation[name]:.{digits}f}' if deviation else text
