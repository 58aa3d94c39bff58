"""RVL, the lossless run-length code for 16-bit depth images of A. D. Wilson (ISS 2017).

The image, row by row, is a sequence of runs: the length of a run of zeros, the length of the run
of non-zero values after it, then each of those values as its difference from the non-zero value
before it (0 before the first), zig-zag folded. Each number is cut into groups of three bits,
lowest first; a group is a nibble whose fourth bit says that another follows. Eight nibbles make a
32-bit word, first nibble highest; the last word is filled with zeros. Words are little endian, as
they are on every machine that runs the ROS plugin (compressed_depth_image_transport, ``RvlCodec``
in src/rvl_codec.cpp).
"""

import numpy as np
from vlm_depth_ros.core.errors import InputError

_MAX_NIBBLES = 10
"""Of one number: 30 bits, more than the longest run of any image that is let in."""
_BLOCK = 1 << 16


def encode_rvl(codes: np.ndarray) -> np.ndarray:
    """Encode (N,) uint16, 0 < N < 2**30, as flat uint8 in whole 32-bit words."""
    is_set = codes != 0
    values = codes[is_set].astype(np.int32)
    deltas = np.diff(values, prepend=np.int32(0))
    folded = (deltas << 1) ^ (deltas >> 31)

    # Runs are pairs, zeros and then non-zeros; the first and the last may be of no pixel.
    changes = np.flatnonzero(np.diff(is_set, prepend=False))
    ends = [codes.size] * (2 - changes.size % 2)
    runs = np.diff(np.concatenate([[0], changes, ends])).astype(np.int32)
    before = np.cumsum(runs[1::2]) - runs[1::2]
    is_run = np.zeros(folded.size + runs.size, bool)
    heads = before + 2 * np.arange(before.size)
    is_run[heads] = is_run[heads + 1] = True
    numbers = np.empty(is_run.size, np.int32)
    numbers[is_run] = runs
    numbers[~is_run] = folded
    # In blocks, the grid stays in the cache: twice as fast as in one.
    blocks = [_to_nibbles(numbers[at : at + _BLOCK]) for at in range(0, numbers.size, _BLOCK)]
    filling = np.zeros(-sum(block.size for block in blocks) % 8, np.uint8)
    return _pack(np.concatenate([*blocks, filling]))


def decode_rvl(stream: np.ndarray, count: int) -> np.ndarray:
    """Decode flat uint8 into (count,) uint16; bytes after the last run are not looked at.

    Raises:
        InputError: If the stream ends early, or its runs do not add up to `count`.
    """
    numbers = _from_nibbles(_unpack(stream))
    listed = numbers.tolist()
    heads, runs = [], []
    at = pixels = 0
    while pixels < count and at + 1 < len(listed):
        heads.append(at)
        runs += listed[at : at + 2]
        pixels += listed[at] + listed[at + 1]
        at += 2 + listed[at + 1]
    missing = max(0, at - len(listed))
    if pixels > count:
        raise InputError(
            f'RVL data has runs of {pixels} pixels or more: expected {count}, as its size says. '
            'The data is damaged.'
        )
    if pixels < count or missing:
        raise InputError(
            f'RVL data ends after {pixels - missing} of {count} pixels: expected all of them. It '
            'was cut off.'
        )

    is_value = np.ones(at, bool)
    is_value[heads] = is_value[np.add(heads, 1, dtype=np.intp)] = False
    folded = numbers[:at][is_value]
    codes = np.zeros(count, np.uint16)
    is_set = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    # Differences are taken modulo 2**16, as a 16-bit decoder does.
    codes[is_set] = np.cumsum((folded >> 1) ^ -(folded & 1)).astype(np.uint16)
    return codes


def _to_nibbles(numbers: np.ndarray) -> np.ndarray:
    """Write each number as a row of a grid, and keep what is written, row by row."""
    columns = max(1, -(-int(numbers.max()).bit_length() // 3))
    nibbles = np.empty((numbers.size, columns), np.uint8)
    is_kept = np.ones((numbers.size, columns), bool)
    for column in range(columns):
        rest = numbers >> 3
        goes_on = rest > 0
        nibbles[:, column] = numbers & 7
        nibbles[:, column] |= goes_on.view(np.uint8) << 3
        is_kept[:, column + 1 : column + 2] = goes_on[:, None]
        numbers = rest
    return nibbles[is_kept]


def _from_nibbles(nibbles: np.ndarray) -> np.ndarray:
    """Numbers as (M,) int64; a last one without its end is left out."""
    ends = np.flatnonzero(nibbles < 8)
    at = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    if ends.size and (ends - at).max() >= _MAX_NIBBLES:
        raise InputError(
            f'RVL data has a number of more than {_MAX_NIBBLES} nibbles: expected fewer. The data '
            'is damaged or no RVL.'
        )
    numbers = np.zeros(ends.size, np.int64)
    rows = np.arange(ends.size)
    for bits in range(0, 3 * _MAX_NIBBLES, 3):
        group = nibbles[at]
        numbers[rows] |= (group & 7).astype(np.int64) << bits
        goes_on = group > 7
        rows, at = rows[goes_on], at[goes_on] + 1
    return numbers


def _pack(nibbles: np.ndarray) -> np.ndarray:
    # Two nibbles a byte, first one high, are the word in big-endian order.
    return ((nibbles[0::2] << 4) | nibbles[1::2]).view('>u4').astype('<u4').view(np.uint8)


def _unpack(stream: np.ndarray) -> np.ndarray:
    words = stream[: stream.size // 4 * 4].copy().view('<u4').astype('>u4').view(np.uint8)
    return np.stack([words >> 4, words & 15], axis=1).reshape(-1)
