"""``vlm-depth predict``: depth of images, folders, videos or bags, as files that anything reads.

Per image ``OUT/depth/NAME.png`` (16 bit, millimetres, 0 = none) and ``OUT/color/NAME.png`` (the
same colour means the same depth in every picture; a bar says which), of a video one
``OUT/color.mp4`` instead; if wanted ``OUT/npy/NAME.npy`` (float32 metres, NaN = none) and
``OUT/cloud/NAME.ply``. NAME is the number of the image in its source and its own name.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
import logging
import math
from pathlib import Path
import re

import numpy as np
import torch
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.estimator import DepthEstimator, DepthPrediction
from vlm_depth_ros.core.geometry import depth_to_points
from vlm_depth_ros.core.packing import gate_depth
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.clouds import write_ply
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.files.source import EndedEarly, open_source, Source, SourceFrame
from vlm_depth_ros.files.video import VideoSource
from vlm_depth_ros.tools.film import Film
from vlm_depth_ros.tools.given_camera import GivenCamera
from vlm_depth_ros.tools.pictures import colour_bar, colour_rgb
from vlm_depth_ros.tools.progress import steps

BAR_PX = 40
MOST_MM = 65535

log = logging.getLogger(__name__)


def depth_to_mm(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) metres to uint16 millimetres; 0 where there is none or 16 bits do not reach."""
    with np.errstate(invalid='ignore'):
        mm = np.rint(depth_m.astype(np.float64) * 1000)
        known = (mm > 0) & (mm <= MOST_MM)
    return np.where(known, mm, 0).astype(np.uint16)


def file_stem(index: int, name: str) -> str:
    """A file name for image `index`: ``00007-IMG_0012`` for ``IMG_0012.jpg``."""
    words = re.findall(r'[\w-]+', Path(name).stem if '#' not in name else name)
    return '-'.join([f'{index:05d}', *words])


@dataclass(frozen=True)
class Outputs:
    """What becomes of a depth map."""

    out: Path
    range_m: tuple[float, float]
    """Depths of the first and the last colour."""
    npy: bool = False
    cloud: bool = False
    film: Film | None = None
    """Takes the coloured pictures; None: each is a file."""

    def write(self, stem: str, frame: SourceFrame, depth_m: np.ndarray) -> bool:
        """Write the files of one image, each whole or not at all.

        Args:
            stem: Name of the files.
            frame: The image; with a camera, if a cloud is wanted.
            depth_m: (H, W) metres; NaN unknown, +Inf beyond range.

        Returns:
            Whether some depth is too far for 16 bits of millimetres.

        Raises:
            InputError: If a file cannot be written.
        """
        depth_mm = depth_to_mm(depth_m)
        save_png(self.out / 'depth' / f'{stem}.png', depth_mm)
        picture = colour_rgb(depth_m, self.range_m)
        picture = np.vstack([picture, colour_bar(self.range_m, (BAR_PX, picture.shape[1]))])
        if self.film is not None:
            self.film.add(picture, frame.stamp_s)
        else:
            save_png(self.out / 'color' / f'{stem}.png', picture)
        if self.npy:
            with atomic_file(self.out / 'npy' / f'{stem}.npy') as path:
                np.save(path, np.where(np.isfinite(depth_m), depth_m, np.float32(np.nan)))
        if self.cloud:
            points = depth_to_points(depth_m, frame.intrinsics).reshape(-1, 3)
            write_ply(self.out / 'cloud' / f'{stem}.ply', points, frame.rgb.reshape(-1, 3))
        return bool((np.isfinite(depth_m) & (depth_m > 0) & (depth_mm == 0)).any())


def predictions(
    estimator: DepthEstimator, source: Source, camera: GivenCamera, bad: list[str]
) -> Iterator[tuple[int, SourceFrame, DepthPrediction]]:
    """Number, frame (with its camera, if known) and depth of all that can be read.

    What is wrong with the others goes to `bad`.
    """
    for index in steps(range(len(source)), 'predicting'):
        try:
            frame = source[index]
        except EndedEarly as err:
            log.warning('%s', err)
            return
        except InputError as err:
            bad.append(str(err))
            continue
        try:
            known = camera.of(frame.intrinsics, frame.rgb.shape[:2])
            found = estimator(frame.rgb, known)
        except InputError as err:
            bad.append(f'{frame.name}: {err}')
            continue
        yield index, replace(frame, intrinsics=known), found


def run(args: argparse.Namespace) -> int:
    """Predict all images of a source; 1 if some could not be read."""
    runtime = RuntimeConfig(args.device, args.precision, tower_weights=args.tower_weights)
    camera = GivenCamera.from_flags(args.camera, args.fov_deg)
    bad, latencies_ms, num_far, has_said_camera = [], [], 0, False
    with open_source(args.source, topic=args.topic) as source, ExitStack() as files:
        estimator = DepthEstimator.from_weights(args.weights, runtime)
        low_m, high_m = estimator.config.depth_range_m
        wants_film = isinstance(source, VideoSource) if args.video is None else args.video
        film = files.enter_context(Film(args.out / 'color.mp4')) if wants_film else None
        range_m = _colour_range_m(args.range_m, estimator.config)
        outputs = Outputs(args.out, range_m, args.npy, args.ply, film)
        for index, frame, found in predictions(estimator, source, camera, bad):
            if frame.intrinsics is None and args.ply:
                raise InputError(
                    f'{args.source}: {frame.name} has no camera, which a cloud needs. Give '
                    '--camera FX,FY,CX,CY or --fov-deg, or leave --ply away.'
                )
            if frame.intrinsics is None and not has_said_camera:
                has_said_camera = True
                _say_no_camera(estimator.config, frame.name)
            latencies_ms.append(found.latency_ms)
            # As the node publishes it: NaN below and +Inf beyond the range that was trained.
            depth_m = gate_depth(torch.from_numpy(found.depth_m), low_m, high_m, False).numpy()
            num_far += outputs.write(file_stem(index, frame.name), frame, depth_m)
    if num_far:
        log.warning('%d images have depth beyond %.3f m, which is 0 in depth/; --npy keeps it.',
                    num_far, MOST_MM / 1000)  # fmt: skip
    if latencies_ms:
        log.info(
            '%d images to %s, %.0f ms each on %s (median).',
            len(latencies_ms), args.out, np.median(latencies_ms), estimator.device,
        )  # fmt: skip
    for problem in bad:
        log.error('left out: %s', problem)
    return 1 if bad or not latencies_ms else 0


def _colour_range_m(asked: list[float] | None, config: ModelConfig) -> tuple[float, float]:
    low, high = asked or config.depth_range_m
    if not 0 <= low < high < math.inf:
        raise ConfigError(f'--range-m {low} {high}: expected 0 <= NEAR < FAR.')
    return low, high


def _say_no_camera(config: ModelConfig, name: str) -> None:
    if config.camera is None:
        return
    fov_deg = 2 * math.degrees(math.atan(0.5 / config.camera.fx_per_width))
    log.info(
        '%s has no camera: its depth is right for a horizontal field of view of %.0f degrees, as '
        'in training. Give --camera FX,FY,CX,CY or --fov-deg to correct it.',
        name, fov_deg,
    )  # fmt: skip
