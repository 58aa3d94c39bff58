"""``vlm-depth predict``: depth of images, folders, videos or bags, as files that anything reads.

Per image ``OUT/depth/NAME.png`` (16 bit, millimetres, 0 = none), ``OUT/color/NAME.png`` (the same
colour means the same depth in every picture; a bar says which) and, if wanted, a coloured cloud
``OUT/cloud/NAME.ply``. NAME is the number of the image in its source and its own name.
"""

import argparse
from collections.abc import Iterator
import logging
from pathlib import Path
import re

import numpy as np
import torch
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.geometry import depth_to_points
from vlm_depth_ros.core.packing import gate_depth
from vlm_depth_ros.files.clouds import write_ply
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.files.source import EndedEarly, open_source, Source, SourceFrame
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


def write_prediction(
    estimator: DepthEstimator,
    frame: SourceFrame,
    out: Path,
    stem: str,
    *,
    range_m: tuple[float, float],
    want_cloud: bool = False,
) -> float:
    """Predict one image and write its files, each complete or not at all.

    Args:
        estimator: The model; it is given the camera of the image, if known.
        frame: The image.
        out: Folder.
        stem: Name of the files.
        range_m: Depths of the first and the last colour.
        want_cloud: Also write a cloud; the frame must have a camera.

    Returns:
        The milliseconds that the network took.

    Raises:
        InputError: If a file cannot be written.
    """
    found = estimator(frame.rgb, frame.intrinsics)
    # As the node publishes it: NaN below and +Inf beyond the range that was trained.
    low, high = estimator.config.depth_range_m
    depth_m = gate_depth(torch.from_numpy(found.depth_m), low, high, False).numpy()
    save_png(out / 'depth' / f'{stem}.png', depth_to_mm(depth_m))
    picture = colour_rgb(depth_m, range_m)
    bar = colour_bar(range_m, (BAR_PX, picture.shape[1]))
    save_png(out / 'color' / f'{stem}.png', np.vstack([picture, bar]))
    if want_cloud:
        points = depth_to_points(depth_m, frame.intrinsics).reshape(-1, 3)
        write_ply(out / 'cloud' / f'{stem}.ply', points, frame.rgb.reshape(-1, 3))
    return found.latency_ms


def readable_frames(source: Source, bad: list[str]) -> Iterator[tuple[int, SourceFrame]]:
    """Number and frame of all that can be read; what is wrong with the others goes to `bad`."""
    for index in steps(range(len(source)), 'predicting'):
        try:
            frame = source[index]
        except EndedEarly as err:
            log.warning('%s', err)
            return
        except InputError as err:
            bad.append(str(err))
            continue
        yield index, frame


def run(args: argparse.Namespace) -> int:
    """Predict all images of a source; 1 if some could not be read."""
    runtime = RuntimeConfig(device=args.device, precision=args.precision)
    with open_source(args.source) as source:
        estimator = DepthEstimator.from_weights(args.weights, runtime)
        range_m = tuple(args.range_m or estimator.config.depth_range_m)
        if not 0 <= range_m[0] < range_m[1] < np.inf:
            raise ConfigError(f'--range-m {range_m[0]} {range_m[1]}: expected 0 <= NEAR < FAR.')
        bad, latencies_ms = [], []
        for index, frame in readable_frames(source, bad):
            if args.ply and frame.intrinsics is None:
                raise InputError(
                    f'{args.source}: {frame.name} has no camera, which a cloud needs. Leave --ply '
                    'away, or give a folder with pairs.csv or a bag with camera_info.'
                )
            stem = file_stem(index, frame.name)
            latencies_ms.append(
                write_prediction(
                    estimator, frame, args.out, stem, range_m=range_m, want_cloud=args.ply
                )
            )
    if latencies_ms:
        log.info(
            '%d images to %s, %.0f ms each on %s (median).',
            len(latencies_ms), args.out, np.median(latencies_ms), estimator.device,
        )  # fmt: skip
    for problem in bad:
        log.error('left out: %s', problem)
    return 1 if bad or not latencies_ms else 0
