"""The thread that empties the newest-frame slots outlives whatever a frame does to it."""

import logging
import threading
import time

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
from vlm_depth_ros.core.errors import ConfigError  # noqa: E402
from vlm_depth_ros.ros.worker import NewestFrameWorker, Statistics  # noqa: E402


def test_an_error_that_escapes_costs_the_frame_at_hand_and_not_the_thread(caplog):
    done, statistics = [], [Statistics()]

    def process(taken, _):
        if taken[0].message == 'bad':
            raise ValueError('nobody thought of this')
        done.append(taken[0].message)

    worker = NewestFrameWorker(process, statistics)
    worker.start()
    try:
        with caplog.at_level(logging.ERROR):
            worker.offer(0, 'bad')
            end_s = time.monotonic() + 10
            while not statistics[0].failed and time.monotonic() < end_s:
                time.sleep(0.01)
        worker.offer(0, 'good')
        while not done and time.monotonic() < end_s:
            time.sleep(0.01)
    finally:
        assert worker.stop(10)
    assert done == ['good'] and statistics[0].failed == 1 and not statistics[0].busy_since_s
    assert 'nobody thought of this' in statistics[0].last_error
    assert ['nobody thought of this' in r.getMessage() for r in caplog.records] == [True]


def test_no_second_thread_starts_beside_a_frame_that_takes_long():
    """Two would share the device, and the first would never end."""
    begun, free = threading.Event(), threading.Event()

    def process(*_):
        begun.set()
        free.wait(10)

    worker = NewestFrameWorker(process, [Statistics()])
    worker.start()
    try:
        worker.offer(0, 'a frame')
        assert begun.wait(10) and not worker.stop(0.01)
        with pytest.raises(ConfigError, match='inference of before still runs'):
            worker.start()
    finally:
        free.set()
    assert worker.stop(10)
    worker.start()
    assert worker.is_running() and worker.stop(10)
