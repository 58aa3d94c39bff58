"""What a training step learns from: samples of all sets of a recipe, seen its way."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from vlm_depth_ros.core.config import from_mapping, ModelConfig
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.files.sample import Sample
from vlm_depth_ros.tools.augment import AugmentConfig, random_views
from vlm_depth_ros.tools.datasets import (
    CachedSet,
    load_set,
    open_set,
    SetConfig,
    StreamedSet,
    usable_depth_m,
)
from vlm_depth_ros.tools.space_clip_views import space_clip_view, SpaceClipAugment


class Pick(NamedTuple):
    """One sample of one set, both by number."""

    of_set: int
    index: int


@dataclass
class Batch:
    """B samples, on one device."""

    truth_m: torch.Tensor
    """(B, 1, H, W) metres in the model's camera; 0 or NaN where nothing was measured."""
    valid: torch.Tensor
    """(B, 1, H, W) bool: what counts of it."""
    view: torch.Tensor | None = None
    """(B, 3, h, w) RGB in 0..1, of the network's size."""
    features: Features | None = None
    """What the frozen tower says of it, where that was kept."""

    def to(self, device: torch.device) -> 'Batch':
        """Copy to a device; nothing happens where it is there."""

        def there(tensor):
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            there(self.truth_m), there(self.valid), there(self.view),
            self.features and self.features.each(there),
        )  # fmt: skip

    def split(self, parts: int) -> list['Batch']:
        """Divide into equal parts; B is a multiple of `parts`."""
        size = len(self.truth_m) // parts
        return [self._rows(slice(at, at + size)) for at in range(0, parts * size, size)]

    def _rows(self, rows: slice) -> 'Batch':
        return Batch(
            self.truth_m[rows], self.valid[rows], None if self.view is None else self.view[rows],
            self.features and self.features.each(lambda t: t[rows]),
        )  # fmt: skip


class CameraSamples:
    """Sets at working size, seen as `augment.random_views` does: with true camera geometry.

    Args:
        sets: Which sets and rows.
        root: Data root.
        hw: Working size, height first.
        options: Of `AugmentConfig`.
        model: Size of the views, and the camera that the network learns depth for.
        progress: A rich progress display.
    """

    def __init__(
        self,
        sets: Sequence[SetConfig],
        root: Path,
        hw: tuple[int, int],
        options: Mapping[str, Any],
        model: ModelConfig,
        progress,
    ):
        self.augment = from_mapping(AugmentConfig, options, 'augment')
        self.canonical_focal = model.camera.focal if model.camera else 1.0
        self.view_hw, self._hw = tuple(model.input_hw), tuple(hw)
        self.entries = list(sets)
        self.sets = [load_with_progress(entry, root, hw, progress) for entry in sets]
        self.files: list[list[Sample]] = [found.samples for found in self.sets]

    def batch(self, picks: Sequence[Pick], rng: torch.Generator) -> Batch:
        """Give the picked samples, each in a random view of its own."""
        chosen = [(self.sets[p.of_set], p.index) for p in picks]
        rgb, depth_m, focal = (
            torch.stack([getattr(s, name)[i] for s, i in chosen])
            for name in ('rgb', 'depth_m', 'focal')
        )
        view, truth_m = random_views(
            rgb, depth_m, focal, self.canonical_focal, self.view_hw, self.augment, rng
        )
        return Batch(truth_m, torch.isfinite(truth_m), view)

    def identity(self) -> dict[str, Any]:
        """What a view depends on beside the images and the generator."""
        return {
            'augment': asdict(self.augment), 'focal': self.canonical_focal, 'hw': self._hw,
            'view_hw': self.view_hw,
        }  # fmt: skip


class SpaceClipSamples:
    """Images as stored, seen as SPACE-CLIP's published training does; arguments as above.

    There is no working size, and no camera: metres stay as they are, also in a crop of a wider
    image.
    """

    def __init__(
        self,
        sets: Sequence[SetConfig],
        root: Path,
        hw: tuple[int, int],
        options: Mapping[str, Any],
        model: ModelConfig,
        progress,
    ):
        self.augment = from_mapping(SpaceClipAugment, options, 'augment')
        self.view_hw, self.nearest_m = tuple(model.input_hw), model.depth_range_m[0]
        self.entries = list(sets)
        self.files = [open_set(entry, root) for entry in sets]

    def batch(self, picks: Sequence[Pick], rng: torch.Generator) -> Batch:
        """Give the picked samples, each in a random view of its own."""
        views, depths, farthest_m = [], [], []
        for of_set, index in picks:
            entry, frame = self.entries[of_set], self.files[of_set][index].load()
            # Farther truth does not count, but the windows of SSIM see it, as published.
            depth_m = usable_depth_m(frame.depth_m, replace(entry, max_depth_m=math.inf))
            depth_m = np.nan_to_num(depth_m, nan=0.0)
            view, depth = space_clip_view(frame.rgb, depth_m, self.view_hw, self.augment, rng)
            views.append(view)
            depths.append(depth)
            farthest_m.append(entry.max_depth_m)
        truth_m = torch.stack(depths)
        far = torch.tensor(farthest_m)[:, None, None, None]
        return Batch(truth_m, (truth_m > self.nearest_m) & (truth_m < far), torch.stack(views))

    def identity(self) -> dict[str, Any]:
        """What a view depends on beside the images and the generator."""
        return {
            'augment': asdict(self.augment), 'nearest_m': self.nearest_m, 'view_hw': self.view_hw
        }  # fmt: skip


Samples = CameraSamples | SpaceClipSamples
VIEWS = {'camera': CameraSamples, 'space_clip': SpaceClipSamples}
"""How a recipe's ``views`` names them."""




def load_with_progress(
    entry: SetConfig, root: Path, hw: tuple[int, int], progress
) -> CachedSet | StreamedSet:
    """`load_set` with a bar of its own."""
    task = progress.add_task(f'reading {entry.folder}', total=None, note='')
    found = load_set(entry, root, hw, lambda: progress.advance(task))
    progress.update(task, total=len(found), completed=len(found))
    return found
