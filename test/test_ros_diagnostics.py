"""When /diagnostics says that a camera is silent: the clock is set, the rest is real."""

from collections import defaultdict
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
import rclpy  # noqa: E402
from ros_graph import Graph, image_message, Spinner, wait_for  # noqa: E402
from vlm_depth_ros.ros import diagnostics  # noqa: E402
from vlm_depth_ros.ros.worker import Statistics  # noqa: E402

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Reports:
    """Diagnostics of one camera, reported once a second from the time of activation on."""

    def __init__(self, node: rclpy.node.Node, clock: SimpleNamespace):
        self.clock, self.camera = clock, Statistics(valid_share=1.0)
        self.reports = diagnostics.Diagnostics(node, [''], 'cpu')
        self.got: list = []
        self.reports._publisher = SimpleNamespace(publish=self.got.append)
        self.activate()

    def activate(self) -> None:
        self.start_s = self.clock.now_s
        self.reports.forget()

    def send(self) -> None:
        """An image comes, and is answered at once."""
        self.camera.received += 1
        self.camera.published += 1
        self.camera.last_received_s = self.clock.now_s

    def at(self, seconds: float, enabled: bool = True) -> tuple[bytes, str]:
        """Level and text of the report so long after the activation."""
        self.clock.now_s = self.start_s + seconds
        self.reports.publish([self.camera], ['reliable'], enabled, defaultdict(str))
        return self.got[-1].status[0].level, self.got[-1].status[0].message

    def levels(self, sent: list[float], until: int) -> list[bytes]:
        """Of the reports after 1, 2, ... seconds, with images at these times."""
        found, left = [], list(sent)
        for second in range(1, until + 1):
            while left and left[0] <= second:
                self.clock.now_s = self.start_s + left.pop(0)
                self.send()
            found.append(self.at(second)[0])
        return found


@pytest.fixture(scope='module')
def node():
    spinner = Spinner(lambda context: rclpy.create_node('reporter', context=context))
    yield spinner.node
    spinner.close()


@pytest.fixture
def reports(node, monkeypatch):
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(diagnostics, 'time', SimpleNamespace(monotonic=lambda: clock.now_s))
    return Reports(node, clock)


def test_a_camera_that_never_sends_is_an_error_within_two_seconds(reports):
    """A driver may come a little later: so the first report only warns."""
    assert reports.at(1.0) == (WARN, 'no image has come yet')
    assert reports.at(2.0) == (ERROR, 'no image has come in 2.0 s')
    assert reports.at(60.0)[0] == ERROR


def test_a_driver_that_comes_late_ends_the_error(reports):
    assert reports.levels([4.5, 4.6, 4.7, 4.8, 4.9], until=5) == [WARN] + [ERROR] * 3 + [OK]


def test_one_image_is_no_period(reports):
    """A camera that sent a single one is not taken for one of 1 Hz, which has three seconds."""
    assert reports.levels([1.5], until=4) == [WARN, OK, ERROR, ERROR]


def test_a_camera_that_falls_silent_is_an_error_within_two_seconds(reports):
    thirty_hz = [i / 30 for i in range(1, 88)]
    assert reports.levels(thirty_hz, until=5) == [OK] * 3 + [ERROR] * 2
    assert 'no image for 2.1 s' in reports.got[-1].status[0].message


@pytest.mark.parametrize('phase_s', [0.05, 0.5, 0.99])
def test_a_camera_of_a_hertz_is_given_its_own_period(reports, phase_s):
    """It is never called silent, and is three of its periods after its last image."""
    sent = [phase_s + i for i in range(8)]
    assert ERROR not in reports.levels(sent, until=int(sent[-1]))
    later = [reports.at(int(sent[-1]) + i)[0] for i in range(1, 6)]
    assert later[0] == OK and later[-1] == ERROR


def test_a_camera_of_one_image_in_four_seconds_is_known_from_its_second_image_on(reports):
    levels = reports.levels([0.5, 4.5, 8.5, 12.5], until=16)
    assert ERROR in levels[:4] and ERROR not in levels[4:]
    assert reports.at(25.0)[0] == ERROR


def test_a_pause_is_no_period(reports):
    reports.levels([i / 10 for i in range(1, 20)], until=2)
    reports.clock.now_s += 60
    reports.activate()
    assert reports.levels([0.1, 0.2, 0.3], until=3) == [OK, ERROR, ERROR]


def test_patience_starts_anew_with_each_activation_and_each_time_it_is_enabled(reports):
    """What was not listened for is not missed."""
    reports.levels([i / 10 for i in range(1, 20)], until=2)
    reports.clock.now_s += 60
    reports.activate()
    assert reports.at(0.9)[0] == OK
    assert reports.at(2.0)[0] == ERROR
    assert reports.at(3.0, enabled=False) == (OK, 'disabled by ~/enable')
    assert reports.at(63.0, enabled=False)[0] == OK
    assert reports.at(63.9)[0] == OK
    assert reports.at(65.0)[0] == ERROR


@pytest.mark.alone
def test_a_live_node_without_a_camera_says_so_and_takes_it_back():
    with Graph() as graph:
        reports = graph.listen('/diagnostics', DiagnosticArray)
        wait_for(lambda: reports and reports[-1].status[0].level == ERROR, 'an error')
        assert 'no image has come in' in reports[-1].status[0].message
        depths = graph.listen('depth/image_rect')
        wait_for(
            lambda: graph.publish('image', image_message())
            or (depths and reports[-1].status[0].level != ERROR),
            'the end of the error',
        )
