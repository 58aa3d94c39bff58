"""Small data sets in the exact layouts in which NYU, KITTI and TUM are published."""

from pathlib import Path

import numpy as np
from vlm_depth_ros.files.images import save_jpeg, save_png

NYU_HW = (480, 640)
KITTI_HW = (375, 1242)
DAY = '2011_09_26'
DRIVE = f'{DAY}_drive_0001_sync'
GROUND_TRUTH = 'proj_depth/groundtruth/image_02'

CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_02: 1.392000e+03 5.120000e+02
K_02: 9.597910e+02 0.000000e+00 6.960217e+02 0.000000e+00 9.569251e+02 2.241806e+02 0.0 0.0 1.0
S_rect_02: 1.242000e+03 3.750000e+02
R_rect_02: 9.998817e-01 1.511453e-02 -2.841595e-03 -1.511724e-02 9.998853e-01 -9.338510e-04 \
2.827154e-03 9.766976e-04 9.999955e-01
P_rect_02: 7.215377e+02 0.000000e+00 6.095593e+02 4.485728e+01 0.000000e+00 7.215377e+02 \
1.728540e+02 2.163791e-01 0.000000e+00 0.000000e+00 1.000000e+00 2.745884e-03
P_rect_03: 7.215377e+02 0.000000e+00 6.095593e+02 -3.395242e+02 0.000000e+00 7.215377e+02 \
1.728540e+02 2.199936e+00 0.000000e+00 0.000000e+00 1.000000e+00 2.729905e-03
"""


def picture(hw, value: int = 90) -> np.ndarray:
    """Grey (H, W, 3) with a red pixel at row 5, column 9."""
    rgb = np.full((*hw, 3), value, np.uint8)
    rgb[5, 9] = (250, 10, 20)
    return rgb


def units(hw, value: int) -> np.ndarray:
    """(H, W) uint16 of one value, 0 = not measured at row 7, column 3."""
    stored = np.full(hw, value, np.uint16)
    stored[7, 3] = 0
    return stored


def write_nyu_list(folder: Path, scenes=('kitchen_0028b', 'bathroom_0001')) -> Path:
    """A BTS list of NYU with one image for each scene: 2 m, 3 m, ..."""
    lines = []
    for i, scene in enumerate(scenes):
        image, depth = f'/{scene}/rgb_{i:05d}.jpg', f'/{scene}/sync_depth_{i:05d}.png'
        save_jpeg(folder / image[1:], picture(NYU_HW))
        save_png(folder / depth[1:], units(NYU_HW, 2000 + 1000 * i))
        lines.append(f'{image} {depth} 518.8579')
    path = folder / 'nyudepthv2_train_files_with_gt.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


def write_kitti(folder: Path, annotated: str = '', numbers=(5, 6)) -> Path:
    """One raw drive, annotated below ``train/``, with its day's calibration."""
    (folder / DAY).mkdir(parents=True, exist_ok=True)
    (folder / DAY / 'calib_cam_to_cam.txt').write_text(CALIBRATION)
    for number in numbers:
        name = f'{number:010d}.png'
        save_png(folder / DAY / DRIVE / 'image_02' / 'data' / name, picture(KITTI_HW))
        depth = folder / annotated / 'train' / DRIVE / GROUND_TRUTH / name
        save_png(depth, units(KITTI_HW, 256 * number))
    return folder


def kitti_lines(*numbers) -> list[str]:
    """Lines of a BTS list on `write_kitti`; a number that is negative has no depth."""
    return [
        f'{DAY}/{DRIVE}/image_02/data/{abs(n):010d}.png '
        + (f'{DRIVE}/{GROUND_TRUTH}/{n:010d}.png' if n >= 0 else 'None')
        + ' 721.5377'
        for n in numbers
    ]


def write_tum(folder: Path, rgb_s=(1.00, 1.04), depth_s=(1.01, 1.05)) -> Path:
    """A TUM RGB-D sequence whose k-th depth image is everywhere k + 1 metres."""
    for kind, stamps in (('rgb', rgb_s), ('depth', depth_s)):
        lines = [f'# {kind} images', "# file: 'rgbd_dataset_freiburg1_rpy.bag'", '# time filename']
        for k, stamp in enumerate(stamps):
            name = f'{kind}/{stamp:.6f}.png'
            stored = picture(NYU_HW) if kind == 'rgb' else units(NYU_HW, 5000 * (k + 1))
            save_png(folder / name, stored)
            lines.append(f'{stamp:.6f} {name}')
        (folder / f'{kind}.txt').write_text('\n'.join(lines) + '\n')
    return folder


NYU_SCENES = ('kitchen_0004', 'office_0012', 'study_0008')


def write_nyu_mat(folder: Path, h5py, scenes=NYU_SCENES) -> Path:
    """The labelled set with one image for each scene: 2 m, 3 m, ...; stored as MATLAB does."""
    path = folder / 'nyu_depth_v2_labeled.mat'
    with h5py.File(path, 'w', userblock_size=512) as file:
        images = np.stack([picture(NYU_HW, 50 + i) for i in range(len(scenes))])
        depths = np.stack([np.full(NYU_HW, 2.0 + i, np.float32) for i in range(len(scenes))])
        depths[:, 7, 3] = 0
        file['images'] = images.transpose(0, 3, 2, 1)
        file['depths'] = depths.transpose(0, 2, 1)
        references = file.create_dataset('scenes', (1, len(scenes)), h5py.ref_dtype)
        for i, scene in enumerate(scenes):
            codes = np.array([[ord(letter)] for letter in scene], np.uint16)
            file[f'#refs#/{i}'] = codes
            references[0, i] = file[f'#refs#/{i}'].ref
    return path
