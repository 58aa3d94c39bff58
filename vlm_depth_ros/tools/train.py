"""``vlm-depth train``: a recipe in, a weights file out.

Under ``torchrun --nproc-per-node N -m vlm_depth_ros.tools.cli train ...`` N processes share each
batch. Stages run one after the other. A stage with ``frozen_tower: false`` trains tower and head
together (only for a tower of our own); one with ``true`` hashes and freezes the tower, throws that
head away and trains a fresh one, as for every other tower.
"""

import argparse
from dataclasses import asdict, replace
import logging
from pathlib import Path

import torch
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import from_mapping, ModelConfig, require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, load_model, save_model
from vlm_depth_ros.tools.check_data import is_clean, require_held_out
from vlm_depth_ros.tools.confidence import confidence_config, train_confidence
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.recipe import is_taught, read_recipe, StageConfig, TrainConfig
from vlm_depth_ros.tools.room_context import fill_context
from vlm_depth_ros.tools.samples import load_with_progress, VIEWS
from vlm_depth_ros.tools.selection import Selection
from vlm_depth_ros.tools.stage import Job, Stage
from vlm_depth_ros.tools.teacher import TeacherTower
from vlm_depth_ros.tools.team import Team
from vlm_depth_ros.tools.training_state import read_resume, resume_path

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Train by a recipe."""
    if args.out.is_dir():
        raise InputError(f'{args.out}: is a folder; name the weights file to write.')
    config = read_recipe(args.recipe)
    if args.check and not is_clean(config, args.data):
        return 1
    train(config, args.data, args.out, args.resume, args.device)
    return 0


def train(
    config: TrainConfig, data: Path, out: Path, resume: bool = False, device: str = 'cpu'
) -> dict[str, float]:
    """Run all stages and write the weights file.

    Args:
        config: The recipe.
        data: Folder that holds the sets.
        out: Weights file to write; ``out.resume`` beside it holds the state between checks.
        resume: Go on from that state.
        device: As `RuntimeConfig.device`.

    Returns:
        Metrics of the saved weights on the selection rows.

    Raises:
        ConfigError: If options contradict one another, or losses are not finite any more.
        InputError: If a set cannot be read, or holds images that are held out.
        WeightsError: If there are no weights for the tower, or a state to go on from is damaged.
    """
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    team = Team(device)
    torch.manual_seed(config.seed)
    stages = [from_mapping(StageConfig, s, f'{config.name}.stages') for s in config.stages]
    model_config = ModelConfig.from_dict(config.model, f'{config.name}.model')
    _check_tower(config, stages, model_config)
    require_held_out(config, data)
    model = DepthModel(model_config, _given_tower(config, model_config))
    pretrained = model_config.pretrained
    if pretrained is not None and config.tower_from is None:
        model.backbone.load_published(pretrained)
        fill_context(model.head, model_config.tower, pretrained)
    confidence = confidence_config(config.confidence, model, config.name)
    model.to(team.device, memory_format=torch.channels_last)
    saved = read_resume(out, config) if resume else None
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, '{task.fields[note]}', disable=not team.is_first) as progress:
        job = _open_job(config, stages, model, data, out, team, progress)
        if saved and job.guide:
            job.guide.head.load_state_dict(saved['guide'])
        metrics = {}
        for index, stage in enumerate(stages):
            if saved and index < saved['stage']:
                continue
            state = saved if saved and index == saved['stage'] else None
            learner = job.guide if stage.is_guide else model
            if state:
                kept = learner if pretrained is None else learner.head
                kept.load_state_dict(state['model'])
            elif index and stage.frozen_tower:
                _start_afresh(learner, config.seed + index)
            found = Stage(replace(job, model=learner), stage, index, state, progress).run()
            metrics = metrics if stage.is_guide else found
            learner.eval()
        if confidence:
            train_confidence(job, confidence, progress)
    if not team.is_first:
        return metrics
    record = asdict(config) | {'torch': torch.__version__, 'selection': metrics}
    save_model(
        out, model, name=config.name, embed_tower=pretrained is None,
        licence=config.licence, notice=config.notice, training=record,
    )  # fmt: skip
    resume_path(out).unlink(missing_ok=True)
    log.info('%s: %s', out, {k: round(v, 4) for k, v in metrics.items()})
    return metrics


def _check_tower(config: TrainConfig, stages: list[StageConfig], model: ModelConfig) -> None:
    """Refuse what would train published weights, or a head on a tower that knows nothing."""
    tower, pretrained = model.tower, model.pretrained
    guided = False
    for stage in stages:
        require(
            config.teacher is not None or not is_taught(stage),
            f'stage {stage.name}: no teacher is named.',
        )
        require(
            guided or not stage.guide_weight,
            f'stage {stage.name}: guide_weight = {stage.guide_weight}, but no earlier stage '
            'trains the guide (is_guide: true).',
        )
        guided |= stage.is_guide
        require(
            not (config.feature_views and (is_taught(stage) or stage.mixed)),
            f'stage {stage.name}: a teacher looks at views, but feature_views = '
            f'{config.feature_views} keeps none. Set 0.',
        )
        require(
            pretrained is None or stage.frozen_tower,
            f'stage {stage.name}: frozen_tower = false, but tower {tower!r} has the published '
            f'weights {pretrained!r}; only a tower of our own is trained.',
        )
        require(
            stage.frozen_tower or not config.feature_views,
            f'{config.name}: feature_views = {config.feature_views}, but stage {stage.name} '
            'trains the tower, whose features change at every step. Set 0, or freeze it.',
        )
    first = next((stage for stage in stages if not stage.is_guide), None)
    require(first is not None, f'{config.name}: all stages are guides, none trains the model.')
    require(
        pretrained is not None or config.tower_from or not first.frozen_tower,
        f'{config.name}: tower {tower!r} would be frozen with random weights. Name the tag of its '
        'published ones (pretrained) or a weights file that holds it (tower_from), or train it in '
        'a first stage with frozen_tower: false.',
    )


def _given_tower(config: TrainConfig, model: ModelConfig) -> Backbone | None:
    if config.tower_from is None:
        return None
    donor = load_model(config.tower_from)
    for what in ('tower', 'pretrained', 'input_hw'):
        ours, theirs = getattr(model, what), getattr(donor.config, what)
        require(
            ours == theirs,
            f'{config.name}: model.{what} = {ours}, but tower_from: {config.tower_from} has '
            f'{theirs}. Say the same.',
        )
    return donor.backbone


def _open_job(config, stages, model: DepthModel, data, out, team: Team, progress) -> Job:
    guide = None
    if config.teacher and any(is_taught(stage) for stage in stages):
        guide = DepthModel(model.config, TeacherTower(data / config.teacher))
        guide.to(team.device, memory_format=torch.channels_last).eval()
    *entries, select = (
        from_mapping(SetConfig, s, f'{config.name}.sets') for s in (*config.sets, config.select)
    )
    samples = VIEWS[config.views](
        entries, data, config.cache_hw, config.augment, model.config, progress
    )
    select = replace(select, in_memory=True)  # read whole at every check
    chosen = load_with_progress(select, data, config.cache_hw, progress)
    selection = Selection(chosen, config.protocol, team.device)
    return Job(config, model, data, out, samples, selection, team, guide)


def _start_afresh(model: DepthModel, seed: int) -> None:
    """A new head in place of one that helped to train the tower."""
    # A run resumed at the very end of a stage has drawn less than an unbroken one.
    torch.manual_seed(seed)
    fresh = build_head(model.config.head, model.backbone.spec)
    if fresh.tower_change is not None:
        fresh.tower_change.take(model.backbone.blocks)
    model.head.load_state_dict(fresh.state_dict())
