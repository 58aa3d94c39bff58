"""From the network's answer to published depth: the order of its steps, and nothing when off."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='core runs on torch')
from known_head import known_weights  # noqa: E402
from vlm_depth_ros.core.camera_model import CameraModel  # noqa: E402
from vlm_depth_ros.core.estimator import DepthEstimator, Frame  # noqa: E402
from vlm_depth_ros.core.geometry import CameraIntrinsics  # noqa: E402
from vlm_depth_ros.core.mounting import base_from_optical  # noqa: E402
from vlm_depth_ros.core.options import (  # noqa: E402
    FilterOptions,
    OutputOptions,
    TemporalOptions,
)
from vlm_depth_ros.core.refine import refined  # noqa: E402
from vlm_depth_ros.core.scale import ScaleOptions  # noqa: E402
from vlm_depth_ros.core.track import CameraTrack  # noqa: E402

HW = (48, 64)
CAMERA = CameraModel.from_intrinsics(CameraIntrinsics(64.0, 64.0, 31.5, 23.5, 64, 48))
IMAGE = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
EVERYTHING = frozenset({'depth', 'points', 'color', 'confidence'})


def frame(**fields):
    return Frame(rgb=IMAGE, camera=CAMERA, wants=EVERYTHING, **fields)


def refine(depth, options, confidence=None, mask=None, rgb=IMAGE, **fields):
    """Published depth (48, 64) of a network that says `depth` (h, w)."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    said = torch.as_tensor(depth, dtype=torch.float32)[None, None]
    if confidence is not None:
        confidence = torch.as_tensor(confidence, dtype=torch.float32)
    found = refined(frame(**fields), image, mask, said, confidence, (0.1, 10.0), options)
    return found.numpy()


@pytest.fixture(scope='module')
def estimator(tmp_path_factory):
    path = tmp_path_factory.mktemp('known') / 'known.safetensors'
    return DepthEstimator.from_weights(known_weights(path, confidence=0.7))


def test_a_track_changes_no_byte_while_everything_is_off(estimator):
    track = CameraTrack()
    options = OutputOptions()
    without = estimator.process([frame()], options)[0]
    for stamp_s in (1.0, 2.0):
        with_track = estimator.process([frame(track=track, stamp_s=stamp_s)], options)[0]
        for name in ('depth', 'points', 'color', 'confidence'):
            one, other = getattr(without, name), getattr(with_track, name)
            assert one.data.tobytes() == other.data.tobytes()


def test_the_valid_share_says_how_much_depth_is_left(estimator):
    whole = estimator.process([frame()], OutputOptions())[0].valid_share
    assert whole == pytest.approx(56 / 64)  # The known head has none in the left columns.
    halved = OutputOptions(filter=FilterOptions(border=(0.5, 0.0, 0.0, 0.0)))
    assert estimator.process([frame()], halved)[0].valid_share == pytest.approx(whole / 2)


def test_the_range_is_that_of_metric_depth_not_of_the_network():
    options = OutputOptions(scale=ScaleOptions(source='fixed', fixed_factor=2.0))
    depth = np.full(HW, 4.0)
    depth[:24] = 6.0
    found = refine(depth, options, track=CameraTrack())
    assert np.isinf(found[:22]).all() and (found[26:] == 8).all()


def test_the_ground_measures_what_the_network_says_not_what_filters_leave():
    height_m = 1.4
    options = OutputOptions(
        scale=ScaleOptions(source='ground', max_change_per_s=10.0),
        filter=FilterOptions(border=(0.0, 0.99, 0.0, 0.0)),
    )
    track = CameraTrack()
    pose = base_from_optical([0, 0, height_m, 0, np.pi / 2, 0])  # looks straight down
    for i in range(20):
        refine(np.full(HW, 1.0), options, track=track, stamp_s=i / 10, base_from_optical=pose)
    assert track.scale.state.factor == pytest.approx(height_m, rel=0.01)


def test_what_has_no_source_in_a_rectified_image_measures_nothing():
    options = OutputOptions(scale=ScaleOptions(source='ground', max_change_per_s=10.0))
    said = np.full(HW, 1.0)
    said[:, 20:] = 0.6  # nonsense in the black part, and more of it than of ground
    mask = torch.zeros(HW, dtype=torch.bool)
    mask[:, :20] = True
    track = CameraTrack()
    pose = base_from_optical([0, 0, 1.4, 0, np.pi / 2, 0])
    for i in range(20):
        refine(said, options, mask=mask, track=track, stamp_s=i / 10, base_from_optical=pose)
    assert track.scale.state.factor == pytest.approx(1.4, rel=0.01)


@pytest.mark.parametrize('source', ['ground', 'ranges'])
def test_why_nothing_is_measured_reaches_the_state(source):
    options = OutputOptions(scale=ScaleOptions(source=source))
    track = CameraTrack()
    refine(np.full(HW, 1.0), options, track=track, silence='the scanner is silent')
    assert track.scale.state.reason == 'the scanner is silent'
    refine(np.full(HW, 1.0), options, track=track, stamp_s=0.1)
    assert source in track.scale.state.reason


def test_confidence_removes_only_while_a_least_one_is_asked_for():
    confidence = np.full(HW, 0.2)
    confidence[:, 32:] = 0.9
    depth = np.full(HW, 2.0)
    assert np.isfinite(refine(depth, OutputOptions(), confidence)).all()
    gate = OutputOptions(filter=FilterOptions(min_confidence=0.5))
    found = refine(depth, gate, confidence)
    assert np.isnan(found[:, :32]).all() and np.isfinite(found[:, 32:]).all()


def test_the_temporal_filter_holds_still_what_flickers():
    options = OutputOptions(temporal=TemporalOptions(weight=0.8))
    track, seen = CameraTrack(), []
    for i in range(30):
        said = np.full(HW, 2.0 * (1.01 if i % 2 else 0.99))
        seen.append(refine(said, options, track=track, stamp_s=i / 10)[20, 20])
    assert np.ptp(seen[10:]) < 0.5 * 0.04
    off = replace(options, temporal=TemporalOptions())
    assert refine(np.full(HW, 2.5), off, track=track, stamp_s=3.0)[20, 20] == 2.5


def test_no_depth_is_invented_between_near_and_far():
    small = np.full((12, 16), 1.0)
    small[:, 8:] = 4.0
    between = refine(small, OutputOptions())
    assert ((between > 1.01) & (between < 3.99)).any()
    kept = refine(small, OutputOptions(filter=FilterOptions(edge_ratio=1.5)))
    assert set(np.unique(kept)) == {1.0, 4.0}


def test_a_guide_lets_depth_end_where_the_picture_changes():
    grey = np.zeros((48, 64, 3), np.uint8)
    grey[:, 30:] = 255
    soft = np.tile(np.interp(np.arange(16), [5.5, 9.5], [1.0, 3.0]), (12, 1))
    options = OutputOptions(filter=FilterOptions(guide_px=3))
    assert np.abs(np.diff(refine(soft, options, rgb=grey)[24])).argmax() == 29


def test_each_published_value_is_a_depth_in_range_or_nan_or_beyond():
    rng = np.random.default_rng(1)
    said = rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1e-30, 0.05, 1, 5, 50, 1e30], HW)
    options = OutputOptions(
        scale=ScaleOptions(source='fixed', fixed_factor=1.3),
        temporal=TemporalOptions(weight=0.5),
        filter=FilterOptions(
            min_confidence=0.1, border=(0.1,) * 4, median_px=3, max_gradient=0.5,
            min_grazing_deg=5.0, edge_ratio=1.2,
        ),
    )  # fmt: skip
    track = CameraTrack()
    for stamp_s in (0.0, 0.1, 0.2):
        confidence = rng.choice([np.nan, 0.0, 0.5, 1.0], HW)
        found = refine(said, options, confidence, track=track, stamp_s=stamp_s)
        allowed = np.isnan(found) | np.isposinf(found) | ((found >= 0.1) & (found <= 10))
        assert allowed.all()
