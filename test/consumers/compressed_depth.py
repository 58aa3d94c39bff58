"""compressed_depth_image_transport: the stock decoder of ``.../compressedDepth``.

ros-perception/image_transport_plugins 7404d77.
"""

import struct

import cv2
import numpy as np

from consumers.rules import depth_of, Live, rule

CODEC = 'image_transport_plugins 7404d77 compressed_depth_image_transport/src/codec.cpp'
HEADER = struct.Struct('<iff')


def decoded(message: object) -> np.ndarray:
    """(H, W) float32 metres of a PNG, NaN for code 0."""
    _, a, b = HEADER.unpack_from(bytes(message.data))
    png = np.frombuffer(message.data, np.uint8)[HEADER.size :]
    codes = cv2.imdecode(png, cv2.IMREAD_UNCHANGED).astype(np.float32)
    with np.errstate(divide='ignore'):
        return np.where(codes > 0, a / (codes - b), np.nan)


@rule(f'{CODEC}:74-96 decodeCompressedDepthImage')
def format_is_known(live: Live) -> str | None:
    encoding, _, rest = live.compressed.format.partition(';')
    if encoding != '32FC1' or 'compressedDepth png' not in rest:
        return f'answers no image, or one of another type: {live.compressed.format}'
    return None


@rule(f'{CODEC}:99-184 decodeCompressedDepthImage, 291-311 encodeCompressedDepthImage')
def depth_comes_back_within_a_step(live: Live) -> str | None:
    depth_m, back_m = depth_of(live.depth), decoded(live.compressed)
    _, a, _ = HEADER.unpack_from(bytes(live.compressed.data))
    known = np.isfinite(depth_m)
    if not np.isfinite(back_m[known]).all():
        return 'depth within range is lost: depth_max cuts it off, or it is too near'
    step_m = depth_m[known] ** 2 / a + 1e-4
    if (np.abs(back_m[known] - depth_m[known]) > 1.1 * step_m).any():
        return 'decodes another depth: the two numbers of the header are not those of the codes'
    return None


@rule(f'{CODEC}:173-183 decodeCompressedDepthImage')
def what_is_no_depth_comes_back_as_unknown(live: Live) -> str | None:
    no_depth = ~np.isfinite(depth_of(live.depth))
    if np.isfinite(decoded(live.compressed)[no_depth]).any():
        return 'obstacles where depth is unknown or out of range'
    return None
