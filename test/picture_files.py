"""A picture, and its bytes in every form of file that is read."""

from collections.abc import Sequence

import cv2
import numpy as np

FORMS = {
    'jpeg': ('.jpg', ()),
    'progressive jpeg': ('.jpg', (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    'jpeg with restarts': ('.jpg', (cv2.IMWRITE_JPEG_RST_INTERVAL, 4)),
    'png': ('.png', ()),
    'lossless webp': ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 101)),
    'lossy webp': ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 90)),
    'bmp': ('.bmp', ()),
    'tiff': ('.tiff', ()),
    'plain tiff': ('.tiff', (cv2.IMWRITE_TIFF_COMPRESSION, 1)),
}
"""Suffix and options of OpenCV."""


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture, so that lossy formats stay near it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(suffix: str, options: Sequence[int] = (), rgb: np.ndarray | None = None) -> bytes:
    """A file's content; of `picture` if no other is given."""
    rgb = picture() if rgb is None else rgb
    good, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), list(options))
    assert good
    return data.tobytes()
