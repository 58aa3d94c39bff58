"""NYU's labelled file is read as MATLAB wrote it, by the official split, and damage is named."""

import sys

import numpy as np
from published_sets import write_nyu_mat
import pytest
from vlm_depth_ros.core.errors import DependencyError, InputError
from vlm_depth_ros.files.samples import open_samples

h5py = pytest.importorskip('h5py')


@pytest.fixture
def labelled(tmp_path):
    return write_nyu_mat(tmp_path, h5py)


def write_splits(path, train=(2, 3), test=(1,)):
    """As MATLAB numbers them: from 1, in columns."""
    savemat = pytest.importorskip('scipy.io').savemat
    columns = {'trainNdxs': train, 'testNdxs': test}
    savemat(path, {k: np.array(v, np.uint16)[:, None] for k, v in columns.items()})


def test_images_come_upright_in_metres_with_scene_and_camera(labelled):
    for path in (labelled, labelled.parent):
        samples = open_samples(path)
        assert [s.scene for s in samples] == ['kitchen_0004', 'office_0012', 'study_0008']
        frame = samples[2].load()
        assert frame.rgb.shape == (480, 640, 3) and frame.rgb.flags.c_contiguous
        assert tuple(frame.rgb[5, 9]) == (250, 10, 20) and tuple(frame.rgb[0, 0]) == (52, 52, 52)
        assert frame.depth_m[0, 0] == 4 and np.isnan(frame.depth_m[7, 3])
        assert np.isnan(frame.depth_m).sum() == 1
        assert frame.intrinsics.fx_px == pytest.approx(518.85790117450188)


def test_official_split_counts_from_one(labelled):
    write_splits(labelled.parent / 'splits.mat')
    assert [s.scene for s in open_samples(labelled, 'nyu_mat_train')] == [
        'office_0012', 'study_0008',
    ]  # fmt: skip
    assert [s.scene for s in open_samples(labelled, 'nyu_mat_test')] == ['kitchen_0004']


def test_missing_or_wrong_split_is_named(labelled):
    pytest.importorskip('scipy')
    path = labelled.parent / 'splits.mat'
    with pytest.raises(InputError, match='splits.mat: does not exist; the official split'):
        open_samples(labelled, 'nyu_mat_test')
    path.write_bytes(b'MATLAB 5.0, once')
    with pytest.raises(InputError, match='splits.mat: testNdxs cannot be read'):
        open_samples(labelled, 'nyu_mat_test')
    write_splits(path, train=(1449,))
    with pytest.raises(InputError, match='trainNdxs does not belong to nyu_depth.* has 3 images'):
        open_samples(labelled, 'nyu_mat_train')


@pytest.mark.parametrize('value', [np.nan, np.inf, -1.0])
def test_depth_that_is_no_distance_is_refused(value, labelled):
    with h5py.File(labelled, 'r+') as file:
        file['depths'][1, 3, 4] = value
    samples = open_samples(labelled)
    samples[0].load()
    with pytest.raises(InputError, match='mat/depths/1: 1 values are negative, infinite or NaN'):
        samples[1].load_depth_m()


def test_damaged_or_foreign_file_is_refused(labelled, tmp_path):
    content = labelled.read_bytes()
    labelled.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match='is not a MATLAB 7.3 .HDF5. file, or is cut off'):
        open_samples(labelled)
    with h5py.File(tmp_path / 'other.mat', 'w') as file:
        file['images'] = np.zeros((2, 3, 8, 6), np.uint8)
    with pytest.raises(InputError, match="other.mat: has no 'depths' .but images"):
        open_samples(tmp_path / 'other.mat')
    with h5py.File(tmp_path / 'other.mat', 'r+') as file:
        file['depths'] = np.zeros((2, 6, 8), np.float32)
    with pytest.raises(InputError, match=r'images \(2, 3, 8, 6\) and depths \(2, 6, 8\); expec'):
        open_samples(tmp_path / 'other.mat')


def test_without_the_library_the_extra_is_named(labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(DependencyError, match=r"h5py.*pip install 'vlm_depth_ros\[datasets\]'"):
        open_samples(labelled)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    with pytest.raises(DependencyError, match=r"SciPy.*pip install 'vlm_depth_ros\[datasets\]'"):
        open_samples(labelled, 'nyu_mat_test')
