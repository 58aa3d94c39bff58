"""Data-parallel training: processes of a team end a step with the same gradients."""

from contextlib import redirect_stdout
import io
import os
import re
import subprocess
import sys

MEMBER = """
import torch
from torch import nn
from vlm_depth_ros.tools.team import Team

team = Team()
torch.manual_seed(team.rank)
layer = nn.Linear(3, 1)
team.share(layer)
rows = torch.arange(12.0).view(4, 3)
mine = rows[2 * team.rank : 2 * team.rank + 2] if team.size == 2 else rows
loss = layer(mine).square().mean()
loss.backward()
mean = team.average(loss, layer.parameters())
print(team.is_first, mean, layer.weight.grad.flatten().tolist(), layer.weight.flatten().tolist())
"""


def alone(monkeypatch):
    """What a team of one prints: this process."""
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    with redirect_stdout(io.StringIO()) as printed:
        exec(MEMBER, {})
    return printed.getvalue().strip().partition(' ')[::2]


def pair():
    """What each process of a team of two prints."""
    processes = []
    for rank in range(2):
        environment = os.environ | {
            'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(20000 + os.getpid() % 20000), 'OMP_NUM_THREADS': '1',
        }  # fmt: skip
        command = [sys.executable, '-c', MEMBER]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    return [line.partition(' ')[::2] for line in printed]


def test_two_processes_average_to_what_one_computes(monkeypatch):
    """Same loss, same gradient, same weights; one of the two is the first."""
    (is_first, expected), found = alone(monkeypatch), pair()
    assert is_first == 'True' and sorted(first for first, _ in found) == ['False', 'True']
    assert found[0][1] == found[1][1]
    for one, two in zip(_numbers(expected), _numbers(found[0][1])):
        assert abs(one - two) < 1e-5 * max(1, abs(one))


def _numbers(text):
    return [float(part) for part in re.split(r'[\[\], ]+', text) if part]
