"""Which rows a set takes, and what of its truth counts."""

from dataclasses import replace

from desk_sets import CAMERA, write_set
import numpy as np
from published_sets import write_nyu_list
import pytest
import torch
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.files.pairs import read_pairs
from vlm_depth_ros.tools import datasets
from vlm_depth_ros.tools.datasets import load_set, parse_rows, select_rows, SetConfig


@pytest.mark.parametrize('text, rows', [
    ('0:5', [(0, 5)]), ('238:318', [(238, 318)]), ('0:2, 7:9', [(0, 2), (7, 9)]),
])  # fmt: skip
def test_rows_are_half_open_ranges(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize('text', ['', '5', '5:', '5:5', '6:5', '-1:5', '1:2:3', 'a:b', '0:5,'])
def test_rows_of_another_form_are_refused(text):
    with pytest.raises(InputError, match='expected A:B or A:B,C:D'):
        parse_rows(text)


def test_selected_rows_keep_their_order(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [1.0, 2.0, 3.0, 4.0]))
    assert select_rows(pairs, [(3, 4), (0, 2)]) == [pairs[3], pairs[0], pairs[1]]
    assert select_rows(pairs, []) == pairs


def test_rows_outside_the_set_are_refused(tmp_path):
    pairs = read_pairs(write_set(tmp_path / 'set', [1.0, 2.0]))
    with pytest.raises(InputError, match='rows 1:3 do not exist: the set has 2 rows'):
        select_rows(pairs, [(1, 3)])


def test_loaded_set_is_small_and_knows_its_camera(tmp_path):
    write_set(tmp_path / 'set', [1.0, 2.0, 3.0])
    ticks = []
    found = load_set(
        SetConfig('set', rows=((1, 3),), weight=0.5), tmp_path, (24, 32), lambda: ticks.append(1)
    )
    assert len(found) == 2 == len(ticks) and found.weight == 0.5
    assert found.rgb.shape == (2, 3, 24, 32) and found.rgb.dtype == torch.uint8
    assert found.depth_m.shape == (2, 1, 24, 32)
    assert found.depth_m.mean((1, 2, 3)).tolist() == [2.0, 3.0]
    assert found.focal.tolist() == pytest.approx([CAMERA.normalised_focal] * 2)


def test_border_far_and_unmeasured_pixels_have_no_truth(tmp_path):
    depth = np.full((48, 64), 2.0, np.float32)
    depth[20, 20], depth[21, 21] = 10.5, np.nan
    write_set(tmp_path / 'set', [depth])
    found = load_set(SetConfig('set', border_px=4), tmp_path, (48, 64)).depth_m[0, 0].numpy()
    expected = np.zeros((48, 64), bool)
    expected[4:-4, 4:-4] = True
    expected[20, 20] = expected[21, 21] = False
    assert (np.isfinite(found) == expected).all()
    assert (found[expected] == 2.0).all()


def test_depth_is_never_mixed_across_an_edge(tmp_path):
    depth = np.full((48, 64), 1.0, np.float32)
    depth[:, 33:] = 9.0
    write_set(tmp_path / 'set', [depth])
    found = load_set(SetConfig('set'), tmp_path, (18, 25)).depth_m
    assert set(found.unique().tolist()) == {1.0, 9.0}


def test_missing_set_is_named(tmp_path):
    with pytest.raises(InputError, match='nowhere: does not exist. Accepted: pairs: '):
        load_set(SetConfig('nowhere'), tmp_path, (24, 32))


def test_rows_that_a_set_lacks_are_refused_with_its_name(tmp_path):
    write_set(tmp_path / 'set', [1.0, 2.0])
    with pytest.raises(InputError, match='set: rows 1:3 do not exist: the set has 2 rows'):
        load_set(SetConfig('set', rows=((1, 3),)), tmp_path, (24, 32))


def test_every_sample_carries_the_camera_of_its_small_image(tmp_path):
    write_set(tmp_path / 'set', [1.0, 2.0])
    found = load_set(SetConfig('set'), tmp_path, (24, 32))
    assert found.cameras == [CAMERA.resized((24, 32))] * 2
    assert [s.name for s in found.samples] == ['rgb/00000.png', 'rgb/00001.png']


def test_streamed_set_gives_the_values_of_the_one_in_memory(tmp_path):
    slope = np.linspace(1, 12, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(tmp_path / 'set', [slope, 2.0, slope[:, ::-1].copy()])
    for folder, hw in (('set', (24, 32)), (write_nyu_list(tmp_path / 'nyu'), (48, 64))):
        config = SetConfig(str(folder), border_px=3, weight=0.5)
        cached = load_set(config, tmp_path, hw)
        streamed = load_set(replace(config, in_memory=False), tmp_path, hw)
        assert len(streamed) == len(cached) and streamed.weight == 0.5
        for i in range(len(cached)):
            assert torch.equal(streamed.rgb[i], cached.rgb[i])
            assert torch.equal(streamed.focal[i], cached.focal[i])
            depths = streamed.depth_m[i], cached.depth_m[i]
            assert torch.equal(*(depth_m.nan_to_num(-1) for depth_m in depths))


def test_set_that_does_not_fit_says_how_much_memory_it_needs(tmp_path, monkeypatch):
    write_set(tmp_path / 'set', [1.0, 2.0])
    monkeypatch.setattr(datasets, '_free_memory_bytes', lambda: 4e9)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    needed = 'set: 2 images of 20000 x 20000 need 11.2 GB .* 2 process.*4.0 GB are free.*in_memory'
    with pytest.raises(InputError, match=needed):
        load_set(SetConfig('set'), tmp_path, (20000, 20000))
    load_set(SetConfig('set', in_memory=False), tmp_path, (20000, 20000))


def test_free_memory_is_known_here():
    assert 1e6 < datasets._free_memory_bytes()


@pytest.mark.parametrize('options, message', [
    ({'weight': 0}, 'weight = 0'),
    ({'border_px': -1}, 'border_px = -1'),
    ({'rows': [[3, 3]]}, r'rows \(3, 3\)'),
    ({'rows': [0, 159]}, r'rows 0, expected \[\[first, end\]'),
    ({'rows': [[0]]}, r'rows \(0,\)'),
    ({'row': [[0, 1]]}, "Did you mean 'rows'"),
    ({'format': 'mat'}, "format = 'mat', expected one of pairs, nyu_mat"),
])  # fmt: skip
def test_wrong_set_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(SetConfig, {'folder': 'set', **options}, 'sets')
