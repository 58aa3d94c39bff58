"""Pictures that follow one another as one video, at the rate of their stamps."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from vlm_depth_ros.files.video_writer import video_writer
from vlm_depth_ros.tools.pictures import fit

RATE_HZ = 10.0
"""Of pictures without stamps."""
MOST_RATE_HZ = 240.0


class Film:
    """A context in which pictures are added; the file appears at its end, if there were any.

    The time between the first two says the rate. Pictures of another size than the first are
    scaled into it.
    """

    def __init__(self, path: Path):
        """Name the file (.mp4); nothing is written yet."""
        self._path = path
        self._files = ExitStack()
        self._first: tuple[np.ndarray, float | None] | None = None
        self._write = None

    def add(self, picture: np.ndarray, stamp_s: float | None) -> None:
        """Append (H, W, 3) uint8 RGB; raises as `video_writer`."""
        if self._first is None:
            self._first = picture, stamp_s
            return
        self._open(stamp_s)
        self._write(fit(picture, self._first[0].shape[:2]))

    def _open(self, next_stamp_s: float | None) -> None:
        if self._write is not None:
            return
        picture, stamp_s = self._first
        has_gap = None not in (stamp_s, next_stamp_s) and next_stamp_s > stamp_s
        rate_hz = min(1 / (next_stamp_s - stamp_s), MOST_RATE_HZ) if has_gap else RATE_HZ
        self._write = self._files.enter_context(video_writer(self._path, rate_hz))
        self._write(picture)

    def __enter__(self) -> 'Film':
        """Begin."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Close the file; after an exception nothing is left of it."""
        if self._first is not None and problem[0] is None:
            self._open(None)
        self._files.__exit__(*problem)
