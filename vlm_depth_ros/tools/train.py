"""``vlm-depth train``: a recipe in, a weights file out; one visible loop.

Under ``torchrun --nproc-per-node N -m vlm_depth_ros.tools.cli train ...`` N processes share each
batch. Stages run one after the other. A stage with ``frozen_tower: false`` trains tower and head
together (only for a tower of our own); one with ``true`` hashes and freezes the tower, throws that
head away and trains a fresh one, as for every other tower.
"""

import argparse
from dataclasses import asdict, replace
import logging
import math
from pathlib import Path
import time

import torch
from torch import nn
from vlm_depth_ros.core.config import from_mapping, ModelConfig, require
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.core.preprocess import to_camera_grid
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.tools.augment import AugmentConfig, random_views
from vlm_depth_ros.tools.check_data import is_clean
from vlm_depth_ros.tools.datasets import CachedSet, load_set, SetConfig
from vlm_depth_ros.tools.losses import log_gradient, relative, silog
from vlm_depth_ros.tools.metrics import depth_metrics, mean_metrics, NYU_CROP
from vlm_depth_ros.tools.recipe import read_recipe, StageConfig, TrainConfig
from vlm_depth_ros.tools.team import Team

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Train by a recipe."""
    if args.out.is_dir():
        raise InputError(f'{args.out}: is a folder; name the weights file to write.')
    config = read_recipe(args.recipe)
    if args.check and not is_clean(config, args.data):
        return 1
    train(config, args.data, args.out, args.resume)
    return 0


def train(config: TrainConfig, data: Path, out: Path, resume: bool = False) -> dict[str, float]:
    """Run all stages and write the weights file.

    Args:
        config: The recipe.
        data: Folder that holds the sets.
        out: Weights file to write; ``out.resume`` beside it holds the state between checks.
        resume: Go on from that state.

    Returns:
        Metrics of the saved weights on the selection rows.
    """
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    torch.manual_seed(config.seed)
    stages = [from_mapping(StageConfig, s, f'{config.name}.stages') for s in config.stages]
    model = DepthModel(ModelConfig.from_dict(config.model, f'{config.name}.model'))
    pretrained = model.config.pretrained
    if pretrained is not None:
        for stage in stages:
            require(
                stage.frozen_tower,
                f'stage {stage.name}: frozen_tower = false, but tower {model.config.tower!r} has '
                f'the published weights {pretrained!r}; only a tower of our own is trained.',
            )
        model.backbone.load_published(pretrained)
    model.to(memory_format=torch.channels_last)
    saved = _read_resume(out, config) if resume else None
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    team = Team()
    with Progress(*columns, '{task.fields[note]}', disable=not team.is_first) as progress:
        sets, chosen = _load_sets(config, data, progress)
        metrics = {}
        for index, stage in enumerate(stages):
            if saved and index < saved['stage']:
                continue
            state = saved if saved and index == saved['stage'] else None
            if state:
                model.load_state_dict(state['model'])
            elif index and stage.frozen_tower:
                # A run resumed at the very end of a stage has drawn less than an unbroken one.
                torch.manual_seed(config.seed + index)
                fresh = build_head(model.config.head, model.backbone.spec)
                model.head.load_state_dict(fresh.state_dict())
            run_ = _StageRun(config, stage, index, model, sets, chosen, data, out, state, team)
            metrics = run_.run(progress)
    if not team.is_first:
        return metrics
    record = asdict(config) | {'torch': torch.__version__, 'selection': metrics}
    save_model(
        out, model, name=config.name, embed_tower=pretrained is None,
        licence=config.licence, notice=config.notice, training=record,
    )
    _resume_path(out).unlink(missing_ok=True)
    log.info('%s: %s', out, {k: round(v, 4) for k, v in metrics.items()})
    return metrics


class _StageRun:
    """The state of one stage and the loop over it."""

    def __init__(self, config, stage, index, model, sets, chosen, data, out, state, team):
        self.config, self.stage, self.index, self.model = config, stage, index, model
        self.sets, self.chosen, self.out, self.team = sets, chosen, out, team
        self.augment = from_mapping(AugmentConfig, config.augment, 'augment')
        spec = model.backbone.spec
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
        model.requires_grad_(True)
        self.tower_sha256 = None
        if stage.frozen_tower:
            model.freeze_tower()
            self.tower_sha256 = model.backbone.state_sha256()
        self.teacher = None
        if stage.teacher_weight:
            from vlm_depth_ros.tools.teacher import FeatureTeacher

            require(config.teacher is not None, f'stage {stage.name}: no teacher is named.')
            self.teacher = FeatureTeacher(data / config.teacher, spec)
        self.optimiser = torch.optim.AdamW(_decay_groups(self._trained(), stage), lr=stage.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._rate)
        self.average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema),
            use_buffers=True,
        )
        self.step, self.best, self.best_metrics, self.best_state = 0, float('inf'), {}, None
        if state:
            self._restore(state)

    def _trained(self) -> nn.ModuleList:
        parts = [self.model.head] if self.stage.frozen_tower else [self.model]
        return nn.ModuleList(parts + ([self.teacher] if self.teacher else []))

    def _rate(self, step: int) -> float:
        warm = max(1, self.stage.steps // 20)
        if step < warm:
            return (step + 1) / warm
        share = (step - warm) / max(1, self.stage.steps - warm)
        return 0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item())

    def run(self, progress) -> dict[str, float]:
        task = progress.add_task(
            self.stage.name, total=self.stage.steps, completed=self.step, note=''
        )
        start, first = time.monotonic(), self.step
        while self.step < self.stage.steps:
            loss = self._one_step()
            self.step += 1
            is_check = self.step % self.config.check_every == 0 or self.step == self.stage.steps
            if is_check and self.team.is_first:
                self._check()
                self._write_resume()
                pace = (self.step - first) * self.config.batch / (time.monotonic() - start)
                note = f'loss {loss:.3f}, best abs_rel {self.best:.4f}, {pace:.0f} images/s'
                progress.console.print(f'{self.stage.name} step {self.step}: {note}')
                progress.update(task, note=note)
            progress.update(task, completed=self.step)
        if self.team.is_first:
            self.model.load_state_dict(self.best_state)
        self.team.share(self.model)
        if self.tower_sha256 and self.model.backbone.state_sha256() != self.tower_sha256:
            raise WeightsError(f'stage {self.stage.name}: the frozen tower changed.')
        return self.best_metrics

    def _one_step(self) -> float:
        # Seeded by the step alone, so that a resumed run draws what an unbroken one draws.
        seed = (self.config.seed * 1000 + self.index) * 1_000_000 + self.step
        seed += self.team.rank * 10**12
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        rgb, depth_m, focal = _draw(self.sets, self.config.batch // self.team.size, rng)
        canonical = self.model.config.camera.focal if self.model.config.camera else 1.0
        hw = self.model.config.input_hw
        view, truth = random_views(rgb, depth_m, focal, canonical, hw, self.augment, rng)
        self.model.train()
        if self.stage.frozen_tower:
            self.model.backbone.eval()
        loss = self._loss(view, truth)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        mean_loss = self.team.average(loss, self._trained().parameters())
        norm = nn.utils.clip_grad_norm_(self._trained().parameters(), 1.0)
        if math.isfinite(mean_loss) and torch.isfinite(norm):
            self.optimiser.step()
            self.average.update_parameters(self.model)
        else:
            log.warning(
                'step %d: loss %s, gradient %s; the step is left out.', self.step, mean_loss,
                norm.item(),
            )  # fmt: skip
            # The forward pass has already moved the running statistics of the normalisations.
            for buffer, kept in zip(self.model.buffers(), self.average.module.buffers()):
                buffer.copy_(kept)
        self.schedule.step()
        return mean_loss

    def _loss(self, view: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        image = ((view - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        layers = {*self.model.head.layers, *(self.teacher.layers if self.teacher else ())}
        with torch.autocast('cpu', torch.bfloat16):
            with torch.set_grad_enabled(not self.stage.frozen_tower):
                features = self.model.backbone(image, layers)
            found = self.model.head(features)
        valid, hw = torch.isfinite(truth), truth.shape[-2:]
        depth_m = to_camera_grid(found.depth_m.float(), hw)
        loss = silog(depth_m, truth, valid)
        loss = loss + self.config.gradient_weight * log_gradient(depth_m, truth, valid)
        if self.stage.relative_weight:
            loss = loss + self.stage.relative_weight * relative(depth_m, truth, valid)
        for weight, aux in zip(self.config.aux_weights, found.extras.get('aux_depth_m', ())):
            if weight:
                loss = loss + weight * silog(to_camera_grid(aux.float(), hw), truth, valid)
        if self.teacher:
            loss = loss + self.stage.teacher_weight * self.teacher(view, features)
        return loss

    @torch.no_grad()
    def _check(self) -> None:
        """Judge the raw and the averaged weights on the selection rows; keep the better."""
        for model in (self.model.eval(), self.average.module.eval()):
            metrics = self._judge(model)
            if metrics['abs_rel'] < self.best:
                self.best, self.best_metrics = metrics['abs_rel'], metrics
                self.best_state = {k: v.clone() for k, v in model.state_dict().items()}

    def _judge(self, model: DepthModel) -> dict[str, float]:
        rows, camera = [], model.config.camera
        for i in range(len(self.chosen)):
            image = nn.functional.interpolate(
                self.chosen.rgb[i : i + 1].float(), model.config.input_hw, mode='bilinear',
                antialias=True,
            )
            depth_m = to_camera_grid(
                model((image / 255 - self.mean) / self.std).depth_m, self.chosen.rgb.shape[-2:]
            )
            scale = self.chosen.focal[i].item() / camera.focal if camera else 1.0
            truth_m = self.chosen.depth_m[i, 0].numpy()
            rows.append(depth_metrics((depth_m[0, 0] * scale).numpy(), truth_m, NYU_CROP))
        return mean_metrics(rows)

    def _write_resume(self) -> None:
        state = {
            'recipe': asdict(self.config), 'stage': self.index, 'step': self.step,
            'model': self.model.state_dict(),
            'teacher': self.teacher.state_dict() if self.teacher else {},
            'optimiser': self.optimiser.state_dict(), 'schedule': self.schedule.state_dict(),
            'average': self.average.state_dict(), 'best': self.best,
            'best_metrics': self.best_metrics, 'best_state': self.best_state,
        }  # fmt: skip
        with atomic_file(_resume_path(self.out)) as path:
            torch.save(state, path)

    def _restore(self, state: dict) -> None:
        self.step, self.best = state['step'], state['best']
        self.best_metrics, self.best_state = state['best_metrics'], state['best_state']
        self.optimiser.load_state_dict(state['optimiser'])
        self.schedule.load_state_dict(state['schedule'])
        self.average.load_state_dict(state['average'])
        if self.teacher:
            self.teacher.load_state_dict(state['teacher'])


def _load_sets(config: TrainConfig, data: Path, progress) -> tuple[list[CachedSet], CachedSet]:
    options = [*config.sets, config.select]
    entries = [from_mapping(SetConfig, s, f'{config.name}.sets') for s in options]
    entries[-1] = replace(entries[-1], in_memory=True)  # read whole at every check
    found = []
    for entry in entries:
        task = progress.add_task(f'reading {entry.folder}', total=None, note='')
        found.append(
            load_set(entry, data, config.cache_hw, lambda t=task: progress.advance(t))
        )
        progress.update(task, total=len(found[-1]), completed=len(found[-1]))
    return found[:-1], found[-1]


def _draw(sets: list[CachedSet], count: int, rng: torch.Generator):
    """(rgb, depth_m, focal) of `count` random samples, sets by their weights."""
    weights = torch.tensor([s.weight for s in sets])
    which = torch.multinomial(weights, count, replacement=True, generator=rng).tolist()
    picks = [(sets[w], torch.randint(len(sets[w]), (), generator=rng).item()) for w in which]
    names = ('rgb', 'depth_m', 'focal')
    return tuple(torch.stack([getattr(s, name)[i] for s, i in picks]) for name in names)


def _decay_groups(module: nn.Module, stage: StageConfig) -> list[dict]:
    """Weight decay on matrices and kernels only, not on norms and biases."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    return [
        {'params': [p for p in wanted if p.ndim > 1], 'weight_decay': stage.weight_decay},
        {'params': [p for p in wanted if p.ndim <= 1], 'weight_decay': 0.0},
    ]


def _resume_path(out: Path) -> Path:
    return out.with_name(out.name + '.resume')


def _read_resume(out: Path, config: TrainConfig) -> dict:
    path = _resume_path(out)
    try:
        state = torch.load(path, weights_only=True)
        recipe = state['recipe']
    except FileNotFoundError as err:
        raise InputError(f'{path}: nothing to resume. Start without --resume.') from err
    except Exception as err:
        raise WeightsError(f'{path}: not a readable training state ({err}).') from err
    changed = [k for k, v in asdict(config).items() if recipe.get(k) != v]
    if changed:
        raise ConfigError(
            f'{path}: was written by another recipe (other {", ".join(changed)}). Go on with that '
            'one, or start without --resume.'
        )
    return state
