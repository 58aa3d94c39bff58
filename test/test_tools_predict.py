"""``vlm-depth predict``: what it writes of each kind of source, and how it passes bad pictures."""

import cv2
from desk_sets import CAMERA, frame, MODEL, write_set, write_weights
import numpy as np
import pytest
import torch
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.geometry import depth_to_points
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.files.bag_messages import write_frames
from vlm_depth_ros.files.clouds import read_ply
from vlm_depth_ros.files.images import load_as_stored, load_rgb, save_png
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.files.source import open_source
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.pictures import colour_rgb
from vlm_depth_ros.tools.predict import BAR_PX, depth_to_mm, file_stem


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp('weights') / 'untrained.safetensors')


@pytest.fixture(scope='module')
def estimator(weights):
    return DepthEstimator.from_weights(weights)


def predict(source, out, weights, *flags):
    return main(['predict', str(source), str(out), '--weights', str(weights), *flags])


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def test_depth_is_stored_in_millimetres():
    metres = np.array([[0.5, 1.2344, 65.535, 65.6], [np.nan, np.inf, -np.inf, 0.0]], np.float32)
    stored = depth_to_mm(metres)
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[500, 1234, 65535, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize('index, name, stem', [
    (3, 'IMG_0012.jpg', '00003-IMG_0012'),
    (0, '/camera/image#7', '00000-camera-image-7'),
    (12, '', '00012'),
    (1, 'a b?.png', '00001-a-b'),
    (2, '../../etc.png', '00002-etc'),
])  # fmt: skip
def test_file_names_are_safe_and_sort_as_the_source(index, name, stem):
    assert file_stem(index, name) == stem


def test_pairs_give_depth_picture_and_cloud_with_their_camera(tmp_path, weights, estimator):
    source = write_set(tmp_path / 'set', [2.0, 3.0])
    assert predict(source, tmp_path / 'out', weights, '--ply') == 0
    assert names(tmp_path / 'out') == [
        f'{kind}/0000{i}-0000{i}.{form}'
        for kind, form in (('cloud', 'ply'), ('color', 'png'), ('depth', 'png'))
        for i in range(2)
    ]
    with open_source(source) as frames:
        rgb = frames[1].rgb
    depth_m = estimator(rgb, CAMERA).depth_m
    stored = load_as_stored(tmp_path / 'out/depth/00001-00001.png')
    assert stored.dtype == np.uint16 and stored.shape == (48, 64)
    assert stored * 1e-3 == pytest.approx(depth_m, abs=6e-4)
    assert not np.allclose(depth_m, estimator(rgb).depth_m)  # the camera mattered
    points, colours = read_ply(tmp_path / 'out/cloud/00001-00001.ply')
    assert len(points) == 48 * 64 and (colours == rgb.reshape(-1, 3)).all()
    assert points[:, 2] == pytest.approx(depth_m.ravel())
    u = points[:, 0] / points[:, 2] * CAMERA.fx_px + CAMERA.cx_px
    assert u.reshape(48, 64)[5] == pytest.approx(np.arange(64), abs=1e-3)


def test_picture_has_a_fixed_range_and_its_bar(tmp_path, weights):
    source = write_set(tmp_path / 'set', [2.0])
    assert predict(source, tmp_path / 'out', weights, '--range-m', '0', '3') == 0
    picture = load_rgb(tmp_path / 'out/color/00000-00000.png')
    depth_mm = load_as_stored(tmp_path / 'out/depth/00000-00000.png')
    assert picture.shape == (48 + BAR_PX, 64, 3)
    expected = colour_rgb(depth_mm.astype(np.float32) / 1000, (0.0, 3.0))
    # Rounded to millimetres a depth may fall to the next of 256 colours.
    assert np.abs(picture[:48].astype(int) - expected).max() < 20
    ends = colour_rgb(np.array([[0.0, 3.0]], np.float32), (0.0, 3.0))[0].tolist()
    row = picture[48 + 10].tolist()
    assert ends[0] in row and ends[1] in row


def test_depth_beyond_the_trained_range_is_none(tmp_path, weights, monkeypatch):
    call = DepthEstimator.__call__

    def stretched(self, rgb, intrinsics=None):
        found = call(self, rgb, intrinsics)
        found.depth_m[:10], found.depth_m[10:20] = 0.05, 10.5  # trained for 0.1 to 10 m
        return found

    monkeypatch.setattr(DepthEstimator, '__call__', stretched)
    source = write_set(tmp_path / 'set', [2.0])
    assert predict(source, tmp_path / 'out', weights, '--ply') == 0
    depth_mm = load_as_stored(tmp_path / 'out/depth/00000-00000.png')
    assert (depth_mm[:20] == 0).all() and (depth_mm[20:] > 0).all()
    assert len(read_ply(tmp_path / 'out/cloud/00000-00000.ply')[0]) == 28 * 64
    picture = load_rgb(tmp_path / 'out/color/00000-00000.png')
    assert (picture[:10] == 0).all() and (picture[10:20] == 64).all()


def test_bag_gives_clouds_with_its_own_camera(tmp_path, weights):
    write_frames(tmp_path / 'run.mcap', [frame(2.0), frame(3.0, 1)])
    assert predict(tmp_path / 'run.mcap', tmp_path / 'out', weights, '--ply') == 0
    assert names(tmp_path / 'out' / 'cloud') == ['00000-image-0.ply', '00001-image-1.ply']


def test_single_image_and_video_need_no_camera(tmp_path, weights):
    save_png(tmp_path / 'one.png', frame(2.0).rgb)
    assert predict(tmp_path / 'one.png', tmp_path / 'out', weights) == 0
    assert names(tmp_path / 'out') == ['color/00000-one.png', 'depth/00000-one.png']
    video = cv2.VideoWriter(
        str(tmp_path / 'two.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48)
    )
    video.write(frame(2.0).rgb)
    video.write(frame(2.0, 1).rgb)
    video.release()
    assert predict(tmp_path / 'two.avi', tmp_path / 'video', weights) == 0
    assert names(tmp_path / 'video') == [
        'color.mp4', 'depth/00000-two-avi-0.png', 'depth/00001-two-avi-1.png',
    ]  # fmt: skip
    assert predict(tmp_path / 'two.avi', tmp_path / 'pictures', weights, '--no-video') == 0
    assert names(tmp_path / 'pictures' / 'color') == ['00000-two-avi-0.png', '00001-two-avi-1.png']


def test_video_has_the_colours_of_the_pictures_and_the_rate_of_the_stamps(tmp_path, weights):
    frames = [frame(2.0, i, stamp_s=10 + 0.04 * i) for i in range(3)]
    write_pairs(tmp_path / 'set', frames)
    for name, flags in (('film', ['--video', '--npy']), ('pictures', [])):
        assert predict(tmp_path / 'set', tmp_path / name, weights, *flags) == 0
    assert not (tmp_path / 'film' / 'color').exists()
    film = open_source(tmp_path / 'film' / 'color.mp4')
    assert len(film) == 3 and film.fps == pytest.approx(25, rel=1e-3)
    for index, shown in enumerate(film):
        picture = load_rgb(tmp_path / 'pictures' / 'color' / f'0000{index}-0000{index}.png')
        assert shown.rgb.shape == picture.shape
        # A codec smears; that the bar and the depth are where they were is enough.
        assert np.abs(shown.rgb.astype(int) - picture)[: 48 + 20].mean() < 12


def test_npy_holds_metres_and_nan(tmp_path, weights, estimator, monkeypatch):
    source = write_set(tmp_path / 'set', [2.0])
    with open_source(source) as frames:
        expected = estimator(frames[0].rgb, CAMERA).depth_m
    call = DepthEstimator.__call__

    def with_holes(self, rgb, intrinsics=None):
        found = call(self, rgb, intrinsics)
        found.depth_m[0], found.depth_m[1], found.depth_m[2] = np.nan, 0.05, 10.5
        return found

    monkeypatch.setattr(DepthEstimator, '__call__', with_holes)
    assert predict(source, tmp_path / 'out', weights, '--npy') == 0
    stored = np.load(tmp_path / 'out' / 'npy' / '00000-00000.npy')
    assert stored.dtype == np.float32 and stored.shape == (48, 64)
    assert np.isnan(stored[:3]).all()
    assert stored[3:] == pytest.approx(expected[3:])


def test_depth_beyond_sixteen_bits_is_none_and_said(tmp_path, caplog):
    torch.manual_seed(0)
    model = DepthModel(ModelConfig.from_dict(MODEL | {'depth_range_m': [0.1, 100.0]}))
    far = tmp_path / 'far.safetensors'
    save_model(far, model, name='far', embed_tower=True)
    source = write_set(tmp_path / 'set', [2.0, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        call = DepthEstimator.__call__

        def stretched(self, rgb, intrinsics=None):
            found = call(self, rgb, intrinsics)
            found.depth_m[:10] = 70.0
            return found

        patch.setattr(DepthEstimator, '__call__', stretched)
        assert predict(source, tmp_path / 'out', far, '--npy') == 0
    assert (load_as_stored(tmp_path / 'out/depth/00000-00000.png')[:10] == 0).all()
    assert (np.load(tmp_path / 'out/npy/00000-00000.npy')[:10] == 70.0).all()
    assert '2 images have depth beyond 65.535 m, which is 0 in depth/' in caplog.text


@pytest.mark.parametrize('flags', [
    ('--camera', '52,52,31.5,23.5'), ('--fov-deg', str(2 * np.degrees(np.arctan(32 / 52)))),
])  # fmt: skip
def test_typed_camera_gives_plain_images_metric_depth_and_clouds(
    flags, tmp_path, weights, estimator, caplog
):
    image = frame(2.0).rgb
    save_png(tmp_path / 'one.png', image)
    assert predict(tmp_path / 'one.png', tmp_path / 'out', weights, '--ply', *flags) == 0
    depth_m = estimator(image, CAMERA).depth_m
    points, _ = read_ply(tmp_path / 'out/cloud/00000-one.ply')
    assert points.reshape(48, 64, 3) == pytest.approx(depth_to_points(depth_m, CAMERA), rel=1e-4)
    assert 'no camera' not in caplog.text


def test_image_without_a_camera_is_told_what_its_depth_assumes(tmp_path, weights, caplog):
    caplog.set_level('INFO')
    for i in range(2):
        save_png(tmp_path / 'in' / f'{i}.png', frame(2.0, i).rgb)
    assert predict(tmp_path / 'in', tmp_path / 'out', weights) == 0
    (line,) = (r.message for r in caplog.records if 'no camera' in r.message)
    # The model's camera has fx = 0.8 of the width: 2 atan(1 / 1.6) = 64 degrees.
    assert line.startswith('0.png has no camera') and '64 degrees' in line and '--fov-deg' in line


def test_image_of_another_size_than_the_typed_camera_is_left_out(tmp_path, weights, caplog):
    save_png(tmp_path / 'in' / '0.png', frame(2.0).rgb)
    save_png(tmp_path / 'in' / '1.png', frame(2.0).rgb[:40])
    flags = ('--camera', '52,52,31.5,23.5')
    assert predict(tmp_path / 'in', tmp_path / 'out', weights, *flags) == 1
    assert names(tmp_path / 'out' / 'depth') == ['00000-0.png']
    assert 'left out: 1.png: 64 x 40 pixels, but --camera is for' in caplog.text
    assert predict(tmp_path / 'in', tmp_path / 'any', weights, '--fov-deg', '60') == 0


def test_topic_chooses_a_camera_of_a_bag(tmp_path, weights, capsys):
    write_frames(tmp_path / 'run.mcap', [frame(2.0)])
    assert predict(tmp_path / 'run.mcap', tmp_path / 'out', weights, '--topic', '/image') == 0
    assert predict(tmp_path / 'run.mcap', tmp_path / 'out', weights, '--topic', '/rear') == 1
    assert '/rear' in capsys.readouterr().err


def test_bad_picture_is_left_out_named_at_the_end_and_fails(tmp_path, weights, caplog):
    caplog.set_level('INFO')
    folder = tmp_path / 'images'
    for i in range(3):
        save_png(folder / f'{i}.png', frame(2.0, i).rgb)
    whole = (folder / '1.png').read_bytes()
    (folder / '1.png').write_bytes(whole[: len(whole) // 2])
    assert predict(folder, tmp_path / 'out', weights) == 1
    assert names(tmp_path / 'out' / 'depth') == ['00000-0.png', '00002-2.png']
    said = [r.message for r in caplog.records]
    assert '2 images to' in said[-2]
    assert said[-1].startswith('left out: ') and '1.png' in said[-1] and 'cut off' in said[-1]


def test_second_run_replaces_the_files_and_leaves_no_halves(tmp_path, weights):
    source, out = write_set(tmp_path / 'set', [2.0]), tmp_path / 'out'
    (out / 'depth').mkdir(parents=True)
    (out / 'depth' / '00000-00000.png').write_bytes(b'old')
    assert predict(source, out, weights) == 0
    assert load_as_stored(out / 'depth' / '00000-00000.png').shape == (48, 64)
    assert names(out) == ['color/00000-00000.png', 'depth/00000-00000.png']


def test_cloud_without_a_camera_is_refused_before_anything_is_written(tmp_path, weights, capsys):
    save_png(tmp_path / 'one.png', frame(2.0).rgb)
    assert predict(tmp_path / 'one.png', tmp_path / 'out', weights, '--ply') == 1
    said = capsys.readouterr().err
    assert 'one.png has no camera, which a cloud needs' in said and '--fov-deg' in said
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('flags, message', [
    (('--range-m', '3', '1'), 'expected 0 <= NEAR < FAR'),
    (('--weights', 'nowhere'), 'neither a file nor a shipped name'),
    (('--camera', '500,500'), '--camera 500,500: expected FX,FY,CX,CY'),
    (('--camera', '0,500,3,3'), 'with positive FX and FY'),
    (('--fov-deg', '180'), '--fov-deg 180.0: expected an angle between 0 and 180'),
    (('--topic', '/image'), 'not a ROS 2 bag'),
])  # fmt: skip
def test_user_mistake_is_one_line(tmp_path, weights, flags, message, capsys):
    source = write_set(tmp_path / 'set', [2.0])
    assert predict(source, tmp_path / 'out', weights, *flags) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_source_that_is_none_is_refused(tmp_path, weights, capsys):
    assert predict(tmp_path / 'nowhere', tmp_path / 'out', weights) == 1
    assert 'does not exist. Accepted:' in capsys.readouterr().err


def test_place_that_cannot_be_written_ends_the_job(tmp_path, weights, capsys):
    source = write_set(tmp_path / 'set', [2.0, 3.0])
    (tmp_path / 'out').write_text('a file')
    assert predict(source, tmp_path / 'out', weights) == 1
    assert 'could not be written' in capsys.readouterr().err
