"""Settings that must stand before torch is loaded, and what several files of tests need."""

import os

import pytest

# As the command line sets it: threads that wait by spinning starve the others on a busy machine.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


@pytest.fixture(scope='module')
def one_thread():
    """So small a network only loses time to threads that wait for one another."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
