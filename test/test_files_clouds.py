"""Clouds survive a PLY file, and damaged files are refused."""

import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.clouds import read_ply, write_ply

POINTS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
RGB = np.random.default_rng(1).integers(0, 256, (100, 3), dtype=np.uint8)


@pytest.mark.parametrize('rgb', [None, RGB])
def test_cloud_comes_back(tmp_path, rgb):
    assert write_ply(tmp_path / 'new' / 'a.ply', POINTS, rgb) == 100
    points, colours = read_ply(tmp_path / 'new' / 'a.ply')
    assert points.dtype == np.float32 and np.array_equal(points, POINTS)
    assert colours is None if rgb is None else np.array_equal(colours, rgb)


def test_header_is_what_viewers_expect(tmp_path):
    write_ply(tmp_path / 'a.ply', POINTS, RGB)
    data = (tmp_path / 'a.ply').read_bytes()
    head = data[: data.index(b'end_header\n') + 11].decode().splitlines()
    assert head[:3] == ['ply', 'format binary_little_endian 1.0', 'element vertex 100']
    assert head[3:9] == [f'property float {n}' for n in 'xyz'] + [
        f'property uchar {n}' for n in ('red', 'green', 'blue')
    ]
    assert len(data) == data.index(b'end_header\n') + 11 + 100 * 15


def test_points_that_are_not_finite_are_left_out(tmp_path):
    points = POINTS.copy()
    points[3, 1], points[7, 2] = np.nan, np.inf
    assert write_ply(tmp_path / 'a.ply', points, RGB) == 98
    back, colours = read_ply(tmp_path / 'a.ply')
    kept = np.isfinite(points).all(1)
    assert np.array_equal(back, points[kept]) and np.array_equal(colours, RGB[kept])


def test_empty_cloud_is_a_valid_file(tmp_path):
    write_ply(tmp_path / 'a.ply', np.empty((0, 3)))
    points, _ = read_ply(tmp_path / 'a.ply')
    assert points.shape == (0, 3)


@pytest.mark.parametrize(
    ('points', 'rgb', 'message'),
    [
        (POINTS.reshape(10, 10, 3), None, r'points of shape \(10, 10, 3\); expected \(N, 3\)'),
        (POINTS, RGB[:5], r'rgb is uint8 \(5, 3\); expected uint8 \(100, 3\)'),
        (POINTS, RGB.astype(np.float32), 'rgb is float32'),
    ],
)
def test_other_shapes_are_refused_before_writing(tmp_path, points, rgb, message):
    with pytest.raises(InputError, match=message):
        write_ply(tmp_path / 'a.ply', points, rgb)
    assert not list(tmp_path.iterdir())


def test_doubles_extra_properties_and_faces_are_read_past(tmp_path):
    header = (
        'ply\nformat binary_little_endian 1.0\ncomment made elsewhere\nelement vertex 2\n'
        'property double x\nproperty double y\nproperty double z\nproperty float quality\n'
        'element face 1\nproperty list uchar int vertex_indices\nend_header\n'
    )
    record = np.dtype([('p', '<f8', 3), ('q', '<f4')])
    body = np.array([((1, 2, 3), 0), ((4, 5, 6), 0)], record).tobytes()
    (tmp_path / 'a.ply').write_bytes(header.encode() + body + b'\3' + bytes(12))
    points, colours = read_ply(tmp_path / 'a.ply')
    assert points.tolist() == [[1, 2, 3], [4, 5, 6]] and colours is None


VALID = 'ply\nformat binary_little_endian 1.0\nelement vertex 1\n'


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ('', 'is not a PLY file'),
        ('solid cube\n', 'is not a PLY file'),
        ('ply\nformat ascii 1.0\nend_header\n', 'expected a PLY of format binary_little_endian'),
        (VALID + 'property float x\nend_header\n', 'no vertices with x, y and z'),
        (VALID + 'property half x\nend_header\n', 'damaged or unknown'),
        (VALID.replace('vertex 1', 'vertex many') + 'end_header\n', 'damaged or unknown'),
        (VALID.replace('element vertex', 'element face') + 'end_header\n', "'face' before"),
        (
            VALID.replace(' 1\n', ' 99999999999999\n')
            + 'property float x\nproperty float y\nproperty float z\nend_header\n',
            'is cut off: 99999999999999 points need',
        ),
    ],
)
def test_foreign_or_damaged_file_is_refused(tmp_path, header, message):
    (tmp_path / 'a.ply').write_text(header)
    with pytest.raises(InputError, match=r'a\.ply: .*' + message):
        read_ply(tmp_path / 'a.ply')


def test_cut_off_and_missing_files_are_refused(tmp_path):
    write_ply(tmp_path / 'a.ply', POINTS, RGB)
    data = (tmp_path / 'a.ply').read_bytes()
    for length in (3, 60, 200, len(data) - 1):
        (tmp_path / 'b.ply').write_bytes(data[:length])
        with pytest.raises(InputError, match='b.ply'):
            read_ply(tmp_path / 'b.ply')
    with pytest.raises(InputError, match='none.ply: cannot be read .*No such file'):
        read_ply(tmp_path / 'none.ply')
