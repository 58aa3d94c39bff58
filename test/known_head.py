"""A head for tests that answers what its options say: known depth, known confidence or none."""

from dataclasses import dataclass

import torch
import towers  # noqa: F401  registers tiny-vit
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.heads.registry import HEADS
from vlm_depth_ros.core.model import DepthModel, save_model

NO_DEPTH_PX = 8
"""So many columns on the left have no depth."""


class KnownHead(DepthHead):
    """One depth everywhere but on the left; one confidence everywhere, if any."""

    name = 'known'

    @dataclass(frozen=True)
    class Config:
        """What it answers."""

        depth_m: float = 2.0
        confidence: float | None = None

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.layers = (spec.num_layers,)

    def forward(self, features):
        """(B, 1, 48, 64), whatever it saw."""
        depth_m = torch.full((len(features.pooled), 1, 48, 64), self.config.depth_m)
        depth_m[..., :NO_DEPTH_PX] = 0
        said = self.config.confidence
        return HeadOutput(depth_m, None if said is None else torch.full_like(depth_m, said))


HEADS[KnownHead.name] = KnownHead


def known_weights(path, tower='tiny-vit', range_m=(0.001, 10.0), focal=1.0, **answer):
    """Write a self-contained weights file whose network answers `answer`; its path."""
    torch.manual_seed(0)
    hw = (48, 64) if tower == 'tiny-vit' else (64, 64)
    head = {'name': KnownHead.name} | answer
    camera = TrainingCamera(focal, focal * 4 / 3)
    config = ModelConfig(tower, head, input_hw=hw, depth_range_m=range_m, camera=camera)
    save_model(path, DepthModel(config), name=path.stem, embed_tower=True)
    return path
