"""What people read off a picture: labels whole, errors in their colour, small things visible."""

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from vlm_depth_ros.files.video import VideoSource
from vlm_depth_ros.tools.charts import bar_chart, round_step
from vlm_depth_ros.tools.film import Film
from vlm_depth_ros.tools.pictures import (
    colour_bar,
    colour_rgb,
    EMPTY_RGB,
    error_rgb,
    fit,
    round_range_m,
    sheet,
    spread,
    TOO_FAR_RGB,
    TOO_NEAR_RGB,
)


@pytest.mark.parametrize('width, range_m', list(itertools.product(
    (16, 64, 100, 320, 1241), ((0.1, 10.0), (0.0, 120.0), (0.25, 65.535)),
)))  # fmt: skip
def test_labels_of_the_bar_are_whole_and_apart(width, range_m):
    words = (colour_bar(range_m, (40, width))[24:] < 128).any(axis=(0, 2))
    assert not words[0] and not words[-1]
    if width >= 100:
        # Gaps between letters are small, those between labels are not: two ends at least.
        places = np.flatnonzero(words)
        assert 1 + (np.diff(places) > 7).sum() >= 2


def test_near_is_warm_and_far_is_cold():
    near, far = colour_rgb(np.array([[0.0, 10.0]], np.float32), (0.0, 10.0))[0].astype(int)
    assert near[0] > near[2] + 60 and far[2] > far[0]


def test_error_is_red_where_too_near_and_blue_where_too_far():
    ratio = np.array([[0.25, 0.5, 1.0, 2.0, 9.0, np.nan]])
    found = error_rgb(ratio)[0].tolist()
    near, far = list(TOO_NEAR_RGB), list(TOO_FAR_RGB)
    assert found == [near, near, [255, 255, 255], far, far, list(EMPTY_RGB)]
    assert error_rgb(np.array([[2**-0.5]]))[0, 0].tolist() == [216, 139, 149]  # half way


def test_lone_points_survive_a_small_picture_and_the_nearest_wins():
    sparse = np.full((100, 100), np.nan, np.float32)
    sparse[53, 57], sparse[54, 58] = 3.0, 2.0
    small = fit(colour_rgb(spread(sparse, (10, 10)), (1.0, 4.0)), (10, 10), nearest=True)
    assert (small > 0).any()
    found = spread(sparse, (10, 10))
    assert np.nanmin(found) == 2 and found[53, 57] == 3 and np.isnan(found).mean() > 0.9
    assert (spread(sparse, (100, 100)) == sparse)[53, 57]


def test_range_is_of_half_metres_and_holds_nearly_all():
    depth = np.linspace(0.8, 6.2, 1000).reshape(10, 100)
    depth[0, :3] = np.nan, np.inf, 90.0
    assert round_range_m([depth]) == (0.5, 6.5)
    assert round_range_m([np.full((2, 2), 3.0)]) == (3.0, 3.5)
    assert round_range_m([np.full((2, 2), np.nan)]) == (0.0, 1.0)


def test_sheet_has_a_line_below_each_row():
    cell = np.zeros((40, 300, 3), np.uint8)
    bare, told = sheet([[cell, cell]] * 2, 'ab'), sheet([[cell, cell]] * 2, 'ab', None, ['1', '2'])
    assert told.shape[0] > bare.shape[0] and told.shape[1] == bare.shape[1]


@pytest.mark.parametrize('least, step', [(0.3, 0.5), (1.0, 1.0), (2.1, 5.0), (60, 100)])
def test_steps_are_round(least, step):
    assert round_step(least) == pytest.approx(step)


def test_bars_are_as_high_as_their_numbers():
    chart = ElementTree.fromstring(
        bar_chart(['<1', ''], {'a & b': [1.0, 2.0], 'other': [0.0, 4.0]}, 'x', 'y')
    )
    bars = [r for r in chart.iter('rect') if r.find('title') is not None]
    assert [b.find('title').text for b in bars] == [
        'a & b: 1', 'a & b: 2', 'other: 0', 'other: 4',
    ]  # fmt: skip
    heights = [float(b.get('height')) for b in bars]
    assert heights == pytest.approx([heights[3] / 4, heights[3] / 2, 0, heights[3]], abs=0.2)
    texts = [t.text for t in chart.iter('text')]
    assert {'<1', 'a & b', 'x', 'y', '0', '4'} <= set(texts)
    empty = ElementTree.fromstring(bar_chart(['a'], {'none': [0]}, 'x', 'y'))
    assert all(float(r.get('height')) >= 0 for r in empty.iter('rect'))


def test_film_of_one_picture_or_of_several_sizes(tmp_path):
    with Film(tmp_path / 'one.mp4') as film:
        film.add(np.full((48, 64, 3), 90, np.uint8), None)
    assert len(VideoSource(tmp_path / 'one.mp4')) == 1
    with Film(tmp_path / 'two.mp4') as film:
        film.add(np.full((48, 64, 3), 90, np.uint8), 0.0)
        film.add(np.full((30, 20, 3), 90, np.uint8), 0.5)
    found = VideoSource(tmp_path / 'two.mp4')
    assert len(found) == 2 and found.fps == pytest.approx(2)
    assert found[1].rgb.shape == (48, 64, 3)


def test_film_without_pictures_is_no_file(tmp_path):
    with Film(tmp_path / 'none.mp4'):
        pass
    assert list(tmp_path.iterdir()) == []
