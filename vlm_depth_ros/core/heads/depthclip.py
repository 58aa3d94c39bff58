"""DepthCLIP (Zhang et al., ACM MM 2022, arXiv 2207.01077) on CLIP's ResNets, in three modes.

A cell's depth is the mean of a few fixed depths, weighted by how much the cell resembles a phrase
such as "This object is close". The phrases were embedded once at a desk
(``tools/prompt_embeddings.py``) and lie in the weights file; no text tower is needed here.

B batch, C tower width, E width of the text vectors, K classes, h, w grid of stride 32.
"""

from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput
from vlm_depth_ros.core.towers import tower_config

BINS_M = (1.00, 1.50, 2.00, 2.25, 2.50, 2.75, 3.00)
"""The official depths, one for each official phrase, in their order."""
SIMILARITY_SCALE = 100.0
"""Of the cosine, before the temperature divides it."""
TOKEN_STD = 0.02
"""Of the start of learned vectors (Auty and Mikolajczyk's tokens)."""
CHOICES = {'mode': ('faithful', 'projected', 'learned'), 'spacing': ('even', 'log')}


class DepthClipHead(DepthHead):
    """Depth in metres at the input's size, within the range of the bins; nothing to train.

    Only mode ``learned`` has parameters.
    """

    name = 'depthclip'

    @dataclass(frozen=True)
    class Config:
        """Options; what each mode takes from whom: ``docs/heads_depthclip.md``."""

        mode: str = 'faithful'
        """``faithful``: every second channel of the last map, as the official code compares it.
        ``projected``: the map in CLIP's joint space. ``learned``: as faithful, with trained
        vectors (Auty and Mikolajczyk, ICCVW 2023)."""
        bins_m: tuple[float, ...] | None = None
        """Depth of each class; None: the official seven, in ``learned`` those of `spacing`."""
        num_bins: int = 7
        """Number of classes in ``learned`` without `bins_m`."""
        spacing: str = 'even'
        """Of their centres over the range: in depth, or in its logarithm (``log``)."""
        min_depth_m: float = 0.001
        max_depth_m: float = 10.0
        train_bins: bool = True
        """In ``learned``: False keeps the bins where they start, as published."""
        temperature: float = 0.1
        """Divides 100 times the cosine."""

        def __post_init__(self):
            """Check names and numbers."""
            for name, known in CHOICES.items():
                value = getattr(self, name)
                require(value in known, f'{name} = {value!r}: expected one of {known}.')
            bins_m = self.bins_m
            require(
                bins_m is None or (len(bins_m) > 1 and all(0 < b < math.inf for b in bins_m)),
                f'bins_m = {bins_m}: expected two or more positive depths in metres.',
            )
            require(
                isinstance(self.num_bins, int) and self.num_bins > 1,
                f'num_bins = {self.num_bins!r}: expected an integer of at least 2.',
            )
            require(
                0 < self.min_depth_m < self.max_depth_m < math.inf,
                f'min_depth_m = {self.min_depth_m}, max_depth_m = {self.max_depth_m}: expected '
                'two depths in metres, the nearer first, above 0.',
            )
            require(
                0 < self.temperature < math.inf,
                f'temperature = {self.temperature}: expected more than 0.',
            )

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        require(
            _is_clip_resnet(spec),
            f'head depthclip cannot work on tower {spec.tower!r}: it reads the last map and the '
            "attention pool of CLIP's ResNets. Use RN50-quickgelu.",
        )
        width = spec.widths[-1]
        require(
            config.mode != 'faithful' or width == 2 * spec.embedding_width,
            f"head depthclip: mode 'faithful' compares half of {width} channels with text of as "
            f'many, but tower {spec.tower!r} has text of {spec.embedding_width}. Use '
            "RN50-quickgelu, or mode 'projected'.",
        )
        self.layers = (spec.num_layers,)
        bins_m = torch.tensor(starting_bins_m(config))
        text = torch.zeros(
            len(bins_m), spec.embedding_width if config.mode == 'projected' else width // 2
        )
        self.has_text = config.mode == 'learned'
        """Whether there is something to compare the image with."""
        if config.mode == 'learned':
            self.text = nn.Parameter(text.normal_(std=TOKEN_STD))
        else:
            self.register_buffer('text', text)  # zeros until `set_text`, or a file, fills it
            self.register_load_state_dict_post_hook(_look_for_text)
        self.trains_bins = config.mode == 'learned' and config.train_bins
        if self.trains_bins:
            self.log_bins_m = nn.Parameter(bins_m.log())  # no step can make a depth negative
        else:
            self.register_buffer('bins_m', bins_m, persistent=False)

    def set_text(self, embeddings: torch.Tensor) -> None:
        """Store the (K, E) text vectors of the classes; in ``learned`` training starts there.

        Raises:
            ConfigError: If they are another number or width, or one has no direction.
        """
        if embeddings.shape != self.text.shape:
            raise ConfigError(
                f'the text embeddings have shape {tuple(embeddings.shape)}, expected '
                f'{tuple(self.text.shape)}: one for each bin, from the text tower of '
                f'{self.spec.tower!r}.'
            )
        lengths = embeddings.norm(dim=1)
        if not (torch.isfinite(lengths).all() and lengths.all()):
            raise ConfigError(
                f'the text embeddings have lengths {lengths.min():g} to {lengths.max():g}: '
                'expected positive numbers. Compute them by vlm-depth prompt-weights.'
            )
        with torch.no_grad():
            self.text.copy_(F.normalize(embeddings.float(), dim=1))
        self.has_text = True

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, 32h, 32w) depth.

        Raises:
            ConfigError: If no text vectors are stored.
            InputError: If the features cannot be projected, and mode ``projected`` needs it.
        """
        if not self.has_text:
            raise ConfigError(
                'head depthclip has no text embeddings: none are stored. Write a weights '
                'file with them by vlm-depth prompt-weights, once.'
            )
        depth_m = self.depth_on_grid(self._cells(features))
        stride = self.spec.strides[-1]
        return HeadOutput(F.interpolate(
            depth_m,
            [n * stride for n in depth_m.shape[-2:]],
            mode='bilinear',
            # The official way moves borders by half a cell; elsewhere cells stay in place.
            align_corners=self.config.mode == 'faithful',
        ))  # fmt: skip

    def depth_on_grid(self, cells: torch.Tensor) -> torch.Tensor:
        """(B, E, h, w) image vectors to (B, 1, h, w) metres.

        ``sum_k b_k softmax_k(100 <cell, t_k> / temperature)``, in float32 always: a factor of
        1000 is nearly an arg max and makes an error of half precision visible.
        """
        scale = SIMILARITY_SCALE / self.config.temperature
        bins_m = self.log_bins_m.exp() if self.trains_bins else self.bins_m
        with torch.autocast(cells.device.type, enabled=False):
            text = F.normalize(self.text.float(), dim=1)
            share = (scale * torch.einsum('bchw,kc->bkhw', cells, text)).softmax(dim=1)
            return torch.einsum('bkhw,k->bhw', share, bins_m)[:, None]

    def _cells(self, features: Features) -> torch.Tensor:
        last = features.maps[self.layers[0]]
        if self.config.mode != 'projected':
            # The official order: unit length first, so that half of it is shorter than 1.
            return F.normalize(last.float(), dim=1)[:, ::2]
        if 'project_map' not in features.extras:
            raise InputError(
                "head depthclip in mode 'projected' got features without the tower's projection. "
                'Run the whole model, or pass on Features as the Backbone answers them.'
            )
        return F.normalize(features.extras['project_map'](last).float(), dim=1)


def starting_bins_m(config: DepthClipHead.Config) -> tuple[float, ...]:
    """Depth of each class before training: given, official, or midway in equal intervals."""
    if config.bins_m is not None:
        return tuple(float(b) for b in config.bins_m)
    if config.mode != 'learned':
        return BINS_M
    ends = config.min_depth_m, config.max_depth_m
    low, high = map(math.log, ends) if config.spacing == 'log' else ends
    middles = (low + (k + 0.5) * (high - low) / config.num_bins for k in range(config.num_bins))
    return tuple(map(math.exp, middles)) if config.spacing == 'log' else tuple(middles)


def _is_clip_resnet(spec: BackboneSpec) -> bool:
    """Whether open_clip builds its `ModifiedResNet` for this name: it does by a list of layers."""
    if not spec.is_hierarchical:
        return False
    vision = tower_config(spec.tower)['vision_cfg']
    return isinstance(vision.get('layers'), list) and not vision.get('timm_model_name')


def _look_for_text(head: DepthClipHead, _) -> None:
    head.has_text = bool(head.text.any(dim=1).all())
