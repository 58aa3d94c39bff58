"""What the filters remove and what they leave, on geometry that is known exactly."""

import math

import cv2
import numpy as np
import pytest
import torch
from vlm_depth_ros.core import enlarging, filters
from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.enlarging import upsample_keeping_edges
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.filters import apply_filters
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.options import FilterOptions
from vlm_depth_ros.core.preprocess import to_camera_grid

NAN = math.nan
CAMERA = CameraIntrinsics(260.0, 258.0, 158.6, 121.3, 320, 240)
HEIGHT_M = 0.4
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no CUDA device here',
    )),
]  # fmt: skip


def flat(depth_m=2.0, hw=(24, 32)):
    return torch.full(hw, depth_m)


def tilted(normal, distance_m, camera=CAMERA):
    """Depth of the plane n . p = distance, NaN where it is behind the camera; and the angle."""
    x, y = (axis.astype(float) for axis in camera.axis_rays())
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], 1.0), axis=-1)
    along = rays @ np.asarray(normal, float)
    sine = along / np.linalg.norm(rays, axis=-1) / np.linalg.norm(normal)
    with np.errstate(divide='ignore'):
        depth = np.where(along > 1e-6, distance_m / along, NAN)
    return torch.from_numpy(depth.astype(np.float32)), np.degrees(np.arcsin(sine))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize('device', DEVICES)
def test_all_off_is_the_very_same_tensor(device):
    depth = flat().to(device)
    confidence = torch.rand(24, 32, device=device)
    camera = CAMERA.resized((24, 32))
    assert apply_filters(depth, FilterOptions(), camera, confidence) is depth
    assert apply_filters(depth, FilterOptions(edge_ratio=1.2), camera, confidence) is depth
    blind = FilterOptions(min_confidence=0.5, min_grazing_deg=9)
    assert apply_filters(depth, blind) is depth  # nothing to tell either by


ALL_ON = FilterOptions(0.3, (0.1, 0.0, 0.05, 0.05), 3, 0.05, 8)


@pytest.mark.parametrize('device', DEVICES)
def test_the_input_is_never_written_to(device):
    torch.manual_seed(1)
    depth = (1 + torch.rand(240, 320)).to(device)
    depth[50:60, 70:90] = NAN
    confidence, before = torch.rand(240, 320).to(device), depth.clone()
    found = apply_filters(depth, ALL_ON, CAMERA, confidence)
    assert same(depth, before)
    turned = depth.t().contiguous().t()  # the same, in another layout
    assert same(apply_filters(turned, ALL_ON, CAMERA, confidence), found)
    gone = found.isnan()
    assert gone[50:60, 70:90].all() and gone[:24].all() and gone[confidence < 0.3].all()
    assert not gone.all()


def test_the_confidence_gate_drops_lower_and_unknown():
    confidence = torch.full((24, 32), 0.9)
    confidence[3, 4], confidence[5, 6], confidence[7, 8] = 0.49, NAN, 0.5
    gone = apply_filters(flat(), FilterOptions(min_confidence=0.5), None, confidence).isnan()
    assert gone.nonzero().tolist() == [[3, 4], [5, 6]]


def test_the_border_is_cut_by_shares_of_each_side():
    gone = apply_filters(flat(), FilterOptions(border=(0.25, 0.125, 0.0, 0.5))).isnan()
    expected = torch.ones(24, 32, dtype=bool)
    expected[6:21, :16] = False
    assert torch.equal(gone, expected)


@pytest.mark.parametrize('side_px', (3, 5))
def test_the_median_removes_a_speckle_and_keeps_pixels_beside_a_hole(side_px):
    depth = flat()
    depth[12, 20] = 5.0  # a speckle
    depth[4:7, 4:7] = NAN
    depth[5, 6 + side_px // 2] = 2.5  # just sees the hole
    found = apply_filters(depth, FilterOptions(median_px=side_px))
    expected = depth.clone()
    expected[12, 20] = 2.0
    assert same(found, expected)


@pytest.mark.parametrize('side_px', (3, 5))
def test_both_medians_agree_to_the_bit(side_px):
    torch.manual_seed(2)
    depth = 1 + torch.rand(61, 83)
    depth[torch.rand(61, 83) < 0.01] = NAN
    opencv = torch.from_numpy(filters._median_opencv(depth.numpy(), side_px))
    assert same(opencv, filters._median_unfold(depth, side_px))
    assert not same(opencv, depth)


@pytest.mark.parametrize('turned', (False, True))
def test_flying_pixels_of_a_ramp_go_and_both_planes_stay(turned):
    depth = flat(1.0)
    depth[:, 16:] = 3.0
    depth[:, 14:17] = torch.tensor([1.4, 1.9, 2.5])
    depth = depth.t().contiguous() if turned else depth
    gone = apply_filters(depth, FilterOptions(max_gradient=0.1)).isnan()
    gone = gone.t() if turned else gone
    assert gone[:, 14:17].all()
    assert not gone[:, :14].any() and not gone[:, 17:].any()


def test_a_sharp_step_a_pole_and_islands_among_holes_stay():
    depth = flat(1.0)
    depth[:, 16:] = 3.0
    depth[:, 6] = 0.5  # a pole of one pixel
    depth[:, 24:] = NAN
    depth[12, 28] = 2.0  # alone
    found = apply_filters(depth, FilterOptions(max_gradient=0.02))
    assert same(found, depth)


def test_beside_a_hole_the_other_side_decides():
    depth = flat(1.0)
    depth[:, 10] = 1.5
    depth[:, 11:14] = NAN  # The pixel in column 10 climbs away from its only neighbours.
    gone = apply_filters(depth, FilterOptions(max_gradient=0.1)).isnan()
    assert gone[:, 10].all() and not gone[:, :10].any() and not gone[:, 14:].any()


@pytest.mark.parametrize('normal', ((0, 1, 0), (0.3, 1, 0.1), (-1, 0.2, 0.4), (0, 0, 1)))
def test_slopes_are_exact_on_any_plane(normal):
    depth, _ = tilted(normal, HEIGHT_M)
    w = (1 / depth).double()
    seen = w.isfinite().numpy().astype(np.uint8)
    inside = cv2.erode(seen, np.ones((3, 3))) > 0  # A tip of one pixel has no slope.
    for xp, array in ((np, w.numpy()), (torch, w)):
        for found, focal, n in zip(
            filters.slopes(xp, array), (CAMERA.fx_px, CAMERA.fy_px), normal[:2]
        ):
            assert np.asarray(found)[inside] == pytest.approx(n / focal / HEIGHT_M, abs=2e-5)


@pytest.mark.parametrize('limit_deg', (5, 10, 20))
def test_a_floor_is_dropped_below_the_grazing_angle_and_kept_above(limit_deg):
    depth, angle_deg = tilted((0, 1, 0), HEIGHT_M)
    found = apply_filters(depth, FilterOptions(min_grazing_deg=limit_deg), CAMERA)
    seen, gone = ~depth.isnan().numpy(), found.isnan().numpy()
    assert not gone[seen & (angle_deg > limit_deg + 0.05)].any()
    assert gone[seen & (angle_deg < limit_deg - 0.05)].all()
    assert (seen & gone).any() and (seen & ~gone).any()


def test_a_slanted_wall_is_judged_by_its_angle_too():
    depth, angle_deg = tilted((1, 0.1, 0.25), 1.0)
    gone = apply_filters(depth, FilterOptions(min_grazing_deg=25), CAMERA).isnan().numpy()
    seen = ~depth.isnan().numpy()
    assert not gone[seen & (angle_deg > 25.1)].any() and gone[seen & (angle_deg < 24.9)].all()


def test_a_wall_seen_straight_on_is_never_dropped():
    depth = flat(hw=(240, 320))
    options = FilterOptions(max_gradient=0.001, min_grazing_deg=30)
    assert same(apply_filters(depth, options, CAMERA), depth)


@pytest.mark.parametrize('height', (1, 2, 7, 8, 9, 16, 17, 120))
def test_strips_leave_no_seam(height, monkeypatch):
    monkeypatch.setattr(filters, 'STRIP_PX', 8 * 37)
    rng = np.random.default_rng(height)
    z = (1 + 0.02 * rng.standard_normal((height, 37))).astype(np.float32)
    z[rng.random(z.shape) < 0.05] = NAN
    camera = CameraIntrinsics(60.0, 61.0, 18.0, 20.0, 37, height)
    options = FilterOptions(max_gradient=0.02, min_grazing_deg=30)
    whole = filters._trusted(np, z, options, camera, filters._ray_terms(camera))
    found = apply_filters(torch.from_numpy(z), options, camera)
    assert np.array_equal(~found.isnan().numpy(), whole)
    on_device = filters._trusted(
        torch,
        torch.from_numpy(z),
        options,
        camera,
        filters._ray_terms(camera, torch.device('cpu')),
    )
    assert (on_device.numpy() != whole).mean() <= 0.01  # rounding at the limit itself


STEP_SIZES = (
    ((28, 28), (480, 640)),
    ((224, 224), (480, 640)),
    ((37, 53), (120, 161)),
    ((24, 24), (72, 120)),
    ((31, 31), (62, 93)),
    ((56, 56), (24, 32)),
)


@pytest.mark.parametrize(('from_hw', 'to_hw'), STEP_SIZES)
@pytest.mark.parametrize('device', DEVICES)
def test_enlarging_a_step_invents_no_depth_between(from_hw, to_hw, device):
    depth = torch.full((1, 1, *from_hw), 1.0, device=device)
    depth[..., from_hw[0] // 3 :, from_hw[1] // 2 :] = 3.0
    found = upsample_keeping_edges(depth, to_hw, 1.5)
    assert found.shape == (1, 1, *to_hw)
    assert set(found.unique().tolist()) == {1.0, 3.0}
    if to_hw > from_hw:
        assert len(to_camera_grid(depth, to_hw).unique()) > 2


@pytest.mark.parametrize(('from_hw', 'to_hw'), STEP_SIZES)
def test_enlarging_keeps_a_hole_where_it_is(from_hw, to_hw):
    depth = torch.rand(1, 1, *from_hw, generator=torch.Generator().manual_seed(3)) * 0.1 + 1
    depth[..., 7, 9] = NAN
    gone = upsample_keeping_edges(depth, to_hw, 1.5)[0, 0].isnan()
    hole = torch.zeros(1, 1, *from_hw)
    hole[..., 7, 9] = 1
    nearest = torch.nn.functional.interpolate(hole, size=to_hw, mode='nearest-exact')[0, 0]
    assert torch.equal(gone, nearest > 0)


def test_enlarging_without_an_edge_is_plain_bilinear():
    depth = 2 + 0.01 * torch.rand(1, 1, 37, 53, generator=torch.Generator().manual_seed(4))
    for ratio in (0, 1.1):
        found = upsample_keeping_edges(depth, (120, 161), ratio)
        torch.testing.assert_close(found, to_camera_grid(depth, (120, 161)), rtol=1e-6, atol=0)


@pytest.mark.parametrize('to_hw', ((480, 640), (120, 161), (24, 32)))
@pytest.mark.parametrize('hole', (1.0, NAN))
@pytest.mark.parametrize('ratio', (0, 1.2))
def test_enlarging_is_the_same_in_numpy_and_torch(to_hw, hole, ratio, monkeypatch):
    depth = 1 + 0.2 * torch.rand(1, 1, 56, 57, generator=torch.Generator().manual_seed(6))
    depth[..., 20:, 30:] += 2
    depth[..., 7, 9] = hole
    found = upsample_keeping_edges(depth, to_hw, ratio)
    monkeypatch.setattr(enlarging, 'array_of', lambda values: values)
    on_device = upsample_keeping_edges(depth, to_hw, ratio)
    torch.testing.assert_close(found, on_device, rtol=1e-5, atol=0, equal_nan=True)


def test_enlarging_with_ratio_zero_spreads_a_hole_as_torch_does():
    depth = 1 + 5 * torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(5))
    depth[..., 7, 9] = NAN
    assert same(upsample_keeping_edges(depth, (48, 50), 0), to_camera_grid(depth, (48, 50)))


def test_enlarging_to_the_same_size_changes_nothing():
    depth = 1 + 5 * torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(5))
    assert upsample_keeping_edges(depth, (24, 32), 0) is depth
    assert upsample_keeping_edges(depth, (24, 32), 1.2) is depth


REFUSED = {
    'min_confidence': (-0.1, 1.1, NAN, 'high'),
    'median_px': (1, 4, 7, -3, 'no'),
    'max_gradient': (-0.01, 1.5, NAN, None),
    'min_grazing_deg': (-1, 61, NAN),
    'edge_ratio': (-1, 0.9, 1, 11, NAN, 'x'),
    'guide_px': (-1, 17, 1.5, NAN, None),
    'border': ((0, 0, 0), (0.5, 0.5, 0, 0), (0, 0, -0.1, 0), (0, 0, 1, 0), (NAN, 0, 0, 0), 0.1),
}


@pytest.mark.parametrize(
    ('name', 'value'), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_an_option_out_of_bounds_is_refused_in_one_line(name, value):
    with pytest.raises(ConfigError, match=f'{name} = .*expected') as refusal:
        FilterOptions(**{name: value})
    assert '\n' not in str(refusal.value)


def test_options_come_from_a_mapping_and_key_a_cache():
    options = from_mapping(FilterOptions, {'border': [0, 0.1, 0, 0], 'median_px': 3}, 'filters')
    assert hash(options) == hash(FilterOptions(border=(0, 0.1, 0, 0), median_px=3))
    with pytest.raises(ConfigError, match="Did you mean 'median_px'"):
        from_mapping(FilterOptions, {'median': 3}, 'filters')


@pytest.mark.parametrize(
    ('depth', 'camera', 'confidence', 'message'),
    (
        (torch.ones(1, 24, 32), None, None, r'depth has shape \(1, 24, 32\).*expected \(height'),
        (flat().double(), None, None, 'float64: expected'),
        (flat(), None, torch.ones(24, 31), r'confidence has shape \(24, 31\): expected'),
        (flat(), CAMERA, None, r'depth has shape \(24, 32\) and its camera is for \(240, 320\)'),
    ),
)
def test_what_does_not_fit_is_refused(depth, camera, confidence, message):
    with pytest.raises(InputError, match=message):
        apply_filters(depth, ALL_ON, camera, confidence)


def test_opencv_medians_take_a_nan_without_spreading_it():
    depth = np.ones((9, 9), np.float32)
    depth[4, 4] = NAN
    assert np.isfinite(cv2.medianBlur(depth, 3)[[0, 8, 0, 8], [0, 0, 8, 8]]).all()
    assert np.isnan(filters._median_opencv(depth, 5)).sum() == 1
