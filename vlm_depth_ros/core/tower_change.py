"""What a head asks for inside a tower, without touching the tower.

Adapters and tuned copies of blocks belong to the head: they are trained, saved and loaded with
it. The tower's own tensors stay as published, so its hash stays, and others may use it meanwhile.
"""

from collections.abc import Mapping, Sequence
import copy

import torch
from torch import nn


class TowerChange(nn.Module):
    """Modules that stand after or in place of a transformer's blocks, for one head's calls.

    Args:
        adapters: By block, from 0: what its (B, T, C) tokens pass through next.
        tuned: Blocks, from 0, that run as a copy of the head's own.
    """

    def __init__(self, adapters: Mapping[int, nn.Module], tuned: Sequence[int] = ()):
        super().__init__()
        self.tuned = tuple(tuned)
        self.adapters = nn.ModuleDict({str(k): adapters[k] for k in sorted(adapters)})
        self.blocks = nn.ModuleDict()
        self._is_loaded = False

    def take(self, blocks: Sequence[nn.Module]) -> None:
        """Copy the tuned ones of a tower's blocks; before that the tower's own run."""
        for index in self.tuned:
            self.blocks[str(index)] = copy.deepcopy(blocks[index]).requires_grad_(True)

    def start_at(self, blocks: Sequence[nn.Module]) -> None:
        """Set the copies to what the tower has now, unless they were loaded from somewhere."""
        if not self._is_loaded:
            for index in self.tuned:
                self.blocks[str(index)].load_state_dict(blocks[index].state_dict())

    def run(self, index: int, block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, C) tokens through block `index` of the tower, or what replaces and follows it."""
        key = str(index)
        tokens = self.blocks[key](tokens) if key in self.blocks else block(tokens)
        return self.adapters[key](tokens) if key in self.adapters else tokens

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._is_loaded = True
