"""Lists of the BTS project, by which most published figures on NYU and KITTI are trained.

One line is one image, with paths relative to the folder that the list lies in (a leading slash is
ignored)::

    /kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579

KITTI's name the image below ``<date>/`` and the depth from the drive on; the depth is also looked
for below ``data_depth_annotated/`` and ``train/`` or ``val/``, where its download has it. Further
columns (the right camera) are ignored. ``None`` instead of a depth: the image has none (45 of the
697 Eigen test images) and is left out.

Depth is uint16: NYU metres = value / 1000, KITTI metres = value / 256, 0 = not measured. NYU's
PNGs hold the raw depth of the sensor, with holes.

Source: https://github.com/cleinc/bts, ``train_test_inputs/*.txt`` and
``pytorch/bts_dataloader.py`` (Lee et al., arXiv 1907.10326).
"""

from collections.abc import Iterator
from functools import cache
import logging
from pathlib import Path
import re
from typing import NamedTuple

from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.kitti import ANNOTATED, kitti_sample, SPLITS
from vlm_depth_ros.files.nyu_mat import NYU_CAMERA
from vlm_depth_ros.files.sample import Sample

NYU_UNITS_PER_METRE = 1000.0
KITTI_CAMERAS = {
    '2011_09_26': CameraIntrinsics(721.5377, 721.5377, 609.5593, 172.8540, 1242, 375),
    '2011_09_28': CameraIntrinsics(707.0493, 707.0493, 604.0814, 180.5066, 1224, 370),
    '2011_09_29': CameraIntrinsics(718.3351, 718.3351, 600.3891, 181.5122, 1238, 374),
    '2011_09_30': CameraIntrinsics(707.0912, 707.0912, 601.8873, 183.1104, 1226, 370),
    '2011_10_03': CameraIntrinsics(718.8560, 718.8560, 607.1928, 185.2157, 1241, 376),
}
"""``P_rect_02`` and ``S_rect_02`` of each day's ``calib_cam_to_cam.txt``: the lists are used
without the calibration download, and their third column is the same focal length."""

_log = logging.getLogger(__name__)


def is_nyu_list(path: Path) -> bool:
    """Whether `path` is a list whose depths are called as in NYU's."""
    return 'sync_depth' in _head(path)


def is_kitti_list(path: Path) -> bool:
    """Whether `path` is a list whose images or depths are called as in KITTI's."""
    return 'proj_depth' in _head(path) or '/image_02/' in _head(path)


def read_nyu_list(path: Path) -> list[Sample]:
    """List the rows of an NYU list; raises as `read_kitti_list`."""
    camera = NYU_CAMERA
    samples = []
    for row in _rows(path):
        _require_focal(row, camera)
        samples.append(
            Sample(
                path.parent / row.image, path.parent / row.depth, NYU_UNITS_PER_METRE,
                camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px,
                name=row.image, scene=Path(row.image).parent.name, camera_hw=camera.image_hw,
            )
        )  # fmt: skip
    return samples


def read_kitti_list(path: Path) -> list[Sample]:
    """List the rows of a KITTI list.

    Raises:
        InputError: If the list cannot be read, has no row with depth, or a line has another form;
            with file and line.
    """
    root = path.parent

    @cache
    def depth_root(drive: str) -> Path:
        places = [root / place / split for place in ANNOTATED for split in ('.', *SPLITS)]
        return next((place for place in places if (place / drive).is_dir()), root)

    samples = []
    for row in _rows(path):
        day = re.search(r'\d{4}_\d\d_\d\d(?=/)', row.image)
        camera = KITTI_CAMERAS.get(day.group()) if day else None
        if camera is None or row.image.count('/') < 4:
            raise InputError(
                f'{row.where}: {row.image!r}: expected <date>/<drive>/image_02/data/<number>.png '
                f'with one of the dates {", ".join(KITTI_CAMERAS)}.'
            )
        _require_focal(row, camera)
        depth = depth_root(row.depth.split('/')[0]) / row.depth
        samples.append(kitti_sample(root, Path(row.image), depth, camera))
    return samples


class _Row(NamedTuple):
    where: str
    """File and line."""
    image: str
    depth: str
    focal: float


def _rows(path: Path) -> Iterator[_Row]:
    """Yield the rows that have depth."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f'{path}: cannot be read as text ({err}); expected a BTS list.') from err
    with_depth = without = 0
    for number, line in enumerate(lines, 1):
        where, words = f'{path}, line {number}', line.split()
        if not words:
            continue
        try:
            image, depth, focal = words[0].lstrip('/'), words[1].lstrip('/'), float(words[2])
        except (IndexError, ValueError) as err:
            raise InputError(
                f'{where}: {line.strip()!r}: expected image, depth (or None) and focal length.'
            ) from err
        if depth == 'None':
            without += 1
        else:
            with_depth += 1
            yield _Row(where, image, depth, focal)
    if without:
        _log.info(
            '%s: %d of %d images have no depth (None) and are left out.',
            path, without, with_depth + without,
        )  # fmt: skip
    if not with_depth:
        raise InputError(f'{path}: has no row with depth; expected one per image.')


def _require_focal(row: _Row, camera: CameraIntrinsics) -> None:
    # The lists carry four decimals.
    if abs(row.focal - camera.fx_px) > 1e-3:
        raise InputError(
            f'{row.where}: focal length {row.focal}, but the camera of these images has '
            f'{camera.fx_px}. Use the images as published, or write a pairs.csv.'
        )


def _head(path: Path) -> str:
    """The first lines of a text file; nothing of anything else."""
    if path.suffix != '.txt' or not path.is_file():
        return ''
    try:
        with path.open('rb') as file:
            return file.read(4096).decode('utf-8', 'replace')
    except OSError as err:
        raise InputError(f'{path}: cannot be read ({err.strerror}).') from err
