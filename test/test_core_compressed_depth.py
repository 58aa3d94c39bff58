"""compressedDepth: the bytes of the C++ plugin, its decoder's rules, and no crash on any bytes.

The other side here is literal: one number after the other, as the functions of
ros-perception/image_transport_plugins, compressed_depth_image_transport do it (src/codec.cpp:
encodeCompressedDepthImage, decodeCompressedDepthImage; src/rvl_codec.cpp: EncodeVLE, DecodeVLE,
CompressRVL, DecompressRVL), rolling of 2024 to 2026; the same rules since Noetic.
"""

from array import array
import math
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from vlm_depth_ros.core.compressed_depth import (
    compress_depth,
    CompressedDepthOptions,
    decompress_depth,
    FORMATS,
)
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.rvl import decode_rvl, encode_rvl

NAN, INF = math.nan, math.inf
PNG, RVL = CompressedDepthOptions('png'), CompressedDepthOptions('rvl')
BOTH = pytest.mark.parametrize('options', (PNG, RVL), ids=FORMATS)
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def literal_codes(depth, depth_max_m, quantization):
    """Inverse depth as encodeCompressedDepthImage: float32, cut to an integer."""
    q, most = np.float32(quantization), np.float32(depth_max_m)
    a = q * (q + np.float32(1))
    b = np.float32(1) - a / most
    codes = [int(a / d + b) if d < most else 0 for d in depth.ravel()]
    return np.array(codes, np.uint16).reshape(depth.shape), a, b


def literal_rvl(codes):
    """The words of CompressRVL as bytes."""
    nibbles = []

    def write(number):
        while True:
            number, group = number >> 3, number & 7
            nibbles.append(group | (8 if number else 0))
            if not number:
                return

    rest, previous = codes.ravel().tolist(), 0
    while rest:
        zeros = next((i for i, code in enumerate(rest) if code), len(rest))
        rest = rest[zeros:]
        others = next((i for i, code in enumerate(rest) if not code), len(rest))
        write(zeros)
        write(others)
        for code in rest[:others]:
            delta = code - previous
            write(2 * delta if delta >= 0 else -2 * delta - 1)
            previous = code
        rest = rest[others:]
    nibbles += [0] * (-len(nibbles) % 8)
    words = [nibbles[i : i + 8] for i in range(0, len(nibbles), 8)]
    return b''.join(struct.pack('<I', int(''.join(f'{n:x}' for n in w), 16)) for w in words)


def literal_unrvl(stream, count):
    """The codes of DecompressRVL, as a list."""
    words = iter(struct.unpack(f'<{len(stream) // 4}I', stream))
    nibbles = (word >> shift & 15 for word in words for shift in range(28, -1, -4))

    def read():
        number = bits = 0
        while True:
            nibble = next(nibbles)
            number |= (nibble & 7) << bits
            bits += 3
            if nibble < 8:
                return number

    codes, previous = [], 0
    while len(codes) < count:
        codes += [0] * read()
        for _ in range(read()):
            folded = read()
            previous = (previous + ((folded >> 1) ^ -(folded & 1))) & 0xFFFF
            codes.append(previous)
    return codes


def stock_decode(message):
    """What decodeCompressedDepthImage makes of a message; None where it answers nothing."""
    encoding, _, ending = message.format.partition(';')
    assert encoding == '32FC1' and 'compressedDepth ' in ending
    data = message.data.tobytes()
    a, b = np.frombuffer(data[4:12], np.float32)
    image = data[12:]
    if 'compressedDepth png' in ending:
        codes = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        assert 'compressedDepth rvl' in ending
        width, height = struct.unpack('<II', image[:8])
        if height * width > len(image) * 5:
            return None
        codes = np.reshape(literal_unrvl(image[8:], height * width), (height, width))
    depth = [a / (np.float32(c) - b) if c else np.float32(NAN) for c in codes.ravel()]
    return np.array(depth, np.float32).reshape(codes.shape)


def scene(height=33, width=47, seed=0):
    """Smooth depth with steps, holes, single pixels and what lies beyond."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    depth = 1.5 + 3 * y / height + np.sin(x / 7) + rng.normal(0, 0.01, (height, width))
    depth[(x // 9 + y // 7) % 5 == 0] *= 1.4
    depth[rng.random(depth.shape) < 0.1] = NAN
    depth[5:9, 3:30] = INF
    depth[20:25, 10:40] = NAN
    depth[22:23, 15:16] = 2.0
    return depth.astype(np.float32)


RNG = np.random.default_rng(1)
SPOT = np.arange(77).reshape(7, 11) == 38
NOISE = RNG.uniform(0.2, 9.9, (40, 31))
CASES = {
    'a scene': scene(),
    'one row': scene()[30:31],
    'one column': scene()[:, 4:5],
    'all valid': RNG.uniform(0.2, 9.9, (21, 18)).astype(np.float32),
    'all zero': np.full((7, 5), NAN, np.float32),
    'one valid pixel': np.full((1, 1), 3.0, np.float32),
    'one unknown pixel': np.full((1, 1), NAN, np.float32),
    'one pixel among unknown': np.where(SPOT, 2.5, NAN).astype('f4'),
    'one hole': np.where(SPOT, NAN, 2.5).astype('f4'),
    'every other pixel': np.where(np.arange(77).reshape(7, 11) % 2, 2.5, NAN).astype('f4'),
    'noise': np.where(RNG.random((40, 31)) < 0.5, NOISE, NAN).astype('f4'),
    'long runs': np.repeat(np.float32([NAN, 4.0, NAN, 2.0]), [700, 900, 5, 595]).reshape(40, 55),
}

PLANTED = np.array([
    [1.0, 1.0, 1.5, NAN, NAN],
    [INF, 2.25, 9.99, 10.0, 12.0],
    [0.16, 0.2, NAN, 3.0, 7.5],
    [4.0, 4.0, 4.01, 4.02, NAN],
], np.float32)  # fmt: skip
# Written by the plugin's own rvl_codec.cpp, compiled, behind its own quantisation loop.
PLUGIN_BYTES = {
    (10.0, 100.0): (
        '0000000000d01d4600407cc4050000000400000040cbe80329139dd9cd9d819eae8d2c121696ca39f8f288bf'
        '0dc4eef70000111b'
    ),
    (30.0, 75.0): (
        '000000000020b24500003dc3050000000400000020cde903dc36b7fa0dd7daf492a9cbf26f31eb9dcb1ffc9f'
        '7720ec4a00000010'
    ),
}


@pytest.mark.parametrize('parameters', PLUGIN_BYTES, ids=str)
def test_an_rvl_message_is_the_plugins_byte_for_byte(parameters):
    depth_max_m, quantization = parameters
    options = CompressedDepthOptions(
        'rvl', depth_max_m=depth_max_m, depth_quantization=quantization
    )
    message = compress_depth(PLANTED, options)
    assert message.format == '32FC1; compressedDepth rvl'
    assert message.data.tobytes().hex() == PLUGIN_BYTES[parameters]


@pytest.mark.parametrize('depth', CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize('quantisation', [(10.0, 100.0), (3.3, 75.0), (100.0, 20.0)], ids=str)
def test_codes_and_runs_are_those_of_the_literal_encoder(depth, quantisation):
    codes, a, b = literal_codes(depth, *quantisation)
    head = struct.pack('<iff', 0, a, b)
    height, width = depth.shape

    rvl = compress_depth(depth, CompressedDepthOptions('rvl', 3, *quantisation)).data.tobytes()
    plain = head + struct.pack('<II', width, height) + literal_rvl(codes)
    assert rvl[: len(plain)] == plain
    assert not any(rvl[len(plain) :])

    png = compress_depth(depth, CompressedDepthOptions('png', 3, *quantisation))
    assert png.format == '32FC1; compressedDepth png'
    assert png.data[:12].tobytes() == head
    decoded = cv2.imdecode(png.data[12:], cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, codes, strict=True)


@BOTH
@pytest.mark.parametrize('depth', CASES.values(), ids=CASES.keys())
def test_the_plugin_decodes_depth_to_a_step_and_so_do_we(depth, options):
    message = compress_depth(depth, options)
    stock = stock_decode(message)
    np.testing.assert_array_equal(
        decompress_depth(message.format, message.data), stock, strict=True
    )
    valid = np.isfinite(depth) & (depth < 9.99)
    np.testing.assert_array_equal(np.isfinite(stock[valid]), True)
    np.testing.assert_array_equal(np.isnan(stock[~np.isfinite(depth)]), True)
    # Codes are cut to an integer, so that depth grows, by less than a step: z^2 / A.
    error = stock[valid] - depth[valid]
    assert np.all(error > -1e-5)
    assert np.all(error < stock[valid] ** 2 / 10100 + 1e-5)


@BOTH
def test_what_is_no_depth_is_unknown_to_the_plugin(options):
    depth = np.array([[NAN, INF, -INF, 0.0, -0.0, -1.0, -1e-30, 2.0]], np.float32)
    message = compress_depth(depth, options)
    np.testing.assert_array_equal(np.isfinite(stock_decode(message)), depth == 2.0)
    assert (message.beyond_px, message.too_near_px) == (0, 0)


@BOTH
def test_lost_depth_is_unknown_and_counted(options):
    near = options.nearest_m
    depth = np.array([[1e-40, 0.1, near * 0.999, near * 1.001, 2.0, 9.99]], np.float32)
    depth = np.vstack([depth, np.float32([[10.0, 10.001, 1e30, INF, NAN, 3.0]])])
    message = compress_depth(depth, options)
    kept = [[False] * 3 + [True] * 3, [False] * 5 + [True]]
    np.testing.assert_array_equal(np.isfinite(stock_decode(message)), kept)
    assert (message.beyond_px, message.too_near_px) == (3, 3)


def test_depth_lost_to_rounding_before_depth_max_is_counted_too():
    depth = np.nextafter(np.float32(33.3), np.float32(0)).reshape(1, 1)
    options = CompressedDepthOptions(depth_max_m=33.3)
    message = compress_depth(depth, options)
    assert message.beyond_px == np.count_nonzero(np.isnan(stock_decode(message)))


def test_nearest_depth_is_where_sixteen_bits_end():
    assert PNG.nearest_m == pytest.approx(10100 / (65536 + 1009))


def test_a_sparse_rvl_image_is_filled_up_until_the_plugin_takes_it():
    depth = np.full((48, 64), NAN, np.float32)
    depth[10, 10:20] = 1.0
    message = compress_depth(depth, RVL)
    np.testing.assert_array_equal(np.isfinite(stock_decode(message)), depth == 1.0)
    # The least whole number of 32-bit words of at least 48 * 64 / 5 bytes.
    assert len(message.data) - 12 == 616

    class Unfilled:
        format = message.format
        data = message.data[: 12 + 8 + len(literal_rvl(literal_codes(depth, 10.0, 100.0)[0]))]

    assert stock_decode(Unfilled) is None
    assert np.count_nonzero(decompress_depth(Unfilled.format, Unfilled.data) > 0) == 10


@BOTH
@pytest.mark.parametrize('device', DEVICES)
def test_a_tensor_gives_the_bytes_of_an_array_and_stays_as_it_is(device, options):
    depth = scene()
    tensor = torch.from_numpy(depth.copy()).to(device)
    packed = compress_depth(tensor, options).data
    np.testing.assert_array_equal(packed, compress_depth(depth, options).data, strict=True)
    assert packed.dtype == np.uint8 and packed.ndim == 1 and packed.flags.c_contiguous
    np.testing.assert_array_equal(tensor.cpu().numpy(), depth)


@BOTH
def test_depth_that_is_a_view_is_packed_as_its_copy(options):
    depth = scene()
    for view in (depth.T, depth[::2, ::-3]):
        packed = compress_depth(view, options).data
        np.testing.assert_array_equal(packed, compress_depth(view.copy(), options).data)


def test_rvl_spells_every_length_of_number():
    steps = [1 << bits for bits in range(16)] + [65535, 1, 65535, 0]
    codes = np.repeat(np.array(steps, np.uint16), [3, 1, 2, 1] * 5)
    codes = np.concatenate([codes, np.zeros(300_000, np.uint16), codes])
    stream = encode_rvl(codes)
    np.testing.assert_array_equal(decode_rvl(stream, codes.size), codes, strict=True)
    assert stream.tobytes() == literal_rvl(codes)


@pytest.mark.parametrize('buffer', (bytes, bytearray, memoryview, lambda b: array('B', b)))
def test_any_buffer_of_bytes_is_read(buffer):
    message = compress_depth(PLANTED, RVL)
    depth = decompress_depth(message.format, buffer(message.data.tobytes()))
    assert depth.shape == PLANTED.shape


@pytest.mark.parametrize('format', ('32FC1; compressedDepth', '32FC1;compressedDepth', '32FC1'))
def test_a_format_from_before_rvl_is_png(format):
    message = compress_depth(PLANTED, PNG)
    np.testing.assert_array_equal(
        decompress_depth(format, message.data), decompress_depth(message.format, message.data)
    )


@pytest.mark.parametrize('encoding', ('16UC1', 'mono16'))
@pytest.mark.parametrize('image_format', ('', ' png', ' rvl'))
def test_raw_depth_is_millimetres_whatever_the_configuration(encoding, image_format):
    codes = np.array([[0, 1, 1234], [65535, 10, 0]], np.uint16)
    if image_format == ' rvl':
        image = struct.pack('<II', 3, 2) + literal_rvl(codes)
    else:
        image = cv2.imencode('.png', codes)[1].tobytes()
    # Some drivers write -1 and zeros where the plugin leaves the memory as it is.
    data = struct.pack('<iff', -1, 0, NAN) + image
    depth = decompress_depth(f'{encoding}; compressedDepth{image_format}', data)
    expected = np.float32([[NAN, 0.001, 1.234], [65.535, 0.01, NAN]])
    np.testing.assert_array_equal(depth, expected, strict=True)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'format': 'jpeg'}, r"compressedDepth format = 'jpeg': expected one of \('png', 'rvl'\)"),
        ({'png_level': 10}, 'png_level = 10: expected an integer from 0 to 9'),
        ({'png_level': 2.5}, 'png_level = 2.5: expected an integer from 0 to 9'),
        ({'depth_max_m': 0.0}, 'depth_max_m = 0.0: expected a number from 1 to 100'),
        ({'depth_max_m': NAN}, 'depth_max_m = nan: expected a number from 1 to 100'),
        ({'depth_quantization': 151}, 'depth_quantization = 151: expected a number from 1 to 150'),
    ],
)
def test_a_parameter_outside_the_plugins_bounds_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CompressedDepthOptions(**options)


@pytest.mark.parametrize(
    ('depth', 'message'),
    [
        (np.zeros((0, 4), np.float32), r'depth is float32 \(0, 4\): expected float32'),
        (np.zeros((2, 3, 1), np.float32), r'depth is float32 \(2, 3, 1\): expected .*height'),
        (np.zeros((2, 3), np.uint16), r'depth is uint16 \(2, 3\): expected float32'),
        (torch.zeros(2, 3, dtype=torch.float64), r'depth is float64 \(2, 3\): expected float32'),
    ],
)
def test_depth_of_another_form_is_refused(depth, message):
    with pytest.raises(InputError, match=message):
        compress_depth(depth, PNG)


def png_data(image=None, cut=None, **changed):
    """A 32FC1 message's data with a PNG, some of it changed."""
    head = struct.pack('<iff', 0, changed.get('a', 10100.0), changed.get('b', -1009.0))
    image = np.full((4, 5), 700, np.uint16) if image is None else image
    png = bytearray(cv2.imencode('.png', image)[1].tobytes())
    if 'width' in changed:
        png[16:20] = struct.pack('>I', changed['width'])
    return (head + bytes(png))[:cut]


def rvl_data(width=5, height=4, stream=None):
    stream = literal_rvl(np.full((4, 5), 700, np.uint16)) if stream is None else stream
    return struct.pack('<iffII', 0, 10100.0, -1009.0, width, height) + stream


BAD = {
    'empty': ('png', b'', 'data has 0 bytes: expected 12 of configuration'),
    'configuration only': ('png', png_data(cut=12), 'data has 12 bytes: expected 12 of config'),
    'png cut in its header': ('png', png_data(cut=30), 'starts with .*PNG.*expected a PNG'),
    'png cut at the end': ('png', png_data(cut=-20), 'PNG of 5 x 4 pixels, .* does not decode'),
    'a jpeg': (
        'png',
        png_data(cut=12) + cv2.imencode('.jpg', np.zeros((4, 5), np.uint8))[1].tobytes(),
        'expected a PNG. The data is damaged, or in another format',
    ),
    'rvl called png': ('png', rvl_data(), 'expected a PNG. The data is damaged, or in another'),
    'eight bits': ('png', png_data(np.zeros((4, 5), np.uint8)), 'one channel of 16 bits'),
    'three channels': ('png', png_data(np.zeros((4, 5, 3), np.uint16)), 'one channel of 16 bits'),
    'a png of no width': ('png', png_data(width=0), 'claims 0 x 4 pixels: expected 1 to 33554432'),
    'a giant png': ('png', png_data(width=1 << 30), 'claims 1073741824 x 4 pixels: expected 1 to'),
    'no quantisation': ('png', png_data(a=0.0, b=1.0), 'A = 0, B = 1 gives no depths: expected'),
    'quantisation is NaN': ('png', png_data(a=NAN), 'A = nan, B = -1009 gives no depths'),
    'quantisation is Inf': ('png', png_data(b=-INF), 'A = 10100, B = -inf gives no depths'),
    'negative depths': ('png', png_data(a=-10100.0), 'A = -10100, B = -1009 gives no depths'),
    'a pole among codes': ('png', png_data(b=700.0), 'A = 10100, B = 700 gives no depths'),
    'rvl without a size': ('rvl', rvl_data()[:19], 'RVL image has 7 bytes: expected 8 of size'),
    'rvl of no width': ('rvl', rvl_data(width=0), 'claims 0 x 4 pixels'),
    'a giant rvl': ('rvl', rvl_data(1 << 31, 1 << 31), 'claims 2147483648 x 2147483648 pixels'),
    'rvl without a stream': ('rvl', rvl_data(stream=b''), 'RVL data ends after 0 of 20 pixels'),
    'rvl cut off': ('rvl', rvl_data()[:-4], 'RVL data ends after 18 of 20 pixels: expected all'),
    'rvl of fewer pixels': ('rvl', rvl_data(height=3), 'RVL data has runs of 20 pixels or more: '),
    'rvl of more pixels': ('rvl', rvl_data(height=999), 'RVL data ends after 20 of 4995 pixels'),
    'an endless number': ('rvl', rvl_data(stream=b'\xff' * 8 + bytes(8)), 'more than 10 nibbles'),
}  # fmt: skip


@pytest.mark.parametrize(('image_format', 'data', 'message'), BAD.values(), ids=BAD.keys())
def test_bad_data_is_refused_in_one_line(image_format, data, message):
    with pytest.raises(InputError, match=message) as caught:
        decompress_depth(f'32FC1; compressedDepth {image_format}', data)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'format',
    [
        '',
        'bgr8; jpeg compressed bgr8',
        '32FC1; jpeg',
        '32FC1; compressedDepth jpeg',
        '32FC3; compressedDepth png',
        'jpeg',
    ],
)
def test_a_foreign_format_is_refused(format):
    message = r"compressed image has format '.*': expected '32FC1; compressedDepth png'"
    with pytest.raises(InputError, match=message):
        decompress_depth(format, compress_depth(PLANTED, PNG).data)


def with_right_checksums(data):
    """The same message with every PNG chunk as if it had been written that way."""
    at = 12 + 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from('>I', data, at)
        end = at + 8 + length
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack('>I', zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


@pytest.mark.parametrize('image_format', FORMATS)
def test_no_bytes_break_the_decoder(image_format):
    """5,000 mutations of each format: a depth image or one clear line, never anything else."""
    dice = random.Random(7)
    message = compress_depth(scene(9, 13), CompressedDepthOptions(image_format))
    good = message.data.tobytes()
    answered = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(dice.choice((1, 1, 2, 5, 40))):
            data[dice.randrange(len(data))] = dice.choice((0, 1, 127, 255, dice.randrange(256)))
        how = dice.randrange(6)
        if how == 0:
            del data[dice.randrange(len(data)) :]
        elif how == 1:
            at = dice.randrange(len(data))
            data[at:at] = dice.randbytes(dice.randrange(1, 30))
        elif how == 2:
            data = bytearray(dice.randbytes(dice.randrange(200)))
        if image_format == 'png' and dice.random() < 0.5:
            # Otherwise no damage would get past the first check of libpng.
            data = with_right_checksums(data)
        encoding = dice.choice(('32FC1', '16UC1'))
        try:
            depth = decompress_depth(f'{encoding}; compressedDepth {image_format}', data)
        except InputError as err:
            assert '\n' not in str(err)
            continue
        answered += 1
        assert depth.dtype == np.float32 and depth.ndim == 2
        assert np.all(np.isnan(depth) | ((depth > 0) & (depth < INF)))
    assert 0 < answered < 5000
