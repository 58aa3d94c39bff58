"""compressed_depth_image_transport: the stock decoder of ``.../compressedDepth``.

ros-perception/image_transport_plugins 7404d77.
"""

import struct

import cv2
import numpy as np

from consumers.rules import depth_of, Live, rule

CODEC = 'image_transport_plugins 7404d77 compressed_depth_image_transport/src/codec.cpp'
RVL = 'image_transport_plugins 7404d77 compressed_depth_image_transport/src/rvl_codec.cpp'
HEADER, RVL_SIZE = struct.Struct('<iff'), struct.Struct('<II')
FORMS = ('compressedDepth png', 'compressedDepth rvl')


def decoded(message: object) -> np.ndarray:
    """(H, W) float32 metres of a PNG or RVL, NaN for code 0."""
    data = bytes(message.data)
    _, a, b = HEADER.unpack_from(data)
    image = data[HEADER.size :]
    if FORMS[1] in message.format:
        width, height = RVL_SIZE.unpack_from(image)
        codes = unrvl(image[RVL_SIZE.size :], width * height).reshape(height, width)
    else:
        codes = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
    codes = codes.astype(np.float32)
    with np.errstate(divide='ignore'):
        return np.where(codes > 0, a / (codes - b), np.nan)


def unrvl(stream: bytes, count: int) -> np.ndarray:
    """(N,) codes of an RVL stream: DecompressRVL and DecodeVLE of rvl_codec.cpp."""
    # Words of eight nibbles, the first one on top; three bits of a number in each.
    words = np.frombuffer(stream[: len(stream) // 4 * 4], '<u4')
    nibbles = iter((words[:, None] >> np.arange(28, -1, -4, np.uint32) & 15).ravel().tolist())

    def number() -> int:
        value = bits = 0
        for nibble in nibbles:
            value |= (nibble & 7) << bits
            bits += 3
            if nibble < 8:
                break
        return value

    codes, previous = [], 0
    while (left := count - len(codes)) > 0:
        zeros, others = number(), number()
        if not zeros + others:  # The stream is at its end.
            zeros = left
        codes += [0] * min(zeros, left)
        for _ in range(min(others, left)):
            folded = number()
            previous = (previous + ((folded >> 1) ^ -(folded & 1))) & 0xFFFF
            codes.append(previous)
    return np.array(codes[:count], np.uint16)


def _both(live: Live) -> tuple[object, object]:
    return live.compressed, live.compressed_rvl


@rule(f'{CODEC}:74-96 decodeCompressedDepthImage')
def format_is_known(live: Live) -> str | None:
    for message, form in zip(_both(live), FORMS):
        encoding, _, rest = message.format.partition(';')
        if encoding != '32FC1' or form not in rest:
            return f'answers no image, or one of another type: {message.format}'
    return None


@rule(f'{CODEC}:99-184 decodeCompressedDepthImage, 291-311 encodeCompressedDepthImage')
def depth_comes_back_within_a_step(live: Live) -> str | None:
    depth_m = depth_of(live.depth)
    known = np.isfinite(depth_m)
    for message in _both(live):
        back_m = decoded(message)
        _, a, _ = HEADER.unpack_from(bytes(message.data))
        if not np.isfinite(back_m[known]).all():
            return 'depth within range is lost: depth_max cuts it off, or it is too near'
        step_m = depth_m[known] ** 2 / a + 1e-4
        if (np.abs(back_m[known] - depth_m[known]) > 1.1 * step_m).any():
            return 'decodes another depth: the numbers of the header are not those of the codes'
    return None


@rule(f'{RVL} DecompressRVL; {CODEC}:99-184')
def rvl_holds_what_png_holds(live: Live) -> str | None:
    png_m, rvl_m = (decoded(message) for message in _both(live))
    if png_m.shape != rvl_m.shape or not np.array_equal(png_m, rvl_m, equal_nan=True):
        return 'decodes another depth than of the PNG'
    return None


@rule(f'{CODEC}:173-183 decodeCompressedDepthImage')
def what_is_no_depth_comes_back_as_unknown(live: Live) -> str | None:
    no_depth = ~np.isfinite(depth_of(live.depth))
    if any(np.isfinite(decoded(message)[no_depth]).any() for message in _both(live)):
        return 'obstacles where depth is unknown or out of range'
    return None
