"""Folders of images with measured depth: `pairs.csv`, ``rgb/NNNNN.jpg`` and ``depth/NNNNN.png``.

One row is one picture: ``rgb,depth,depth_units_per_metre,fx,fy,cx,cy,stamp_s``. Depth is stored as
unsigned integers, metres = value / units, 0 = no measurement; intrinsics are pinhole, in pixels of
the stored size; ``stamp_s`` may be empty.
"""

from collections.abc import Iterable
import csv
from dataclasses import dataclass
import logging
import math
from pathlib import Path

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.atomic import atomic_folder
from vlm_depth_ros.files.images import load_as_stored, load_rgb, save_jpeg, save_png
from vlm_depth_ros.files.source import Source, SourceFrame

__all__ = [
    'COLUMNS',
    'PAIRS_FILE',
    'Pair',
    'PairsSource',
    'load_depth_m',
    'load_rgb',
    'read_pairs',
    'read_scenes',
    'write_pairs',
]

PAIRS_FILE = 'pairs.csv'
COLUMNS = ('rgb', 'depth', 'depth_units_per_metre', 'fx', 'fy', 'cx', 'cy', 'stamp_s')

SCENE_COLUMNS = ('scene', 'sequence')
"""Further columns that name the scene of a row; the first that is there counts."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One row of pairs.csv; nothing but the files' existence was looked at."""

    rgb: Path
    depth: Path
    depth_units_per_metre: float
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    stamp_s: float | None = None

    def intrinsics(self, image_hw: tuple[int, int]) -> CameraIntrinsics:
        """Give the camera of the stored image, whose size only the image itself tells."""
        height, width = image_hw
        return CameraIntrinsics(self.fx_px, self.fy_px, self.cx_px, self.cy_px, width, height)

    def load_rgb(self) -> np.ndarray:
        """Read the image file alone, as `load_rgb`."""
        return load_rgb(self.rgb)

    def load_depth_m(self) -> np.ndarray:
        """Read the depth file alone, as `load_depth_m`."""
        return load_depth_m(self.depth, self.depth_units_per_metre)

    def load(self) -> SourceFrame:
        """Read both files.

        Raises:
            InputError: If one is damaged, or they differ in size.
        """
        rgb = self.load_rgb()
        depth_m = self.load_depth_m()
        if depth_m.shape != rgb.shape[:2]:
            raise InputError(
                f'{self.depth}: {depth_m.shape} pixels, but {self.rgb.name} has {rgb.shape[:2]} '
                '(height, width); a pair must have one size.'
            )
        return SourceFrame(
            rgb=rgb,
            stamp_s=self.stamp_s,
            intrinsics=self.intrinsics(rgb.shape[:2]),
            depth_m=depth_m,
            name=self.rgb.name,
        )


def read_pairs(folder: str | Path, *, must_exist: bool = True) -> list[Pair]:
    """Read pairs.csv of `folder`; extra columns are ignored, empty lines skipped.

    Args:
        folder: Holds pairs.csv.
        must_exist: Whether a row whose files are missing is refused now, or when it is loaded.

    Raises:
        InputError: If the file is missing or empty, a column or a named file is missing, or a
            number is wrong; with file and line.
    """
    path = Path(folder) / PAIRS_FILE
    return [_pair(path, line, row, must_exist) for line, row in _table(path)]


def read_scenes(folder: str | Path) -> list[str]:
    """Read what pairs.csv of `folder` calls the scene of each row.

    Returns:
        One name a row, empty where the row has none or the file no such column.

    Raises:
        InputError: As `read_pairs`, but only what stands in the file is looked at.
    """
    rows = [row for _, row in _table(Path(folder) / PAIRS_FILE)]
    column = next((c for c in SCENE_COLUMNS if c in rows[0]), None)
    return [(row[column] or '').strip() if column else '' for row in rows]


def load_depth_m(path: str | Path, units_per_metre: float) -> np.ndarray:
    """Read a depth image of unsigned integers as (H, W) float32 metres; 0 becomes NaN.

    Raises:
        InputError: If the file is damaged, or no image of one unsigned channel.
    """
    stored = load_as_stored(path)
    if stored.ndim != 2 or stored.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f'{path}: {stored.dtype} {stored.shape}; a depth image has one channel of uint16.'
        )
    depth_m = stored.astype(np.float32)
    depth_m[stored == 0] = np.nan
    depth_m /= np.float32(units_per_metre)
    return depth_m


class PairsSource(Source):
    """The rows of pairs.csv as frames with camera and measured depth."""

    def __init__(self, folder: str | Path):
        """Read pairs.csv, no image yet; raises as `read_pairs`."""
        self.folder = Path(folder)
        self.pairs = read_pairs(folder)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.pairs)

    def _frame(self, index: int) -> SourceFrame:
        return self.pairs[index].load()


def write_pairs(
    folder: str | Path,
    frames: Iterable[SourceFrame],
    *,
    units_per_metre: float = 1000.0,
    jpeg_quality: int | None = None,
) -> int:
    """Write frames as a folder with pairs.csv; the folder appears when it is complete.

    Args:
        folder: New or empty.
        frames: Each with `intrinsics` and `depth_m`; taken one by one.
        units_per_metre: Stored depth = metres x this: 1000 is millimetres and reaches 65.5 m.
        jpeg_quality: Store RGB as JPEG of this quality instead of PNG.

    Returns:
        The number of frames.

    Raises:
        InputError: If a frame lacks camera or depth, there is no frame, or nothing can be written.
    """
    if not (math.isfinite(units_per_metre) and units_per_metre > 0):
        raise InputError(f'units_per_metre = {units_per_metre}: expected a positive number.')
    form = 'png' if jpeg_quality is None else 'jpg'
    count = too_far = 0
    with atomic_folder(folder) as temporary:
        with (temporary / PAIRS_FILE).open('w', encoding='utf-8', newline='') as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for frame in frames:
                units, lost = _store(frame, units_per_metre)
                row = (f'rgb/{count:05d}.{form}', f'depth/{count:05d}.png')
                if form == 'png':
                    save_png(temporary / row[0], frame.rgb)
                else:
                    save_jpeg(temporary / row[0], frame.rgb, jpeg_quality)
                save_png(temporary / row[1], units)
                camera = frame.intrinsics
                numbers = (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px)
                stamp = '' if frame.stamp_s is None else f'{frame.stamp_s:.6f}'
                table.writerow((*row, *(f'{n:.10g}' for n in (units_per_metre, *numbers)), stamp))
                count += 1
                too_far += lost
        if count == 0:
            raise InputError(f'{folder}: no frames to write; expected at least one.')
    if too_far:
        _log.warning(
            '%s: %d pixels beyond %.1f m became "no measurement"; use fewer units per metre.',
            folder,
            too_far,
            65535 / units_per_metre,
        )
    return count


def _store(frame: SourceFrame, units_per_metre: float) -> tuple[np.ndarray, int]:
    """Depth as uint16, and how many pixels were too far for it."""
    if frame.depth_m is None or frame.intrinsics is None:
        raise InputError(f'frame {frame.name!r}: needs depth_m and intrinsics to become a pair.')
    if frame.depth_m.shape != frame.rgb.shape[:2]:
        raise InputError(
            f'frame {frame.name!r}: depth {frame.depth_m.shape} and image {frame.rgb.shape[:2]} '
            'differ in size.'
        )
    with np.errstate(invalid='ignore', over='ignore'):
        units = np.rint(frame.depth_m.astype(np.float64) * units_per_metre)
        is_far = units > 65535
        units[~(units > 0) | is_far] = 0
    return units.astype(np.uint16), int(is_far.sum())


def _table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows with the numbers of their lines; at least one, each with all `COLUMNS`."""
    if not path.is_file():
        raise InputError(f'{path}: does not exist; expected columns {",".join(COLUMNS)}.')
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            rows = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
            if missing:
                raise InputError(
                    f'{path}, line 1: column {", ".join(missing)} missing; expected '
                    f'{",".join(COLUMNS)}.'
                )
            found = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f'{path}: cannot be read as CSV in UTF-8 ({err}).') from err
    if not found:
        raise InputError(f'{path}: has no rows; expected one per image.')
    return found


def _pair(path: Path, line: int, row: dict, must_exist: bool) -> Pair:
    where = f'{path}, line {line}'
    if None in row or None in row.values():
        raise InputError(f'{where}: has not as many columns as line 1.')
    files = []
    for column in ('rgb', 'depth'):
        file = path.parent / row[column].strip()
        if not row[column].strip() or (must_exist and not file.is_file()):
            raise InputError(f'{where}: {column} = {row[column]!r}: no such file.')
        files.append(file)
    numbers = {c: _number(where, c, row[c]) for c in COLUMNS[2:7]}
    for column in ('depth_units_per_metre', 'fx', 'fy'):
        if numbers[column] <= 0:
            raise InputError(f'{where}: {column} = {row[column]!r}: expected a positive number.')
    stamp = _number(where, 'stamp_s', row['stamp_s']) if row['stamp_s'].strip() else None
    return Pair(*files, *numbers.values(), stamp)


def _number(where: str, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'{where}: {column} = {text!r}: expected a finite number.')
    return number
