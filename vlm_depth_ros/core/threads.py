"""How the threads of tensor operations wait for one another; to be said before torch is loaded."""

import os

WAITING = {
    'OMP_WAIT_POLICY': 'ACTIVE',
    # GNU's OpenMP, PyTorch's on Linux: a waiting thread looks so often, for some microseconds, and
    # sleeps then. `pocket`'s operations are short: with no look at all two threads are slower than
    # one, with very many they starve other processes (docs/performance.md). Passive waiting would
    # allow none at all as soon as a second thread has run the network, as the node's worker does.
    'GOMP_SPINCOUNT': '1000',
    # LLVM's and Intel's: sleep at once. There, active alone means to look for ever.
    'KMP_BLOCKTIME': '0',
}


def nap_between_operations() -> None:
    """Let waiting threads sleep after a moment, unless ``OMP_WAIT_POLICY`` is set already."""
    if 'OMP_WAIT_POLICY' not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
