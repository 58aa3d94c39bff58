"""Writing without half files: the old one stays until the new one is whole."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
import tempfile

from vlm_depth_ros.core.errors import InputError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends without an exception.

    The temporary file lies in a folder of its own beside the target and bears the same name, so a
    writer that looks at the suffix or stores the name does the right thing. Parents are made.

    Raises:
        InputError: If the target is no regular file, or the file system refuses (full, read-only).
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f'{path}: is not a regular file; name a file that may be written.')
    with _beside(path) as temporary:
        yield temporary
        with temporary.open('rb+') as written:
            # Without this a power cut after the rename can leave an empty file under a good name.
            os.fsync(written.fileno())
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a new folder to fill; it becomes `path` when the block ends without an exception.

    Raises:
        InputError: If `path` exists and is not an empty folder, or the file system refuses.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f'{path}: exists already; name a new or an empty folder.')
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in a fresh folder on the file system of `path`; the folder goes at the end."""
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', suffix='.part', dir=path.parent))
        yield folder / path.name
    except OSError as err:
        raise InputError(
            f'{path}: could not be written ({err}); what was there before is unchanged. '
            'Check the free space and the permissions of its folder.'
        ) from err
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
