"""The scale over time: what it believes, how fast it moves, when it stands still."""

import logging
import math

import numpy as np
import pytest
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.scale import (
    Measurement,
    NOTHING_NEW,
    ScaleEstimate,
    ScaleOptions,
)

TRUE = 1 / 0.7
HZ = 10
SILENT = Measurement(reason='no scan on /scan')


def measured(factor, spread=0.02):
    return Measurement(factor, spread, 0.8)


def run(estimate, measurements, start_s=0.0, hz=HZ):
    """Feed one measurement per frame; the state after each."""
    return [estimate.update(m, start_s + i / hz) for i, m in enumerate(measurements)]


def tracking(**options):
    estimate = ScaleEstimate(ScaleOptions('ground', **options), 'front')
    run(estimate, [measured(TRUE)] * 60)
    assert estimate.state.status == 'tracking'
    return estimate


def test_noisy_measurements_end_within_three_percent_and_stay_there():
    noise = np.random.default_rng(1).normal(0, 0.05, 300)
    states = run(
        ScaleEstimate(ScaleOptions('ground')), [measured(TRUE * math.exp(n)) for n in noise]
    )
    settled = [state.factor for state in states[50:]]
    assert max(abs(factor / TRUE - 1) for factor in settled) < 0.03
    assert states[-1].accepted > 250


def test_outlying_frames_do_not_pull():
    random = np.random.default_rng(2)
    wild = random.random(400) < 0.3
    factors = np.where(wild, random.uniform(0.5, 2.0, 400), TRUE)
    states = run(ScaleEstimate(ScaleOptions('ranges')), [measured(f) for f in factors])
    assert max(abs(state.factor / TRUE - 1) for state in states[80:]) < 0.03
    assert states[-1].status == 'tracking' and states[-1].refused > 50


@pytest.mark.parametrize('step', (TRUE, 0.6, 1.9))
def test_a_step_moves_the_factor_no_faster_than_stated(step):
    options = ScaleOptions('ground', max_change_per_s=0.2)
    factors = [s.factor for s in run(ScaleEstimate(options), [measured(step)] * 100)]
    change = np.array(factors[HZ:]) / np.array(factors[:-HZ])  # over one second
    assert change.max() <= 1.2 + 1e-9 and change.min() >= 1 / 1.2 - 1e-9
    assert factors[-1] == pytest.approx(step, rel=1e-2)


def test_a_gap_is_no_leave_to_leap():
    estimate = ScaleEstimate(ScaleOptions('ground', max_change_per_s=0.2, lost_after_s=1.0))
    before = run(estimate, [measured(TRUE)] * 5)[-1].factor
    first, _, third, *_ = run(estimate, [measured(TRUE)] * 5, start_s=60.0)
    assert first.factor == before < third.factor <= before * 1.2 ** (1 / HZ) + 1e-9


def test_uncertainty_falls_with_measurements_and_grows_while_frozen():
    estimate = ScaleEstimate(ScaleOptions('ground'))
    at_start = estimate.state.uncertainty
    seen = [s.uncertainty for s in run(estimate, [measured(TRUE)] * 60)]
    assert seen[-1] < 0.03 < 0.5 < at_start
    assert all(b <= a + 1e-12 for a, b in zip(seen[2:], seen[3:]))
    frozen = [s.uncertainty for s in run(estimate, [SILENT] * 3000, start_s=6.0)]
    assert all(b > a for a, b in zip(frozen, frozen[1:]))
    assert frozen[-1] == pytest.approx(0.01 * math.sqrt(300), rel=0.05)


def test_uncertainty_is_never_more_than_before_the_first_measurement():
    estimate = tracking()
    assert estimate.update(SILENT, 1e9).uncertainty == pytest.approx(math.log(2))


def test_a_lost_source_freezes_the_scale_with_its_reason_and_one_warning(caplog):
    estimate = tracking(lost_after_s=2.0)
    held = estimate.state.factor
    with caplog.at_level(logging.INFO):
        states = run(estimate, [SILENT] * 50, start_s=6.0)
        again = run(estimate, [measured(TRUE)] * 5, start_s=11.0)
    assert {state.factor for state in states} == {held}
    assert states[5].status == 'tracking' and states[-1].status == 'frozen'
    assert states[-1].reason == 'no scan on /scan' and states[-1].age_s == pytest.approx(5.0)
    assert again[-1].status == 'tracking' and again[-1].reason == ''
    assert [record.getMessage() for record in caplog.records] == [
        f'front: the depth scale is frozen at {held:.3f}: no scan on /scan.',
        'front: the depth scale is tracked again.',
    ]


@pytest.mark.parametrize(
    ('factor', 'reason'),
    (
        (2.0, 'measured a factor of 2, too far from the 1.43 that earlier frames agree on'),
        (0.9, 'measured a factor of 0.9, too far from the 1.43 that earlier frames agree on'),
        (4.0, 'measured a factor of 4, outside 0.5 to 2'),
        (0.1, 'measured a factor of 0.1, outside 0.5 to 2'),
        (math.nan, 'measured a factor of nan, outside 0.5 to 2'),
    ),
)
def test_another_plane_is_refused_for_as_long_as_it_is_seen(factor, reason):
    estimate = tracking()
    held = estimate.state.factor
    states = run(estimate, [measured(factor)] * 200, start_s=6.0)
    assert {state.factor for state in states} == {held}
    assert states[-1].reason == reason and states[-1].status == 'frozen'
    assert run(estimate, [measured(TRUE)] * 5, start_s=26.0)[-1].status == 'tracking'


def test_a_small_lasting_change_is_followed():
    estimate = tracking()
    states = run(estimate, [measured(TRUE * 1.12)] * 100, start_s=6.0)
    assert states[-1].factor == pytest.approx(TRUE * 1.12, rel=0.02)


def test_one_frame_is_not_enough_to_begin():
    estimate = ScaleEstimate(ScaleOptions('ground'))
    first, second, third = run(estimate, [measured(TRUE)] * 3)
    assert first.factor == second.factor == 1.0 and second.status == 'waiting'
    assert first.reason == 'fewer than 3 of the last 5 measurements agree'
    assert third.status == 'tracking' and third.factor > 1.0


def test_frames_that_disagree_are_never_begun_with():
    factors = 0.55 * 1.25 ** np.array([0, 3, 1, 4, 2] * 20)
    states = run(ScaleEstimate(ScaleOptions('ranges')), [measured(f) for f in factors])
    assert {state.factor for state in states} == {1.0} and states[-1].accepted == 0


def slow(factors, frames_each=6):
    """What the frames of a camera say of a sensor so many times slower than itself."""
    wait = [Measurement(reason=NOTHING_NEW)] * (frames_each - 1)
    return [found for factor in factors for found in (measured(factor), *wait)]


def test_a_slow_sensor_corrects_as_fast_as_one_that_measures_each_frame():
    options = ScaleOptions('ranges')
    each = run(ScaleEstimate(options), [measured(TRUE)] * 120, hz=30)
    states = run(ScaleEstimate(options), slow([TRUE] * 20), hz=30)
    assert states[-1].factor == pytest.approx(TRUE, rel=0.03)
    assert states[89].factor == pytest.approx(each[89].factor, rel=0.1)
    change = [math.log(b.factor / a.factor) for a, b in zip(states, states[1:])]
    assert max(change) <= math.log(1.2) / 30 + 1e-9, 'a leap'
    # Two that agree with nobody yet, and then one for each message.
    assert (states[-1].accepted, states[-1].refused) == (18, 2)
    assert states[-1].status == 'tracking' and states[-1].reason == ''


def test_one_message_is_one_vote_for_as_long_as_it_is_the_newest():
    states = run(ScaleEstimate(ScaleOptions('ranges')), slow([1.6], 60), hz=30)
    assert {state.factor for state in states} == {1.0}
    assert states[-1].status == 'waiting'
    assert (states[-1].accepted, states[-1].refused) == (0, 1)
    assert states[-1].reason.startswith('fewer than 3')


@pytest.mark.parametrize('frames_each', [1, 6, 30])
def test_a_single_wrong_message_never_moves_the_factor(frames_each):
    estimate = ScaleEstimate(ScaleOptions('ranges'))
    held = run(estimate, slow([TRUE] * 20, frames_each), hz=10)[-1].factor
    states = run(estimate, slow([1.6 * TRUE], frames_each), 2.0 * frames_each, hz=10)
    assert {state.factor for state in states} == {held}
    assert states[-1].refused - states[0].refused == 0 and states[0].reason


def test_a_sensor_that_falls_silent_freezes_the_scale():
    estimate = ScaleEstimate(ScaleOptions('ranges', lost_after_s=2.0))
    run(estimate, slow([TRUE] * 30), hz=30)
    states = run(estimate, [Measurement(reason=NOTHING_NEW)] * 90, 6.0, hz=30)
    before, after = states[30], states[-1]
    assert (before.status, before.reason) == ('tracking', '')
    assert (after.status, after.reason) == ('frozen', NOTHING_NEW)
    assert (after.accepted, after.refused) == (before.accepted, before.refused)


@pytest.mark.parametrize('stamp_s', [0.0, 12.5])
def test_images_without_a_time_of_their_own_are_the_reason(stamp_s):
    estimate = ScaleEstimate(ScaleOptions('ground'))
    states = [estimate.update(measured(TRUE), stamp_s) for _ in range(10)]
    assert {(state.factor, state.status) for state in states} == {(1.0, 'waiting')}
    assert f'the stamp of the images stands still at {stamp_s:.3f} s' in states[-1].reason


def test_a_frame_that_is_worked_on_twice_is_measured_once():
    once, twice = ScaleEstimate(ScaleOptions('ground')), ScaleEstimate(ScaleOptions('ground'))
    for i in range(40):
        once.update(measured(TRUE), i / 10)
        for _ in range(2):
            twice.update(measured(TRUE), i / 10)
        assert twice.state == once.state


def test_a_bag_that_starts_again_keeps_the_factor():
    estimate = tracking()
    held = estimate.state.factor
    state = estimate.update(measured(TRUE), -100.0)
    assert state.factor == held and state.age_s == 0.0 and state.status == 'tracking'
    assert run(estimate, [measured(TRUE)] * 5, start_s=-99.9)[-1].reason == ''


def test_reset_forgets():
    estimate = tracking()
    estimate.reset()
    fresh = ScaleEstimate(ScaleOptions('ground')).state
    assert estimate.state.factor == 1.0 and estimate.state.status == 'waiting'
    assert (estimate.state.uncertainty, estimate.state.accepted) == (fresh.uncertainty, 0)


def test_off_is_exactly_one_and_hands_the_same_depth_back():
    estimate = ScaleEstimate(ScaleOptions())
    before = estimate.state
    assert estimate.update(measured(TRUE), 1.0) is before
    assert before.factor == 1.0 and before.status == 'off' and math.isnan(before.uncertainty)
    depth = np.array([0.3, np.nan, np.inf], np.float32)
    assert estimate.apply(depth) is depth and not estimate.wants_measurements


def test_a_fixed_factor_is_applied_and_not_measured():
    estimate = ScaleEstimate(ScaleOptions('fixed', fixed_factor=TRUE))
    assert estimate.update(measured(0.6), 1.0).status == 'fixed'
    assert estimate.state.factor == TRUE and not estimate.wants_measurements
    depth = np.array([0.7, np.nan, np.inf], np.float32)
    np.testing.assert_allclose(estimate.apply(depth), [1.0, np.nan, np.inf], rtol=1e-6)
    assert estimate.apply(depth).dtype == np.float32


@pytest.mark.parametrize(
    ('options', 'message'),
    (
        ({'source': 'lidar'}, "source = 'lidar': expected one of off, fixed, ground, ranges."),
        ({'fixed_factor': 0.0}, 'fixed_factor = 0.0: expected a number from 0.01 to 100.'),
        ({'fixed_factor': math.nan}, 'fixed_factor = nan: expected a number from 0.01 to 100.'),
        ({'min_factor': 1.0}, 'min_factor = 1.0: expected a number from 0.01 to 0.99.'),
        ({'max_factor': 0.5}, 'max_factor = 0.5: expected a number from 1.01 to 100.'),
        ({'max_change_per_s': 0}, 'max_change_per_s = 0: expected a number from 0.001 to 10.'),
        ({'noise': 'low'}, "noise = 'low': expected a number from 0.001 to 1."),
        (
            {'drift_per_sqrt_s': -1.0},
            'drift_per_sqrt_s = -1.0: expected a number from 0.0001 to 1.',
        ),
        ({'lost_after_s': math.inf}, 'lost_after_s = inf: expected a number from 0.1 to 60.'),
    ),
)
def test_bad_option_is_refused_with_one_message(options, message):
    with pytest.raises(ConfigError) as refused:
        from_mapping(ScaleOptions, options, 'scale')
    assert str(refused.value) == message
