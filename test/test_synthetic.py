"""The procedural renderer: exact depth, closed rooms, the same pictures from the same seed."""

import math
import subprocess
import sys

import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics, depth_to_points
from vlm_depth_ros.files.pairs import read_pairs
from vlm_depth_ros.tools import synthetic
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.contact import Contact
from vlm_depth_ros.tools.furniture import beam
from vlm_depth_ros.tools.materials import MATERIALS, Painter
from vlm_depth_ros.tools.raycast import cast, Grid, look_along, Solid
from vlm_depth_ros.tools.sensor import Sensor
from vlm_depth_ros.tools.shading import Light, ShadowMap
from vlm_depth_ros.tools.stairs import flight
from vlm_depth_ros.tools.synthetic import Scene
from vlm_depth_ros.tools.textures import Texture

CAMERA = CameraIntrinsics(61.3, 58.7, 41.2, 28.9, 84, 60)
SMALL_HW = (24, 32)
GREY = Texture(np.full((8, 8, 3), 0.6))


def rays_of(pose, camera=CAMERA):
    """Origin, and world directions (H, W, 3) whose length makes the ray parameter the depth."""
    x = (np.arange(camera.width_px) - camera.cx_px) / camera.fx_px
    y = (np.arange(camera.height_px) - camera.cy_px) / camera.fy_px
    x, y = np.meshgrid(x, y)
    return pose[:3, 3], np.stack((x, y, np.ones_like(x)), axis=-1) @ pose[:3, :3].T


def bare_room(*solids, lights=(), size_m=(6.0, 8.0, 3.0)):
    half = np.array(size_m) / 2
    shell = Solid.upright('room', (0, 0, half[2]), half)
    return Scene([shell, *solids], [GREY], list(lights), np.full(3, 0.2), Sensor())


def random_pose(rng):
    """A camera near the middle of `bare_room`, turned every way."""
    place = rng.uniform((-1, -1, 1), (1, 1, 2))
    return look_along(place, rng.normal(size=3), rng.uniform(-3, 3))


@pytest.mark.parametrize('seed', range(4))
def test_depth_equals_plane_intersection_in_an_empty_room(seed):
    pose = random_pose(np.random.default_rng(seed))
    origin, rays = rays_of(pose)
    planes = np.stack(
        [(np.array(b) - o) / rays[..., k] for k, (b, o) in enumerate(_bounds(origin))]
    )
    expected = np.where(planes > 0, planes, np.inf).min(axis=(0, 1))

    depth_m = bare_room().depth(pose, CAMERA)

    assert depth_m.dtype == np.float32 and depth_m.shape == (60, 84)
    np.testing.assert_allclose(depth_m, expected, rtol=0, atol=1e-5)


def _bounds(origin):
    """Per axis: the two walls as columns that broadcast over an image, and the origin."""
    walls = ((-3, 3), (-4, 4), (0, 3))
    return [(np.reshape(w, (2, 1, 1)), o) for w, o in zip(walls, origin, strict=True)]


def test_depth_equals_plane_intersection_on_the_front_of_a_turned_box():
    yaw, half, center = 0.4, np.array([0.5, 0.3, 0.4]), np.array([0.3, 2.0, 1.0])
    scene = bare_room(Solid.upright('box', center, half, yaw))
    pose = look_along((0.2, -1.0, 1.4), (0.05, 1.0, -0.1), 0.1)
    origin, rays = rays_of(pose)
    c, s = math.cos(yaw), math.sin(yaw)
    along, front, up = np.array([c, s, 0]), np.array([s, -c, 0]), np.array([0.0, 0, 1])
    t = ((center + front * half[1] - origin) @ front) / (rays @ front)
    hit = origin + rays * t[..., None] - center
    on_face = (np.abs(hit @ along) < half[0] - 1e-3) & (np.abs(hit @ up) < half[2] - 1e-3)

    depth_m = scene.depth(pose, CAMERA)

    assert on_face.sum() > 200
    np.testing.assert_allclose(depth_m[on_face], t[on_face], rtol=0, atol=1e-5)


def test_depth_equals_plane_intersection_on_a_beam_that_slants_between_two_points():
    foot, top, width, thick = np.array([-0.2, 0.9, 0.0]), np.array([0.3, 2.2, 1.8]), 0.7, 0.1
    part = beam(tuple(foot), tuple(top), width, thick, 'wood')
    solid = Solid.upright(part.kind, part.center, part.half, part.yaw, part.pitch)
    along = (top - foot) / np.linalg.norm(top - foot)
    level = np.cross(along, (0, 0, 1)) / np.linalg.norm(np.cross(along, (0, 0, 1)))
    up = np.cross(level, along)
    pose = look_along((0.1, -0.6, 1.8), (0.0, 1.0, -0.35))
    origin, rays = rays_of(pose)
    t = ((foot + up * thick / 2 - origin) @ up) / (rays @ up)
    hit = origin + rays * t[..., None] - (foot + top) / 2
    reach = np.linalg.norm(top - foot) / 2
    on_face = (np.abs(hit @ along) < reach - 1e-3) & (np.abs(hit @ level) < width / 2 - 1e-3)
    on_face &= (origin + rays * t[..., None])[..., 2] > 1e-3

    depth_m = bare_room(solid).depth(pose, CAMERA)

    assert on_face.sum() > 500
    np.testing.assert_allclose(depth_m[on_face], t[on_face], rtol=0, atol=1e-5)


def stairs_of(seed):
    """A flight of eight steps behind the middle of the room: its solids, and their parts."""
    _, _, parts = flight(np.random.default_rng(seed), steps=8)
    solids = [
        Solid.upright(p.kind, np.add(p.center, (0, 0.5, 0)), p.half, p.yaw, p.pitch) for p in parts
    ]
    return solids, parts


@pytest.mark.parametrize('seed', range(4))
def test_depth_of_stairs_equals_the_nearest_of_all_box_planes(seed):
    solids, parts = stairs_of(seed)
    steps = [s for s, p in zip(solids, parts, strict=True) if p.kind == 'box' and not p.pitch]
    pose = look_along((-0.6, -1.4, 2.2), (0.15, 1.0, -0.6), 0.05)
    origin, rays = rays_of(pose)
    expected = bare_room().depth(pose, CAMERA).astype(float)
    for solid in steps:
        low, high = solid.center_m - solid.half_m, solid.center_m + solid.half_m
        for axis in range(3):
            for bound in (low[axis], high[axis]):
                t = (bound - origin[axis]) / rays[..., axis]
                hit = origin + rays * t[..., None]
                others = [k for k in range(3) if k != axis]
                inside = ((low <= hit) & (hit <= high))[..., others].all(axis=-1) & (t > 0)
                expected = np.where(inside & (t < expected), t, expected)

    depth_m = bare_room(*steps).depth(pose, CAMERA)

    error = np.abs(depth_m - expected)
    # A ray along an edge of two planes may take either.
    assert (error < 1e-5).mean() > 0.999


def test_steps_have_the_sizes_of_the_stairs_that_people_climb():
    for seed in range(8):
        _, parts = stairs_of(seed)
        tops = [p.center[2] + p.half[2] for p in parts if p.kind == 'box' and not p.pitch]
        rise = max(tops) / 8
        assert 0.16 <= rise <= 0.19
        assert all(np.isclose(tops, k * rise).any() for k in range(1, 9))


def test_solids_behind_others_change_nothing_and_their_order_does_not_matter():
    rng = np.random.default_rng(4)
    front = Solid.upright('box', (0, 1.5, 1.5), (2.9, 0.1, 1.4))
    hidden = [
        Solid.upright('ellipsoid', (*rng.uniform(-1, 1, 2) + (0, 3), 1.0), (0.2, 0.2, 0.2))
        for _ in range(20)
    ]
    pose = look_along((0.0, 0.0, 1.5), (0.0, 1.0, 0.0))

    depths = [bare_room(*s).depth(pose, CAMERA) for s in ([front], [front, *hidden])]
    backwards = bare_room(*hidden[::-1], front).depth(pose, CAMERA)

    assert np.array_equal(*depths) and np.array_equal(depths[0], backwards)


def test_depth_equals_sphere_intersection():
    center, radius = np.array([0.1, 1.8, 1.2]), 0.6
    scene = bare_room(Solid.upright('ellipsoid', center, np.full(3, radius)))
    pose = look_along((0.0, -0.5, 1.5), (0.1, 1.0, -0.1))
    origin, rays = rays_of(pose)
    a, b = (rays**2).sum(axis=-1), rays @ (origin - center)
    root = b**2 - a * (((origin - center) ** 2).sum() - radius**2)
    # Where a ray grazes the sphere, a rounding error of the root is magnified without bound.
    inside = root > 1e-4
    expected = (-b[inside] - np.sqrt(root[inside])) / a[inside]

    depth_m = scene.depth(pose, CAMERA)

    assert inside.sum() > 500
    np.testing.assert_allclose(depth_m[inside], expected, rtol=0, atol=1e-5)


def test_depth_of_a_cylinder_lies_on_its_mantle_or_its_lid():
    center, half = np.array([0.2, 1.5, 0.5]), np.array([0.4, 0.4, 0.5])
    scene = bare_room(Solid.upright('cylinder', center, half))
    pose = look_along((0.0, -0.8, 1.9), (0.05, 1.0, -0.5))
    depth_m, index = cast(scene.solids, pose, Grid.of(CAMERA))
    origin, rays = rays_of(pose)
    points = (origin + rays * depth_m[..., None] - center)[index == 1]
    radius, height = np.hypot(points[:, 0], points[:, 1]), points[:, 2]

    on_mantle = (np.abs(radius - 0.4) < 1e-9) & (np.abs(height) < 0.5)
    on_lid = (np.abs(height - 0.5) < 1e-9) & (radius < 0.4)

    assert on_mantle.sum() > 100 and on_lid.sum() > 100
    assert (on_mantle | on_lid).all()


def test_a_ray_parallel_to_a_wall_has_a_finite_depth():
    camera = CameraIntrinsics(20.0, 20.0, 16.0, 12.0, 33, 25)
    pose = look_along((0.0, 0.0, 1.5), (0.0, 1.0, 0.0))

    assert bare_room().depth(pose, camera)[12, 16] == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize('style', synthetic.STYLES)
def test_a_point_of_one_view_lies_on_the_surface_that_another_view_sees(style):
    rng = np.random.default_rng(3)
    scene = synthetic.random_scene(rng, style)
    pose_a, camera = synthetic.random_camera(rng, scene, SMALL_HW)
    pose_b, _ = synthetic.random_camera(rng, scene, SMALL_HW)
    pose_b[:3, :3] = pose_a[:3, :3]
    points = depth_to_points(scene.depth(pose_a, camera), camera).reshape(-1, 3)[::7]
    world = points.astype(float) @ pose_a[:3, :3].T + pose_a[:3, 3]
    in_b = (world - pose_b[:3, 3]) @ pose_b[:3, :3]
    in_b = in_b[in_b[:, 2] > 0.3]

    grids = [Grid(np.array([x / z]), np.array([y / z])) for x, y, z in in_b]
    seen = np.array([cast(scene.solids, pose_b, grid)[0][0, 0] for grid in grids])

    # Something may stand between, but no ray passes through a surface.
    assert (seen < in_b[:, 2] + 1e-4).all()
    assert (np.abs(seen - in_b[:, 2]) < 1e-4).mean() > 0.2


@pytest.mark.parametrize('style', synthetic.STYLES)
def test_a_closed_room_has_a_depth_in_every_pixel(style):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        scene = synthetic.random_scene(rng, style)
        for _ in range(2):
            pose, camera = synthetic.random_camera(rng, scene, SMALL_HW)
            depth_m = scene.depth(pose, camera)
            assert np.isfinite(depth_m).all()
            assert 0.05 < depth_m.min() and depth_m.max() < 20


@pytest.mark.parametrize('hw', [(16, 16), (33, 47), (48, 20)])
def test_render_gives_rgb_and_depth_of_the_size_asked_for(hw):
    rng = np.random.default_rng(0)
    scene = synthetic.random_scene(rng)
    pose, camera = synthetic.random_camera(rng, scene, hw)

    rgb, depth_m = scene.render(pose, camera, rng)

    assert camera.image_hw == hw
    assert rgb.shape == (*hw, 3) and rgb.dtype == np.uint8 and rgb.std() > 1
    assert depth_m.shape == hw and depth_m.dtype == np.float32


def test_random_camera_keeps_its_bounds():
    rng = np.random.default_rng(1)
    scene = synthetic.random_scene(rng, 'hall')
    for _ in range(10):
        pose, camera = synthetic.random_camera(rng, scene, (60, 80), fov_deg=(60, 70))
        fov_deg = math.degrees(2 * math.atan(40 / camera.fx_px))
        assert 60 <= fov_deg <= 70
        assert 0.15 <= pose[2, 3] <= 0.6 or 1.0 <= pose[2, 3] <= 1.7
        assert scene.clearance_m(pose[None, :3, 3])[0] >= 0.12
        np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-9)
        assert pose[2, 1] < 0, 'the picture stands upright: its y axis points down'


def test_noise_comes_from_the_generator_alone():
    rng = np.random.default_rng(2)
    scene = synthetic.random_scene(rng)
    scene.sensor = Sensor(noise=0.02)
    pose, camera = synthetic.random_camera(rng, scene, SMALL_HW)

    clean, again = (scene.render(pose, camera)[0] for _ in range(2))
    noisy, same = (scene.render(pose, camera, np.random.default_rng(5))[0] for _ in range(2))

    assert np.array_equal(clean, again) and np.array_equal(noisy, same)
    assert not np.array_equal(clean, noisy)


def test_a_box_under_a_lamp_casts_a_shadow():
    lamp = Light(np.array([0, 0, 2.8]), np.array([0, 0.001, -1.0]), np.full(3, 5.0))
    board = Solid.upright('box', (0.0, 0.0, 1.2), (0.4, 0.4, 0.02))
    pose = look_along((0.0, -2.0, 0.8), (0.0, 1.0, -0.38))
    middle = slice(26, 33), slice(38, 45)

    open_floor = bare_room(lights=[lamp]).render(pose, CAMERA)[0][middle].mean()
    shadow = bare_room(board, lights=[lamp]).render(pose, CAMERA)[0][middle].mean()

    assert shadow < 0.8 * open_floor


def test_the_floor_is_dark_where_a_box_stands_and_bright_away_from_it():
    contact = Contact(bare_room(Solid.upright('box', (1, 2, 0.3), (0.4, 0.2, 0.3))).solids)
    floor = np.array([[1.0, 2.23, 0], [2.23, 1.0, 0], [-1, -1, 0], [1, 2.23, 1.0]], np.float32)
    up = np.tile(np.float32([[0], [0], [1]]), (1, 4))

    beside, transposed, away, above = contact.open_share(floor.T.copy(), up)

    assert beside < 0.85 * transposed and beside < 0.85 * away
    assert above == pytest.approx(away, rel=0.05)


def test_a_lamp_off_its_map_lights_what_beyond_says():
    floor = np.array([[2.5], [2.5], [0.0]], np.float32)
    for beyond in (0.0, 1.0):
        lamp = Light(
            np.array([0, 0, 2.8]),
            np.array([0, 0.001, -1.0]),
            np.ones(3),
            spread_tan=0.1,
            beyond=beyond,
        )
        assert ShadowMap(lamp, bare_room().solids).lit(floor) == beyond


@pytest.mark.parametrize('style', ['room', 'kitchen'])
def test_the_sun_shines_through_a_window_only(style):
    for seed in range(40):
        scene = synthetic.random_scene(np.random.default_rng(seed), style)
        suns = [light for light in scene.lights if light.screens]
        if suns:
            break
    (sun,) = suns
    w, d = scene.shell.half_m[:2]
    x, y = np.meshgrid(np.arange(-w, w, 0.04), np.arange(-d, d, 0.04))
    floor = np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.01)]).astype(np.float32)

    lit = ShadowMap(sun, scene.solids[:1]).lit(floor) > 0.5

    assert lit.mean() < 0.6
    assert np.linalg.norm(sun.position_m) > np.hypot(w, d), 'the sun is outside'


LINEAR = np.linspace(0.05, 0.8, 48 * 64 * 3, dtype=np.float32).reshape(48, 64, 3)
DOTS = np.full((48, 320, 3), 0.2, np.float32)
DOTS[8::16, 8::16] = 1


def test_defocus_blurs_what_is_out_of_focus_alone():
    depth_m = np.full(DOTS.shape[:2], 2.0, np.float32)
    depth_m[:, 160:] = 0.4
    sharp = Sensor(exposure=0.1).develop(DOTS)

    seen = Sensor(exposure=0.1, defocus_px=3.0, focus_m=2.0).develop(DOTS, depth_m=depth_m)

    # Exposure control sees the same light; the middle, where both meet, is left out.
    assert np.array_equal(seen[:, :150], sharp[:, :150])
    assert seen[:, 170:].max() < sharp[:, 170:].max()


def test_motion_makes_streaks_along_its_direction():
    def extent(**faults):
        """Rows and columns that hold more light than the background."""
        seen = Sensor(exposure=0.1, **faults).develop(DOTS)[..., 0]
        bright = seen > seen.min() + 5
        return bright.any(axis=1).sum(), bright.any(axis=0).sum()

    rows, columns = extent()

    assert extent(motion_px=7.0)[0] == rows and extent(motion_px=7.0)[1] > columns
    upright = extent(motion_px=7.0, motion_rad=math.pi / 2)
    assert upright[0] > rows and upright[1] == columns


def test_compression_changes_the_picture_but_not_its_colours():
    clean, packed = (Sensor(jpeg_quality=q).develop(LINEAR) for q in (0, 40))

    assert not np.array_equal(clean, packed)
    np.testing.assert_allclose(packed.mean(axis=(0, 1)), clean.mean(axis=(0, 1)), rtol=0, atol=2)


@pytest.mark.parametrize('material', MATERIALS)
def test_every_material_gives_a_texture_and_its_shares_sum_to_one(material):
    assert sum(share for share, _ in MATERIALS[material]) == pytest.approx(1)
    for seed in range(4):
        painter = Painter(np.random.default_rng(seed))
        image = painter.textures[painter.fresh(material)].pyramid[0]
        assert image.shape[2] == 3 and image.dtype == np.uint8


def test_a_path_is_smooth_closed_and_free_of_collisions():
    for seed, style in enumerate(synthetic.STYLES):
        scene = synthetic.random_scene(np.random.default_rng(seed), style)
        poses = synthetic.camera_path(scene, 60, seed)
        loop = np.concatenate((poses, poses[:1]))
        steps_m = np.linalg.norm(np.diff(loop[:, :3, 3], axis=0), axis=1)
        cosines = np.einsum('ni,ni->n', loop[:-1, :3, 2], loop[1:, :3, 2])

        assert poses.shape == (60, 4, 4)
        assert scene.clearance_m(poses[:, :3, 3]).min() > 0.1 > 0.08 >= steps_m.max()
        assert math.degrees(math.acos(cosines.min())) < 5


def test_a_set_is_the_same_bytes_for_the_same_seed_whatever_its_length(tmp_path):
    for name, count, seed in (('a', 3, 7), ('b', 3, 7), ('longer', 4, 7), ('other', 3, 8)):
        assert synthetic.render_set(tmp_path / name, count, SMALL_HW, seed) == count

    def content(name):
        files = sorted((tmp_path / name).rglob('*.[jp][pn]g'))
        return [f.read_bytes() for f in files if int(f.stem) < 3]

    assert content('a') == content('b') == content('longer')
    assert content('a') != content('other')


def test_a_set_reads_back_with_its_cameras(tmp_path):
    synthetic.render_set(tmp_path / 'set', 2, SMALL_HW, 1, fov_deg=(60, 60))

    pairs = read_pairs(tmp_path / 'set')

    assert len(pairs) == 2
    for pair in pairs:
        frame = pair.load()
        assert frame.rgb.shape == (*SMALL_HW, 3)
        assert np.isfinite(frame.depth_m).all()
        assert frame.intrinsics.fx_px == pytest.approx(16 / math.tan(math.radians(30)))


def test_a_clip_has_stamps_and_says_that_it_is_synthetic(tmp_path):
    synthetic.render_clip(tmp_path / 'clip', 3, SMALL_HW, seed=4, rate_hz=20)

    assert [pair.stamp_s for pair in read_pairs(tmp_path / 'clip')] == [0.0, 0.05, 0.1]
    assert 'SYNTHETIC' in (tmp_path / 'clip' / 'README.md').read_text()


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda d: synthetic.render_set(d, 0), r'count = 0: expected an integer of at least 1'),
        (lambda d: synthetic.render_set(d, 2.5), r'count = 2\.5: expected an integer'),
        (lambda d: synthetic.render_set(d, 1, (8, 32)), r'size \(8, 32\): expected height'),
        (lambda d: synthetic.render_set(d, 1, (32, 99999)), r'16 to 4096'),
        (lambda d: synthetic.render_set(d, 1, seed=-1), r'seed = -1: expected an integer'),
        (lambda d: synthetic.render_set(d, 1, fov_deg=(90, 50)), r'fov_deg = \(90, 50\)'),
        (lambda d: synthetic.render_clip(d, 0), r'frames = 0: expected an integer'),
        (lambda d: synthetic.render_clip(d, 1, rate_hz=0), r'rate_hz = 0: expected a positive'),
        (lambda d: synthetic.render_clip(d, 1, rate_hz=math.nan), r'rate_hz = nan'),
        (lambda d: synthetic.render_clip(d, 1, fov_deg=170), r'fov_deg = 170: expected an angle'),
        (lambda d: synthetic.render_clip(d, 1, style='cave'), r"'cave': expected one of room, "),
        (lambda d: synthetic.camera_path(bare_room(), 0, 0), r'frames = 0'),
    ],
)
def test_bad_numbers_are_refused_and_leave_nothing(call, message, tmp_path):
    with pytest.raises(InputError, match=message):
        call(tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_a_camera_outside_the_room_is_refused():
    with pytest.raises(InputError, match='expected a place inside the room'):
        bare_room().render(look_along((0, 9, 1), (0, 1, 0)), CAMERA)


@pytest.mark.parametrize('pose', [np.eye(3), np.diag([2.0, 1, 1, 1])])
def test_a_pose_that_is_no_rigid_motion_is_refused(pose):
    with pytest.raises(InputError, match='expected a rigid 4 x 4 matrix'):
        bare_room().depth(pose, CAMERA)


def test_the_verb_writes_a_set_and_a_clip(tmp_path):
    common = ['--count', '2', '--size', '24x32', '--seed', '3']

    assert main(['synthetic', str(tmp_path / 'set'), *common]) == 0
    assert main(['synthetic', str(tmp_path / 'clip'), *common, '--clip', '--rate-hz', '5']) == 0

    assert [p.stamp_s for p in read_pairs(tmp_path / 'set')] == [None, None]
    assert [p.stamp_s for p in read_pairs(tmp_path / 'clip')] == [0.0, 0.2]


@pytest.mark.parametrize('size', ['240', '240,320', 'bigxsmall', '24x-32'])
def test_the_verb_refuses_a_size_that_is_not_height_x_width(size, tmp_path, capsys):
    assert main(['synthetic', str(tmp_path / 'out'), '--size', size]) == 1
    assert 'expected HEIGHTxWIDTH' in capsys.readouterr().err


def test_a_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='exists already'):
        synthetic.render_set(tmp_path, 1, SMALL_HW)
    assert [f.name for f in tmp_path.iterdir()] == ['mine.txt']


def test_importing_the_renderer_does_not_import_torch():
    code = 'import sys, vlm_depth_ros.tools.synthetic; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
