"""Grids of obstacles as a picture: what a costmap would hold beside what the sensor saw."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from vlm_depth_ros.tools.obstacle_grid import GridOptions, JudgedCells, SensorGrid
from vlm_depth_ros.tools.pictures import colour_rgb, fit, LABEL_PX, round_range_m, sheet, write

CELL_HW = (264, 352)
UNKNOWN_RGB, FREE_RGB, CAMERA_RGB = (214, 218, 223), (255, 255, 255), (20, 20, 20)
CLASSES = {
    'unjudged': ((178, 168, 200), 'predicted, hidden from the sensor'),
    'found': ((40, 90, 160), 'sensor, predicted within the tolerance'),
    'confirmed': ((70, 160, 90), 'predicted, right'),
    'missed': ((240, 150, 20), 'sensor, missed'),
    'false': ((205, 30, 45), 'predicted, false'),
}
"""Colour and name of each kind of cell; a later one lies on top."""
GROUND = ((FREE_RGB, 'seen free by the sensor'), (UNKNOWN_RGB, 'not seen'))


@dataclass
class Shown:
    """One frame of the picture."""

    number: int
    rgb: np.ndarray
    grid: SensorGrid
    depths_m: dict[str, np.ndarray] = field(default_factory=dict)
    cells: dict[str, JudgedCells] = field(default_factory=dict)

    def add(self, name: str, depth_m: np.ndarray, cells: JudgedCells) -> None:
        """Take in one row of the table."""
        self.depths_m[name], self.cells[name] = depth_m, cells


def obstacle_sheet(shown: Sequence[Shown], names: Sequence[str], photographs: bool) -> np.ndarray:
    """Draw some frames: image and depth if wanted, then the grid of each of `names`.

    Args:
        shown: At least one frame.
        names: Rows of the table; the depth is that of the first.
        photographs: False leaves image and depth out, where terms forbid to show them.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    first = names[0]
    range_m = round_range_m([frame.depths_m[first] for frame in shown])
    aside = max(frame.grid.aside for frame in shown)
    rows, captions = [], []
    for frame in shown:
        grids = [
            fit(grid_rgb(frame.grid.seen_free(), frame.cells[name], aside), CELL_HW, nearest=True)
            for name in names
        ]
        seen = [fit(frame.rgb, CELL_HW), fit(colour_rgb(frame.depths_m[first], range_m), CELL_HW)]
        rows.append([*(seen if photographs else []), *grids])
        captions.append(f'row {frame.number}   ' + '   '.join(
            f'{name}: {_rates(frame.cells[name])}' for name in names
        ))  # fmt: skip
    titles = [*(('image', 'predicted depth') if photographs else ()), *names]
    width = (CELL_HW[1] + 6) * len(titles)
    return sheet(rows, titles, _legend(shown[0].grid.options, width), captions)


def grid_rgb(free: np.ndarray, cells: JudgedCells, aside: int) -> np.ndarray:
    """Draw a grid seen from above, the camera at the bottom, looking up; one pixel a cell.

    Args:
        free: (n, 2 n) bool, seen free.
        cells: Of the same shape.
        aside: Cells to draw to either side of the camera, up to n.

    Returns:
        (n, 2 aside, 3) uint8 RGB.
    """
    picture = np.where(free[..., None], FREE_RGB, UNKNOWN_RGB).astype(np.uint8)
    for name, (rgb, _) in CLASSES.items():
        picture[getattr(cells, name)] = rgb
    reach = len(picture)
    picture[0, reach - 1 : reach + 1] = CAMERA_RGB
    return np.ascontiguousarray(picture[::-1, reach - aside : reach + aside][:, ::-1])


def _rates(cells: JudgedCells) -> str:
    n = cells.counts()
    return ', '.join(
        f'{part} {100 * n[part] / total:.0f} %' if total else f'no marks ({part})'
        for part, total in (
            ('false', n['false'] + n['confirmed']), ('missed', n['missed'] + n['found']),
        )
    )  # fmt: skip


def _legend(options: GridOptions, width: int) -> np.ndarray:
    scale = f'camera; cells of {options.cell_m:g} m, {options.range_m:g} m ahead'
    entries = [*CLASSES.values(), *GROUND, (CAMERA_RGB, scale)]
    columns = max(1, width // 330)
    lines = -(-len(entries) // columns)
    legend = np.full((LABEL_PX * lines + 6, width, 3), 255, np.uint8)
    for i, (rgb, text) in enumerate(entries):
        x, y = 8 + i % columns * 330, 4 + i // columns * LABEL_PX
        cv2.rectangle(legend, (x, y), (x + 16, y + 16), rgb, -1)
        cv2.rectangle(legend, (x, y), (x + 16, y + 16), (120, 125, 130), 1)
        write(legend, text, (x + 24, y + 13))
    return legend
