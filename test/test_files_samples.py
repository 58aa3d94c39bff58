"""Every kind of set gives the same samples, is recognised, and says what is wrong with it."""

from desk_sets import CAMERA, write_set
import numpy as np
from published_sets import write_kitti, write_nyu_list, write_nyu_mat, write_tum
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.pairs import read_pairs
from vlm_depth_ros.files.samples import FORMATS, open_samples


def write_mat(folder):
    return write_nyu_mat(folder, pytest.importorskip('h5py'))


WRITERS = {
    'pairs': lambda folder: write_set(folder, [1.0, 2.0]),
    'bts_nyu': write_nyu_list,
    'kitti': write_kitti,
    'tum': write_tum,
    'nyu_mat': write_mat,
}


@pytest.mark.parametrize('kind', WRITERS)
def test_every_kind_is_recognised_and_gives_the_same(kind, tmp_path):
    path = WRITERS[kind](tmp_path)
    found = open_samples(path)
    assert [s.name for s in open_samples(path, kind)] == [s.name for s in found]
    assert len({s.name for s in found}) == len(found) >= 2
    for sample in found:
        frame = sample.load()
        assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (*frame.depth_m.shape, 3)
        assert frame.depth_m.dtype == np.float32 and np.nanmin(frame.depth_m) > 0
        assert frame.intrinsics.image_hw == frame.depth_m.shape
        assert frame.name == sample.name and sample.scene
        assert np.array_equal(sample.load_rgb(), frame.rgb)
        assert np.array_equal(sample.load_depth_m(), frame.depth_m, equal_nan=True)


def test_pairs_are_what_read_pairs_gives(tmp_path):
    folder = write_set(tmp_path / 'kitchen', [1.0, 2.0])
    for found in (open_samples(folder), open_samples(folder / 'pairs.csv')):
        for sample, pair in zip(found, read_pairs(folder)):
            assert vars(pair).items() <= vars(sample).items()
            assert sample.load().intrinsics == CAMERA
        assert [(s.name, s.scene) for s in found] == [
            ('rgb/00000.png', 'kitchen'), ('rgb/00001.png', 'kitchen'),
        ]  # fmt: skip


def test_missing_file_is_named_when_it_is_loaded(tmp_path):
    folder = write_set(tmp_path / 'set', [1.0, 2.0])
    (folder / 'depth' / '00001.png').unlink()
    first, second = open_samples(folder)
    assert first.load().depth_m[0, 0] == 1
    with pytest.raises(InputError, match='depth/00001.png: does not exist'):
        second.load()


def test_camera_of_another_size_is_refused(tmp_path):
    sample = open_samples(write_nyu_list(tmp_path))[0]
    with pytest.raises(InputError, match='rgb_00000.jpg: is 320 x 240 .* camera is for 640 x 480'):
        sample.intrinsics((240, 320))


def test_two_kinds_in_one_folder_need_a_name(tmp_path):
    write_tum(tmp_path / 'both')
    write_set(tmp_path / 'set', [1.0])
    for part in (tmp_path / 'set').iterdir():
        if part.name == 'pairs.csv':
            part.rename(tmp_path / 'both' / part.name)
    with pytest.raises(InputError, match='both: could be pairs or tum; name one'):
        open_samples(tmp_path / 'both')
    assert len(open_samples(tmp_path / 'both', 'tum')) == 2


def test_what_is_no_set_is_refused_with_what_is_accepted(tmp_path):
    (tmp_path / 'notes.txt').write_text('nothing of the kind\n')
    for path in (tmp_path, tmp_path / 'notes.txt'):
        with pytest.raises(InputError, match='is no set of images with depth. Accepted: pairs: '):
            open_samples(path)
    with pytest.raises(InputError, match='nowhere: does not exist. Accepted: pairs: '):
        open_samples(tmp_path / 'nowhere')
    with pytest.raises(InputError, match="format 'tumm' is unknown. Accepted: .*tum: a TUM RGB-D"):
        open_samples(tmp_path, 'tumm')


@pytest.mark.parametrize('kind', [kind for kind in FORMATS if not kind.startswith('nyu_mat')])
def test_asked_for_a_kind_that_is_not_there(kind, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        open_samples(tmp_path, kind)
