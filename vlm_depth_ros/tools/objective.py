"""The loss of a step: what the recipe weighs, term by term."""

import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.preprocess import to_camera_grid
from vlm_depth_ros.tools.losses import (
    dissimilarity,
    log_difference,
    log_gradient,
    relative,
    silog,
)
from vlm_depth_ros.tools.losses_moa import moa_loss
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig


def check_objective(config: TrainConfig, stage: StageConfig, head: DepthHead) -> None:
    """Refuse a loss of something that the head does not answer.

    Raises:
        ConfigError: If there is one.
    """
    weights = (
        config.silog_weight, config.gradient_weight, config.ssim_weight, config.moa_weight,
        stage.relative_weight,
    )  # fmt: skip
    require(
        any(weights) or stage.only_features,
        f'stage {stage.name}: no loss of depth has a weight above 0.',
    )
    require(
        head.name == 'moa_depthclip' or not config.moa_weight,
        f'{config.name}: moa_weight = {config.moa_weight}, but head {head.name} has no bins. It '
        'is the loss of moa_depthclip.',
    )


def loss_terms(
    config: TrainConfig,
    stage: StageConfig,
    head: DepthHead,
    found: HeadOutput,
    truth_m: torch.Tensor,
    valid: torch.Tensor,
    guide_m: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Weighted terms by name; the loss is their sum.

    Args:
        config: The recipe.
        stage: One of its stages.
        head: Whose answer it is.
        found: The answer, at the head's size; it is enlarged to that of the truth.
        truth_m: (B, 1, H, W) metres.
        valid: (B, 1, H, W) bool: what counts of it.
        guide_m: (B, 1, h, w) metres, what the guide says, if the stage has one.
    """
    hw = truth_m.shape[-2:]
    pair = to_camera_grid(found.depth_m.float(), hw), truth_m, valid
    terms = {}
    if config.silog_weight:
        terms['silog'] = config.silog_weight * silog(*pair)
    if config.gradient_weight:
        terms['gradient'] = config.gradient_weight * log_gradient(*pair)
    if config.ssim_weight:
        terms['ssim'] = config.ssim_weight * dissimilarity(*pair, config.ssim_windows)
    if config.moa_weight:
        terms['moa'] = config.moa_weight * moa_loss(found, truth_m, valid, head.bin_edges_m)
    if stage.relative_weight:
        terms['relative'] = stage.relative_weight * relative(*pair)
    if stage.guide_weight:
        guide_m = to_camera_grid(guide_m.float(), hw)
        terms['guide'] = stage.guide_weight * log_difference(pair[0], guide_m)
    aux_depth_m = found.extras.get('aux_depth_m', ())
    for i, (weight, aux) in enumerate(zip(config.aux_weights, aux_depth_m)):
        if weight:
            terms[f'aux{i}'] = weight * silog(to_camera_grid(aux.float(), hw), truth_m, valid)
    return terms
