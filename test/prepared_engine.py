"""Stands in for the program that converts a network; the environment says what becomes of it.

ENGINE_PROGRAM: 'ready', 'other weights', 'trouble', 'crash', or a file that it waits for before it
is ready. It takes the arguments of the real one.
"""

import hashlib
import json
import os
from pathlib import Path
import sys
import time


def sha256_of(path: Path) -> str:
    """Without PyTorch, which takes seconds to load."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Print what the real one would."""
    what = os.environ['ENGINE_PROGRAM']
    weights, precision, _ = sys.argv[1:]
    assert precision == 'fp32' and os.environ['OMP_NUM_THREADS'] == '1'
    if what == 'crash':
        raise MemoryError('no memory')
    if what == 'trouble':
        print(json.dumps({'trouble': 'engine openvino cannot run this network: eager goes on.'}))
        return 0
    while what.startswith('/') and not Path(what).exists():
        time.sleep(0.02)
    sha256 = 'of others' if what == 'other weights' else sha256_of(Path(weights))
    found = {'weights_sha256': sha256, 'graph': 'graph.onnx', 'engines': ['openvino']}
    print(json.dumps(found | {'trouble': ''}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
