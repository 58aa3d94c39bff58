"""What a frozen tower says of fixed views, computed once and kept on disk.

One file a view: the maps that the head reads, their class tokens, the pooled vector, and the depth
that the view shows. A folder is named after everything that they depend on (tower, maps,
precision, views, seed, the images' files and their times of change), so another recipe or a
changed image never meets them, and runs that differ in the head alone share them.
"""

from collections.abc import Sequence
from dataclasses import asdict
import hashlib
import json
from pathlib import Path
import shutil

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.sample import Sample
from vlm_depth_ros.tools.augment import normalised
from vlm_depth_ros.tools.recipe import TrainConfig
from vlm_depth_ros.tools.samples import Batch, Pick, Samples
from vlm_depth_ros.tools.team import Team

DTYPES = {'bf16': torch.bfloat16, 'fp32': torch.float32}
TOKEN = 'class token '
"""In a file, before the number of the layer."""


class CachedFeatures:
    """A source of samples whose tower has already run; make it by `compute`.

    Args:
        source: What is seen.
        folder: Where the files lie, or will.
        config: The recipe; it says how many views.
    """

    def __init__(self, source: Samples, folder: Path, config: TrainConfig):
        self.entries, self.files = source.entries, source.files
        self._source, self._folder, self._config = source, folder, config

    @classmethod
    def compute(
        cls,
        source: Samples,
        model: DepthModel,
        config: TrainConfig,
        beside: Path,
        team: Team,
        progress,
    ) -> 'CachedFeatures':
        """Run the tower on what is not on disk yet; processes of a team divide the work.

        Args:
            source: What is seen.
            model: Its tower is frozen and on the team's device; its head says which maps to keep.
            config: The recipe.
            beside: The weights file that is being made; ``features/`` lies beside it.
            team: All processes.
            progress: A rich progress display.

        Raises:
            ConfigError: If the head changes the tower.
            InputError: If the disk has no room for them.
        """
        backbone, layers = model.backbone, model.head.layers
        require(
            model.head.tower_change is None,
            f'{config.name}: feature_views = {config.feature_views}, but head {model.head.name} '
            'changes the tower inside, so its features cannot be kept. Set 0.',
        )
        facts = {
            'tower': backbone.state_sha256(), 'layers': sorted(layers), 'seed': config.seed,
            'class_tokens': backbone.spec.has_class_token,
            'precision': config.precision, 'views': config.views, 'seen': source.identity(),
            'sets': [
                [asdict(entry), [_file_facts(sample) for sample in files]]
                for entry, files in zip(source.entries, source.files)
            ],
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        cache = cls(source, beside.parent / 'features' / key, config)
        names = [
            (Pick(s, i), variant)
            for s, files in enumerate(source.files)
            for i in range(len(files))
            for variant in range(config.feature_views)
        ][team.rank :: team.size]
        missing = [name for name in names if not cache._path(*name).is_file()]
        task = progress.add_task(
            'features of the tower', total=len(missing), note='', visible=bool(missing)
        )
        part = config.batch // team.size
        for at in range(0, len(missing), part):
            chosen = missing[at : at + part]
            cache._compute(chosen, backbone, layers, team.device)
            if at == 0:
                cache._require_room(missing)
            progress.advance(task, len(chosen))
        team.wait()
        return cache

    def batch(self, picks: Sequence[Pick], rng: torch.Generator) -> Batch:
        """Give the picked samples, each in one of its fixed views."""
        count = self._config.feature_views
        variants = torch.randint(count, (len(picks),), generator=rng).tolist()
        found = [self._load(self._path(*name)) for name in zip(picks, variants)]
        stacked = {name: torch.stack([f[name] for f in found]) for name in found[0]}
        truth_m, valid, pooled = (stacked.pop(name) for name in ('truth_m', 'valid', 'pooled'))
        tokens = {n: stacked.pop(n) for n in list(stacked) if n.startswith(TOKEN)}
        class_tokens = {int(n.removeprefix(TOKEN)): t for n, t in tokens.items()}
        maps = {int(name): m for name, m in stacked.items()}
        return Batch(truth_m, valid, features=Features(maps, pooled, class_tokens=class_tokens))

    @torch.no_grad()
    def _compute(self, names, backbone: Backbone, layers: Sequence[int], device) -> None:
        batches = [self._source.batch([pick], self._rng(pick, v)) for pick, v in names]
        image = normalised(torch.cat([b.view for b in batches]), backbone.spec)
        image = image.to(device, memory_format=torch.channels_last)
        dtype = DTYPES[self._config.precision]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = backbone.eval()(image, layers)
        kept = {str(k): m for k, m in features.maps.items()} | {'pooled': features.pooled}
        kept |= {f'{TOKEN}{k}': t for k, t in features.class_tokens.items()}
        kept = {name: m.to('cpu', dtype).contiguous() for name, m in kept.items()}
        for i, (name, batch) in enumerate(zip(names, batches)):
            tensors = {k: m[i].clone() for k, m in kept.items()}
            tensors |= {'truth_m': batch.truth_m[0], 'valid': batch.valid[0]}
            with atomic_file(self._path(*name)) as path:
                save_file(tensors, path)

    def _require_room(self, names) -> None:
        size = self._path(*names[0]).stat().st_size
        needed = size * (len(names) - self._config.batch)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise InputError(
                f'{self._folder}: the features of {len(names)} views need {needed / 1e9:.1f} GB '
                f'more, and {free / 1e9:.1f} GB are free. Take fewer feature_views, or 0 to keep '
                'none.'
            )

    def _rng(self, pick: Pick, variant: int) -> torch.Generator:
        number = (pick.of_set * 10**9 + pick.index) * 1000 + variant
        return torch.Generator().manual_seed(self._config.seed + number)

    def _path(self, pick: Pick, variant: int) -> Path:
        return self._folder / f'{pick.of_set}_{pick.index:06d}_{variant:03d}.safetensors'

    @staticmethod
    def _load(path: Path) -> dict[str, torch.Tensor]:
        try:
            return load_file(path)
        except (OSError, SafetensorError) as err:
            raise InputError(
                f'{path}: not readable ({err}). Delete it; the next start computes it again.'
            ) from err


def _file_facts(sample: Sample) -> list:
    """Name of a sample, and when its files changed where they are files of their own."""
    changed = [p.stat().st_mtime_ns for p in (sample.rgb, sample.depth) if p.is_file()]
    return [str(sample.rgb.resolve()), str(sample.depth.resolve()), *changed]
