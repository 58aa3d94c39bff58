"""One door to every set of pictures with measured depth: `open_samples` looks and chooses."""

from collections.abc import Callable
from functools import partial
import os
from pathlib import Path
from typing import NamedTuple

from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.bts_lists import (
    is_kitti_list,
    is_nyu_list,
    read_kitti_list,
    read_nyu_list,
)
from vlm_depth_ros.files.kitti import is_kitti, read_kitti
from vlm_depth_ros.files.nyu_mat import is_nyu_mat, read_nyu_mat
from vlm_depth_ros.files.pairs import PAIRS_FILE, read_pairs
from vlm_depth_ros.files.sample import Sample
from vlm_depth_ros.files.tum import is_tum, read_tum


def is_pairs(path: Path) -> bool:
    """Whether `path` is a pairs.csv, or a folder that holds one."""
    return path.name == PAIRS_FILE or (path / PAIRS_FILE).is_file()


def read_pairs_set(path: Path) -> list[Sample]:
    """List the rows of pairs.csv; the folder's name is the scene. Raises as `read_pairs`."""
    folder = path.parent if path.name == PAIRS_FILE else path
    return [
        Sample(
            **vars(pair),
            name=Path(os.path.relpath(pair.rgb, folder)).as_posix(),
            scene=folder.resolve().name,
        )
        for pair in read_pairs(folder, must_exist=False)
    ]


class Format(NamedTuple):
    """A kind of set."""

    what: str
    read: Callable[[Path], list[Sample]]
    is_at: Callable[[Path], bool] | None = None
    """Recognises it; None for a part of a set, which has to be asked for by name."""


FORMATS = {
    'pairs': Format('a folder with pairs.csv', read_pairs_set, is_pairs),
    'nyu_mat': Format('nyu_depth_v2_labeled.mat', read_nyu_mat, is_nyu_mat),
    'nyu_mat_train': Format('its 795 training images', partial(read_nyu_mat, split='train')),
    'nyu_mat_test': Format('its 654 test images', partial(read_nyu_mat, split='test')),
    'bts_nyu': Format('a BTS list of NYU images (.txt)', read_nyu_list, is_nyu_list),
    'bts_kitti': Format('a BTS list of KITTI images (.txt)', read_kitti_list, is_kitti_list),
    'kitti': Format('KITTI raw and annotated depth in one folder', read_kitti, is_kitti),
    'kitti_train': Format('its drives below train/', partial(read_kitti, split='train')),
    'kitti_val': Format('its drives below val/', partial(read_kitti, split='val')),
    'tum': Format('a TUM RGB-D sequence (rgb.txt, depth.txt)', read_tum, is_tum),
}
"""Name, as ``format:`` of a recipe's set has it, to reader."""


def open_samples(path: str | Path, format: str | None = None) -> list[Sample]:
    """Open the set that lies at `path`: its list is read, no image yet.

    Args:
        path: Folder or file.
        format: A key of `FORMATS`; None looks at what lies there.

    Raises:
        InputError: If there is no set, it could be several kinds, or its list is damaged.
        DependencyError: If a library for this kind is not installed.
    """
    path = Path(path)
    accepted = '; '.join(f'{name}: {kind.what}' for name, kind in FORMATS.items())
    if format is not None and format not in FORMATS:
        raise InputError(f'format {format!r} is unknown. Accepted: {accepted}.')
    if not path.exists():
        raise InputError(f'{path}: does not exist. Accepted: {accepted}.')
    if format is None:
        fits = [name for name, kind in FORMATS.items() if kind.is_at and kind.is_at(path)]
        if not fits:
            raise InputError(f'{path}: is no set of images with depth. Accepted: {accepted}.')
        if len(fits) > 1:
            raise InputError(
                f'{path}: could be {" or ".join(fits)}; name one of them as its format.'
            )
        format = fits[0]
    return FORMATS[format].read(path)
