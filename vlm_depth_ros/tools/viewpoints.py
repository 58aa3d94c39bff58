"""Where cameras stand in a scene: single views, and the path of a hand-held camera."""

from dataclasses import replace
import math
from numbers import Integral

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.tools import raycast
from vlm_depth_ros.tools.scene import Scene

MAX_SIDE_PX = 4096


def random_camera(rng, scene, hw, fov_deg=(50.0, 90.0)) -> tuple[np.ndarray, CameraIntrinsics]:
    """A camera somewhere free in the room that sees more than a wall before its lens.

    Over half are held at eye height (1.0 to 1.7 m, looking slightly down); the rest sit on a
    robot (0.15 to 0.6 m, about level, little roll).

    Args:
        rng: Decides everything.
        scene: The room.
        hw: Picture size, height first.
        fov_deg: Range of the horizontal field of view.

    Returns:
        World_from_optical (4, 4) and the intrinsics.

    Raises:
        InputError: If the size or the field of view is out of bounds.
    """
    h, w = checked_hw(hw)
    low, high = fov_deg
    if not 10 <= low <= high <= 150:
        raise InputError(
            f'fov_deg = {fov_deg}: expected two rising angles between 10 and 150 degrees.'
        )
    centred = CameraIntrinsics.from_fov(rng.uniform(low, high), (h, w))
    shift = rng.normal(0, 0.01, 2) * (w, h)
    camera = replace(centred, cx_px=centred.cx_px + shift[0], cy_px=centred.cy_px + shift[1])
    probe = _probe(camera)
    half = scene.shell.half_m
    best, best_score, looks = None, -np.inf, 0
    # How much this picture should show, and how far: not every view is a good one.
    busy, deep = rng.uniform(3, 30), rng.uniform(1.3, 1.5 + np.hypot(*half[:2]) / 2.5)
    # Chosen once: of many tries the high ones would win, because they see farther.
    held = rng.random() < 0.55
    gap_m = 0.3 if held else 0.12
    heights_m = (1.0, 1.7) if held else (0.15, 0.6)
    for _ in range(40):
        place = np.array([*rng.uniform(-1, 1, 2) * (half[:2] - 0.25), rng.uniform(*heights_m)])
        yaw = rng.uniform(-math.pi, math.pi)
        if rng.random() < 0.6:
            yaw = math.atan2(-place[1], -place[0]) + rng.normal(0, 0.7)
        pitch = math.radians(rng.normal(-13, 9) if held else rng.normal(-1, 6))
        roll = math.radians(rng.normal(0, 2.5 if held else 1.2))
        if scene.clearance_m(place[None])[0] < gap_m:
            continue
        pose = raycast.look_along(place, _direction(yaw, pitch), roll)
        looks += 1
        depth, index = raycast.cast(scene.solids, pose, probe)
        near, middle, far = np.percentile(depth, (2, 50, 95))
        score = min(near / 0.7, 1) + min(middle / deep, 1) + min(far / deep / 1.6, 1)
        score += min(len(np.unique(index)) / busy, 1)
        if score > best_score and near > gap_m:
            best, best_score = pose, score
        # A look costs a tenth of a picture in a crowded scene.
        if best_score >= 3.8 or (looks >= 6 and best is not None):
            break
    if best is None:
        # A crowded room: the roomiest place, looking to where it is far.
        place = _roomiest(rng, scene, *heights_m)
        best = raycast.look_along(place, _direction(_far_heading(scene, place), -0.2))
    return best, camera


def _probe(camera) -> raycast.Grid:
    """A few rays of the camera, for a quick look."""
    full = raycast.Grid.of(camera)
    return raycast.Grid(
        full.x[np.linspace(0, len(full.x) - 1, 24).astype(int)],
        full.y[np.linspace(0, len(full.y) - 1, 18).astype(int)],
    )


def camera_path(scene: Scene, frames: int, seed: int) -> np.ndarray:
    """A smooth, closed, collision-free path as of a hand-held camera that looks around.

    Sums of sines move the camera about a free place; the amplitude shrinks until every pose keeps
    its distance from all surfaces. The last pose leads back to the first, so a clip may loop.

    Args:
        scene: The room.
        frames: Number of poses.
        seed: Decides the path.

    Returns:
        World_from_optical (frames, 4, 4); steps of at most 8 cm and 5 degrees.

    Raises:
        InputError: If `frames` is below 1.
    """
    if not isinstance(frames, Integral) or frames < 1:
        raise InputError(f'frames = {frames}: expected an integer of at least 1.')
    rng = np.random.default_rng([seed, 1])
    middle = _roomiest(rng, scene, 1.2, 1.5)
    gap_m = min(0.3, 0.8 * scene.clearance_m(middle[None])[0])
    turn = 2 * math.pi * np.arange(frames) / frames
    phase = rng.uniform(0, 2 * math.pi, 8)
    sway = np.stack(
        [
            np.sin(turn + phase[0]) + 0.3 * np.sin(2 * turn + phase[1]),
            np.sin(turn + phase[2]) + 0.3 * np.sin(2 * turn + phase[3]),
            0.08 * np.sin(2 * turn + phase[4]),
        ],
        axis=1,
    )
    reach = min(1.2, 0.04 * frames / (2 * math.pi * 1.6))
    while reach > 0.01 and scene.clearance_m(middle + reach * sway).min() < gap_m:
        reach *= 0.85
    swing = min(math.radians(65), math.radians(3) * frames / (2 * math.pi))
    shake = 0.01 * min(1, frames / 100)
    yaw = _far_heading(scene, middle) + swing * np.sin(turn) + shake * np.sin(7 * turn + phase[5])
    pitch = -0.22 + 0.2 * swing * np.sin(turn + phase[6]) + shake * np.sin(9 * turn + phase[7])
    roll = 2 * shake * np.sin(3 * turn + phase[1])
    return np.stack(
        [
            raycast.look_along(middle + reach * s, _direction(y, p), r)
            for s, y, p, r in zip(sway, yaw, pitch, roll, strict=True)
        ]
    )


def _direction(yaw_rad, pitch_rad) -> tuple[float, float, float]:
    level = math.cos(pitch_rad)
    return math.cos(yaw_rad) * level, math.sin(yaw_rad) * level, math.sin(pitch_rad)


def _roomiest(rng, scene, low_m, high_m) -> np.ndarray:
    """Of many places between two heights, the one with the most room around it."""
    places = rng.uniform(-1, 1, (400, 3)) * (*scene.shell.half_m[:2], 0.0)
    places[:, 2] = rng.uniform(low_m, high_m, 400)
    return places[np.argmax(scene.clearance_m(places))]


def _far_heading(scene, place) -> float:
    """The heading in which the middle of what is seen is farthest."""
    eye = CameraIntrinsics(20.0, 20.0, 19.5, 14.5, 40, 30)
    headings = np.arange(12) * math.pi / 6
    views = [raycast.look_along(place, _direction(yaw, -0.2)) for yaw in headings]
    return headings[np.argmax([np.median(scene.depth(view, eye)) for view in views])]


def checked_hw(hw) -> tuple[int, int]:
    """Height and width, refused unless both are integers from 16 to `MAX_SIDE_PX`."""
    hw = tuple(hw)
    good = [isinstance(n, Integral) and 16 <= n <= MAX_SIDE_PX for n in hw]
    if good != [True, True]:
        raise InputError(
            f'size {hw}: expected height and width, integers from 16 to {MAX_SIDE_PX}.'
        )
    return int(hw[0]), int(hw[1])
