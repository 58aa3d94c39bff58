"""KITTI raw drives with annotated depth: pairing, splits and the day's calibration."""

import logging
import shutil

import numpy as np
from published_sets import CALIBRATION, DAY, DRIVE, GROUND_TRUTH, write_kitti
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.samples import open_samples


def test_annotated_frames_get_their_image_and_the_rectified_camera(tmp_path):
    first, second = open_samples(write_kitti(tmp_path))
    frame = second.load()
    assert frame.depth_m[0, 0] == 6 and np.isnan(frame.depth_m[7, 3])
    assert tuple(frame.rgb[5, 9]) == (250, 10, 20)
    assert frame.intrinsics == CameraIntrinsics(721.5377, 721.5377, 609.5593, 172.854, 1242, 375)
    assert (second.scene, first.name) == (DRIVE, f'{DAY}/{DRIVE}/image_02/data/0000000005.png')


def test_splits_are_the_published_folders(tmp_path):
    write_kitti(tmp_path, 'data_depth_annotated')
    judged = DRIVE.replace('0001', '0002')
    shutil.copytree(tmp_path / DAY / DRIVE, tmp_path / DAY / judged)
    annotated = tmp_path / 'data_depth_annotated'
    shutil.copytree(annotated / 'train' / DRIVE, annotated / 'val' / judged)
    assert [s.scene for s in open_samples(tmp_path)] == [DRIVE] * 2 + [judged] * 2
    assert {s.scene for s in open_samples(tmp_path, 'kitti_train')} == {DRIVE}
    assert {s.scene for s in open_samples(tmp_path, 'kitti_val')} == {judged}


def test_drives_without_raw_images_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_kitti(tmp_path)
    other = tmp_path / 'train' / f'{DAY}_drive_0009_sync' / GROUND_TRUTH
    shutil.copytree(tmp_path / 'train' / DRIVE / GROUND_TRUTH, other)
    assert {s.scene for s in open_samples(tmp_path)} == {DRIVE}
    assert '1 annotated drives are left out, as their raw images are not here' in caplog.text
    assert f'(such as {other.parts[-4]})' in caplog.text
    shutil.rmtree(tmp_path / DAY / DRIVE)
    with pytest.raises(InputError, match='no annotated image of train or val with its raw image'):
        open_samples(tmp_path)


def test_one_missing_image_is_named_when_it_is_loaded(tmp_path):
    write_kitti(tmp_path)
    (tmp_path / DAY / DRIVE / 'image_02' / 'data' / '0000000006.png').unlink()
    good, bad = open_samples(tmp_path)
    good.load()
    with pytest.raises(InputError, match='image_02/data/0000000006.png: does not exist'):
        bad.load()


@pytest.mark.parametrize('text, message', [
    (None, 'calib_cam_to_cam.txt: cannot be read .*comes with the calibration download'),
    (CALIBRATION.replace('P_rect_02', 'P_rect_00'), 'expected the lines P_rect_02'),
    (CALIBRATION.replace('S_rect_02', 'S_rect_00'), 'expected the lines P_rect_02'),
    (CALIBRATION.replace('6.095593e+02 4.485728e+01', 'x'), 'expected the lines P_rect_02'),
    (CALIBRATION.replace('1.242000e+03 3.750000e+02', '1242'), 'expected the lines P_rect_02'),
])  # fmt: skip
def test_missing_or_damaged_calibration_is_named(text, message, tmp_path):
    path = write_kitti(tmp_path, numbers=(5,)) / DAY / 'calib_cam_to_cam.txt'
    path.unlink()
    if text:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_samples(tmp_path)
