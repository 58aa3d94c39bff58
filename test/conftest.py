"""Settings that must stand before torch is loaded, and what several files of tests need."""

import os
from pathlib import Path
import tempfile

import pytest
from vlm_depth_ros.core.threads import nap_between_operations

nap_between_operations()

# Converted networks of tests do not belong in the cache of who runs them; one for all processes of
# a run does. Published towers of Hugging Face, which look in the same place, stay where they are.
if 'VLM_DEPTH_TEST_CACHE' not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix='vlm_depth_cache_')
    USERS = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    os.environ.setdefault('HF_HOME', str(USERS / 'huggingface'))
    os.environ['XDG_CACHE_HOME'] = os.environ['VLM_DEPTH_TEST_CACHE'] = CACHE.name


@pytest.fixture(scope='module')
def one_thread():
    """So small a network only loses time to threads that wait for one another."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
