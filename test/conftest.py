"""Settings that must stand before torch is loaded, and what several files of tests need."""

import pytest
from vlm_depth_ros.core.threads import nap_between_operations

nap_between_operations()


@pytest.fixture(scope='module')
def one_thread():
    """So small a network only loses time to threads that wait for one another."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
