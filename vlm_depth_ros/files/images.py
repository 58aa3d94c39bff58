"""Encoded images <-> arrays, refusing what is damaged; a folder of images as a source."""

from collections.abc import Sequence
from pathlib import Path
import re

import cv2
import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.image_headers import HeaderError, read_header
from vlm_depth_ros.files.source import Source, SourceFrame

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MAX_MEGAPIXELS = 64
"""Larger images are refused from their header, before a decoder allocates for them."""
MAX_FILE_BYTES = MAX_MEGAPIXELS * 1_000_000 * 8
"""No 64-megapixel image needs more: four channels of 16 bits, uncompressed."""


def decode_rgb(
    data: bytes, name: str, *, upright: bool = False, max_megapixels: int = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, BMP or TIFF from memory.

    Args:
        data: The encoded file; any buffer (bytes, memoryview, array.array, uint8 array).
        name: What it is, for messages.
        upright: Turn the picture as its EXIF orientation says. Off by default: intrinsics belong
            to the pixels as stored.
        max_megapixels: Larger ones are refused before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: If the data is empty, cut off, damaged, too large or no such image.
    """
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = _decode(bytes(data), name, flags, max_megapixels)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def load_rgb(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB; see `decode_rgb`.

    Raises:
        InputError: If the file is missing, unreadable or refused by `decode_rgb`.
    """
    return decode_rgb(_read(Path(path)), str(path), upright=upright)


def load_as_stored(path: str | Path) -> np.ndarray:
    """Read an image file in its own type: (H, W), or (H, W, C) in the channel order of OpenCV.

    Raises:
        InputError: As `load_rgb`.
    """
    return _decode(_read(Path(path)), str(path), cv2.IMREAD_UNCHANGED, MAX_MEGAPIXELS)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16, without loss and atomically.

    Raises:
        InputError: If the array is of another form, or the file cannot be written.
    """
    _save(path, '.png', image, (np.uint8, np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 3])


def save_jpeg(path: str | Path, image: np.ndarray, quality: int = 95) -> None:
    """Write (H, W, 3) uint8 RGB or (H, W) uint8 as a JPEG, atomically.

    Raises:
        InputError: As `save_png`.
    """
    _save(path, '.jpg', image, (np.uint8,), [cv2.IMWRITE_JPEG_QUALITY, quality])


def list_images(folder: str | Path) -> list[Path]:
    """Name the image files of a folder, hidden ones left out, ``frame2`` before ``frame10``.

    Raises:
        InputError: If the folder cannot be read.
    """
    try:
        entries = list(Path(folder).iterdir())
    except OSError as err:
        raise InputError(f'{folder}: cannot be read ({err.strerror}); expected a folder.') from err
    found = [
        p
        for p in entries
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith('.') and p.is_file()
    ]
    return sorted(found, key=lambda p: ([_number(s) for s in re.split(r'(\d+)', p.name)], p.name))


class ImagesSource(Source):
    """Image files as frames: no stamps, no camera, no depth; turned upright by EXIF."""

    def __init__(self, paths: Sequence[str | Path]):
        """Keep the paths; nothing is read yet.

        Raises:
            InputError: If there are none.
        """
        self.paths = [Path(p) for p in paths]
        if not self.paths:
            raise InputError(f'no images; expected at least one of {", ".join(IMAGE_SUFFIXES)}.')

    def __len__(self) -> int:
        """Count the files."""
        return len(self.paths)

    def _frame(self, index: int) -> SourceFrame:
        path = self.paths[index]
        return SourceFrame(rgb=load_rgb(path, upright=True), name=path.name)


def _number(text: str) -> tuple[int, str]:
    # Digits compare as numbers and stand before letters; a bare mix of types would not compare.
    return (int(text), '') if text.isdecimal() else (-1, text.lower())


def _read(path: Path) -> bytes:
    if not path.is_file():  # also keeps a pipe from blocking for ever
        found = 'is not a file' if path.exists() else 'does not exist'
        raise InputError(f'{path}: {found}; expected an image file.')
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(
                f'{path}: {size} bytes; expected an image of at most {MAX_MEGAPIXELS} megapixels.'
            )
        return path.read_bytes()
    except OSError as err:
        raise InputError(f'{path}: cannot be read ({err.strerror}).') from err


def _decode(data: bytes, name: str, flags: int, max_megapixels: int) -> np.ndarray:
    if not data:
        raise InputError(f'{name}: is empty (0 bytes); expected an image. Copy it again.')
    try:
        header = read_header(data)
    except HeaderError as err:
        raise InputError(f'{name}: {err}. Copy it again from its origin.') from err
    if header is None:
        raise InputError(
            f'{name}: is not a JPEG, PNG, WebP, BMP or TIFF image (starts with {data[:8]!r}).'
        )
    size = f'{header.width_px} x {header.height_px} pixels'
    pixels = header.width_px * header.height_px
    if pixels < 1:
        raise InputError(f'{name}: the {header.kind} header says {size}; the file is damaged.')
    if pixels > max_megapixels * 1_000_000:
        raise InputError(
            f'{name}: the {header.kind} header says {size}; at most {max_megapixels} megapixels '
            'are read. Scale the image down first.'
        )
    if not header.is_complete:
        raise InputError(
            f'{name}: the {header.kind} of {size} is cut off after {len(data)} bytes. '
            'Copy it again from its origin.'
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as err:
        raise InputError(f'{name}: this {header.kind} cannot be decoded ({err.err}).') from err
    if image is None:
        raise InputError(f'{name}: this {header.kind} cannot be decoded; its data is damaged.')
    return image


def _save(
    path: str | Path, form: str, image: np.ndarray, dtypes: tuple[type, ...], options: list[int]
) -> None:
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    is_plain = image.ndim == 2 and image.dtype in dtypes
    if not (is_rgb or is_plain) or image.size == 0:
        raise InputError(
            f'{path}: cannot store {image.dtype} {image.shape} as {form}; expected (H, W, 3) '
            f'uint8 RGB or (H, W) {" or ".join(np.dtype(d).name for d in dtypes)}.'
        )
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if is_rgb else image
    _, encoded = cv2.imencode(form, np.ascontiguousarray(stored), options)
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded)
