"""Pictures of depth for people: fixed-range colour, a bar that says what colour means, a cloud."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from vlm_depth_ros.core.colormap import colour_depth
from vlm_depth_ros.tools.charts import round_step

TEXT_RGB = (20, 20, 20)
EMPTY_RGB = (205, 210, 215)
"""Behind a cloud: neither white paper nor a black screen disappears."""
TOO_NEAR_RGB, TOO_FAR_RGB = (178, 24, 43), (33, 102, 172)
FONT, TEXT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
LABEL_GAP_PX = 8
LABEL_PX = 26
DOT_XY = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), axis=-1).reshape(-1, 2)
"""Pixels that one point of a cloud covers."""


def colour_rgb(depth_m: np.ndarray, range_m: tuple[float, float]) -> np.ndarray:
    """(H, W) metres to (H, W, 3) uint8 RGB; NaN black, +Inf dark grey."""
    bgr = colour_depth(torch.from_numpy(depth_m), range_m).numpy()
    return np.ascontiguousarray(bgr[..., ::-1])


def round_range_m(maps_m: Sequence[np.ndarray]) -> tuple[float, float]:
    """Find a range of whole half metres that holds nearly all of some (H, W) depth maps."""
    values = np.concatenate([m[np.isfinite(m)] for m in maps_m] or [np.ones(1)])
    low, high = np.percentile(values, (1, 99)) if len(values) else (0.0, 1.0)
    low_m = float(np.floor(low * 2) / 2)
    return low_m, max(float(np.ceil(high * 2) / 2), low_m + 0.5)


def error_rgb(ratio: np.ndarray) -> np.ndarray:
    """(H, W) prediction over truth to (H, W, 3) uint8 RGB, white where they agree.

    Red is too near (an obstacle where there is none), blue too far (one that is missed), full
    colour at a factor of two; NaN is grey.
    """
    octaves = np.clip(np.log2(np.where(np.isfinite(ratio), ratio, 1.0)), -1, 1)[..., None]
    full = np.where(octaves < 0, TOO_NEAR_RGB, TOO_FAR_RGB)
    colour = 255 + np.abs(octaves) * (full - 255.0)
    return np.where(np.isnan(ratio)[..., None], EMPTY_RGB, colour).astype(np.uint8)


def spread(sparse: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Let the known values of an (H, W) map with NaN survive a nearest resize to `hw`.

    A hole next to known values gets the smallest of them, as far as the resize would skip: the
    few points of a LiDAR sweep stay visible in a small picture.
    """
    reach = max(1, round(max(sparse.shape[0] / hw[0], sparse.shape[1] / hw[1])))
    known = np.where(np.isnan(sparse), np.inf, sparse).astype(np.float32)
    square = np.ones((reach, reach), np.uint8)
    # OpenCV's own border is a large number, and that would be known.
    near = cv2.erode(known, square, borderType=cv2.BORDER_CONSTANT, borderValue=np.inf)
    return np.where(np.isnan(sparse) & np.isfinite(near), near, sparse)


def fit(picture: np.ndarray, hw: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Scale an RGB picture into `hw`, aspect kept, white around it."""
    height, width = picture.shape[:2]
    scale = min(hw[0] / height, hw[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=way)
    cell = np.full((*hw, 3), 255, np.uint8)
    top, left = (hw[0] - size[1]) // 2, (hw[1] - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    return cell


def colour_bar(range_m: tuple[float, float], hw: tuple[int, int]) -> np.ndarray:
    """A horizontal bar of the depth colours; its ends and round metres between, as many as fit."""
    height, width = hw
    bar = np.full((height, width, 3), 255, np.uint8)
    side = min(24, width // 4)
    ramp = np.linspace(*range_m, width - 2 * side, dtype=np.float32)
    bar[4 : height - 20, side : width - side] = colour_rgb(ramp[None], range_m)
    low, high = range_m
    step = round_step((high - low) / max(1, width // 90))
    between = np.arange(np.floor(low / step) + 1, np.ceil(high / step)) * step
    free = np.ones(width, bool)
    for metres in (low, high, *between):  # the ends first: of two that overlap the later goes
        text = f'{round(metres, 2):g} m'
        x = side + (metres - low) / (high - low) * (width - 2 * side - 1)
        wide, _ = cv2.getTextSize(text, FONT, TEXT_SCALE, 1)[0]
        left = round(min(max(x - wide / 2, 1), width - wide - 1))
        if left >= 0 and free[left : left + wide].all():
            free[max(0, left - LABEL_GAP_PX) : left + wide + LABEL_GAP_PX] = False
            bar[height - 20 : height - 17, round(x)] = TEXT_RGB
            write(bar, text, (left, height - 5))
    return bar


def write(
    picture: np.ndarray, text: str, at_xy: tuple[int, int], scale: float = TEXT_SCALE
) -> None:
    """Write one line into a picture, in place."""
    cv2.putText(picture, text, at_xy, FONT, scale, TEXT_RGB, 1, cv2.LINE_AA)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    footer: np.ndarray | None = None,
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Rows of equally sized RGB pictures, a title above each column, a caption below each row."""
    height, width = rows[0][0].shape[:2]
    head = np.full((LABEL_PX, (width + 6) * len(titles), 3), 255, np.uint8)
    for i, title in enumerate(titles):
        write(head, title, (i * (width + 6) + 4, LABEL_PX - 8), 0.5)
    framed = [
        np.hstack([np.pad(p, ((3, 3), (3, 3), (0, 0)), constant_values=255) for p in row])
        for row in rows
    ]
    parts = [head]
    for i, row in enumerate(framed):
        parts.append(row)
        if captions:
            parts.append(np.full((LABEL_PX, head.shape[1], 3), 255, np.uint8))
            write(parts[-1], captions[i], (6, LABEL_PX - 10))
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
