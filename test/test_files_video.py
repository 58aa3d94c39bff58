"""Videos are frames with stamps, however they are walked."""

import logging
import os

import cv2
import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.source import open_source
from vlm_depth_ros.files.video import VideoSource

COUNT, FPS = 12, 8.0


def shade(index):
    """The grey level of frame `index`."""
    return 20 * (index % COUNT) + 10


def write_video(path, fourcc, count=COUNT):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), FPS, (64, 48))
    if not writer.isOpened():
        pytest.skip(f'this OpenCV cannot write {fourcc}')
    for index in range(count):
        bgr = np.full((48, 64, 3), shade(index), np.uint8)
        bgr[:24, :, 2] = 255  # the upper half is red
        writer.write(bgr)
    writer.release()
    return path


@pytest.fixture(params=['MJPG.avi', 'mp4v.mp4'])
def video(request, tmp_path):
    return write_video(tmp_path / f'clip_001.{request.param[5:]}', request.param[:4])


def level(frame):
    return float(frame.rgb[30:].mean())


def test_frames_come_in_order_with_stamps_and_again(video):
    source = open_source(video)
    assert isinstance(source, VideoSource) and len(source) == COUNT
    for _ in range(2):
        frames = list(source)
        assert [f.stamp_s for f in frames] == [i / FPS for i in range(COUNT)]
        assert [abs(level(f) - shade(i)) < 6 for i, f in enumerate(frames)] == [True] * COUNT
    assert frames[3].name == f'{video.name}#3' and frames[3].rgb.shape == (48, 64, 3)


def test_colours_are_rgb(video):
    red, green, blue = open_source(video)[0].rgb[5:15].reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


def test_any_index_gives_the_frame_of_that_stamp(video):
    source = VideoSource(video)
    for index in (7, 2, 2, 11, 0, -1, 5, 6):
        frame = source[index]
        assert abs(level(frame) - shade(index % COUNT)) < 6
        assert frame.stamp_s == (index % COUNT) / FPS
    with pytest.raises(IndexError):
        source[COUNT]


def test_files_are_closed_after_a_pass_and_by_with(video):
    def is_open():
        links = (os.path.join('/proc/self/fd', n) for n in os.listdir('/proc/self/fd'))
        return any(
            os.path.exists(n) and os.path.realpath(n) == str(video.resolve()) for n in links
        )

    if not os.path.isdir('/proc/self/fd'):
        pytest.skip('needs /proc to see open files')
    source = open_source(video)
    assert not is_open()
    list(source)
    assert not is_open()
    with source:
        source[1]
        assert is_open()
    assert not is_open()
    for _ in source:
        break
    source.close()
    assert not is_open()


def test_video_that_ends_early_stops_with_a_warning(tmp_path, caplog):
    path = write_video(tmp_path / 'a.avi', 'MJPG', count=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = VideoSource(path)
    claimed = len(source)
    with caplog.at_level(logging.WARNING):
        frames = list(source)
    assert 0 < len(frames) < 60
    if claimed > len(frames):  # some backends look first
        assert f'a.avi: ends after {len(frames)} of {claimed} frames' in caplog.text
        for index in (len(frames), claimed - 1):
            with pytest.raises(InputError, match=f'ends after {len(frames)} of {claimed} frames'):
                source[index]
    assert source[len(frames) - 1].rgb.shape == (48, 64, 3)


@pytest.mark.parametrize('data', [b'', b'no video at all', b'\0' * 4096])
def test_what_is_no_video_is_refused(tmp_path, data):
    (tmp_path / 'a.mp4').write_bytes(data)
    with pytest.raises(InputError, match=r'a\.mp4: is not a video that OpenCV can read'):
        open_source(tmp_path / 'a.mp4')


def test_mp4_without_its_index_is_refused(tmp_path):
    path = write_video(tmp_path / 'a.mp4', 'mp4v')
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match='cut off'):
        open_source(path)


def test_missing_video_is_refused(tmp_path):
    with pytest.raises(InputError, match='none.mp4: is not a file'):
        VideoSource(tmp_path / 'none.mp4')
