"""A judged confidence as a picture: the error that is left by what is dropped, and calibration."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from vlm_depth_ros.tools.charts import round_step
from vlm_depth_ros.tools.judged_confidence import ORDERS
from vlm_depth_ros.tools.pictures import FONT, TEXT_RGB

PANEL_HW = (420, 560)
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 56
FINER = 3
"""Drawn so many times larger and averaged: smooth lines and letters."""
GRID_RGB, BAR_RGB, SURE_RGB = (226, 229, 233), (222, 228, 236), (37, 99, 168)
LINE_RGB = {
    'farness': (214, 126, 24),
    'nearness': (120, 94, 160),
    'oracle': (140, 145, 150),
    'confidence': SURE_RGB,
}
"""Of `ORDERS`; the last lies on top."""


class _Panel:
    """Axes from 0 up, in pixels of the finished picture."""

    def __init__(self, title: str, names: tuple[str, str], ends: tuple[float, float]):
        """Draw the frame; `names` and `ends` are those of x and y."""
        self.picture = np.full((PANEL_HW[0] * FINER, PANEL_HW[1] * FINER, 3), 255, np.uint8)
        self._ends = ends
        x_end, y_end = ends
        for value in _ticks(x_end):
            self.line([(value, 0), (value, y_end)], GRID_RGB, 1)
            x, y = self._at((value, 0))
            self.text(f'{value:.3g}', (x, y + 18), 0.5)
        for value in _ticks(y_end):
            self.line([(0, value), (x_end, value)], GRID_RGB, 1)
            x, y = self._at((0, value))
            self.text(f'{value:.3g}', (x - 8, y + 5), 1.0)
        self.text(title, (LEFT, 24), 0.0, 0.56)
        self.text(names[0], ((LEFT + PANEL_HW[1] - RIGHT) / 2, PANEL_HW[0] - 14), 0.5)
        self.text(names[1], (LEFT, TOP - 10), 0.0)

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = (value / end for value, end in zip(point, self._ends))
        inner_h, inner_w = PANEL_HW[0] - TOP - BOTTOM, PANEL_HW[1] - LEFT - RIGHT
        return LEFT + x * inner_w, TOP + (1 - y) * inner_h

    def line(self, points: Sequence[tuple[float, float]], rgb, width: float = 2) -> None:
        """Join points given in units of the axes."""
        corners = np.round(np.array([self._at(p) for p in points]) * FINER).astype(np.int32)
        cv2.polylines(self.picture, [corners], False, rgb, round(width * FINER), cv2.LINE_AA)

    def dots(self, points: Sequence[tuple[float, float]], rgb) -> None:
        """Mark points."""
        for point in points:
            x, y = (round(v * FINER) for v in self._at(point))
            cv2.circle(self.picture, (x, y), 4 * FINER, rgb, -1, cv2.LINE_AA)

    def bar(self, left: float, right: float, height: float) -> None:
        """Fill from zero to `height`."""
        ends = ((left, height), (right, 0))
        corners = [tuple(round(v * FINER) for v in self._at(end)) for end in ends]
        cv2.rectangle(self.picture, *corners, BAR_RGB, -1)

    def text(self, text: str, at_xy, left_of: float, scale: float = 0.46, rgb=TEXT_RGB) -> None:
        """Write at pixel `at_xy`, of which the share `left_of` of the text lies to the left."""
        scale, width = scale * FINER, round(1.1 * FINER)
        wide = cv2.getTextSize(text, FONT, scale, width)[0][0]
        at = round(at_xy[0] * FINER - left_of * wide), round(at_xy[1] * FINER)
        cv2.putText(self.picture, text, at, FONT, scale, rgb, width, cv2.LINE_AA)

    def finished(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return cv2.resize(self.picture, PANEL_HW[::-1], interpolation=cv2.INTER_AREA)


def _ticks(end: float) -> np.ndarray:
    step = round_step(end / 5)
    return np.arange(0, end + step / 2, step)


def confidence_picture(judged: dict[str, Any]) -> np.ndarray:
    """Draw ``confidence`` of what ``vlm-depth evaluate --json`` writes.

    Left the AbsRel of what is left when a share of the pixels is dropped, by four orders of
    dropping. Right the share of depths within a factor of 1.25 for each tenth of the confidence;
    on the dashed line a confidence is what it says, bars show where the pixels are.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return np.hstack([_kept(judged).finished(), _reliability(judged).finished()])


def _kept(judged: dict[str, Any]) -> _Panel:
    dropped = [100 * share for share in judged['dropped']]
    lines = {order: judged[f'abs_rel_by_{order}'] for order in LINE_RGB}
    highest = max(max(values) for values in lines.values()) or 1.0
    step = round_step(highest / 5)
    panel = _Panel(
        'Error of the pixels that are left', ('% of the pixels dropped', 'AbsRel'),
        (max(dropped), step * np.ceil(highest / step - 1e-9)),
    )  # fmt: skip
    for row, (order, values) in enumerate(lines.items()):
        points, rgb = list(zip(dropped, values)), LINE_RGB[order]
        panel.line(points, rgb, 3 if order == 'confidence' else 2)
        panel.dots(points, rgb)
        at_xy = LEFT + 12, PANEL_HW[0] - BOTTOM - 72 + 18 * row
        panel.text(f'{ORDERS[order]} first', at_xy, 0.0, rgb=rgb)
    return panel


def _reliability(judged: dict[str, Any]) -> _Panel:
    rows = judged['calibration']
    panel = _Panel(
        'What a confidence is worth',
        ('confidence', 'share of depths within a factor of 1.25 of the truth'), (1.0, 1.0),
    )  # fmt: skip
    total = sum(row['pixels'] for row in rows)
    for row in rows:
        tenth = min(int(row['confidence'] * 10), 9) / 10
        panel.bar(tenth + 0.012, tenth + 0.088, row['pixels'] / total)
    for start in np.arange(0, 1, 0.04):
        panel.line([(start, start), (start + 0.02, start + 0.02)], (140, 145, 150), 1.5)
    points = [(row['confidence'], row['within_1.25']) for row in rows]
    panel.line(points, SURE_RGB, 3)
    panel.dots(points, SURE_RGB)
    says = f'calibration error {judged["calibration_error"]:.3f}'
    panel.text(says, (LEFT + 12, TOP + 24), 0.0, rgb=SURE_RGB)
    panel.text('bars: share of the pixels', (LEFT + 12, TOP + 44), 0.0, rgb=(120, 128, 140))
    return panel
