"""The one data type where tower and head meet.

Layer numbers, written once and used everywhere: for a plain transformer ``maps[0]`` is the
embedding before the first block and ``maps[k]`` the patch tokens after block ``k`` (SPACE-CLIP's
and Hugging Face's numbering, one more than open_clip's). For a hierarchical tower ``maps[0]`` is
the stem and ``maps[k]`` stage ``k``, by increasing stride.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class BackboneSpec:
    """What a head may know of a tower before it sees an image."""

    tower: str
    """open_clip architecture name."""
    is_hierarchical: bool
    widths: tuple[int, ...]
    """Channels of ``maps[k]``."""
    strides: tuple[int, ...]
    """Input pixels per cell of ``maps[k]``."""
    pooled_width: int
    embedding_width: int | None
    """Width of the trained joint embedding; None where the tower has no trained projection."""
    input_hw: tuple[int, int]
    has_class_token: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Normalisation of RGB in 0..1."""

    @property
    def num_layers(self) -> int:
        """Number of blocks or stages; the last valid index of ``maps``."""
        return len(self.widths) - 1

    @property
    def size_multiple(self) -> int:
        """Input height and width must be multiples of this many pixels."""
        return max(self.strides)


@dataclass
class Features:
    """What a tower saw: B images, C_k channels, an h_k by w_k grid per map."""

    maps: dict[int, torch.Tensor]
    """Asked-for layers, each (B, C_k, h_k, w_k)."""
    pooled: torch.Tensor
    """(B, C) global vector before the text projection."""
    embedding: torch.Tensor | None = None
    """(B, E) projected, L2-normalised image embedding, when asked for."""
    extras: dict = field(default_factory=dict)
    class_tokens: dict[int, torch.Tensor] = field(default_factory=dict)
    """(B, C_k) class token that stands before the patch tokens of each of ``maps``, raw like
    them; empty where the tower has none (`BackboneSpec.has_class_token`)."""

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> 'Features':
        """The same with every tensor changed, but for `extras`."""
        return Features(
            {k: change(m) for k, m in self.maps.items()},
            change(self.pooled),
            None if self.embedding is None else change(self.embedding),
            self.extras,
            {k: change(t) for k, t in self.class_tokens.items()},
        )
