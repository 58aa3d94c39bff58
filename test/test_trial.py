"""Ways to run a network are compared on the frames that come; the faster one stays."""

import logging
import threading

import numpy as np
import pytest
import torch
from vlm_depth_ros.core import trial
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig
from vlm_depth_ros.core.devices import num_threads, use_threads
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.trial import COUNTED, SKIPPED, Way, Ways

ROUNDS = SKIPPED + COUNTED


class StandIn(torch.nn.Module):
    """A network that counts its calls."""

    def __init__(self):
        super().__init__()
        self.config = ModelConfig('stand-in', input_hw=(32, 32))
        self.backbone = torch.nn.Module()
        self.backbone.spec = BackboneSpec(
            'stand-in', True, (3,), (1,), 3, None, (32, 32), False, (0.0,) * 3, (1.0,) * 3
        )
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        return HeadOutput(torch.full((len(image), 1, 32, 32), 2.0))


class Clock:
    """Stands still but while somebody answers."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(trial, 'time', made)
    return made


@pytest.fixture
def two_threads(monkeypatch):
    """Two, without a wish of the user's; afterwards as before."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    before = num_threads()
    use_threads(2)
    yield
    use_threads(before)


def slept(clock, took_ms):
    """An answer that takes so long by the name of the way, or fails."""

    def answer(way):
        found = took_ms[str(way)]
        if isinstance(found, Exception):
            raise found
        clock.now_s += found / 1e3
        return str(way)

    return answer


def eager():
    return Ways('pocket', Way('eager', torch.nn.Identity()), 'cpu')


# --- how many threads ---------------------------------------------------------------------------


@pytest.mark.parametrize(('two_ms', 'chosen'), [
    (74, 'eager, 1 thread'), (110, 'eager, 1 thread'), (52, 'eager, 2 threads'),
])  # fmt: skip
def test_all_threads_only_where_they_gain_a_lot(two_ms, chosen, two_threads, clock, caplog):
    ways = eager()
    ways.try_thread_counts()
    answer = slept(clock, {'eager, 1 thread': 100, 'eager, 2 threads': two_ms})
    with caplog.at_level(logging.INFO):
        said = [ways.run(answer, 1) for _ in range(2 * ROUNDS)]
    one, two = 'eager, 1 thread', 'eager, 2 threads'
    assert said == [one, two, two, one] * (ROUNDS // 2)
    assert str(ways.at_hand) == chosen and not ways.are_on_trial
    assert {ways.run(answer, 1) for _ in range(3)} == {chosen}
    (record,) = caplog.records
    assert f'1 thread: 100.0 ms; eager, 2 threads: {two_ms}.0 ms. {chosen} ' in record.getMessage()


def test_the_number_holds_in_a_worker_that_starts_later_and_nowhere_else(two_threads):
    ways = Ways('pocket', Way('eager', torch.nn.Identity(), num_threads=1), 'cpu')
    seen = []

    def work():
        use_threads(2)
        ways.run(lambda way: seen.append(num_threads()), 1)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [1, 1] and num_threads() == 2


@pytest.mark.parametrize('why', ['the user chose', 'one core', 'another engine', 'a GPU'])
def test_nothing_is_tried_where(why, two_threads, monkeypatch):
    ways = eager()
    if why == 'the user chose':
        monkeypatch.setenv('OMP_NUM_THREADS', '2')
    elif why == 'one core':
        use_threads(1)
    elif why == 'another engine':
        ways = Ways('pocket', Way('openvino', torch.nn.Identity()), 'cpu')
    else:
        ways = Ways('pocket', Way('eager', torch.nn.Identity()), 'cuda')
    before = ways.at_hand
    ways.try_thread_counts()
    assert not ways.are_on_trial and ways.at_hand is before and before.num_threads is None


# --- which engine -------------------------------------------------------------------------------


@pytest.mark.parametrize(('took_ms', 'chosen'), [
    ({'eager': 40, 'openvino': 20, 'onnxruntime': 19}, 'onnxruntime'),
    ({'eager': 40, 'openvino': 37, 'onnxruntime': 60}, 'eager'),
    ({'eager': 40, 'openvino': 36, 'onnxruntime': 60}, 'openvino'),
])  # fmt: skip
def test_the_fastest_engine_stays_if_it_is_clearly_faster(took_ms, chosen, clock, caplog):
    ways = eager()
    ways.try_engines({'openvino': torch.nn.ReLU(), 'onnxruntime': torch.nn.Tanh()})
    answer = slept(clock, took_ms)
    with caplog.at_level(logging.INFO):
        for _ in range(3 * ROUNDS):
            assert ways.are_on_trial
            ways.run(answer, 1)
    assert str(ways.at_hand) == chosen and not ways.are_on_trial
    (record,) = caplog.records
    end = 'eager goes on' if chosen == 'eager' else f'{chosen} answers from now on'
    figures = '; '.join(f'{name}: {ms}.0 ms' for name, ms in took_ms.items())
    assert record.getMessage() == f'pocket: an image took {figures}. {end}.'


def test_one_slow_frame_and_the_first_ones_decide_nothing(clock):
    ways, frame = eager(), iter(range(99))
    ways.try_engines({'openvino': torch.nn.ReLU()})

    def answer(way):
        is_odd_one = next(frame) in (1, 3, 9)
        clock.now_s += 3.0 if is_odd_one else {'eager': 0.04, 'openvino': 0.02}[str(way)]

    for _ in range(2 * ROUNDS):
        ways.run(answer, 1)
    assert str(ways.at_hand) == 'openvino'


def test_time_counts_by_image_and_not_where_there_is_none(clock):
    """With several cameras now one and now three images are answered together."""
    ways = eager()
    ways.try_engines({'openvino': torch.nn.ReLU()})
    took_ms = {'eager': 40, 'openvino': 90}
    for _ in range(2 * ROUNDS):
        turn = str(ways._trial.next())
        ways.run(slept(clock, dict.fromkeys(took_ms, 1)), 0)
        assert ways.run(slept(clock, took_ms), 3 if turn == 'openvino' else 1) == turn
    assert str(ways.at_hand) == 'openvino'


@pytest.mark.parametrize('period', [2, 3])
def test_frames_that_take_longer_in_turn_favour_no_way(period, clock):
    """Two cameras of different images, or a cloud with each third of them."""
    for slow in range(period):
        ways, took_ms = eager(), {'eager': 40, 'openvino': 33, 'onnxruntime': 35}
        ways.try_engines({'openvino': torch.nn.ReLU(), 'onnxruntime': torch.nn.Tanh()})
        for i in range(3 * ROUNDS):
            more_ms = 15 * (i % period == slow)
            ways.run(slept(clock, {way: ms + more_ms for way, ms in took_ms.items()}), 1)
        assert str(ways.at_hand) == 'openvino', slow


def test_who_wants_an_embedding_gets_a_thread_count_and_engines_wait(two_threads, clock):
    ways = eager()
    ways.try_thread_counts()
    answer = slept(clock, {'eager, 1 thread': 100, 'eager, 2 threads': 52, 'openvino': 1})
    for _ in range(2 * ROUNDS):
        ways.run(answer, 1, by_engine=False)
    assert str(ways.at_hand) == 'eager, 2 threads'
    ways.try_engines({'openvino': torch.nn.ReLU()})
    for _ in range(4 * ROUNDS):
        ways.run(answer, 1, by_engine=False)
    assert ways.are_on_trial
    for _ in range(2 * ROUNDS):
        ways.run(answer, 1)
    assert str(ways.at_hand) == 'openvino'


def test_an_engine_that_fails_on_a_frame_is_left_out(clock, caplog):
    ways = eager()
    ways.try_engines({'openvino': torch.nn.ReLU()})
    answer = slept(clock, {'eager': 40, 'openvino': RuntimeError('no memory\nat all')})
    assert {ways.run(answer, 1) for _ in range(4)} == {'eager'}
    assert not ways.are_on_trial and str(ways.at_hand) == 'eager'
    (record,) = caplog.records
    said = 'pocket: openvino failed on a frame (no memory): left out.'
    assert record.levelno == logging.WARNING and record.getMessage() == said


def test_a_bad_frame_is_not_blamed_on_an_engine(clock):
    ways = eager()
    ways.try_engines({'openvino': torch.nn.ReLU()})
    good = slept(clock, {'eager': 40, 'openvino': 20})
    bad = slept(clock, dict.fromkeys(('eager', 'openvino'), ValueError('bad frame')))
    for _ in range(2 * ROUNDS - 1):
        ways.run(good, 1)
        with pytest.raises(ValueError, match='bad frame'):
            ways.run(bad, 1)
    ways.run(good, 1)
    assert str(ways.at_hand) == 'openvino'


# --- in the estimator ---------------------------------------------------------------------------


def test_only_frames_of_the_node_are_on_trial(clock):
    """A call at a desk answers in the way at hand; a frame that wants no depth tells no time."""
    estimator = DepthEstimator(StandIn(), RuntimeConfig('cpu'))
    other = StandIn()
    estimator.ways.try_engines({'openvino': other})
    image = np.zeros((32, 32, 3), np.uint8)
    for _ in range(4):
        estimator(image)
    assert other.calls == 0
    for _ in range(9):
        estimator.process([Frame(image, wants=frozenset({'rgb'}))], OutputOptions())
    assert other.calls == 0
    for _ in range(4):
        estimator.process([Frame(image)], OutputOptions())
    assert other.calls == 2
