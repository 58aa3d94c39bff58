"""Pictures of depth for people: fixed-range colour, a bar that says what colour means, a cloud."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.colormap import colour_depth

TEXT_RGB = (20, 20, 20)
EMPTY_RGB = (205, 210, 215)
"""Behind a cloud: neither white paper nor a black screen disappears."""
LABEL_PX = 26
DOT_XY = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), axis=-1).reshape(-1, 2)
"""Pixels that one point of a cloud covers."""


def colour_rgb(depth_m: np.ndarray, range_m: tuple[float, float]) -> np.ndarray:
    """(H, W) metres to (H, W, 3) uint8 RGB; NaN black, +Inf dark grey."""
    bgr = colour_depth(torch.from_numpy(depth_m), range_m).numpy()
    return np.ascontiguousarray(bgr[..., ::-1])


def colour_bar(range_m: tuple[float, float], hw: tuple[int, int]) -> np.ndarray:
    """A horizontal bar of the depth colours with metres written below, as many as fit."""
    height, width = hw
    bar = np.full((height, width, 3), 255, np.uint8)
    side = min(24, width // 4)
    ramp = np.linspace(*range_m, width - 2 * side, dtype=np.float32)
    bar[4 : height - 20, side : width - side] = colour_rgb(ramp[None], range_m)
    places = min(6, max(2, width // 70))
    for share in np.linspace(0, 1, places):
        metres = range_m[0] + share * (range_m[1] - range_m[0])
        x = round(side + share * (width - 2 * side))
        bar[height - 20 : height - 17, min(x, width - 1)] = TEXT_RGB
        write(bar, f'{metres:.1f} m', (max(0, x - 18), height - 5))
    return bar


def write(picture: np.ndarray, text: str, at_xy: tuple[int, int], scale: float = 0.45) -> None:
    """Write one line into a picture, in place."""
    cv2.putText(picture, text, at_xy, cv2.FONT_HERSHEY_SIMPLEX, scale, TEXT_RGB, 1, cv2.LINE_AA)


def sheet(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], footer: np.ndarray | None = None
) -> np.ndarray:
    """Rows of equally sized RGB pictures with a title above each column."""
    height, width = rows[0][0].shape[:2]
    head = np.full((LABEL_PX, (width + 6) * len(titles), 3), 255, np.uint8)
    for i, title in enumerate(titles):
        write(head, title, (i * (width + 6) + 4, LABEL_PX - 8), 0.5)
    framed = [
        np.hstack([np.pad(p, ((3, 3), (3, 3), (0, 0)), constant_values=255) for p in row])
        for row in rows
    ]
    parts = [head, *framed]
    if footer is not None:
        wide = np.full((footer.shape[0], head.shape[1], 3), 255, np.uint8)
        wide[:, : footer.shape[1]] = footer
        parts.append(wide)
    return np.vstack(parts)


def cloud_view(
    points: np.ndarray, rgb: np.ndarray | None, hw: tuple[int, int], orbit_deg: tuple[float, float]
) -> np.ndarray:
    """Draw a cloud as seen by a camera that circled around its middle.

    Args:
        points: (N, 3) metres, optical frame (x right, y down, z forward).
        rgb: (N, 3) uint8, or None: all dark.
        hw: Picture size.
        orbit_deg: How far right and how far up the viewer moved around the cloud's median.

    Returns:
        (H, W, 3) uint8; nearer points hide farther ones.
    """
    picture = np.full((*hw, 3), EMPTY_RGB, np.uint8)
    rgb = np.full(points.shape, TEXT_RGB, np.uint8) if rgb is None else rgb
    finite = np.isfinite(points).all(axis=1)
    points, rgb = points[finite], rgb[finite]
    if not len(points):
        return picture
    right, up = np.radians(orbit_deg)
    turn = np.array([[np.cos(right), 0, np.sin(right)], [0, 1, 0],
                     [-np.sin(right), 0, np.cos(right)]])  # fmt: skip
    tilt = np.array([[1, 0, 0], [0, np.cos(up), -np.sin(up)], [0, np.sin(up), np.cos(up)]])
    middle = np.median(points, axis=0)
    seen = (points - middle) @ (tilt @ turn).T + [0, 0, 1.25 * np.linalg.norm(middle)]
    order = np.argsort(-seen[:, 2])
    order = order[seen[order, 2] > 0.05]
    seen, rgb = seen[order], rgb[order]
    centre_xy = np.array([hw[1] / 2, hw[0] / 2])
    at_xy = np.round(seen[:, :2] / seen[:, 2:] * hw[1] + centre_xy).astype(int)
    # All pixels of all points in one order, far to near: the last one written stays.
    at_xy = (at_xy[:, None] + DOT_XY).reshape(-1, 2)
    inside = ((at_xy >= 0) & (at_xy < hw[::-1])).all(axis=1)
    x, y = at_xy[inside].T
    picture[y, x] = rgb.repeat(len(DOT_XY), axis=0)[inside]
    return picture
