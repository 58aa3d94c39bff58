"""A video file as a source: frames by OpenCV, stamps by the frame rate."""

import math
from pathlib import Path

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.source import EndedEarly, Source, SourceFrame

VIDEO_SUFFIXES = tuple('.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .wmv .mjpeg .mjpg'.split())
MAX_FPS = 1000.0
"""A container that claims more than this has no rate worth a stamp."""


class VideoSource(Source):
    """Frames of a video; stamp = index / frames per second, None where the file has no rate."""

    def __init__(self, path: str | Path):
        """Open the file once, decode its first frame, and close it.

        Raises:
            InputError: If it is missing, no video that OpenCV reads, or without a decodable frame.
        """
        self.path = Path(path)
        self._capture: cv2.VideoCapture | None = None
        self._position = 0
        self._count = 0
        self._end: int | None = None
        if not self.path.is_file():
            raise InputError(f'{path}: is not a file; expected a video.')
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= MAX_FPS else None
        claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(claimed) if 1 <= claimed < 1e9 else 0
        first, _ = capture.read()
        if not first:
            self.close()
            raise InputError(f'{self.path}: no frame of this video can be decoded; it is damaged.')
        if self._count == 0:
            # A raw stream has no index: counting is the only way to a length.
            self._count = 1
            while capture.grab():
                self._count += 1
        self.close()

    def __len__(self) -> int:
        """Count the frames as the container claims."""
        return self._count

    def _frame(self, index: int) -> SourceFrame:
        if self._end is not None and index >= self._end:
            raise self._ended()
        # Forward by grabbing instead of CAP_PROP_POS_FRAMES: seeking lands on other frames in some
        # containers, and stamps must belong to their pictures.
        if self._capture is None or index < self._position:
            self._open()
        while self._position < index:
            if not self._capture.grab():
                raise self._ended()
            self._position += 1
        good, bgr = self._capture.read()
        if not good:
            raise self._ended()
        self._position += 1
        if bgr.ndim == 2:
            bgr = np.repeat(bgr[..., None], 3, axis=2)
        return SourceFrame(
            rgb=cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB),
            stamp_s=None if self.fps is None else index / self.fps,
            name=f'{self.path.name}#{index}',
        )

    def _ended(self) -> EndedEarly:
        """Remember where the frames end, and say so."""
        if self._end is None:
            self._end = self._position
            self.close()
        return EndedEarly(
            f'{self.path}: ends after {self._end} of {self._count} frames; the file was cut off, '
            'or its header is wrong.'
        )

    def _open(self) -> cv2.VideoCapture:
        self.close()
        for backend in cv2.videoio_registry.getStreamBackends():
            # CAP_IMAGES takes a digit in the name for the pattern of an image sequence.
            if backend in (cv2.CAP_IMAGES, cv2.CAP_V4L2):
                continue
            capture = cv2.VideoCapture(str(self.path), backend)
            if capture.isOpened():
                self._capture, self._position = capture, 0
                return capture
            capture.release()
        raise InputError(
            f'{self.path}: is not a video that OpenCV can read; it is damaged, cut off, or of a '
            'codec that this OpenCV lacks. Convert it to H.264 in .mp4, or give images.'
        )

    def close(self) -> None:
        """Close the file; a later frame opens it again."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        self._position = 0
