"""Bars that lie, as an SVG file: there is room for long names, and a number beside each bar."""

from collections.abc import Mapping, Sequence
from html import escape

from vlm_depth_ros.tools.charts import COLOURS, round_step

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 280, 70, 34, 30
BAR, GAP = 13, 9
"""Height of a bar, and the space between groups."""


def lying_bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Draw groups of bars from the left, one below the other.

    Args:
        labels: Left of each group.
        series: Up to two rows of numbers (> 0), one number a group.
        unit: Of the numbers.

    Returns:
        The content of an .svg file.
    """
    group = BAR * len(series) + GAP
    height = TOP + group * len(labels) + BOTTOM
    step = round_step(max(max(values) for values in series.values()) / 5)
    largest = max(max(values) for values in series.values())
    scale = (WIDTH - LEFT - RIGHT) / largest
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
             f'width="{WIDTH}" font-family="sans-serif" font-size="12" fill="#333">',
             f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']  # fmt: skip
    bottom = height - BOTTOM
    for i in range(int(largest / step) + 1):
        x = LEFT + i * step * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" '
                     'stroke="#e3e6ea"/>')  # fmt: skip
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{i * step:g}'
                     '</text>')  # fmt: skip
    parts.append(f'<text x="{WIDTH - 4}" y="19" text-anchor="end">{escape(unit)}</text>')
    for k, (name, values) in enumerate(series.items()):
        x = LEFT + 200 * k
        parts.append(f'<rect x="{x}" y="9" width="12" height="12" fill="{COLOURS[k]}"/>')
        parts.append(f'<text x="{x + 17}" y="19">{escape(name)}</text>')
        for i, value in enumerate(values):
            y = TOP + GAP / 2 + i * group + k * BAR
            parts.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{value * scale:.1f}" '
                         f'height="{BAR - 1}" fill="{COLOURS[k]}"/>')  # fmt: skip
            parts.append(f'<text x="{LEFT + value * scale + 4:.1f}" y="{y + 10.5:.1f}" '
                         f'font-size="11">{value:.3g}</text>')  # fmt: skip
    for i, label in enumerate(labels):
        y = TOP + (i + 0.5) * group + 4
        parts.append(f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{escape(label)}</text>')
    return '\n'.join([*parts, '</svg>', ''])
