"""Pictures are read as they are, and damaged ones are refused with their name."""

import array
import os
from pathlib import Path
import struct

import cv2
import numpy as np
from picture_files import encoded, FORMS, picture
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.images import (
    decode_rgb,
    ImagesSource,
    list_images,
    load_as_stored,
    load_rgb,
    MAX_MEGAPIXELS,
    save_jpeg,
    save_png,
)
from vlm_depth_ros.files.source import open_source


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_every_format_decodes_to_rgb(form):
    rgb = decode_rgb(encoded(*form), 'x')
    assert rgb.shape == (48, 64, 3) and rgb.dtype == np.uint8
    is_lossy = form[0] == '.jpg' or 90 in form[1]
    assert np.abs(rgb.astype(int) - picture()).mean() < (4 if is_lossy else 0.01)


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_cut_off_image_is_refused_at_every_length(form):
    data = encoded(*form)
    lengths = {*range(1, 80), *range(80, len(data), max(1, len(data) // 60)), len(data) - 1}
    for length in sorted(n for n in lengths if n < len(data)):
        with pytest.raises(InputError, match='half.jpg'):
            decode_rgb(data[:length], 'half.jpg')


def test_jpeg_cut_in_half_is_refused_and_not_half_grey():
    data = encoded('.jpg', rgb=picture(480, 640))
    with pytest.raises(InputError, match=r'half\.jpg: the JPEG of 640 x 480 pixels is cut off'):
        decode_rgb(data[: len(data) // 2], 'half.jpg')


def test_cut_jpeg_with_whole_thumbnail_is_refused():
    thumbnail, data = encoded('.jpg', rgb=picture(12, 16)), encoded('.jpg', rgb=picture(480, 640))
    with_exif = (
        data[:2] + b'\xff\xe1' + struct.pack('>H', 2 + len(thumbnail)) + thumbnail + data[2:]
    )
    assert decode_rgb(with_exif, 'x').shape == (480, 640, 3)
    with pytest.raises(InputError, match='cut off'):
        decode_rgb(with_exif[: len(with_exif) // 2], 'x')


def test_bytes_after_the_end_do_not_matter():
    assert decode_rgb(encoded('.jpg') + b'\0' * 512, 'x').shape == (48, 64, 3)


@pytest.mark.parametrize('buffer', [bytes, bytearray, memoryview, lambda d: array.array('B', d),
                                    lambda d: np.frombuffer(d, np.uint8)])  # fmt: skip
def test_decode_takes_any_buffer(buffer):
    assert decode_rgb(buffer(encoded('.jpg')), 'x').shape == (48, 64, 3)


def claims(form, width, height):
    """A small whole file whose header claims another size."""
    data = bytearray(encoded(form, (cv2.IMWRITE_WEBP_QUALITY, 90) if form == '.webp' else ()))
    if form == '.jpg':
        at = data.index(b'\xff\xc0') + 5
        data[at : at + 4] = struct.pack('>HH', height, width)
    elif form == '.png':
        data[16:24] = struct.pack('>II', width, height)
    elif form == '.bmp':
        data[18:26] = struct.pack('<ii', width, height)
    elif form == '.webp':
        at = data.index(b'VP8 ') + 14
        data[at : at + 4] = struct.pack('<HH', width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ('form', 'width', 'height'),
    [('.jpg', 65500, 65500), ('.png', 100000, 100000), ('.bmp', 100000, 100000),
     ('.webp', 16383, 16383)],
)  # fmt: skip
def test_absurd_size_is_refused_from_the_header(form, width, height):
    kind = {'.jpg': 'JPEG', '.png': 'PNG', '.bmp': 'BMP', '.webp': 'WebP'}[form]
    with pytest.raises(
        InputError, match=f'{kind} header says {width} x {height} pixels; at most 64'
    ):
        decode_rgb(claims(form, width, height), 'huge')


def test_absurd_tiff_size_is_refused_from_the_header():
    entries = [(256, 4, 1, 100000), (257, 4, 1, 100000), (273, 4, 1, 8), (279, 4, 1, 4)]
    ifd = struct.pack('<H', 4) + b''.join(struct.pack('<HHII', *e) for e in entries) + bytes(4)
    with pytest.raises(InputError, match='TIFF header says 100000 x 100000 pixels; at most'):
        decode_rgb(b'II\x2a\x00' + struct.pack('<I', 8) + ifd, 'x')


@pytest.mark.parametrize('form', ['.jpg', '.png', '.bmp'])
def test_size_of_zero_is_refused(form):
    with pytest.raises(InputError, match='header says 64 x 0 pixels; the file is damaged'):
        decode_rgb(claims(form, 64, 0), 'none')


def test_the_limit_is_the_named_one():
    side = int((MAX_MEGAPIXELS * 1_000_000) ** 0.5)
    with pytest.raises(InputError, match='cannot be decoded'):  # not for its size
        decode_rgb(claims('.png', side, side), 'x')
    with pytest.raises(InputError, match=f'at most {MAX_MEGAPIXELS} megapixels'):
        decode_rgb(claims('.png', side + 1, side), 'x')


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'is empty'),
        (b'hello, I am a text', 'is not a JPEG, PNG, WebP, BMP or TIFF'),
        (b'GIF89a' + bytes(50), 'is not a JPEG'),
        (b'\xff\xd8\xff', 'JPEG header is damaged or cut off'),
        (b'\xff\xd8\xff\xd9', 'JPEG header is damaged'),
        (b'\x89PNG\r\n\x1a\n' + bytes(30), 'PNG header is damaged'),
        (b'RIFF\x10\0\0\0WEBPJUNK' + bytes(40), 'WebP header is damaged'),
        (b'II\x2a\x00' + b'\xff' * 40, 'TIFF header is damaged'),
    ],
)
def test_what_is_no_image_is_refused_by_name(data, message):
    with pytest.raises(InputError, match=f'thing: .*{message}'):
        decode_rgb(data, 'thing')


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_random_damage_gives_a_picture_or_one_clear_error(form):
    data, rng = encoded(*form), np.random.default_rng(1)
    for _ in range(150):
        damaged = np.frombuffer(data, np.uint8).copy()
        spots = rng.integers(0, min(len(data), 400), rng.integers(1, 4))
        damaged[spots] = rng.integers(0, 256, len(spots))
        try:
            assert decode_rgb(damaged.tobytes(), 'x').ndim == 3
        except InputError as err:
            assert str(err).startswith('x: ')


def test_png_with_a_flipped_bit_is_refused():
    data = bytearray(encoded('.png'))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(InputError, match='x: this PNG cannot be decoded'):
        decode_rgb(bytes(data), 'x')


def test_orientation_is_ignored_unless_asked_for():
    # EXIF orientation 6: turn clockwise by a quarter.
    entry = struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0)
    exif = b'Exif\0\0MM\0*' + struct.pack('>IH', 8, 1) + entry + bytes(4)
    data = encoded('.jpg')
    turned = data[:2] + b'\xff\xe1' + struct.pack('>H', 2 + len(exif)) + exif + data[2:]
    assert decode_rgb(turned, 'x').shape == (48, 64, 3)
    assert decode_rgb(turned, 'x', upright=True).shape == (64, 48, 3)


def test_load_names_a_missing_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(InputError, match='none.png: does not exist'):
        load_rgb(tmp_path / 'none.png')
    with pytest.raises(InputError, match='is not a file'):
        load_rgb(tmp_path)
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(InputError, match='pipe.png: is not a file'):
        load_rgb(tmp_path / 'pipe.png')


def test_load_refuses_a_file_larger_than_any_image(tmp_path):
    with (tmp_path / 'big.jpg').open('wb') as file:
        file.truncate(10**12)  # sparse: takes no space
    with pytest.raises(
        InputError, match='big.jpg: 1000000000000 bytes; expected an image of at most'
    ):
        load_rgb(tmp_path / 'big.jpg')


def test_saved_png_and_jpeg_come_back(tmp_path):
    rgb, depth = picture(), np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    save_png(tmp_path / 'new' / 'a.png', rgb)
    save_png(tmp_path / 'd.png', depth)
    save_jpeg(tmp_path / 'b.jpg', rgb, quality=98)
    assert np.array_equal(load_rgb(tmp_path / 'new' / 'a.png'), rgb)
    assert np.array_equal(load_as_stored(tmp_path / 'd.png'), depth)
    assert np.abs(load_rgb(tmp_path / 'b.jpg').astype(int) - rgb).mean() < 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ['b.jpg', 'd.png', 'new']


def test_save_refuses_other_arrays(tmp_path):
    for image in (
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
    ):
        with pytest.raises(InputError, match='x.png: cannot store'):
            save_png(tmp_path / 'x.png', image)
    with pytest.raises(InputError, match='cannot store uint16'):
        save_jpeg(tmp_path / 'x.jpg', np.zeros((4, 4), np.uint16))


def test_failed_save_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip('resource')
    save_png(tmp_path / 'a.png', picture())
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: write fails
    try:
        with pytest.raises(InputError, match='a.png: could not be written .*unchanged'):
            save_png(tmp_path / 'a.png', noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(load_rgb(tmp_path / 'a.png'), picture())
    assert [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_save_onto_a_folder_or_below_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match='is not a regular file'):
        save_png(tmp_path, picture())
    (tmp_path / 'file').write_text('x')
    with pytest.raises(InputError, match='could not be written'):
        save_png(tmp_path / 'file' / 'a.png', picture())


def test_folder_is_read_in_natural_order_without_hidden_files(tmp_path):
    for name in ('frame10.png', 'frame2.PNG', 'b1.jpg', '._b1.jpg', 'readme.txt', '7.png'):
        (tmp_path / name).write_bytes(encoded('.png'))
    (tmp_path / 'folder.png').mkdir()
    names = ['7.png', 'b1.jpg', 'frame2.PNG', 'frame10.png']
    assert [p.name for p in list_images(tmp_path)] == names
    source = open_source(tmp_path)
    assert len(source) == 4 and [f.name for f in source] == names == [f.name for f in source]
    frame = source[-1]
    assert frame.stamp_s is None and frame.intrinsics is None and frame.depth_m is None


def test_corrupt_image_is_named_when_reached_and_can_be_passed(tmp_path):
    for name in ('1.png', '3.png'):
        save_png(tmp_path / name, picture())
    (tmp_path / '2.png').write_bytes(encoded('.png')[:100])
    source = open_source(tmp_path)
    with pytest.raises(InputError, match=r'2\.png: the PNG of 64 x 48 pixels is cut off'):
        list(source)
    good = []
    for index in range(len(source)):
        try:
            good.append(source[index].name)
        except InputError:
            continue
    assert good == ['1.png', '3.png']
    with pytest.raises(IndexError):
        source[3]


def test_single_image_is_a_source_of_one(tmp_path):
    save_png(tmp_path / 'one.png', picture())
    assert [f.name for f in open_source(tmp_path / 'one.png')] == ['one.png']
    with pytest.raises(InputError, match='no images'):
        ImagesSource([])


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda p: None, 'thing: does not exist'),
        (lambda p: p.mkdir(), 'thing: holds nothing'),
        (lambda p: (p / 'rgb').mkdir(parents=True), 'thing: holds 1 folders and no pictures'),
        (lambda p: p.write_text('x'), 'thing: is without a suffix'),
    ],
)
def test_unusable_path_says_what_was_found_and_what_is_accepted(tmp_path, make, message):
    make(tmp_path / 'thing')
    with pytest.raises(InputError, match=message + r'.*Accepted: a folder with pairs\.csv'):
        open_source(tmp_path / 'thing')


def test_unknown_kind_ros1_bag_and_misplaced_topic_are_refused(tmp_path):
    for name, message in (('a.xyz', "unknown kind '.xyz'"), ('a.bag', 'ROS 1 bag; convert it')):
        Path(tmp_path / name).write_text('x')
        with pytest.raises(InputError, match=message):
            open_source(tmp_path / name)
    save_png(tmp_path / 'a.png', picture())
    with pytest.raises(InputError, match='topic was named, but this is not a ROS 2 bag'):
        open_source(tmp_path / 'a.png', topic='/image')
