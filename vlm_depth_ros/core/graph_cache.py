"""Converted networks, kept for the next start: ONNX files in the user's cache folder.

A file is named by what its graph was made from, so it is never out of date: other weights have
another name. Files are data: nothing here is unpickled, and who runs one checks its answers.
"""

from contextlib import suppress
from dataclasses import asdict
from functools import cache
import hashlib
from importlib.metadata import PackageNotFoundError, version
import json
import logging
import os
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram
from vlm_depth_ros.core.errors import reason_of
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.inference_graph import onnx_program

log = logging.getLogger(__name__)

LIBRARIES = ('torch', 'open_clip_torch', 'timm', 'transformers', 'onnx', 'onnxscript')
"""What has a part in the graph."""
MOST_KEPT = 8
"""Files; the one that was not used for longest goes first."""


def cache_folder(name: str) -> Path:
    """A folder of ours in the user's cache (XDG base directories); it need not be there yet."""
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(base) / 'vlm_depth_ros' / name


def slot_of(model: nn.Module) -> Path:
    """Where the graph of a network lies, or would lie.

    Args:
        model: A `DepthModel`; in evaluation mode, in fp32.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    made_from = {
        'versions': {name: _version(name) for name in LIBRARIES},
        'code': _code_sha256(),
        'kind': f'{type(model).__module__}.{type(model).__qualname__}',
        'config': model.config.to_dict(),
        'spec': asdict(model.backbone.spec),
        'tensors': {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()},
        'sha256': state_sha256(tensors),
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder('engines') / f'{key}.onnx'


def keep(program: ExportedProgram, slot: Path) -> ExportedProgram | Path:
    """Write a graph into its slot, whole or not at all, and drop what was not used for longest.

    Returns:
        The slot, or `program` itself where nothing can be kept: one warning says why.
    """
    partial = slot.with_name(f'.{slot.name}.{os.getpid()}')
    try:
        if not slot.is_absolute():
            raise OSError(f'{slot} is not absolute')
        slot.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # Refused in a moment, where the conversion would take many seconds.
        onnx_program(program).save(partial, external_data=False)
        with partial.open('rb+') as written:
            # Without this a power cut after the rename can leave an empty file under a good name.
            os.fsync(written.fileno())
        partial.replace(slot)
    except Exception as err:  # a full disk, and what ONNX cannot hold
        log.warning(
            'the converted network is not kept for the next start in %s: %s.',
            slot.parent, reason_of(err),
        )  # fmt: skip
        return program
    finally:
        with suppress(OSError):
            partial.unlink()
    _drop_oldest(slot.parent)
    return slot


def mark_used(slot: Path) -> None:
    """Let a file stay longer than those that nobody runs."""
    with suppress(OSError):
        os.utime(slot)


def drop(slot: Path) -> None:
    """Remove a file that is of no use."""
    with suppress(OSError):
        slot.unlink()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ''


@cache
def _code_sha256() -> str:
    """Of this package's own part in the graph: towers, heads, how they are exported."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob('*.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _drop_oldest(folder: Path) -> None:
    """Also what a process that was killed left half written."""
    with suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[MOST_KEPT:]:
            path.unlink()
