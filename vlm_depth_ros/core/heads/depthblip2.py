"""DepthBLIP-2 (Chen et al., ACCV 2024): depth from what BLIP-2's queries say beside phrases.

The phrases are stored as vectors (``tools/prompt_embeddings.py``); `Blip2Backbone` asks them.

B batch, K phrases, L tokens of the longest, Q queries, W their width.
"""

from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.blip2_tower import BLIP2_TOWERS
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.heads.base import DepthHead, HeadOutput

BINS_M = (1.00, 1.75, 2.25, 2.50, 2.75, 3.00, 3.50)
"""The official depths, one for each of DepthCLIP's phrases, in their order."""
CHANNEL_ORDERS = {'v1': 0.05, 'v2': 0.5}
"""Version of the official code, and its temperature for NYU."""
COLOURS = 3
"""Channels that share a cell; the largest counts."""
MLP_WIDTHS = (64, 128, 256, 128, 64)
KINDS = ('preset', 'learned')
PHRASE_TOKENS = 12
"""Room for a phrase; the longest official one takes 8 with its begin and its end."""


class DepthBlip2Head(DepthHead):
    """Depth in metres at the input's size, without position: a cell is no place in the image.

    Only bins ``learned`` have parameters.
    """

    name = 'depthblip2'

    @dataclass(frozen=True)
    class Config:
        """Options; what is whose: ``docs/heads_depthblip2.md``."""

        bins: str = 'preset'
        """``preset``: `bins_m`. ``learned``: what a network makes of `bins_m`; it never sees the
        image, so that the trained bins are a constant, too."""
        bins_m: tuple[float, ...] = BINS_M
        """Depth of each phrase; learned bins stay between the nearest and the farthest."""
        channel_order: str = 'v1'
        """How channels become cells, by the version of the official code: ``v1`` takes colours
        last, ``v2`` first."""
        temperature: float | None = None
        """Divides the channels; None: the published one of this order."""

        def __post_init__(self):
            """Check names and numbers."""
            for name, known in (('bins', KINDS), ('channel_order', tuple(CHANNEL_ORDERS))):
                value = getattr(self, name)
                require(value in known, f'{name} = {value!r}: expected one of {known}.')
            bins_m = self.bins_m
            require(
                isinstance(bins_m, tuple)
                and len(bins_m) > 1
                and all(0 < b < math.inf for b in bins_m),
                f'bins_m = {bins_m}: expected two or more positive depths in metres.',
            )
            require(
                self.temperature is None or 0 < self.temperature < math.inf,
                f'temperature = {self.temperature}: expected more than 0.',
            )

    def __init__(self, config: Config, spec: BackboneSpec):
        super().__init__(config, spec)
        require(
            spec.tower in BLIP2_TOWERS,
            f"head depthblip2 cannot work on tower {spec.tower!r}: it asks BLIP-2's Q-Former. Use "
            f'{next(iter(BLIP2_TOWERS))}.',
        )
        width = BLIP2_TOWERS[spec.tower]['qformer']['hidden_size']
        self.side = math.isqrt(width // COLOURS)
        """Of the square of cells that the channels are laid out in."""
        require(
            COLOURS * self.side**2 == width,
            f'head depthblip2 cannot work on tower {spec.tower!r}: the {width} channels of its '
            f'Q-Former are not {COLOURS} squares. Use {next(iter(BLIP2_TOWERS))}.',
        )
        self.layers = (spec.num_layers,)
        self.temperature = config.temperature or CHANNEL_ORDERS[config.channel_order]
        self.register_buffer('preset_m', torch.tensor(config.bins_m), persistent=False)
        # Zeros until `set_phrases`, or a file, fills it; zeros behind the end of each phrase.
        self.register_buffer('phrases', torch.zeros(len(config.bins_m), PHRASE_TOKENS, width))
        self.has_phrases = False
        """Whether there is something to ask about."""
        self.register_load_state_dict_post_hook(_look_for_phrases)
        self.mlp = bins_mlp(len(config.bins_m)) if config.bins == 'learned' else None

    def set_phrases(self, vectors: torch.Tensor) -> None:
        """Store the (K, L, W) vectors of the phrases; zeros behind the end of the shorter ones.

        Raises:
            ConfigError: If they are another number or width, too long, or one is empty.
        """
        count, most, width = self.phrases.shape
        if vectors.ndim != 3 or vectors.shape[::2] != (count, width) or vectors.shape[1] > most:
            raise ConfigError(
                f'the phrases have shape {tuple(vectors.shape)}, expected ({count}, at most '
                f'{most}, {width}): one for each bin, as vectors of {self.spec.tower!r}.'
            )
        if not (vectors.isfinite().all() and vectors[:, 0].any(dim=1).all()):
            raise ConfigError(
                'the phrases hold NaN or are empty: expected vectors of words. Compute them by '
                'vlm-depth prompt-weights.'
            )
        self.phrases.zero_()[:, : vectors.shape[1]] = vectors
        self.has_phrases = True

    def forward(self, features: Features) -> HeadOutput:
        """(B, 1, H, W) depth at the input's size.

        Raises:
            ConfigError: If no phrases are stored.
            InputError: If the features come without the tower's Q-Former.
        """
        depth_m = torch.einsum('bkhw,k->bhw', self.shares(features), self.bins_m())[:, None]
        return HeadOutput(self.at_input_size(depth_m))

    def shares(self, features: Features) -> torch.Tensor:
        """(B, K, h, w) weights of the bins, which sum to 1 over K; raises as `forward`."""
        if not self.has_phrases:
            raise ConfigError(
                'head depthblip2 has no phrases: none are stored. Write a weights file with them '
                'by vlm-depth prompt-weights, once.'
            )
        if 'ask' not in features.extras:
            raise InputError(
                "head depthblip2 got features without the tower's Q-Former. Run the whole model, "
                'or pass on Features as the Blip2Backbone answers them.'
            )
        answers = features.extras['ask'](
            features.maps[self.layers[0]], features.pooled, self.phrases
        )
        return self.shares_of(answers)

    def shares_of(self, answers: torch.Tensor) -> torch.Tensor:
        """(B, K, Q, W) answers to (B, K, h, w): ``softmax_k(max_colour(mean_q) / temperature)``.

        A plain relabelling of channels: nothing but their order makes a row or a column.
        """
        channels, side = answers.float().mean(dim=2), self.side
        if self.config.channel_order == 'v1':
            cells = channels.unflatten(2, (side, side, COLOURS)).amax(dim=4)
        else:
            cells = channels.unflatten(2, (COLOURS, side, side)).amax(dim=2)
        return (cells / self.temperature).softmax(dim=1)

    def bins_m(self) -> torch.Tensor:
        """(K,) depths; learned ones are ``near + mlp(preset)^2 (far - near)``."""
        if self.mlp is None:
            return self.preset_m
        near, far = self.preset_m.min(), self.preset_m.max()
        with torch.autocast(self.preset_m.device.type, enabled=False):
            return near + self.mlp(self.preset_m) ** 2 * (far - near)

    def at_input_size(self, cells: torch.Tensor) -> torch.Tensor:
        """(B, N, h, w) cells to (B, N, H, W), as officially: corners on corners."""
        return F.interpolate(cells, self.spec.input_hw, mode='bilinear', align_corners=True)


def bins_mlp(num_bins: int) -> nn.Sequential:
    """The official network of learned bins, in the variant that its main program runs."""
    widths = (num_bins, *MLP_WIDTHS, num_bins)
    parts = []
    for index, (width, following) in enumerate(zip(widths, widths[1:])):
        parts += [nn.Linear(width, following), nn.ReLU()]
        if index in (2, 3):
            parts.append(nn.Dropout(0.5))
    return nn.Sequential(*parts[:-1], nn.Sigmoid())


def _look_for_phrases(head: DepthBlip2Head, _) -> None:
    head.has_phrases = bool(head.phrases[:, 0].any(dim=1).all())
