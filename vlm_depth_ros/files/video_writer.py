"""Writing a video: RGB frames of one size to an .mp4 that is whole or not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.atomic import atomic_file

CODEC = 'mp4v'
"""MPEG-4 Part 2: pip's OpenCV writes it, as H.264 is not for everybody to ship."""


@contextmanager
def video_writer(path: str | Path, rate_hz: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that appends a frame; the file appears when the block ends.

    Args:
        path: The file (.mp4).
        rate_hz: Frames per second.

    Yields:
        A function of (H, W, 3) uint8 RGB. All frames have the size of the first; an odd one gets
        its last row or column twice, as the codec halves the colour.

    Raises:
        InputError: If there was no frame, one has another size or form, OpenCV lacks the codec, or
            the file system refuses.
    """
    path, writer, hw, count = Path(path), None, None, 0

    def write(rgb: np.ndarray) -> None:
        nonlocal writer, hw, count
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise InputError(f'{path}: frame of {rgb.dtype} {rgb.shape}; expected uint8 RGB.')
        if writer is None:
            hw = rgb.shape[:2]
            size = tuple(n + n % 2 for n in hw[::-1])
            fourcc = cv2.VideoWriter_fourcc(*CODEC)
            writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, fourcc, rate_hz, size)
            if not writer.isOpened():
                raise InputError(
                    f'{path}: this OpenCV cannot write {CODEC} video of {size[0]} x {size[1]} '
                    f'pixels at {rate_hz:g} Hz; install opencv-python-headless, or write pictures.'
                )
        if rgb.shape[:2] != hw:
            raise InputError(f'{path}: frame of {rgb.shape[:2]} pixels after {hw}; resize it.')
        even = np.pad(rgb, ((0, hw[0] % 2), (0, hw[1] % 2), (0, 0)), 'edge')
        writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        count += 1

    with atomic_file(path) as temporary:
        try:
            yield write
        finally:
            if writer is not None:
                writer.release()
        if count == 0:
            raise InputError(f'{path}: no frames to write; expected at least one.')
        _require_frames(path, temporary, count)


def _require_frames(path: Path, temporary: Path, count: int) -> None:
    """Look at what was written: OpenCV does not say when a disk is full."""
    capture = cv2.VideoCapture(str(temporary), cv2.CAP_FFMPEG)
    found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if found != count:
        raise InputError(
            f'{path}: holds {found} of {count} frames; check the free space of its folder.'
        )
