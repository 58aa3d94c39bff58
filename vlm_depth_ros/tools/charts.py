"""Bar charts as SVG, to stand inside an HTML page; no plotting library."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 26, 44
COLOURS = ('#2563a8', '#c8ccd2')
"""Of the first series and of the one that it is compared with."""


def bar_chart(
    labels: Sequence[str], series: Mapping[str, Sequence[float]], x_title: str, y_title: str
) -> str:
    """Draw groups of bars from zero up.

    Args:
        labels: Below each group; an empty one leaves its place free.
        series: Up to two rows of numbers (>= 0), one number a group.
        x_title: What the groups are.
        y_title: What the height is.

    Returns:
        An ``<svg>`` element.
    """
    step = round_step(max(max(values) for values in series.values()) / 4 or 1.0)
    highest = step * max(1, np.ceil(max(max(v) for v in series.values()) / step - 1e-9))
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    slot = inner_w / len(labels)
    bar = slot * 0.84 / len(series)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{y_title} by {x_title}")}">'
    ]
    for i in range(round(highest / step) + 1):
        y = TOP + inner_h * (1 - i * step / highest)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                     'stroke="#e3e6ea"/>')  # fmt: skip
        parts.append(_text(LEFT - 6, y + 4, f'{i * step:g}', 'end'))
    for k, (name, values) in enumerate(series.items()):
        for i, value in enumerate(values):
            x, tall = LEFT + i * slot + slot * 0.08 + k * bar, inner_h * value / highest
            parts.append(
                f'<rect x="{x:.1f}" y="{TOP + inner_h - tall:.1f}" width="{bar:.1f}" '
                f'height="{tall:.1f}" fill="{COLOURS[k]}"><title>{escape(name)}: {value:.4g}'
                '</title></rect>'
            )
        x = LEFT + 150 * k
        parts.append(f'<rect x="{x}" y="4" width="12" height="12" fill="{COLOURS[k]}"/>')
        parts.append(_text(x + 17, 14, name, 'start'))
    for i, label in enumerate(labels):
        parts.append(_text(LEFT + (i + 0.5) * slot, TOP + inner_h + 15, label, 'middle'))
    parts.append(_text(LEFT + inner_w / 2, HEIGHT - 8, x_title, 'middle'))
    parts.append(_text(WIDTH - RIGHT, 14, y_title, 'end'))
    return '\n'.join([*parts, '</svg>'])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" '
        f'font-family="sans-serif" fill="#333">{escape(text)}</text>'
    )


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no smaller than `least`."""
    power = 10.0 ** np.floor(np.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))
