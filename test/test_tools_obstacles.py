"""``vlm-depth obstacles``: false and missed obstacles on geometry that is known exactly."""

import json
import math
from types import SimpleNamespace

from desk_sets import frame
from known_head import known_weights
import numpy as np
import pytest
import torch
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.filters import apply_filters
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.options import FilterOptions, TemporalOptions
from vlm_depth_ros.core.temporal import TemporalFilter
from vlm_depth_ros.files.images import load_rgb
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.flicker import AROUND_PX, Flicker, StillPixels
from vlm_depth_ros.tools.obstacle_grid import (
    GridOptions,
    ObstacleScore,
    SensorGrid,
    TABLE_TOLERANCE,
    TOLERANCES,
)
from vlm_depth_ros.tools.obstacles import laser_points

CAMERA = CameraIntrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)
CELL_M = GridOptions().cell_m
FOCAL = 52 / 64
"""Of the desk sets' camera over its width: depth needs no correction."""


def wall(depth_m):
    return np.full(CAMERA.image_hw, depth_m, np.float32)


def two_walls(left_m, right_m):
    depth = wall(left_m)
    depth[:, 160:] = right_m
    return depth


def floor(height_m):
    """Level, so far below the camera."""
    down = np.maximum(CAMERA.axis_rays()[1], 0.02)[:, None]
    depth = np.where(down > 0.02, -height_m / down, np.nan)
    return np.repeat(depth.astype(np.float32), 320, axis=1)


def judged(truth_m, depth_m, tolerance=TABLE_TOLERANCE, **options):
    found = SensorGrid(truth_m, CAMERA, GridOptions(**options)).judge(depth_m)
    return found[TOLERANCES.index(tolerance)].counts()


def rates(truth_m, depth_m, **options):
    score = ObstacleScore()
    cells = SensorGrid(truth_m, CAMERA, GridOptions(**options)).judge(depth_m)
    score.add(depth_m, truth_m, cells)
    found = score.as_dict()
    return found['false_rate'], found['missed_rate']


def columns_of_wall(depth_m, columns):
    """Cells across that a wall over these image columns marks."""
    aside = -depth_m * (np.asarray(columns) - CAMERA.cx_px) / CAMERA.fx_px
    return len(np.unique(np.floor(aside / CELL_M)))


def test_perfect_depth_has_neither_false_nor_missed_obstacles():
    truth = two_walls(1.02, 2.52)
    truth[100:120, 40:60] = np.nan
    for tolerance in TOLERANCES:
        found = judged(truth, truth, tolerance)
        assert found['false'] == found['missed'] == found['unjudged'] == 0
        assert found['found'] == found['confirmed'] > 40
    assert rates(truth, truth) == (0.0, 0.0)


def test_depth_that_is_too_small_marks_free_space_and_misses_the_wall():
    truth = two_walls(0.16, 2.02)
    short = truth * np.float32(0.7)
    found = judged(truth, short)
    # 0.16 and 0.112 m are one cell apart; 2.02 and 1.414 m are twelve.
    assert found == {
        'found': columns_of_wall(0.16, range(160)),
        'missed': columns_of_wall(2.02, range(160, 320)),
        'confirmed': columns_of_wall(0.112, range(160)),
        'false': columns_of_wall(1.414, range(160, 320)),
        'unjudged': 0,
    }
    strict = judged(truth, short, tolerance=0)
    assert strict['found'] == strict['confirmed'] == 0
    assert rates(truth, short) == (
        found['false'] / (found['false'] + found['confirmed']),
        found['missed'] / (found['missed'] + found['found']),
    )


def test_what_lies_behind_the_sensors_surface_is_missed_but_never_false():
    found = judged(wall(1.02), wall(2.02))
    assert found['false'] == found['confirmed'] == found['found'] == 0
    assert found['unjudged'] == columns_of_wall(2.02, range(320))
    assert found['missed'] == columns_of_wall(1.02, range(320))


def test_where_the_sensor_measured_nothing_nothing_is_false():
    truth = two_walls(np.nan, 2.02)
    found = judged(truth, two_walls(1.02, 2.02))
    assert found['false'] == 0 and found['missed'] == 0
    # Up to the tolerance beside the line of sight to the right wall nothing differs either.
    assert found['unjudged'] == columns_of_wall(1.02, range(160))


@pytest.mark.parametrize('nothing', [math.nan, math.inf, -math.inf, 0.0])
def test_depth_that_is_all_removed_misses_everything_and_has_no_false_rate(nothing):
    assert rates(wall(2.02), wall(nothing)) == (None, 1.0)
    assert rates(wall(9.0), wall(nothing)) == (None, None)


def test_neither_range_nor_band_turns_a_small_error_into_an_obstacle():
    found = judged(wall(3.04), wall(2.94))
    assert found['missed'] == 0 and found['false'] == 0 and found['confirmed'] > 10
    assert judged(wall(3.2), wall(2.94))['false'] > 10
    below = judged(floor(-0.34), floor(-0.34))
    assert below['found'] == below['confirmed'] == 0
    for true_m, said_m in ((-0.34, -0.29), (-0.29, -0.34)):
        found = judged(floor(true_m), floor(said_m))
        assert found['false'] == found['missed'] == 0
        assert found['confirmed' if said_m > true_m else 'found'] > 500
    assert judged(floor(-0.34), floor(-0.15))['false'] > 500  # though a floor is just below


def test_a_curtain_between_two_walls_is_false_until_the_gradient_filter_removes_it():
    truth, curtain = two_walls(1.02, 2.52), two_walls(1.02, 2.52)
    curtain[:, 160:172] = np.linspace(1.02, 2.52, 14, dtype=np.float32)[1:-1]
    filtered = apply_filters(
        torch.from_numpy(curtain), FilterOptions(max_gradient=0.02), CAMERA
    ).numpy()
    before, after = judged(truth, curtain), judged(truth, filtered)
    assert before['false'] > 10 and after['false'] == 0
    assert before['missed'] == after['missed'] == 0
    assert rates(truth, curtain)[0] > 0.1 and rates(truth, filtered) == (0.0, 0.0)


def test_free_space_of_a_picture_ends_at_the_sensors_marks():
    grid = SensorGrid(two_walls(1.02, 9.0), CAMERA, GridOptions())
    free, reach = grid.seen_free(), grid.options.reach
    left, right = slice(reach, 2 * reach), slice(0, reach)
    assert not free[21:, left].any() and free[10:20, left].any()
    assert free[50, right].any() and not free[62:].any()


def test_rates_are_means_over_the_frames_that_have_one():
    score = ObstacleScore()
    for truth, depth in ((wall(2.02), wall(2.02)), (wall(2.02), wall(1.02)),
                         (wall(9.0), wall(9.0)), (wall(2.02), wall(math.nan))):  # fmt: skip
        score.add(depth, truth, SensorGrid(truth, CAMERA, GridOptions()).judge(depth))
    found = score.as_dict()
    assert found['false_rate'] == 0.5 and found['frames_with_judged_marks'] == 2
    assert found['missed_rate'] == pytest.approx(2 / 3) and found['frames_with_sensor_marks'] == 3
    assert found['false_cells'] == columns_of_wall(1.02, range(320)) / 4
    assert found['kept_share'] == 0.75
    assert found['abs_rel'] == pytest.approx(1 / 2.02 / 3, rel=1e-5)
    assert [row['cells'] for row in found['by_tolerance']] == list(TOLERANCES)
    assert found['by_tolerance'][TABLE_TOLERANCE]['false_rate'] == found['false_rate']


def row_at(stamp_s, scene='room'):
    return SimpleNamespace(scene=scene, pair=SimpleNamespace(stamp_s=stamp_s))


def test_flicker_is_the_change_of_depth_where_the_picture_stands_still():
    left, right, still_pixels, flicker = wall(2.0), wall(2.0), StillPixels(), Flicker()
    picture = np.full((*CAMERA.image_hw, 3), 90, np.uint8)
    moved = picture.copy()
    moved[:, 200:] = 200
    right[:, :200] *= 1.03
    right[:, 200:] *= 2.0  # A thing came into the view there.
    right[:50] = np.nan
    still = []
    for i, (rgb, depth_m) in enumerate([(picture, left), (moved, right), (moved, right)]):
        still.append(still_pixels(row_at(0.1 * i), rgb))
        flicker.add(depth_m, still[-1])
    assert still[0] is None
    np.testing.assert_array_equal(
        still[1], np.arange(320)[None] < np.full((240, 1), 200 - AROUND_PX)
    )
    assert still[2].all()
    assert flicker.medians == [pytest.approx(math.log(1.03), rel=1e-4), 0.0]
    assert flicker.as_dict() == {'flicker': pytest.approx(0.0148, abs=1e-4), 'flicker_pairs': 2}


@pytest.mark.parametrize('second', [
    row_at(0.7), row_at(0.1, 'kitchen'), row_at(None), row_at(-0.1)
])  # fmt: skip
def test_frames_that_do_not_follow_have_no_flicker(second):
    picture, still_pixels = np.zeros((4, 4, 3), np.uint8), StillPixels()
    assert still_pixels(row_at(0.0), picture) is None
    assert still_pixels(second, picture) is None


def test_flicker_of_a_few_pixels_is_none():
    flicker, few = Flicker(), wall(np.nan)
    few[0, :99] = 2.0
    for _ in range(2):
        flicker.add(few, np.ones(few.shape, bool))
    assert flicker.as_dict() == {'flicker': None, 'flicker_pairs': 0}


def test_the_temporal_filter_calms_what_flickers():
    random, still = np.random.default_rng(3), np.ones(CAMERA.image_hw, bool)
    image = torch.full((3, *CAMERA.image_hw), 90, dtype=torch.uint8)
    smooth, raw, calm = TemporalFilter(TemporalOptions(weight=0.8)), Flicker(), Flicker()
    for i in range(8):
        depth_m = wall(2.0) * (1 + random.normal(0, 0.005, CAMERA.image_hw)).astype(np.float32)
        raw.add(depth_m, still)
        calm.add(smooth(torch.from_numpy(depth_m), image, i / 30).numpy(), still)
    raw, calm = raw.as_dict(), calm.as_dict()
    assert raw['flicker'] == pytest.approx(0.6745 * 0.005 * math.sqrt(2), rel=0.05)
    assert calm['flicker'] < 0.5 * raw['flicker']
    assert calm['flicker_pairs'] == raw['flicker_pairs'] == 7


def test_the_laser_sees_what_is_at_the_height_of_the_camera():
    truth = wall(2.0)
    truth[:100], truth[140:] = 0.5, 0.5
    truth[119, ::2] = np.nan
    points = laser_points(truth, CAMERA)
    assert len(points) > 100 and np.isfinite(points).all()
    assert (points[:, 2] == 2).all() and np.abs(points[:, 1]).max() < 0.03
    assert len(laser_points(wall(11.0), CAMERA)) == 0


@pytest.mark.parametrize('options, message', [
    ({'cell_m': 0.0}, 'cell_m = 0.0: expected a positive number of metres.'),
    ({'range_m': math.nan}, 'range_m = nan: expected a positive number of metres.'),
    ({'range_m': 0.01}, 'range_m = 0.01: expected 1 to 2000 cells of 0.05 m.'),
    ({'range_m': 1e6}, 'range_m = 1000000.0: expected 1 to 2000 cells of 0.05 m.'),
    ({'heights_m': (0.3, -0.3)}, 'heights_m = (0.3, -0.3): expected two numbers of metres above '
     'the camera, the lower one first.'),
])  # fmt: skip
def test_a_grid_out_of_bounds_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as error:
        GridOptions(**options)
    assert str(error.value) == message


def test_depth_of_another_size_is_refused():
    with pytest.raises(InputError, match='240, 320'):
        SensorGrid(wall(2.0)[1:], CAMERA, GridOptions())
    with pytest.raises(InputError, match='240, 320'):
        SensorGrid(wall(2.0), CAMERA, GridOptions()).judge(wall(2.0)[1:])


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A model that says 1.4 m everywhere but on the left."""
    path = tmp_path_factory.mktemp('weights') / 'short.safetensors'
    return known_weights(path, depth_m=1.4, focal=FOCAL)


@pytest.fixture(scope='module')
def sequence(tmp_path_factory):
    """Twelve frames of a wall 2 m away, 0.4 s apart, that look the same."""
    folder = tmp_path_factory.mktemp('sets') / 'sequence'
    write_pairs(folder, (frame(2.0, stamp_s=0.4 * i) for i in range(12)))
    return folder


def test_the_verb_judges_what_the_node_publishes(weights, sequence, tmp_path, capsys):
    args = ['obstacles', '--weights', weights, '--data', sequence, '--blind-from', sequence,
            '--blind-rows', '0:2', '--json', tmp_path / 'o.json', '--picture', tmp_path / 'o.png',
            '--device', 'cpu']  # fmt: skip
    assert main(list(map(str, args))) == 0
    found = json.loads((tmp_path / 'o.json').read_text())
    results = found['results']
    assert list(results) == [
        'as shipped', 'filters', 'scale', 'scale, filters', 'scale, filters, temporal', 'blind',
        'blind, scale',
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert '12 images' in printed and all(name in printed for name in results)
    assert results['as shipped']['false_rate'] == results['as shipped']['missed_rate'] == 1.0
    assert results['as shipped']['abs_rel'] == pytest.approx(0.3, abs=1e-3)
    # The laser is believed after some frames and followed at 20 % a second.
    assert 0 < results['scale']['missed_rate'] < 1
    assert results['scale']['abs_rel'] < 0.25
    assert 'flicker' in printed
    for row in results.values():
        assert row['flicker_pairs'] == 11 and 0 <= row['flicker'] < 0.1
    # The factor is what changes; a mean of pictures does not.
    assert results['scale']['flicker'] > results['blind']['flicker'] == 0
    assert results['blind']['false_rate'] == results['blind']['missed_rate'] == 0.0
    assert found['frame'] == 'body frame of the camera' and found['failed'] == []
    with_photographs = load_rgb(tmp_path / 'o.png').shape
    assert main(list(map(str, [*args, '--no-photographs', '--rows', '0:4']))) == 0
    assert load_rgb(tmp_path / 'o.png').shape[1] < with_photographs[1]


def test_without_stamps_there_is_neither_scale_nor_time_and_a_bad_row_is_named(
    weights, tmp_path, caplog
):
    dark = np.full((48, 64), np.nan, np.float32)
    write_pairs(tmp_path / 'set', (frame(depth) for depth in (1.4, dark, 1.4)))
    args = ['obstacles', '--weights', weights, '--data', tmp_path / 'set', '--filters',
            'max_gradient=0.05', '--json', tmp_path / 'o.json', '--device', 'cpu']  # fmt: skip
    assert main(list(map(str, args))) == 1
    found = json.loads((tmp_path / 'o.json').read_text())
    assert list(found['results']) == ['as shipped', 'filters']
    assert found['results']['as shipped']['flicker'] is None
    assert found['images'] == 2 and found['filters']['max_gradient'] == 0.05
    assert found['results']['as shipped']['false_rate'] == 0.0
    [left_out] = found['failed']
    assert left_out['reason'].endswith('measures nothing; expected some depth.')
    assert left_out['reason'] in caplog.text


@pytest.mark.parametrize('wrong, message', [
    (['--filters', 'max_gradient'], "'max_gradient': expected NAME=NUMBER"),
    (['--filters', 'max_gradiant=0.05'], 'max_gradient'),
    (['--filters', 'median_px=4'], 'median_px = 4'),
    (['--cell-m', '-1'], 'cell_m = -1.0: expected a positive number of metres.'),
    (['--rows', '0:99'], 'rows 0:99 do not exist'),
    (['--data', 'nowhere'], 'nowhere'),
    (['--blind-from', 'nowhere'], 'nowhere'),
])  # fmt: skip
def test_a_users_mistake_is_one_line(wrong, message, weights, sequence, capsys):
    args = ['obstacles', '--weights', weights, '--data', sequence, '--device', 'cpu', *wrong]
    assert main(list(map(str, args))) == 1
    said = capsys.readouterr().err
    assert message in said and said.strip().count('\n') == 0
