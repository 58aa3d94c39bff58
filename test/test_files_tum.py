"""TUM RGB-D sequences: how times pair up, which camera a folder's name means, wrong lists."""

import numpy as np
from published_sets import write_tum
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.samples import open_samples
from vlm_depth_ros.files.tum import associate


def reference(first_s, second_s):
    """The benchmark's own way: all pairs within the radius, nearest first."""
    close = sorted((abs(a - b), a, b) for a in first_s for b in second_s if abs(a - b) < 0.02)
    pairs = []
    for _, a, b in close:
        if a not in [p[0] for p in pairs] and b not in [p[1] for p in pairs]:
            pairs.append((a, b))
    return sorted(pairs)


def test_times_pair_up_as_by_the_benchmarks_own_rule():
    rng = np.random.default_rng(3)
    for _ in range(20):
        rgb = sorted(rng.uniform(0, 1, 40).tolist())
        depth = sorted(rng.uniform(0, 1, 35).tolist())
        found = [(rgb[i], depth[k]) for i, k in associate(rgb, depth)]
        assert found == reference(rgb, depth) and found


def test_depth_is_that_of_the_nearest_time_and_used_once(tmp_path):
    folder = write_tum(tmp_path / 'seq', (1.000, 1.015, 1.500), (1.014, 1.515, 9.0))
    found = open_samples(folder)
    assert [(s.stamp_s, s.load().depth_m[0, 0]) for s in found] == [(1.015, 1), (1.5, 2)]
    depth_m = found[0].load().depth_m
    assert np.isnan(depth_m[7, 3]) and np.isnan(depth_m).sum() == 1
    assert [s.name for s in found] == ['rgb/1.015000.png', 'rgb/1.500000.png']
    assert {s.scene for s in found} == {'seq'}


@pytest.mark.parametrize('name, focal_px', [
    ('rgbd_dataset_freiburg1_rpy', (517.3, 516.5)),
    ('rgbd_dataset_freiburg2_desk', (520.9, 521.0)),
    ('rgbd_dataset_freiburg3_long_office_household', (535.4, 539.2)),
    ('my_own_recording', (525.0, 525.0)),
])  # fmt: skip
def test_camera_follows_from_the_folders_name(name, focal_px, tmp_path):
    camera = open_samples(write_tum(tmp_path / name))[0].intrinsics((480, 640))
    assert (camera.fx_px, camera.fy_px) == focal_px


def test_nothing_that_pairs_up_is_refused(tmp_path):
    write_tum(tmp_path, (1.0, 2.0), (1.02, 5.0))
    with pytest.raises(InputError, match='none of 2 images and 2 depth images are less than 0.02'):
        open_samples(tmp_path)


@pytest.mark.parametrize('content, message', [
    (b'soon rgb/1.png\n', "rgb.txt, line 1: 'soon rgb/1.png': expected a time in seconds"),
    (b'# comment\n\n1.0\n', "rgb.txt, line 3: '1.0': expected a time in seconds and a file"),
    (b'\xff\xfe\x00', 'rgb.txt: cannot be read as text'),
    (b'# time filename\n', 'none of 0 images'),
])  # fmt: skip
def test_wrong_list_is_named(content, message, tmp_path):
    write_tum(tmp_path)
    (tmp_path / 'rgb.txt').write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_samples(tmp_path)
