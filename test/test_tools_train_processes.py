"""Training in real processes: killed at any moment and resumed, or two that share each batch."""

from dataclasses import replace
import multiprocessing
import os
from pathlib import Path
import random
import signal
import socket
import time

from desk_sets import MODEL, write_set
import numpy as np
import pytest
import torch
import towers
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.model import load_model
from vlm_depth_ros.tools.augment import AugmentConfig
from vlm_depth_ros.tools.recipe import TrainConfig
from vlm_depth_ros.tools.train import train
from vlm_depth_ros.tools.training_state import resume_path

RECIPE = TrainConfig(
    name='tiny', model=MODEL, sets=({'folder': 'set'},),
    select={'folder': 'set', 'rows': ((3, 4),)},
    stages=(
        {'name': 'tower', 'frozen_tower': False, 'steps': 6, 'lr': 0.002},
        {'name': 'head', 'epochs': 8, 'lr': 0.001},
    ),
    batch=4, accumulate=2, cache_hw=(48, 64), check_every=2, ema=0.5, seed=7,
)  # fmt: skip
STILL = {
    name: 1.0 if name == 'min_crop' else 0.0 for name in AugmentConfig.__dataclass_fields__
} | {'flip': False}
PATIENCE_S = 120


@pytest.fixture(scope='module')
def processes():
    """Makes processes that need not import torch again."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['vlm_depth_ros.tools.train'])
    return context


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(root / 'set', [slope, slope[:, ::-1].copy(), 2.0, slope * 1.5])
    return root


def run(config, data, name, resume=False, team=None):
    """Train `data`/`name`, in this or in another process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if team:
        os.environ.update(team)
    train(config, data, data / name, resume)
    torch.set_num_threads(threads)


def written_ns(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_somewhere(process, state, chance):
    """Kill it some checks and some milliseconds later; whether it was still at work."""
    for _ in range(chance.randint(1, 3)):
        before, end_s = written_ns(state), time.monotonic() + PATIENCE_S
        while written_ns(state) in (before, 0) and process.is_alive():
            assert time.monotonic() < end_s
            time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE_S)
    return process.exitcode == -signal.SIGKILL


def test_run_killed_at_random_moments_ends_bit_for_bit_as_an_unbroken_one(processes, data):
    run(RECIPE, data, 'unbroken.safetensors')
    chance, out, kills = random.Random(), data / 'killed.safetensors', 0
    for _ in range(3):
        resume = resume_path(out).exists()
        process = processes.Process(target=run, args=(RECIPE, data, out.name, resume))
        process.start()
        kills += kill_somewhere(process, resume_path(out), chance)
        if out.exists():
            break
        assert resume_path(out).exists()
    assert kills >= 2
    if not out.exists():
        run(RECIPE, data, out.name, resume=True)
    expected, found = (load_model(data / f'{n}.safetensors') for n in ('unbroken', 'killed'))
    expected, found = expected.state_dict(), found.state_dict()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def fill(self, tag, file=''):
    """The same random weights in every process."""
    torch.manual_seed(1)
    for parameter in self.tower.parameters():
        torch.nn.init.normal_(parameter, std=0.05)


def run_on_a_tiny_tower(*args, **options):
    """`run`, where no tower can be downloaded."""
    Backbone.load_published = fill
    run(*args, **options)


@pytest.mark.parametrize('feature_views', [0, 1], ids=['views', 'kept features'])
def test_two_processes_learn_what_one_learns(feature_views, processes, data, monkeypatch):
    """Each takes half of the same shuffled batches; the mean gradient is that of the whole batch.

    With a loss that is a mean over pixels, and a head without normalisation.
    """
    monkeypatch.setattr(Backbone, 'load_published', fill)
    config = replace(
        RECIPE, model=MODEL | {'tower': 'tiny-vit', 'pretrained': towers.TAG,
                               'head': {'name': 'linear'}},
        sets=({'folder': 'set'},), stages=({'name': 'head', 'epochs': 6, 'lr': 0.01,
                                            'relative_weight': 1.0},),
        silog_weight=0.0, gradient_weight=0.0, augment=STILL, precision='fp32', accumulate=1,
        feature_views=feature_views,
    )  # fmt: skip
    alone, both = (f'{name}{feature_views}.safetensors' for name in ('alone', 'both'))
    run(config, data, alone)
    port, members = str(free_port()), []
    for rank in range(2):
        team = {'RANK': str(rank), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}  # fmt: skip
        members.append(processes.Process(
            target=run_on_a_tiny_tower, args=(config, data, both), kwargs={'team': team}
        ))  # fmt: skip
        members[-1].start()
    for member in members:
        member.join(PATIENCE_S)
    assert [member.exitcode for member in members] == [0, 0]
    expected, found = (load_model(data / name).head.state_dict() for name in (alone, both))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name
    start = Path(data / alone)
    assert start.is_file() and not resume_path(data / both).exists()
