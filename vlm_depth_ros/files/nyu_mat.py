"""NYU Depth V2, the labelled set: 1449 images with depth in one MATLAB file.

``nyu_depth_v2_labeled.mat`` is a MATLAB 7.3 file, which is HDF5; MATLAB stores columns first, so
that HDF5 shows every array transposed: ``images`` (N, 3, W, H) uint8, ``depths`` (N, W, H) float32
metres, in-painted, so that there are no holes; ``scenes`` names of rooms, as references to arrays
of character codes. ``rawDepths``, with holes, is what the BTS lists hold as PNG; not read here.

The official split (795 to train, 654 to test) is ``splits.mat``, a MATLAB 5 file beside it:
``trainNdxs`` and ``testNdxs``, columns of numbers that begin at 1.

Source: https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html (Silberman et al., ECCV 2012); the
transposition and the split as in ``extract_official_train_test_set_from_mat.py`` of
https://github.com/cleinc/bts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vlm_depth_ros.core.errors import DependencyError, InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.sample import Sample

NYU_FILE = 'nyu_depth_v2_labeled.mat'
SPLITS_FILE = 'splits.mat'
NYU_CAMERA = CameraIntrinsics(
    518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465, 640, 480
)
"""The colour camera: ``fx_rgb`` ... ``cy_rgb`` of ``camera_params.m`` in the authors' toolbox,
https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html."""


def is_nyu_mat(path: Path) -> bool:
    """Whether `path` is a .mat file, or a folder that holds the labelled set."""
    return path.suffix == '.mat' or (path / NYU_FILE).is_file()


def read_nyu_mat(path: Path, split: str | None = None) -> list[Sample]:
    """Open the labelled set; no image is read yet.

    Args:
        path: The .mat file, or its folder.
        split: ``train`` or ``test`` of the official split, which needs ``splits.mat`` beside the
            file; None takes all in the order of the file.

    Raises:
        InputError: If a file is missing, damaged or of another form.
        DependencyError: If h5py (or, for a split, SciPy) is not installed.
    """
    path = path / NYU_FILE if path.is_dir() else path
    file = _MatFile(path)
    rows = range(file.count) if split is None else _split(path.parent / SPLITS_FILE, split, file)
    camera = NYU_CAMERA
    return [
        _MatSample(
            rgb=path / 'images' / str(row),
            depth=path / 'depths' / str(row),
            depth_units_per_metre=1.0,
            fx_px=camera.fx_px, fy_px=camera.fy_px, cx_px=camera.cx_px, cy_px=camera.cy_px,
            name=f'{row:05d}',
            scene=file.scenes[row],
            camera_hw=camera.image_hw,
            file=file,
            row=row,
        )
        for row in rows
    ]  # fmt: skip


@dataclass(frozen=True)
class _MatSample(Sample):
    file: '_MatFile | None' = None
    row: int = 0

    def load_rgb(self) -> np.ndarray:
        return self.file.read('images', self.row)

    def load_depth_m(self) -> np.ndarray:
        depth_m = self.file.read('depths', self.row).astype(np.float32)
        wrong = int((~(np.isfinite(depth_m) & (depth_m >= 0))).sum())
        if wrong:
            raise InputError(
                f'{self.depth}: {wrong} values are negative, infinite or NaN; expected metres, '
                '0 = not measured. Copy the file again from its origin.'
            )
        depth_m[depth_m == 0] = np.nan
        return depth_m


class _MatFile:
    """The open HDF5 file; `read` turns what MATLAB transposed."""

    def __init__(self, path: Path):
        try:
            import h5py
        except ImportError as err:
            raise DependencyError(
                f"{path}: needs h5py. Install it: pip install 'vlm_depth_ros[datasets]'"
            ) from err
        if not path.is_file():
            raise InputError(f'{path}: does not exist; expected the file {NYU_FILE}.')
        try:
            self._file = h5py.File(path, 'r')
        except OSError as err:
            raise InputError(
                f'{path}: is not a MATLAB 7.3 (HDF5) file, or is cut off ({err}). Expected '
                f'{NYU_FILE}; copy it again from its origin.'
            ) from err
        self.path = path
        images, depths = (self._shape(name) for name in ('images', 'depths'))
        if len(images) != 4 or images[1] != 3 or (images[0], *images[2:]) != depths:
            raise InputError(
                f'{path}: images {images} and depths {depths}; expected (N, 3, W, H) and (N, W, H)'
                f' as in {NYU_FILE}.'
            )
        self.count = images[0]
        self.scenes = self._scenes()

    def read(self, name: str, row: int) -> np.ndarray:
        """One picture of ``images`` as (H, W, 3), or of ``depths`` as (H, W)."""
        try:
            return np.ascontiguousarray(self._file[name][row].T)
        except OSError as err:
            raise InputError(
                f'{self.path}/{name}/{row}: cannot be read ({err}). Copy the file again from its '
                'origin.'
            ) from err

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._file:
            raise InputError(
                f'{self.path}: has no {name!r} (but {", ".join(sorted(self._file)) or "nothing"});'
                f' expected {NYU_FILE}.'
            )
        return getattr(self._file[name], 'shape', ())

    def _scenes(self) -> list[str]:
        if 'scenes' not in self._file:
            return [''] * self.count
        references = self._file['scenes'][()].ravel()
        return [''.join(map(chr, self._file[r][()].ravel())) for r in references]


def _split(path: Path, split: str, file: _MatFile) -> list[int]:
    try:
        from scipy.io import loadmat
    except ImportError as err:
        raise DependencyError(
            f"{path}: needs SciPy. Install it: pip install 'vlm_depth_ros[datasets]'"
        ) from err
    if not path.is_file():
        raise InputError(
            f'{path}: does not exist; the official split is in the {SPLITS_FILE} that is published'
            f' with {NYU_FILE}. Put it beside, or take all images (format nyu_mat).'
        )
    name = f'{split}Ndxs'
    try:
        content: dict[str, Any] = loadmat(path)
        rows = [int(number) - 1 for number in content[name].ravel()]
    except Exception as err:  # SciPy has no error of its own for a damaged file
        raise InputError(
            f'{path}: {name} cannot be read ({err}); expected a MATLAB 5 file with trainNdxs and '
            'testNdxs.'
        ) from err
    if not rows or not 0 <= min(rows) <= max(rows) < file.count:
        raise InputError(
            f'{path}: {name} does not belong to {file.path.name}, which has {file.count} images.'
        )
    return rows
