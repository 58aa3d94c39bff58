"""KITTI: raw drives (left colour camera) with the annotated depth of the depth benchmark.

Both downloads are unpacked into one folder::

    2011_09_26/calib_cam_to_cam.txt
    2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png
    train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
    val/...

``train`` and ``val`` may also lie in ``data_depth_annotated/``. Depth is uint16, metres = value /
256, 0 = not measured (readme of the depth devkit; Uhrig et al., Sparsity Invariant CNNs, 3DV 2017,
https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction). The camera is the
left 3 x 3 of ``P_rect_02`` for images of ``S_rect_02`` (width, height) in the day's
``calib_cam_to_cam.txt`` (Geiger et al., Vision meets Robotics: The KITTI Dataset, IJRR 2013).
"""

from functools import cache
import logging
from pathlib import Path

from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.sample import Sample

UNITS_PER_METRE = 256.0
SPLITS = ('train', 'val')
ANNOTATED = ('.', 'data_depth_annotated')
"""Where ``train`` and ``val`` may lie."""
CALIBRATION_FILE = 'calib_cam_to_cam.txt'
DEPTH_FOLDER = 'proj_depth/groundtruth/image_02'

_log = logging.getLogger(__name__)


def is_kitti(path: Path) -> bool:
    """Whether `path` is a folder with annotated drives."""
    return path.is_dir() and next(_annotated(path, SPLITS), None) is not None


def read_kitti(root: Path, split: str | None = None) -> list[Sample]:
    """List the annotated images of the left colour camera, drive by drive, in order of time.

    Args:
        root: Folder of both downloads.
        split: ``train`` or ``val`` as published; None takes both, ``train`` first.

    Raises:
        InputError: If there are none, or a day has no calibration.
    """
    day_camera = cache(lambda day: read_camera(root / day / CALIBRATION_FILE))
    samples, without_images = [], []
    for drive in _annotated(root, (split,) if split else SPLITS):
        images = Path(drive.name[:10]) / drive.name / 'image_02' / 'data'
        if not (root / images).is_dir():
            without_images.append(drive.name)
            continue
        camera = day_camera(drive.name[:10])
        for depth in sorted((drive / DEPTH_FOLDER).glob('*.png')):
            samples.append(kitti_sample(root, images / depth.name, depth, camera))
    if without_images:
        _log.info(
            '%s: %d annotated drives are left out, as their raw images are not here (such as %s).',
            root, len(without_images), without_images[0],
        )  # fmt: skip
    if not samples:
        raise InputError(
            f'{root}: no annotated image of {split or "train or val"} with its raw image; '
            'expected <date>/<drive>/image_02/data/*.png and '
            f'{split or "train|val"}/<drive>/{DEPTH_FOLDER}/*.png.'
        )
    return samples


def kitti_sample(root: Path, image: Path, depth: Path, camera: CameraIntrinsics) -> Sample:
    """One sample; `image` is ``<date>/<drive>/image_02/data/<number>.png`` below `root`."""
    return Sample(
        root / image, depth, UNITS_PER_METRE,
        camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px,
        name=image.as_posix(), scene=image.parts[-4], camera_hw=camera.image_hw,
    )  # fmt: skip


def read_camera(path: Path) -> CameraIntrinsics:
    """Read the rectified left colour camera of a ``calib_cam_to_cam.txt``.

    Raises:
        InputError: If the file or one of the two lines is missing or damaged.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(
            f'{path}: cannot be read ({err}). It comes with the calibration download of the raw '
            'data, one for each day.'
        ) from err
    lines = dict(line.split(':', 1) for line in text.splitlines() if ':' in line)
    try:
        p = [float(number) for number in lines['P_rect_02'].split()]
        width, height = (int(float(number)) for number in lines['S_rect_02'].split())
        return CameraIntrinsics(p[0], p[5], p[2], p[6], width, height)
    except (KeyError, ValueError, IndexError) as err:
        raise InputError(
            f'{path}: expected the lines P_rect_02 (12 numbers) and S_rect_02 (2 numbers); one is '
            f'missing or damaged ({err!r}).'
        ) from err


def _annotated(root: Path, splits: tuple[str, ...]):
    """Yield the folders of the annotated drives, by split and name."""
    for split in splits:
        for place in ANNOTATED:
            yield from sorted((root / place / split).glob('*_drive_*_sync'))
