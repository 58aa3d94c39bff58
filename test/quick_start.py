"""Random starts that cost no more than copying: a large tower draws from one block of noise.

Drawing hundreds of millions of numbers takes longer than most of what is tested with them.
"""

from contextlib import contextmanager

import pytest
import torch

BLOCK = 2**20 + 7
"""Numbers; no width of a network divides it, so no two rows of a matrix are the same."""


@contextmanager
def quick_start():
    """Let ``torch.nn.init``, and what it is made of, draw from that block; seeds count as ever."""
    noise = torch.rand(BLOCK, generator=torch.Generator().manual_seed(0))

    def uniform(tensor, low=0.0, high=1.0, generator=None):
        if tensor.is_meta:
            return tensor
        start = int(torch.randint(BLOCK // 2, (), generator=generator))
        flat, span = tensor.detach().view(-1), noise[start:]
        for part in flat.split(len(span)):
            torch.add(low, span[:len(part)], alpha=high - low, out=part)
        return tensor

    def normal(tensor, mean=0.0, std=1.0, generator=None):
        half = std * 3**0.5  # the uniform distribution with this deviation
        return uniform(tensor, mean - half, mean + half, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'uniform_', uniform)
        patch.setattr(torch.Tensor, 'normal_', normal)
        # Makes a normal distribution of a uniform one, between the two ends of a truncated one.
        patch.setattr(torch.Tensor, 'erfinv_', lambda tensor: tensor)
        yield
