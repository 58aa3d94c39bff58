"""Which weights these are: SHA-256 of a state or of a file."""

from collections.abc import Mapping
import hashlib
from pathlib import Path

import torch


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over a state: for each sorted key its name and its tensor's raw bytes."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        value = state[key].detach().cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, to tell which weights run."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
