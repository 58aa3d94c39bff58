"""Size and completeness of an encoded image from its bytes, before anything is decoded.

A header that claims 65500 x 65500 pixels must be refused before a decoder allocates for it, and a
file that was cut off must not become a half-grey picture: libjpeg fills what is missing.
"""

from dataclasses import dataclass
import struct

MAX_SCANS = 100
"""Of a progressive JPEG; encoders write about ten. Each is a pass over the whole picture, however
few bytes it has: a megabyte of empty ones costs minutes."""


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes say."""

    kind: str
    """``JPEG``, ``PNG``, ``WebP``, ``BMP`` or ``TIFF``."""
    height_px: int
    width_px: int
    is_complete: bool
    """Whether the data reaches as far as the format says it must."""


class HeaderError(ValueError):
    """The data starts like a known kind, and must not be decoded."""


def read_header(data: bytes) -> ImageHeader | None:
    """Read size and completeness; None when the data is of no known kind.

    Raises:
        HeaderError: If the header is damaged or cut off, or the data made to keep a decoder busy.
    """
    for magic, kind, reader in _KINDS:
        if data.startswith(magic) and (kind != 'WebP' or data[8:12] == b'WEBP'):
            try:
                height, width, is_complete = reader(data)
            except HeaderError:
                raise
            except (struct.error, LookupError, ValueError) as err:
                raise HeaderError(f'the {kind} header is damaged or cut off') from err
            return ImageHeader(kind, height, width, is_complete)
    return None


# Start-of-frame markers: C0 to CF without DHT (C4), JPG (C8) and DAC (CC); ITU-T T.81, table B.1.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> tuple[int, int, bool]:
    at = 2
    size = None
    while True:
        # Decoders skip stray bytes before a marker, and any number of FF may precede its code.
        at = data.index(b'\xff', at)
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            continue
        (length,) = struct.unpack_from('>H', data, at)
        if marker == 0xD9 or length < 2:
            raise ValueError
        if marker in _JPEG_FRAMES and size is None:
            size = struct.unpack_from('>HH', data, at + 3)
        at += length
        if marker == 0xDA:
            break
    if size is None:
        raise ValueError
    # In entropy-coded data FF is followed by 00 or a restart marker, so FF DA after the first scan
    # header is another scan and FF D9 the end; those inside an EXIF thumbnail lie before it.
    scans = 1 + data.count(b'\xff\xda', at)
    if scans > MAX_SCANS:
        raise HeaderError(f'the JPEG has {scans} scans, expected at most {MAX_SCANS}')
    return (*size, data.find(b'\xff\xd9', at) >= 0)


def _png(data: bytes) -> tuple[int, int, bool]:
    if data[12:16] != b'IHDR':
        raise ValueError
    width, height = struct.unpack_from('>II', data, 16)
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from('>I', data, at)
        is_last = data[at + 4 : at + 8] == b'IEND'
        at += 12 + length
        if is_last:
            return height, width, at <= len(data)
    return height, width, False


def _webp(data: bytes) -> tuple[int, int, bool]:
    (riff_size,) = struct.unpack_from('<I', data, 4)
    is_complete = len(data) >= 8 + riff_size
    chunk = data[12:16]
    if chunk == b'VP8X':
        width = 1 + int.from_bytes(data[24:27], 'little')
        height = 1 + int.from_bytes(data[27:30], 'little')
        data[29]
    elif chunk == b'VP8L':
        (bits,) = struct.unpack_from('<I', data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b'VP8 ':
        width, height = (n & 0x3FFF for n in struct.unpack_from('<HH', data, 26))
    else:
        raise ValueError
    return height, width, is_complete


def _bmp(data: bytes) -> tuple[int, int, bool]:
    offset, header_size = struct.unpack_from('<II', data, 10)
    if header_size == 12:
        width, height, _, bits = struct.unpack_from('<HHHH', data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from('<iiHHI', data, 18)
        height = abs(height)
    if width < 0:
        raise ValueError
    if compression in (1, 2):
        return height, width, True  # run lengths end where they end: the decoder finds out
    row_bytes = (width * bits + 31) // 32 * 4
    return height, width, offset + row_bytes * height <= len(data)


_TIFF_TYPES = {3: 'H', 4: 'I', 16: 'Q'}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_DATA = ((273, 279), (324, 325))  # (offsets, byte counts) of strips and of tiles


def _tiff(data: bytes) -> tuple[int, int, bool]:
    order = '<' if data[:2] == b'II' else '>'
    is_big = data[2:4] in (b'\x2b\x00', b'\x00\x2b')
    # Classic: 4-byte offsets, 12-byte entries; BigTIFF: 8-byte offsets, 20-byte entries.
    word, count_form, entry_bytes, first = ('Q', 'Q', 20, 8) if is_big else ('I', 'H', 12, 4)
    (at,) = struct.unpack_from(order + word, data, first)
    (entries,) = struct.unpack_from(order + count_form, data, at)
    at += struct.calcsize(order + count_form)
    tags = {}
    for start in range(at, at + min(entries, 4096) * entry_bytes, entry_bytes):
        tag, form, count = struct.unpack_from(order + 'HH' + word, data, start)
        if form not in _TIFF_TYPES or count > len(data):
            continue
        values = f'{order}{count}{_TIFF_TYPES[form]}'
        place = start + 4 + struct.calcsize(order + word)
        if struct.calcsize(values) > struct.calcsize(order + word):
            (place,) = struct.unpack_from(order + word, data, place)
        # Of a tag that stands there twice libtiff takes the first.
        tags.setdefault(tag, struct.unpack_from(values, data, place))
    (width,), (height,) = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    ends = [
        offset + size
        for offsets, sizes in _TIFF_DATA
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True)
    ]
    return height, width, bool(ends) and max(ends) <= len(data)


_KINDS = (
    (b'\xff\xd8\xff', 'JPEG', _jpeg),
    (b'\x89PNG\r\n\x1a\n', 'PNG', _png),
    (b'RIFF', 'WebP', _webp),
    (b'BM', 'BMP', _bmp),
    (b'II\x2a\x00', 'TIFF', _tiff),
    (b'MM\x00\x2a', 'TIFF', _tiff),
    (b'II\x2b\x00', 'TIFF', _tiff),
    (b'MM\x00\x2b', 'TIFF', _tiff),
)
