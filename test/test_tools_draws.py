"""Which samples a step gets: by weight or in epochs, alone or shared, always from its number."""

from dataclasses import replace
from types import SimpleNamespace

from desk_sets import MODEL, write_set
import pytest
from rich.progress import Progress
import torch
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.draws import Draws
from vlm_depth_ros.tools.recipe import StageConfig, TrainConfig
from vlm_depth_ros.tools.samples import Batch, CameraSamples, Pick

RECIPE = TrainConfig('tiny', MODEL, ({},), {}, ({},), batch=4, seed=7)
STEPS = StageConfig('head', 0.001, steps=6)
EPOCHS = StageConfig('head', 0.001, epochs=3)


class Numbers:
    """Sets whose samples are their own numbers."""

    def __init__(self, *counts, weights=None):
        self.files = [[None] * count for count in counts]
        weights = weights or [1.0] * len(counts)
        self.entries = [SetConfig('x', weight=w) for w in weights]

    def batch(self, picks, rng):
        """Give the picks as a tensor."""
        picked = torch.tensor([tuple(p) for p in picks])
        return Batch(picked, torch.rand(1, generator=rng))


def team(size=1, rank=0):
    return SimpleNamespace(size=size, rank=rank)


def draws(source, stage=STEPS, config=RECIPE, index=0, size=1, rank=0):
    return Draws(source, config, stage, index, team(size, rank))


def picked(source, *args, **options):
    """(of_set, index) of every step."""
    found = draws(source, *args, **options)
    return [[tuple(p) for p in found.batch(s).truth_m.tolist()] for s in range(found.steps)]


def test_a_step_draws_by_its_number_alone():
    first, again = (draws(Numbers(9, 5)) for _ in range(2))
    torch.rand(5)  # the global generator has no say
    expected = [first.batch(s) for s in range(6)]
    for step in (5, 0, 3):
        assert torch.equal(again.batch(step).truth_m, expected[step].truth_m)
        assert torch.equal(again.batch(step).valid, expected[step].valid)
    assert picked(Numbers(9, 5)) != picked(Numbers(9, 5), index=1)
    assert picked(Numbers(9, 5)) != picked(Numbers(9, 5), config=replace(RECIPE, seed=8))


def test_weights_say_how_often_a_set_is_drawn():
    config = replace(RECIPE, batch=500)
    (step, *_) = picked(Numbers(3, 3000, weights=[0.8, 0.2]), config=config)
    assert 0.74 < sum(of_set == 0 for of_set, _ in step) / 500 < 0.86


def test_an_epoch_takes_every_sample_at_most_once_and_leaves_the_rest_out():
    found = picked(Numbers(7, 4), EPOCHS)  # 11 samples, 2 batches of 4 a pass
    assert len(found) == 6
    passes = [found[0] + found[1], found[2] + found[3], found[4] + found[5]]
    everything = {(0, i) for i in range(7)} | {(1, i) for i in range(4)}
    for samples in passes:
        assert len(set(samples)) == 8 and set(samples) <= everything
    assert passes[0] != passes[1] != passes[2]


def test_processes_share_an_epoch_without_a_sample_in_common():
    alone = picked(Numbers(11), EPOCHS)
    first, second = (picked(Numbers(11), EPOCHS, size=2, rank=r) for r in (0, 1))
    assert alone == [a + b for a, b in zip(first, second)]


def test_processes_draw_random_samples_of_their_own():
    first, second = (picked(Numbers(10**6), size=2, rank=r) for r in (0, 1))
    assert {len(s) for s in first + second} == {2}
    assert not {p for s in first for p in s} & {p for s in second for p in s}


@pytest.mark.parametrize('stage', [STEPS, EPOCHS], ids=['steps', 'epochs'])
def test_batches_prepared_ahead_are_those_prepared_when_asked(stage):
    found = draws(Numbers(11), stage)
    for first in (0, 4):
        now, ahead = (list(found.batches(first, ahead)) for ahead in (0, 3))
        assert len(now) == len(ahead) == 6 - first
        assert all(torch.equal(a.truth_m, b.truth_m) for a, b in zip(now, ahead))


def test_failure_while_preparing_ahead_is_the_failure_of_its_step():
    class Broken(Numbers):
        def batch(self, picks, rng):
            """Fail as a set with a damaged image does."""
            raise ConfigError('img_7.png: damaged')

    with pytest.raises(ConfigError, match='img_7.png'):
        list(draws(Broken(9)).batches(0, 2))


@pytest.mark.parametrize('source, stage, options, message', [
    (Numbers(9), STEPS, {'size': 3}, '3 process.es. x accumulate 1, expected a multiple of 3'),
    (Numbers(9), STEPS, {'config': replace(RECIPE, accumulate=8)}, 'expected a multiple of 8'),
    (Numbers(9), replace(STEPS, frozen_tower=False),
     {'config': replace(RECIPE, accumulate=4)}, 'batch = 4 leaves one sample for each of 4 parts'),
    (Numbers(3), EPOCHS, {}, 'the sets have 3 samples, too few for one batch of 4'),
    (Numbers(9, 9, weights=[1.0, 0.5]), EPOCHS, {}, 'epochs take every sample once'),
])  # fmt: skip
def test_batch_that_cannot_be_made_is_refused(source, stage, options, message):
    with pytest.raises(ConfigError, match=message):
        draws(source, stage, **options)


@pytest.mark.parametrize('options, message', [
    ({}, 'steps = None, epochs = None, expected one of the two'),
    ({'steps': 5, 'epochs': 5}, 'steps = 5, epochs = 5, expected one of the two'),
    ({'epochs': 0}, 'epochs = 0, expected at least 1'),
])  # fmt: skip
def test_stage_counts_either_steps_or_epochs(options, message):
    with pytest.raises(ConfigError, match=message):
        StageConfig('head', 0.001, **options)


def test_streamed_set_gives_the_batches_of_the_one_in_memory(tmp_path):
    write_set(tmp_path / 'set', [1.0, 2.0, 3.0])
    made = []
    for in_memory in (True, False):
        with Progress(disable=True) as progress:
            samples = CameraSamples(
                [SetConfig('set', in_memory=in_memory)], tmp_path, (24, 32), {},
                ModelConfig.from_dict(MODEL), progress,
            )  # fmt: skip
        picks = [Pick(0, i) for i in (2, 0, 1, 2)]
        made.append(samples.batch(picks, torch.Generator().manual_seed(5)))
    assert torch.equal(made[0].view, made[1].view) and torch.equal(made[0].valid, made[1].valid)
    assert torch.equal(*(m.truth_m.nan_to_num(-1) for m in made))
    assert made[0].view.shape == (4, 3, 64, 64) and made[0].valid.float().mean() > 0.5


def test_batch_divides_into_equal_parts():
    batch = Batch(torch.arange(6.0), torch.arange(6) > 2, torch.arange(12.0).view(6, 2))
    parts = batch.split(3)
    assert [p.truth_m.tolist() for p in parts] == [[0, 1], [2, 3], [4, 5]]
    assert parts[1].view.tolist() == [[4, 5], [6, 7]] and parts[1].features is None
