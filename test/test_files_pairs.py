"""pairs.csv folders are read exactly, bad rows are named, and what is written comes back."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.images import save_jpeg, save_png
from vlm_depth_ros.files.pairs import (
    load_depth_m,
    PairsSource,
    read_pairs,
    read_scenes,
    write_pairs,
)
from vlm_depth_ros.files.source import open_source, SourceFrame

HEADER = 'rgb,depth,depth_units_per_metre,fx,fy,cx,cy,stamp_s'
GOOD = 'rgb/0.png,depth/0.png,1000,500,501,31.5,23.5,'
CAMERA = CameraIntrinsics(500.25, 501.0, 31.5, 23.5, 64, 48)
DATA = Path(os.environ.get('VLM_DEPTH_DATA', Path(__file__).parents[2] / 'shared' / 'data'))


@pytest.fixture
def folder(tmp_path):
    """One picture and one depth image, without a pairs.csv."""
    save_png(tmp_path / 'rgb' / '0.png', np.full((48, 64, 3), 7, np.uint8))
    save_png(tmp_path / 'depth' / '0.png', np.full((48, 64), 1500, np.uint16))
    return tmp_path


def write_csv(folder, *lines, encoding='utf-8', end='\n'):
    (folder / 'pairs.csv').write_bytes(end.join(lines).encode(encoding))


def frames(count=3):
    """Different frames with a hole in the depth."""
    for index in range(count):
        depth_m = np.linspace(0.5, 9.5, 48 * 64, dtype=np.float32).reshape(48, 64) + index / 8
        depth_m[:4] = np.nan
        rgb = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        yield SourceFrame(rgb, 100 + index / 3, CAMERA, depth_m, f'frame {index}')


def test_rows_become_pairs(folder):
    write_csv(folder, HEADER, GOOD + '1305031229.528748', GOOD)
    first, second = read_pairs(folder)
    assert first.rgb == folder / 'rgb/0.png' and first.depth == folder / 'depth/0.png'
    assert first.stamp_s == 1305031229.528748 and second.stamp_s is None
    assert first.depth_units_per_metre == 1000
    assert first.intrinsics((48, 64)) == CameraIntrinsics(500, 501, 31.5, 23.5, 64, 48)


@pytest.mark.parametrize(('encoding', 'end'), [('utf-8', '\r\n'), ('utf-8-sig', '\n')])
def test_spreadsheet_line_ends_and_marks_are_read(folder, encoding, end):
    write_csv(folder, HEADER + ',note', GOOD + ',extra column', '', encoding=encoding, end=end)
    assert len(read_pairs(folder)) == 1


@pytest.mark.parametrize(
    ('columns', 'scenes'),
    [
        (',note', ['', '']),
        (',sequence,scene', ['den', '']),
        (',scene,sequence', ['hall', 'hall']),
        (',note,sequence', ['den', '']),
    ],
)
def test_scene_is_that_of_the_scene_column_else_of_the_sequence(folder, columns, scenes):
    cells = [',hall, den ', ',hall,']
    width = columns.count(',')
    rows = [GOOD + ','.join(cell.split(',')[: width + 1]) for cell in cells]
    write_csv(folder, HEADER + columns, *rows)
    assert read_scenes(folder) == scenes and len(read_pairs(folder)) == 2


def test_scenes_of_a_damaged_list_are_refused(folder):
    write_csv(folder, HEADER)
    with pytest.raises(InputError, match=r'pairs\.csv: has no rows'):
        read_scenes(folder)
    with pytest.raises(InputError, match=r'pairs\.csv: does not exist'):
        read_scenes(folder / 'rgb')


def test_frame_has_metres_with_nan_where_nothing_was_measured(folder):
    stored = np.zeros((48, 64), np.uint16)
    stored[1, 2] = 5000
    save_png(folder / 'depth' / '0.png', stored)
    write_csv(folder, HEADER, GOOD.replace('1000', '5000'))
    frame = open_source(folder)[0]
    assert frame.depth_m.dtype == np.float32 and frame.depth_m[1, 2] == 1.0
    assert np.isnan(frame.depth_m).sum() == 48 * 64 - 1
    assert frame.intrinsics.image_hw == (48, 64) and frame.name == '0.png'


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([], 'line 1: column rgb, depth, .* missing; expected rgb,depth'),
        (
            ['rgb,depth', 'a,b'],
            'line 1: column depth_units_per_metre, fx, fy, cx, cy, stamp_s mis',
        ),
        ([HEADER], 'has no rows'),
        ([HEADER, GOOD, 'rgb/0.png,depth/0.png,1000'], 'line 3: has not as many columns'),
        ([HEADER, GOOD + '1,2'], 'line 2: has not as many columns'),
        (
            [HEADER, GOOD, GOOD.replace('rgb/0', 'rgb/9')],
            "line 3: rgb = 'rgb/9.png': no such file",
        ),
        ([HEADER, GOOD.replace('depth/0.png', '')], "line 2: depth = '': no such file"),
        ([HEADER, GOOD.replace('500,', 'wide,')], "line 2: fx = 'wide': expected a finite number"),
        ([HEADER, GOOD.replace('31.5', 'nan')], "line 2: cx = 'nan': expected a finite number"),
        ([HEADER, GOOD.replace('1000', '0')], "depth_units_per_metre = '0': expected a positive"),
        ([HEADER, GOOD.replace('501', '-501')], "line 2: fy = '-501': expected a positive number"),
        ([HEADER, GOOD + 'noon'], "line 2: stamp_s = 'noon': expected a finite number"),
    ],
)
def test_bad_row_is_named_with_file_and_line(folder, lines, message):
    write_csv(folder, *lines)
    with pytest.raises(InputError, match=r'pairs\.csv.*' + message):
        read_pairs(folder)


def test_missing_and_binary_csv_are_refused(folder):
    with pytest.raises(
        InputError, match=r'pairs\.csv: does not exist; expected columns rgb,depth'
    ):
        PairsSource(folder)
    (folder / 'pairs.csv').write_bytes(b'rgb,\xff\xfe\x00')
    with pytest.raises(InputError, match='cannot be read as CSV in UTF-8'):
        read_pairs(folder)


def test_depth_of_another_kind_or_size_is_refused(folder):
    save_png(folder / 'colour.png', np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(
        InputError, match=r'colour\.png: uint8 \(48, 64, 3\); a depth image has one'
    ):
        load_depth_m(folder / 'colour.png', 1000)
    save_png(folder / 'depth' / '0.png', np.ones((24, 32), np.uint16))
    write_csv(folder, HEADER, GOOD)
    with pytest.raises(InputError, match=r'0\.png: \(24, 32\) pixels, but 0\.png has \(48, 64\)'):
        open_source(folder)[0]


def test_damaged_picture_is_named_and_can_be_passed(folder):
    save_jpeg(folder / 'rgb' / '1.jpg', np.zeros((48, 64, 3), np.uint8))
    half = (folder / 'rgb' / '1.jpg').read_bytes()[:300]
    (folder / 'rgb' / '1.jpg').write_bytes(half)
    write_csv(folder, HEADER, GOOD.replace('rgb/0.png', 'rgb/1.jpg'), GOOD)
    source = open_source(folder)
    with pytest.raises(InputError, match=r'1\.jpg: .*cut off'):
        list(source)
    assert source[1].name == '0.png'


def test_written_set_comes_back_in_the_shared_format(tmp_path):
    assert write_pairs(tmp_path / 'set', frames()) == 3
    lines = (tmp_path / 'set' / 'pairs.csv').read_bytes().split(b'\r\n')
    assert lines[0].decode() == HEADER
    assert lines[1] == b'rgb/00000.png,depth/00000.png,1000,500.25,501,31.5,23.5,100.000000'
    for wanted, frame in zip(frames(), open_source(tmp_path / 'set'), strict=True):
        assert np.array_equal(frame.rgb, wanted.rgb)
        np.testing.assert_allclose(frame.depth_m, wanted.depth_m, atol=0.0005)
        assert frame.intrinsics == CAMERA and abs(frame.stamp_s - wanted.stamp_s) < 1e-6


def test_written_set_takes_jpeg_other_units_and_no_stamp(tmp_path, caplog):
    frame = next(frames())
    far = frame.depth_m.copy()
    far[5] = 300.0
    plain = SourceFrame(frame.rgb, None, CAMERA, far)
    with caplog.at_level(logging.WARNING):
        write_pairs(tmp_path / 'set', [plain], units_per_metre=256, jpeg_quality=95)
    assert '64 pixels beyond 256.0 m' in caplog.text
    back = open_source(tmp_path / 'set')[0]
    assert back.name == '00000.jpg' and back.stamp_s is None
    assert np.isnan(back.depth_m[5]).all()
    np.testing.assert_allclose(back.depth_m[6:], far[6:], atol=1 / 512)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ([], 'no frames to write'),
        (
            [SourceFrame(np.zeros((4, 4, 3), np.uint8), name='x')],
            "frame 'x': needs depth_m and intri",
        ),
        (
            [SourceFrame(np.zeros((4, 4, 3), np.uint8), 0, CAMERA, np.ones((2, 2), np.float32))],
            r'depth \(2, 2\) and image \(4, 4\)',
        ),
    ],
)
def test_incomplete_frames_leave_no_set(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        write_pairs(tmp_path / 'set', bad)
    assert not list(tmp_path.iterdir())


def test_interrupted_writing_leaves_nothing_and_old_sets_stay(tmp_path):
    def failing():
        yield from frames(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / 'set', failing())
    assert not list(tmp_path.iterdir())
    write_pairs(tmp_path / 'set', frames(1))
    with pytest.raises(InputError, match='set: exists already; name a new or an empty folder'):
        write_pairs(tmp_path / 'set', frames(2))
    assert len(open_source(tmp_path / 'set')) == 1
    with pytest.raises(InputError, match='units_per_metre = 0: expected a positive'):
        write_pairs(tmp_path / 'other', frames(1), units_per_metre=0)


@pytest.mark.parametrize(
    ('name', 'count', 'image_hw'),
    [
        ('nyu_train795', 795, (480, 640)),
        ('tum_fr1_rpy', 232, (480, 640)),
        ('7scenes_redkitchen', 200, (480, 640)),
        ('kitti_street', 78, (375, 1242)),
    ],
)
def test_shared_sets_are_read(name, count, image_hw):
    if not (DATA / name / 'pairs.csv').is_file():
        pytest.skip(f'{name} is not in {DATA}; set VLM_DEPTH_DATA')
    source = open_source(DATA / name)
    assert len(source) == count
    frame = source[-1]
    assert frame.depth_m.shape == image_hw == frame.intrinsics.image_hw
    assert 0.2 < np.nanmedian(frame.depth_m) < 40
