"""Sequences of the TUM RGB-D benchmark: ``rgb.txt`` and ``depth.txt`` name files and their times.

Every line is ``time path``, ``#`` begins a comment. Colour and depth were not taken at one moment;
they are paired as ``associate.py`` of the benchmark's tools does: nearest first, each used once,
less than 20 ms apart. Depth is uint16 in the colour camera's pixels, metres = value / 5000,
0 = not measured. Lens distortion is left in the images.

Source: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats and ``.../tools`` (Sturm et
al., IROS 2012).
"""

from pathlib import Path

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.sample import Sample

UNITS_PER_METRE = 5000.0
MAX_DIFFERENCE_S = 0.02
CAMERAS = {
    'freiburg1': CameraIntrinsics(517.3, 516.5, 318.6, 255.3, 640, 480),
    'freiburg2': CameraIntrinsics(520.9, 521.0, 325.1, 249.7, 640, 480),
    'freiburg3': CameraIntrinsics(535.4, 539.2, 320.1, 247.6, 640, 480),
}
"""Calibration of the three colour cameras, by a part of the folder's name; from the table
"Intrinsic Camera Calibration of the Kinect" of the page above."""
DEFAULT_CAMERA = CameraIntrinsics(525.0, 525.0, 319.5, 239.5, 640, 480)
"""Row "ROS default" of the same table, for a folder of any other name."""


def is_tum(path: Path) -> bool:
    """Whether `path` is the folder of a sequence."""
    return (path / 'rgb.txt').is_file() and (path / 'depth.txt').is_file()


def read_tum(folder: Path) -> list[Sample]:
    """List the pairs of a sequence in order of time.

    Raises:
        InputError: If a list cannot be read or has a line of another form, or nothing pairs up.
    """
    sequence = folder.resolve().name
    camera = next((c for name, c in CAMERAS.items() if name in sequence), DEFAULT_CAMERA)
    rgb, depth = _read_list(folder / 'rgb.txt'), _read_list(folder / 'depth.txt')
    pairs = associate([stamp for stamp, _ in rgb], [stamp for stamp, _ in depth])
    if not pairs:
        raise InputError(
            f'{folder}: none of {len(rgb)} images and {len(depth)} depth images are less than '
            f'{MAX_DIFFERENCE_S} s apart; expected times of one clock in rgb.txt and depth.txt.'
        )
    return [
        Sample(
            folder / rgb[i][1], folder / depth[k][1], UNITS_PER_METRE,
            camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px,
            stamp_s=rgb[i][0], name=rgb[i][1], scene=sequence, camera_hw=camera.image_hw,
        )
        for i, k in pairs
    ]  # fmt: skip


def associate(first_s: list[float], second_s: list[float]) -> list[tuple[int, int]]:
    """Pair two lists of times, nearest first, each time used once.

    Returns:
        (index in the first, index in the second), in order of the first list's times.
    """
    order = np.argsort(second_s, kind='stable')
    sorted_s = np.asarray(second_s)[order]
    candidates = []
    for i, stamp in enumerate(first_s):
        low, high = np.searchsorted(sorted_s, (stamp - MAX_DIFFERENCE_S, stamp + MAX_DIFFERENCE_S))
        candidates += [(abs(stamp - second_s[k]), i, int(k)) for k in order[low : high + 1]]
    pairs, seen = {}, set()
    for difference, i, k in sorted(candidates):
        if difference < MAX_DIFFERENCE_S and i not in pairs and k not in seen:
            pairs[i] = k
            seen.add(k)
    return sorted(pairs.items(), key=lambda pair: first_s[pair[0]])


def _read_list(path: Path) -> list[tuple[float, str]]:
    """(Time in seconds, file name) of each line."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f'{path}: cannot be read as text ({err}).') from err
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith('#'):
            continue
        try:
            found.append((float(words[0]), words[1]))
        except (ValueError, IndexError) as err:
            raise InputError(
                f'{path}, line {number}: {line.strip()!r}: expected a time in seconds and a file.'
            ) from err
    return found
