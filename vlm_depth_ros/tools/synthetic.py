"""The verb `synthetic`: folders of pictures of random rooms with exact depth.

A set is for training: every picture another view, another camera, another exposure. A clip is for
a demonstration: one room, one camera on a smooth path, stamps. Both say in their README that they
are drawn.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
import logging
import math
import multiprocessing
from numbers import Integral
import os
from pathlib import Path

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.scene import random_scene, Scene, STYLES
from vlm_depth_ros.tools.sensor import Sensor
from vlm_depth_ros.tools.viewpoints import camera_path, checked_hw, random_camera

__all__ = [
    'STYLES',
    'Scene',
    'Sensor',
    'camera_path',
    'random_camera',
    'random_scene',
    'render_clip',
    'render_set',
]
_log = logging.getLogger(__name__)
# Shares of the styles in a set: mostly what NYU shows, and a fifth of where robots drive.
_SHARES = {
    'room': 0.32,
    'office': 0.19,
    'kitchen': 0.11,
    'corridor': 0.07,
    'hall': 0.12,
    'flat': 0.07,
    'stairs': 0.05,
    'warehouse': 0.07,
}
_CLIP_STREAM = 20
_JPEG_QUALITY = 92


def render_set(
    out_dir,
    count,
    hw=(240, 320),
    seed=0,
    *,
    fov_deg=(50.0, 90.0),
    views_per_scene=2,
    progress=False,
) -> int:
    """Write a `pairs.csv` folder of single pictures.

    Picture `i` depends on the seed, its number and the options, not on `count`. Every CPU draws,
    in a spawned process: a script calls this under ``if __name__ == '__main__'``.

    Args:
        out_dir: A new or empty folder.
        count: Number of pictures.
        hw: Their size, height first.
        seed: Decides everything.
        fov_deg: Range of the horizontal field of view.
        views_per_scene: Pictures taken in one room, by different cameras.
        progress: Show a bar on stderr.

    Returns:
        The number of pictures.

    Raises:
        InputError: If a number is out of bounds, or the folder cannot be written.
    """
    _at_least_one(count=count, views_per_scene=views_per_scene)
    hw = checked_hw(hw)
    frames = _set_frames(count, hw, _checked_seed(seed), fov_deg, views_per_scene)
    options = f'count {count}, size {hw[0]}x{hw[1]}, seed {seed}, field of view {fov_deg} degrees'
    return _write(out_dir, frames, count, f'Single views of random rooms: {options}.', progress)


def _set_frames(count, hw, seed, fov_deg, views_per_scene) -> Iterator[SourceFrame]:
    """The pictures in order; rooms are drawn side by side, one process a CPU."""
    draw = partial(_room_frames, count, hw, seed, fov_deg, views_per_scene)
    rooms = range(math.ceil(count / views_per_scene))
    # Spawned: a forked child of a process with threads may hang.
    pool = multiprocessing.get_context('spawn').Pool
    with pool(min(len(os.sched_getaffinity(0)), len(rooms))) as workers:
        for frames in workers.imap(draw, rooms):
            yield from frames


def _room_frames(count, hw, seed, fov_deg, views_per_scene, room) -> list[SourceFrame]:
    rng = np.random.default_rng([seed, 0, room])
    scene = random_scene(rng, rng.choice(list(_SHARES), p=list(_SHARES.values())))
    frames = []
    first = room * views_per_scene
    for number in range(first, min(first + views_per_scene, count)):
        rng = np.random.default_rng([seed, 1, number])
        scene.sensor = Sensor.random(rng)
        pose, camera = random_camera(rng, scene, hw, fov_deg)
        rgb, depth_m = scene.render(pose, camera, rng)
        frames.append(SourceFrame(rgb, None, camera, depth_m, f'synthetic {number}'))
    return frames


def render_clip(
    out_dir,
    frames,
    hw=(480, 640),
    seed=0,
    rate_hz=10.0,
    *,
    style='room',
    fov_deg=69.0,
    progress=False,
) -> int:
    """Write a `pairs.csv` sequence: one camera on `camera_path` through one room.

    Its rooms come from another random stream than those of `render_set` with any seed, so that a
    network trained on a set has not seen them.

    Args:
        out_dir: A new or empty folder.
        frames: Number of pictures.
        hw: Their size, height first.
        seed: Decides the room, the path and the noise.
        rate_hz: Pictures per second: the stamps.
        style: One of `STYLES`.
        fov_deg: Horizontal field of view.
        progress: Show a bar on stderr.

    Returns:
        The number of pictures.

    Raises:
        InputError: If a number is out of bounds, or the folder cannot be written.
    """
    _at_least_one(frames=frames)
    h, w = checked_hw(hw)
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise InputError(
            f'rate_hz = {rate_hz}: expected a positive number of pictures per second.'
        )
    if not 10 <= fov_deg <= 150:
        raise InputError(f'fov_deg = {fov_deg}: expected an angle between 10 and 150 degrees.')
    scene = random_scene(np.random.default_rng([_checked_seed(seed), _CLIP_STREAM]), style)
    # Blur would have to follow the camera's motion and gaze; a demonstration is well exposed.
    scene.sensor = replace(scene.sensor, motion_px=0.0, defocus_px=0.0, exposure=0.3)
    camera = CameraIntrinsics.from_fov(fov_deg, (h, w))

    def shots():
        for number, pose in enumerate(camera_path(scene, frames, seed)):
            noise = np.random.default_rng([seed, _CLIP_STREAM, number])
            rgb, depth_m = scene.render(pose, camera, noise)
            yield SourceFrame(rgb, number / rate_hz, camera, depth_m, f'synthetic {number}')

    options = f'{frames} frames, size {h}x{w}, seed {seed}, {rate_hz:g} Hz, {style}'
    return _write(
        out_dir, shots(), frames, f'One camera path through a random room: {options}.', progress
    )


def _write(out_dir, frames, count, text, progress) -> int:
    if progress:
        from rich.console import Console
        from rich.progress import track

        frames = track(frames, 'rendering', count, console=Console(stderr=True))
    written = write_pairs(out_dir, frames, jpeg_quality=_JPEG_QUALITY)
    label = f'SYNTHETIC: drawn by vlm_depth_ros, no camera was there.\n\n{text}\n'
    (Path(out_dir) / 'README.md').write_text(label, encoding='utf-8')
    _log.info('%s: %d synthetic pictures', out_dir, written)
    return written


def _at_least_one(**numbers) -> None:
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < 1:
            raise InputError(f'{name} = {value}: expected an integer of at least 1.')


def _checked_seed(seed) -> int:
    if not isinstance(seed, Integral) or seed < 0:
        raise InputError(f'seed = {seed}: expected an integer of at least 0.')
    return int(seed)


def run(args) -> int:
    """Do what `vlm-depth synthetic` was asked for (flags in `tools.arguments`); the exit code."""
    hw = _parse_size(args.size)
    if args.clip:
        render_clip(
            args.out, args.count, hw, args.seed, args.rate_hz, style=args.style, progress=True
        )
    else:
        render_set(args.out, args.count, hw, args.seed, progress=True)
    return 0


def _parse_size(text: str) -> tuple[int, int]:
    parts = str(text).lower().split('x')
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f'--size {text!r}: expected HEIGHTxWIDTH in pixels, such as 240x320.')
    return checked_hw(int(part) for part in parts)
