"""The weights of a tower: loaded whole or not at all, and hashed."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.tower_module import fitted_positions
from vlm_depth_ros.core.tower_naming import PROJECTION
from vlm_depth_ros.core.towers import published_state, tower_state


class TowerState(nn.Module):
    """What `Backbone` is with respect to its weights."""

    tower: nn.Module
    spec: BackboneSpec
    _published_sha256: str | None

    def state_sha256(self) -> str:
        """SHA-256 over the live state: for each sorted key its name and its raw bytes."""
        return state_sha256(self.tower.state_dict())

    def frozen_sha256(self) -> str:
        """SHA-256 over what maps and ``pooled`` depend on, as it was published.

        In float32, in open_clip's names, with the positions of the native size and without the
        final projection: the same for every file and input size of one tower.
        """
        return self._published_sha256 or self.fitted_sha256()

    def fitted_sha256(self) -> str:
        """The same with the positions of this input size, as a file that embeds the tower has."""
        return _frozen_sha256(self.tower.state_dict())

    def load_published(self, tag: str | None, file: str | Path = '') -> None:
        """Fill the tower from `file`, else with the weights that open_clip publishes under `tag`.

        Raises:
            WeightsError: If there is no tag, no file and no way to fetch one, or it does not fit.
        """
        if file:
            state, path = tower_state(file), file
        else:
            state, path = published_state(self.spec.tower, tag)
        self.load_native_state(state, str(path))

    def load_native_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        """Load a published state; its square grid of positions is fitted to this input size.

        A state without the final projection loads too; the tower then refuses to embed.

        Raises:
            WeightsError: If the tensors do not fit; the tower is left as it was.
        """
        self.load_embedded_state(fitted_positions(self.tower, state), where)
        self._published_sha256 = _frozen_sha256(state)

    def load_embedded_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        """Load a state whose positions have this input size already.

        Raises:
            WeightsError: If the tensors do not fit; the tower is left as it was.
        """
        expected = self.tower.state_dict()
        has_projection = PROJECTION in state
        if not has_projection:
            expected.pop(PROJECTION, None)
        wrong = sorted(set(expected) ^ set(state)) or [
            k for k in expected if expected[k].shape != state[k].shape
        ]
        if wrong:
            raise WeightsError(
                f'{where}: does not fit tower {self.spec.tower!r}: {len(wrong)} tensors differ '
                f'({", ".join(wrong[:3])}, …). It is another tower or input size, or incomplete.'
            )
        if not has_projection and getattr(self.tower, 'proj', None) is not None:
            self.tower.proj = None
            self.spec = replace(self.spec, embedding_width=None)
        self.tower.load_state_dict(state)
        self._published_sha256 = None


def _frozen_sha256(state: dict[str, torch.Tensor]) -> str:
    return state_sha256({k: v for k, v in state.items() if k != PROJECTION})
