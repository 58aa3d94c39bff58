"""A video is written whole, with its colours, or not at all."""

import cv2
import numpy as np
import pytest
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.video import VideoSource
from vlm_depth_ros.files.video_writer import video_writer


def plain(colour, hw=(48, 64)):
    return np.full((*hw, 3), colour, np.uint8)


def test_frames_come_back_with_their_colours_and_rate(tmp_path):
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    with video_writer(tmp_path / 'new' / 'film.mp4', 12.5) as write:
        for colour in colours:
            write(plain(colour))
    film = VideoSource(tmp_path / 'new' / 'film.mp4')
    assert len(film) == 3 and film.fps == pytest.approx(12.5)
    for frame, colour in zip(film, colours):
        assert frame.rgb.shape == (48, 64, 3)
        assert np.abs(frame.rgb.astype(int) - colour).max() < 12


def test_odd_sizes_get_their_last_row_and_column_twice(tmp_path):
    with video_writer(tmp_path / 'film.mp4', 10) as write:
        write(plain(90, (47, 63)))
    (frame,) = VideoSource(tmp_path / 'film.mp4')
    assert frame.rgb.shape == (48, 64, 3)


def test_nothing_is_left_of_a_film_that_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / 'film.mp4', 10) as write:
        write(plain(90))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r'film.mp4: frame of \(24, 64\) pixels after \(48, 64\)'):
        with video_writer(tmp_path / 'film.mp4', 10) as write:
            write(plain(90))
            write(plain(90, (24, 64)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_picture_is_refused(wrong, tmp_path):
    with pytest.raises(InputError, match='expected uint8 RGB'):
        with video_writer(tmp_path / 'film.mp4', 10) as write:
            write(wrong)


def test_film_without_frames_is_refused(tmp_path):
    with pytest.raises(InputError, match='no frames to write'):
        with video_writer(tmp_path / 'film.mp4', 10):
            pass


def test_codec_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr('vlm_depth_ros.files.video_writer.CODEC', 'none')
    with pytest.raises(InputError, match='this OpenCV cannot write none video'):
        with video_writer(tmp_path / 'film.mp4', 10) as write:
            write(plain(90))


def test_frames_that_were_not_written_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.VideoWriter, 'write', lambda self, image: None)
    with pytest.raises(InputError, match='holds 0 of 1 frames; check the free space'):
        with video_writer(tmp_path / 'film.mp4', 10) as write:
            write(plain(90))
