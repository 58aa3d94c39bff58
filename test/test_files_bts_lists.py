"""BTS lists of NYU and KITTI: paths, units, cameras, rows without depth, and wrong lines."""

import logging

import numpy as np
from published_sets import DAY, DRIVE, kitti_lines, write_kitti, write_nyu_list
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.bts_lists import KITTI_CAMERAS, read_kitti_list, read_nyu_list
from vlm_depth_ros.files.kitti import read_camera
from vlm_depth_ros.files.samples import open_samples


def kitti_list(folder, lines, name='eigen_train_files_with_gt.txt'):
    (folder / name).write_text('\n'.join(lines))
    return folder / name


def test_nyu_depth_is_in_millimetres_and_the_camera_the_published_one(tmp_path):
    first, second = read_nyu_list(write_nyu_list(tmp_path))
    assert (first.scene, first.name) == ('kitchen_0028b', 'kitchen_0028b/rgb_00000.jpg')
    depth_m = second.load().depth_m
    assert depth_m[0, 0] == 3 and np.isnan(depth_m[7, 3]) and np.isnan(depth_m).sum() == 1
    camera = first.intrinsics((480, 640))
    assert (camera.fx_px, camera.fy_px) == pytest.approx((518.8579, 519.4696), abs=1e-4)
    assert (camera.cx_px, camera.cy_px) == pytest.approx((325.5824, 253.7362), abs=1e-4)


def test_paths_without_a_leading_slash_and_empty_lines_are_read(tmp_path):
    path = write_nyu_list(tmp_path)
    path.write_text('\r\n' + path.read_text().replace(' /', '  ').lstrip('/'))
    assert [s.load().depth_m[0, 0] for s in open_samples(path)] == [2, 3]


@pytest.mark.parametrize('annotated', ['', 'data_depth_annotated'])
def test_kitti_depth_is_found_where_its_download_puts_it(annotated, tmp_path):
    path = kitti_list(write_kitti(tmp_path, annotated), kitti_lines(5, 6))
    first, second = open_samples(path)
    assert first.load().depth_m[0, 0] == 5 and second.load().depth_m[0, 0] == 6
    assert first.scene == DRIVE and first.name == f'{DAY}/{DRIVE}/image_02/data/0000000005.png'
    assert first.load().intrinsics == CameraIntrinsics(
        721.5377, 721.5377, 609.5593, 172.854, 1242, 375
    )


def test_depth_beside_the_list_is_found_as_bts_lays_it_out(tmp_path):
    write_kitti(tmp_path)
    (tmp_path / 'train' / DRIVE).rename(tmp_path / DRIVE)
    assert read_kitti_list(kitti_list(tmp_path, kitti_lines(5)))[0].load().depth_m[0, 0] == 5


def test_cameras_of_the_days_are_those_of_the_calibration(tmp_path):
    write_kitti(tmp_path, numbers=())
    assert KITTI_CAMERAS[DAY] == read_camera(tmp_path / DAY / 'calib_cam_to_cam.txt')


def test_images_without_depth_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = kitti_list(write_kitti(tmp_path), kitti_lines(-1, 5, -2))
    assert [s.load().depth_m[0, 0] for s in open_samples(path)] == [5]
    assert '2 of 3 images have no depth (None) and are left out' in caplog.text
    with pytest.raises(InputError, match='has no row with depth'):
        open_samples(kitti_list(tmp_path, kitti_lines(-1, -2)))


def test_columns_of_the_right_camera_are_ignored(tmp_path):
    lines = [f'{line} right.png right_depth.png' for line in kitti_lines(5)]
    assert len(open_samples(kitti_list(write_kitti(tmp_path), lines))) == 1


NYU = '/a/rgb_0.jpg /a/sync_depth_0.png '


@pytest.mark.parametrize('read, lines, message', [
    (read_nyu_list, [NYU + '518.8579', NYU], 'line 2: .*expected image, depth .or None. and f'),
    (read_nyu_list, [NYU + 'wide'], "line 1: '/a/rgb_0.jpg.*wide': expected image"),
    (read_nyu_list, [NYU + '721.5377'], 'line 1: focal length 721.5377, but .* 518.8'),
    (read_nyu_list, [], 'has no row with depth'),
    (read_kitti_list, [NYU + '721.5377'], "line 1: 'a/rgb_0.jpg': expected <date>/<drive>/"),
    (read_kitti_list, ['2012_01_01/d/image_02/data/1.png d/p/1.png 721.5377'], 'one of the dates'),
    (read_kitti_list, [kitti_lines(5)[0].replace('721.5', '707.5')], 'focal length 707.5377'),
])  # fmt: skip
def test_wrong_line_is_named(read, lines, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(kitti_list(tmp_path, lines))


def test_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / 'list.txt').write_bytes(b'\xff\xfe\x00proj_depth')
    with pytest.raises(InputError, match='list.txt: cannot be read as text'):
        open_samples(tmp_path / 'list.txt')
