"""Charts as SVG files: bars that lie, so that there is room for long names, and lines."""

from collections.abc import Mapping, Sequence
from html import escape

from vlm_depth_ros.tools.charts import COLOURS, round_step

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 280, 70, 34, 30
BAR, GAP = 13, 9
"""Height of a bar, and the space between groups."""
LINES_HW, LINES_LEFT, LINES_RIGHT = (340, 860), 60, 190
LINE_COLOURS = ('#2563a8', '#d1692c', '#2b8a57', '#8a4bb0', '#b3262e', '#6b7280', '#0e7c86')
"""Of one line after the other."""


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
                         f'font-size="11">{_figure(value)}</text>')  # fmt: skip
    for i, label in enumerate(labels):
        y = TOP + (i + 0.5) * group + 4
        parts.append(f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{escape(label)}</text>')
    return '\n'.join([*parts, '</svg>', ''])


def _figure(value: float) -> str:
    """Three digits, and never a power of ten in a chart of milliseconds."""
    return f'{value:.3g}' if value < 1000 else f'{value:.0f}'


def lines_of(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str
) -> str:
    """Draw lines through points; both axes begin at zero, so what is proportional is straight.

    Args:
        series: Points (x, y), both > 0, by the name of their line.
        x_title: What x is.
        y_title: What y is.

    Returns:
        The content of an .svg file.
    """
    height, width = LINES_HW
    right, bottom = width - LINES_RIGHT, height - 44
    largest = [max(column) for column in zip(*(p for points in series.values() for p in points))]
    x_scale, y_scale = (right - LINES_LEFT) / largest[0], (bottom - TOP) / largest[1]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'width="{width}" font-family="sans-serif" font-size="12" fill="#333">',
             f'<rect width="{width}" height="{height}" fill="#fff"/>']  # fmt: skip
    y_step = round_step(largest[1] / 5)
    for i in range(int(largest[1] / y_step) + 1):
        y = bottom - i * y_step * y_scale
        parts.append(f'<path d="M{LINES_LEFT} {y:.1f}H{right}" stroke="#e3e6ea"/>')
        parts.append(f'<text x="{LINES_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                     f'{i * y_step:g}</text>')  # fmt: skip
    for x in sorted({point[0] for points in series.values() for point in points}):
        parts.append(f'<text x="{LINES_LEFT + x * x_scale:.1f}" y="{bottom + 16}" '
                     f'text-anchor="middle">{x:.4g}</text>')  # fmt: skip
    parts.append(f'<text x="{(LINES_LEFT + right) / 2}" y="{height - 8}" text-anchor="middle">'
                 f'{escape(x_title)}</text>')  # fmt: skip
    parts.append(f'<text x="{LINES_LEFT}" y="19">{escape(y_title)}</text>')
    for k, (name, points) in enumerate(series.items()):
        colour = LINE_COLOURS[k % len(LINE_COLOURS)]
        drawn = [(LINES_LEFT + x * x_scale, bottom - y * y_scale) for x, y in sorted(points)]
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in drawn)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')  # fmt: skip
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
        y = TOP + 18 * k
        parts.append(f'<rect x="{right + 16}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{right + 33}" y="{y + 10}">{escape(name)}</text>')
    return '\n'.join([*parts, '</svg>', ''])
