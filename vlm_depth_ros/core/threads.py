"""How the threads of tensor operations wait for one another; to be said before torch is loaded."""

import os

WAITING = {
    # A thread that waits by spinning starves the others when the cores are shared (measured: 30
    # times slower beside two busy processes).
    'OMP_WAIT_POLICY': 'PASSIVE',
    # So often a waiting thread of GNU's OpenMP, PyTorch's on Linux, looks before it sleeps: some
    # microseconds, without which two threads are slower than one on short operations. GNU's keeps
    # to it while no more threads than cores exist: at a desk, not in the node, whose worker is a
    # second one that runs the network (docs/performance.md).
    'GOMP_SPINCOUNT': '2000',
}


def nap_between_operations() -> None:
    """Let waiting threads sleep after a moment, unless ``OMP_WAIT_POLICY`` is set already."""
    if 'OMP_WAIT_POLICY' not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
