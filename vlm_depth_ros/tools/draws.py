"""Which samples each step gets, from nothing but its number: a resumed run draws the same.

Processes of a team draw their own shares of a batch.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from vlm_depth_ros.core.config import require
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig
from vlm_depth_ros.tools.samples import Batch, Pick
from vlm_depth_ros.tools.team import Team


class Source(Protocol):
    """What samples are drawn from; see `samples` and `feature_cache`."""

    entries: list[SetConfig]
    files: list[list]

    def batch(self, picks: list[Pick], rng: torch.Generator) -> Batch:
        """Give the picked samples."""


class Draws:
    """The batches of one stage.

    Args:
        source: Sets and how they are seen.
        config: The recipe.
        stage: One of its stages.
        index: Its number.
        team: Who shares a batch.

    Raises:
        ConfigError: If the batch does not fit the team, the parts or the sets.
    """

    def __init__(
        self, source: Source, config: TrainConfig, stage: StageConfig, index: int, team: Team
    ):
        self.source, self.rank = source, team.rank
        self._seed = (config.seed * 1000 + index) * 1_000_000
        self._batch, self._share = config.batch, config.batch // team.size
        self._counts = [len(files) for files in source.files]
        self._weights = torch.tensor([entry.weight for entry in source.entries])
        parts = team.size * config.accumulate
        require(
            config.batch % parts == 0,
            f'{config.name}: batch = {config.batch} cannot be divided by {team.size} process(es) '
            f'x accumulate {config.accumulate}, expected a multiple of {parts}.',
        )
        require(
            stage.frozen_tower or config.batch > parts,
            f'{config.name}: batch = {config.batch} leaves one sample for each of {parts} parts, '
            'too few to normalise the maps of a tower that learns. Take a larger batch.',
        )
        self.steps, self.steps_per_epoch = stage.steps, None
        if stage.epochs is not None:
            self._check_epochs(stage)
            self.steps_per_epoch = sum(self._counts) // config.batch
            self.steps = stage.epochs * self.steps_per_epoch
            self._all = [Pick(s, i) for s, count in enumerate(self._counts) for i in range(count)]

    def _check_epochs(self, stage: StageConfig) -> None:
        total, where = sum(self._counts), f'stage {stage.name}'
        require(
            len(set(self._weights.tolist())) == 1,
            f'{where}: epochs take every sample once, so weights of the sets cannot differ. Leave '
            'them out, or count steps.',
        )
        require(
            total >= self._batch,
            f'{where}: the sets have {total} samples, too few for one batch of {self._batch}.',
        )

    def seed(self, step: int) -> int:
        """Of everything random in a step, in this process."""
        return self._seed + step + self.rank * 10**12

    def batch(self, step: int) -> Batch:
        """Give this process's share of the samples of a step."""
        rng = torch.Generator().manual_seed(self.seed(step))
        if self.steps_per_epoch is None:
            return self.source.batch(self._random_picks(rng), rng)
        return self.source.batch(self._next_picks(step), rng)

    def batches(self, first: int, ahead: int) -> Iterator[Batch]:
        """Give the batches of all steps from `first` on.

        Args:
            first: Number of the first step.
            ahead: How many are prepared at a time, in threads; 0: each when it is asked for.
        """
        steps = range(first, self.steps)
        if not ahead:
            yield from map(self.batch, steps)
            return
        # One core for each: they are many, and a GPU does the rest.
        with ThreadPoolExecutor(ahead, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = deque(pool.submit(self.batch, step) for step in steps[:ahead])
            for step in steps:
                batch = waiting.popleft().result()
                if step + ahead < self.steps:
                    waiting.append(pool.submit(self.batch, step + ahead))
                yield batch

    def _random_picks(self, rng: torch.Generator) -> list[Pick]:
        which = torch.multinomial(self._weights, self._share, replacement=True, generator=rng)
        return [
            Pick(w, torch.randint(self._counts[w], (), generator=rng).item())
            for w in which.tolist()
        ]

    def _next_picks(self, step: int) -> list[Pick]:
        """Samples of a shuffled pass, which is the same in all processes."""
        epoch, at = divmod(step, self.steps_per_epoch)
        shuffle = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(len(self._all), generator=shuffle)
        first = at * self._batch + self.rank * self._share
        return [self._all[n] for n in order[first : first + self._share].tolist()]
