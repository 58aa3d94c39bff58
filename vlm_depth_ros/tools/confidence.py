"""Training a confidence when the depth is done: whether it comes true, on views that are hard.

On views like those of the training a network is more often right than anywhere else; stronger
changes of the same images make the errors that new images will.
"""

import copy
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.confidence import ConfidenceHead
from vlm_depth_ros.core.config import from_mapping, require
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.preprocess import to_camera_grid
from vlm_depth_ros.tools.augment import normalised
from vlm_depth_ros.tools.draws import Draws
from vlm_depth_ros.tools.losses import doubt
from vlm_depth_ros.tools.optimiser import build_optimiser, rate
from vlm_depth_ros.tools.recipe import StageConfig
from vlm_depth_ros.tools.stage import Job

CLOSEST = 1e-4
"""A confidence is taken as no nearer to 0 and 1."""


@dataclass(frozen=True)
class ConfidenceConfig:
    """A recipe's ``confidence``: how it is trained after the last stage."""

    steps: int
    lr: float = 0.002
    weight_decay: float = 0.05
    augment: dict = field(default_factory=dict)
    """What differs from the recipe's ``augment``."""


def confidence_config(options: dict | None, model: DepthModel, where: str):
    """Read a recipe's ``confidence``, None for none.

    Raises:
        ConfigError: If it is unknown or out of bounds, or the head has no confidence, or the other
            way round.
    """
    has_one = isinstance(getattr(model.head, 'confidence_head', None), ConfidenceHead)
    require(
        has_one == (options is not None),
        f'{where}: confidence is {"given" if options is not None else "not given"}, but head '
        f'{model.head.name} has {"one" if has_one else "none"}. Set confidence: true in its '
        'options and confidence: {steps: 400} beside the stages, or neither.',
    )
    if options is None:
        return None
    config = from_mapping(ConfidenceConfig, options, f'{where}.confidence')
    require(config.steps > 0, f'{where}.confidence: steps = {config.steps}, expected at least 1.')
    return config


def train_confidence(job: Job, config: ConfidenceConfig, progress) -> None:
    """Train the confidence of ``job.model``, whose depth stays as it is to the bit.

    Args:
        job: The run; all its processes take part, and end with the same confidence.
        config: How.
        progress: A rich progress display.
    """
    model, team, head = job.model, job.team, job.model.head.confidence_head
    samples = copy.copy(job.samples)
    options = asdict(samples.augment) | config.augment
    samples.augment = from_mapping(type(samples.augment), options, 'confidence.augment')
    stage = StageConfig(
        'confidence', config.lr, steps=config.steps, weight_decay=config.weight_decay
    )
    draws = Draws(samples, job.config, stage, len(job.config.stages), team)
    model.eval().requires_grad_(False)
    head.train().requires_grad_(True)
    parameters = list(head.parameters())
    optimiser = build_optimiser(head, stage)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: rate(n, config.steps))
    task = progress.add_task('confidence', total=config.steps, note='')
    for step, batch in enumerate(draws.batches(0, 0)):
        torch.manual_seed(draws.seed(step))
        batch = batch.to(team.device)
        view = normalised(batch.view, model.backbone.spec)
        found = model(view.contiguous(memory_format=torch.channels_last))
        hw = batch.truth_m.shape[-2:]
        logit = to_camera_grid(found.extras['confidence_logit'], hw)
        loss = doubt(logit, to_camera_grid(found.depth_m, hw), batch.truth_m, batch.valid)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        team.average(loss.detach(), parameters)
        optimiser.step()
        schedule.step()
        progress.update(task, advance=1)
    head.eval()
    if team.is_first:
        calibrate(head, *job.selection.confidences(model))
    team.share(head)


def calibrate(head: ConfidenceHead, confidence: np.ndarray, is_right: np.ndarray) -> None:
    """Set gain and shift by logistic regression (Platt 1999); the order of pixels stays.

    Training rows cannot do this: a network is more often right on what it has learned than
    elsewhere.

    Args:
        head: One with gain 1 and shift 0.
        confidence: (N,) what it says, 0..1.
        is_right: (N,) bool, whether that depth was within a factor of 1.25 of the truth.
    """
    said = torch.from_numpy(confidence).double().clamp(CLOSEST, 1 - CLOSEST).logit()
    truth = torch.from_numpy(is_right).double()
    line = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    search = torch.optim.LBFGS([line], line_search_fn='strong_wolfe')

    def loss():
        search.zero_grad()
        # A little pull towards the line as it is: where all are right the best gain is infinite.
        pull = 1e-3 * ((line[0] - 1) ** 2 + line[1] ** 2)
        total = F.binary_cross_entropy_with_logits(line[0] * said + line[1], truth) + pull
        total.backward()
        return total

    search.step(loss)
    with torch.no_grad():
        head.gain.copy_(line[0])
        head.shift.copy_(line[1])
