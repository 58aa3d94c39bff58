"""One stage of a training run: the loop over its steps, and the checks between them."""

import copy
from dataclasses import dataclass
from datetime import timedelta
import logging
import math
import os
from pathlib import Path
import time

import torch
from torch import nn
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools.augment import blend, normalised
from vlm_depth_ros.tools.draws import Draws
from vlm_depth_ros.tools.feature_cache import CachedFeatures
from vlm_depth_ros.tools.objective import check_objective, loss_terms
from vlm_depth_ros.tools.optimiser import build_optimiser, MovingAverage, rate
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig
from vlm_depth_ros.tools.samples import Batch, Samples
from vlm_depth_ros.tools.selection import Judged, Selection
from vlm_depth_ros.tools.teacher import FeatureTeacher
from vlm_depth_ros.tools.team import Team
from vlm_depth_ros.tools.training_log import TrainingLog
from vlm_depth_ros.tools.training_state import write_resume

log = logging.getLogger(__name__)

MOST_LEFT_OUT = 20
"""Steps in a row without a finite loss that end the run."""
LARGEST_NORM = 1.0
"""Gradients are clipped to it."""
MOST_AHEAD = 16
"""Batches that are prepared at a time beside a GPU."""


@dataclass(frozen=True)
class Job:
    """What all stages of a run share."""

    config: TrainConfig
    model: DepthModel
    data: Path
    out: Path
    samples: Samples
    selection: Selection
    team: Team
    guide: DepthModel | None = None
    """A head on the feature teacher, if the recipe names one; see `teacher`."""


class Stage:
    """The state of one stage and the loop over it.

    Args:
        job: The run.
        config: The stage.
        index: Its number.
        state: What `write_resume` stored in its midst, or None.
        progress: A rich progress display.
    """

    def __init__(self, job: Job, config: StageConfig, index: int, state: dict | None, progress):
        self.job, self.config, self.index, self.progress = job, config, index, progress
        model, recipe, device = job.model, job.config, job.team.device
        check_objective(recipe, config, model.head)
        model.requires_grad_(True)
        self.tower_sha256 = None
        if config.frozen_tower:
            model.freeze_tower()
            self.tower_sha256 = model.backbone.state_sha256()
        self.teacher = None
        if config.teacher_weight:
            # A run resumed at the end of the stage before has drawn less than an unbroken one.
            torch.manual_seed(recipe.seed + index)
            self.teacher = FeatureTeacher(job.guide.backbone.spec, model.backbone.spec)
            self.teacher.to(device)
        parts = [model.head] if config.frozen_tower else [model]
        self.trained = nn.ModuleList(parts + ([self.teacher] if self.teacher else []))
        source = job.samples
        if recipe.feature_views:
            source = CachedFeatures.compute(
                source, model, recipe, job.out, job.team, progress
            )
        self.draws = Draws(source, recipe, config, index, job.team)
        self.optimiser = build_optimiser(self.trained, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: 1.0 if config.constant_lr else rate(step, self.draws.steps),
        )
        self.learning = parts[0]
        self.average = MovingAverage(self.learning, recipe)
        self.averaged = self.average.module
        if config.frozen_tower:  # which is shared, not copied
            known = {id(model.backbone): model.backbone, id(model.head): self.average.module}
            self.averaged = copy.deepcopy(model, known)
        self.step, self.best, self.best_metrics, self.best_state = 0, float('inf'), {}, None
        self.left_out = 0
        self.measure = 'feature_error' if config.only_features else 'abs_rel'
        if state:
            self._restore(state)

    def run(self) -> dict[str, float]:
        """Train to the end; the best state is in the network then, in all processes.

        Returns:
            Its metrics on the selection rows; in the first process.

        Raises:
            ConfigError: If losses are not finite any more.
            WeightsError: If a frozen tower changed.
        """
        job, steps = self.job, self.draws.steps
        every = self.draws.steps_per_epoch or job.config.check_every
        task = self.progress.add_task(
            self.config.name, total=steps, completed=self.step, note=''
        )
        curves = None
        if job.team.is_first:
            curves = TrainingLog(job.out, f'{self.index} {self.config.name}', self.step)
        ahead = 0
        if job.team.device.type == 'cuda':
            cores = os.cpu_count() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
            ahead = max(1, min(cores - 1, MOST_AHEAD))
        start, first = time.monotonic(), self.step
        for batch in self.draws.batches(self.step, ahead):
            terms = self._one_step(batch)
            self.step += 1
            is_check = self.step % every == 0 or self.step == steps
            if curves:
                curves.scalars(terms | {'lr': self.schedule.get_last_lr()[0]}, self.step)
            if is_check and curves:
                judged = self._check(curves)
                self._write_resume()
                pace = (self.step - first) / (time.monotonic() - start)
                note = self._note(terms['loss'], judged, pace)
                self.progress.console.print(
                    f'{self.config.name} step {self.step}/{steps}: {note}', soft_wrap=True
                )
                self.progress.update(task, note=f'best {self.measure} {self.best:.4f}')
            self.progress.update(task, completed=self.step)
        if curves:
            curves.close()
            self._kept(job.model).load_state_dict(self.best_state)
        job.team.share(self._kept(job.model))
        if self.tower_sha256 and job.model.backbone.state_sha256() != self.tower_sha256:
            raise WeightsError(f'stage {self.config.name}: the frozen tower changed.')
        return self.best_metrics

    def _one_step(self, batch: Batch) -> dict[str, float]:
        """Learn from this process's share; ``loss`` and its terms, ``gradient_norm``."""
        job, parameters = self.job, list(self.trained.parameters())
        torch.manual_seed(self.draws.seed(self.step))
        job.model.train()
        if self.config.frozen_tower:
            job.model.backbone.eval()
        self.optimiser.zero_grad(set_to_none=True)
        parts, total, sums = job.config.accumulate, 0.0, {}
        for part in batch.split(parts):
            terms = self._terms(part.to(job.team.device))
            loss = sum(terms.values()) / parts
            loss.backward()
            total = total + loss.detach()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach() / parts
        mean_loss = job.team.average(total, parameters)
        norm = nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
        if math.isfinite(mean_loss) and torch.isfinite(norm):
            self.optimiser.step()
            self.average.update_parameters(self.learning)
            self.left_out = 0
        else:
            self._leave_out(mean_loss, norm.item())
        self.schedule.step()
        named = {name: value.item() for name, value in sums.items()}
        return {'loss': mean_loss, 'gradient_norm': norm.item()} | named

    def _terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted terms of the loss, by name."""
        job, stage, head = self.job, self.config, self.job.model.head
        view, valid = batch.view, batch.valid
        if stage.mixed:
            view, valid = blend(view, valid, stage.mixed)
        bf16 = job.config.precision == 'bf16'
        with torch.autocast(job.team.device.type, torch.bfloat16, enabled=bf16):
            features = batch.features or self._features(view)
            found = None if stage.only_features else head(features)
            seen, guide_m = self._taught(view)
        terms = {}
        if found:
            terms = loss_terms(job.config, stage, head, found, batch.truth_m, valid, guide_m)
        if self.teacher:
            terms['teacher'] = stage.teacher_weight * self.teacher(seen, features)
        return terms

    @torch.no_grad()
    def _taught(self, view: torch.Tensor) -> tuple[Features | None, torch.Tensor | None]:
        """What the teacher sees, and the depth that the guide makes of it."""
        guide = self.job.guide
        layers = {
            *(self.teacher.teacher_layers if self.teacher else ()),
            *(guide.head.layers if self.config.guide_weight else ()),
        }
        if not layers:
            return None, None
        seen = guide.backbone(normalised(view, guide.backbone.spec), layers)
        return seen, guide.head(seen).depth_m if self.config.guide_weight else None

    def _features(self, view: torch.Tensor) -> Features:
        head, tower = self.job.model.head, self.job.model.backbone
        image = normalised(view, tower.spec).contiguous(memory_format=torch.channels_last)
        layers = set() if self.config.only_features else {*head.layers}
        layers |= {*self.teacher.layers} if self.teacher else set()
        if head.tower_change is not None:
            # Adapters between the blocks learn through the frozen ones behind them.
            return tower(image, layers, change=head.tower_change)
        with torch.set_grad_enabled(not self.config.frozen_tower):
            return tower(image, layers)

    @torch.no_grad()
    def _leave_out(self, loss: float, norm: float) -> None:
        log.warning(
            'step %d: loss %s, gradient %s; the step is left out.', self.step, loss, norm
        )
        self.left_out += 1
        if self.left_out == MOST_LEFT_OUT:
            raise ConfigError(
                f'stage {self.config.name}, step {self.step}: {MOST_LEFT_OUT} steps in a row had '
                f'no finite loss (the last: {loss}). Lower lr, look at the data with --check, or '
                'set precision: fp32; --resume goes back to the last check.'
            )
        # The forward pass has already moved the running statistics of the normalisations.
        for buffer, kept in zip(self.learning.buffers(), self.average.module.buffers()):
            buffer.copy_(kept)

    def _kept(self, model: DepthModel) -> nn.Module:
        """What of a network a state holds; a tower that was published is not."""
        return model if model.config.pretrained is None else model.head

    def _check(self, curves: TrainingLog) -> Judged:
        """Judge the raw and the averaged weights on the selection rows; keep the better."""
        judged = {}
        for name, model in (('raw', self.job.model), ('averaged', self.averaged)):
            judged[name] = found = self._judge(model)
            curves.scalars({f'{k}/{name}': v for k, v in found.metrics.items()}, self.step)
            if found.metrics[self.measure] < self.best:
                self.best, self.best_metrics = found.metrics[self.measure], found.metrics
                state = self._kept(model).state_dict()
                self.best_state = {k: v.clone() for k, v in state.items()}
        better = min(judged.values(), key=lambda found: found.metrics[self.measure])
        if better.shown_m:
            curves.picture(self.job.selection.picture(better), self.step)
        return better

    @torch.no_grad()
    def _judge(self, model: DepthModel) -> Judged:
        """Depth of the selection rows; or how well the teacher's maps are met there."""
        if not self.config.only_features:
            return self.job.selection.judge(model)
        terms = [
            self.teacher(self._taught(view)[0], model.eval().backbone(
                normalised(view, model.backbone.spec), self.teacher.layers
            )).item()
            for view in self.job.selection.views(model.config.input_hw, self.job.config.batch)
        ]  # fmt: skip
        return Judged({self.measure: sum(terms) / len(terms)}, [])

    def _note(self, loss: float, judged: Judged, pace: float) -> str:
        left = timedelta(seconds=round((self.draws.steps - self.step) / pace))
        return (
            f'loss {loss:.3f}, {self.measure} {judged.metrics[self.measure]:.4f}, '
            f'best {self.best:.4f}, '
            f'{pace * self.job.config.batch:.1f} images/s, {left} left'
        )

    def _write_resume(self) -> None:
        state = {
            'stage': self.index, 'step': self.step,
            'model': self._kept(self.job.model).state_dict(),
            'teacher': self.teacher.state_dict() if self.teacher else {},
            'optimiser': self.optimiser.state_dict(), 'schedule': self.schedule.state_dict(),
            'average': self.average.state_dict(), 'best': self.best,
            'best_metrics': self.best_metrics, 'best_state': self.best_state,
            'guide': self.job.guide.head.state_dict() if self.job.guide else {},
        }  # fmt: skip
        write_resume(self.job.out, self.job.config, state)

    def _restore(self, state: dict) -> None:
        self.step, self.best = state['step'], state['best']
        self.best_metrics, self.best_state = state['best_metrics'], state['best_state']
        self.optimiser.load_state_dict(state['optimiser'])
        self.schedule.load_state_dict(state['schedule'])
        self.average.load_state_dict(state['average'])
        if self.teacher:
            self.teacher.load_state_dict(state['teacher'])
