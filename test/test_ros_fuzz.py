"""Nodes in processes of their own, under malformed messages and random parameters.

With VLM_DEPTH_FUZZ=1 they get thousands of messages and 1,000 sets of parameters.
"""

from dataclasses import fields
import os
from pathlib import Path
import re
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from malformed import (  # noqa: E402
    FRAMES,
    good_compressed,
    good_image,
    good_info,
    good_scan,
    IS_FULL,
    malformed,
)
from rcl_interfaces.srv import SetParameters, SetParametersAtomically  # noqa: E402
import rclpy  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from ros_graph import (  # noqa: E402
    DepthWatch,
    Graph,
    image_message,
    info_message,
    Spinner,
    stamp_ns,
    stamped,
    wait_for,
)
from ros_process import StandIn, START_S  # noqa: E402
from sensor_msgs.msg import (  # noqa: E402
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    Range,
)
from vlm_depth_ros.ros.node_params import LIVE, NodeParams  # noqa: E402
from vlm_depth_ros.ros.outputs import TOPICS  # noqa: E402
from vlm_depth_ros.ros.surroundings import RANGE_TOPICS  # noqa: E402

MESSAGES = 3000 if IS_FULL else 250
PARAMETER_SETS = 1000 if IS_FULL else 200
RANGES = 1000 if IS_FULL else 60
"""Of each kind."""
RANGES_OF_NOTHING = {
    LaserScan: lambda: LaserScan(ranges=[float('inf')] * 81),
    PointCloud2: PointCloud2,
    Range: lambda: Range(range=float('inf')),
}
"""Nothing to measure the scale by, so that depth stays what the stand-in answers."""
GOOD_EVERY = 5
WARNING_PERIOD_S = 5.0
GROWTH_BYTES = 48_000_000
LONGEST_LINE = 1500
"""Characters of one line of the log."""


class Running:
    """A node process around a stand-in that answers 2 m, and its camera."""

    def __init__(self, transport: str, log: Path):
        self.transport = transport
        self.kind, self.good = {
            'raw': (Image, good_image), 'compressed': (CompressedImage, good_compressed)
        }[transport]  # fmt: skip
        names = ['-r', f'__ns:=/{transport}', '-r', f'__node:={transport}_node']
        parameters = [f'image_transport:={transport}', 'scale_source:=ranges']
        arguments = ['--ros-args', *names, *(p for v in parameters for p in ('-p', v))]
        self.process = StandIn(['0', '0', *arguments], log)
        self._tester = Spinner(
            lambda context: rclpy.create_node('camera', namespace=transport, context=context)
        )
        node = self._tester.node
        topic = 'image' if transport == 'raw' else 'image/compressed'
        self.images = node.create_publisher(self.kind, topic, QoSProfile(depth=5))
        self.infos = node.create_publisher(CameraInfo, 'camera_info', QoSProfile(depth=5))
        self.ranges = {
            kind: node.create_publisher(kind, name, QoSProfile(depth=5))
            for name, kind in RANGE_TOPICS.items()
        }
        self.depth, self.clouds, self.failed, self.watch = {}, {}, 0, DepthWatch()
        for message, name, take in (
            (Image, 'depth/image_rect', self._on_depth),
            (PointCloud2, 'points', lambda m: self.clouds.update({stamp_ns(m): m})),
        ):
            node.create_subscription(message, name, take, QoSProfile(depth=5))
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 1)

    def wait(self) -> None:
        """Until the node is active and hears its camera."""
        wait_for(lambda: 'Subscribed' in self.process.output, 'the node to be active', START_S)
        counts = (self.images, self.infos, *self.ranges.values())
        wait_for(lambda: all(p.get_subscription_count() for p in counts), 'each subscription')
        time.sleep(0.6)  # It follows the reliability of its publishers four times a second.
        self.answer_to_good()

    def answer_to_good(self) -> None:
        """Publish good frames until one has its own camera; each one must be answered."""
        for _ in range(5):
            self.infos.publish(stamped(good_info()))
            time.sleep(0.005)
            message = stamped(self.good())
            stamp = stamp_ns(message)
            self.images.publish(message)
            wait_for(lambda s=stamp: s in self.depth, f'the answer to a good {self.transport}')
            got = self.depth[stamp]
            depth_m = np.frombuffer(got.data, '<f4').reshape(got.height, got.width)
            if depth_m[24, 32] == 2 and stamp in self.clouds:
                break
            # The camera_info before it, or the cloud after, came a little later.
        assert depth_m[24, 32] == 2
        self.watch.check()
        self.depth.clear()
        self.clouds.clear()

    def resident_bytes(self) -> int:
        pages = Path(f'/proc/{self.process.pid}/statm').read_text().split()[1]
        return int(pages) * os.sysconf('SC_PAGE_SIZE')

    def close(self) -> None:
        self._tester.close()
        self.process.__exit__()

    def _on_depth(self, message: Image) -> None:
        self.watch.look(message)
        self.depth[stamp_ns(message)] = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f'{self.transport}_node'):
                values = {v.key: v.value for v in status.values}
                self.failed = int(values['frames failed'])


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nodes')
    nodes = {t: Running(t, folder / f'{t}.log') for t in ('raw', 'compressed')}
    for node in nodes.values():
        node.wait()
    yield nodes
    for node in nodes.values():
        node.close()


@pytest.mark.alone
@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_a_running_node_answers_every_good_frame_between_malformed_ones(running, transport):
    node = running[transport]
    start_s, before = time.monotonic(), None
    for number in range(MESSAGES):
        if number == MESSAGES // 5:
            before = node.resident_bytes()
        node.infos.publish(stamped(malformed(CameraInfo, number)))
        node.images.publish(stamped(malformed(node.kind, number)))
        time.sleep(0.004)
        if number % GOOD_EVERY == 0:
            node.answer_to_good()
    took_s = time.monotonic() - start_s
    grown = node.resident_bytes() - before
    time.sleep(1.2)  # One more report.
    print(
        f'{transport}: {node.failed} of {MESSAGES} refused in {took_s:.0f} s, '
        f'resident memory {before / 1e6:.0f} MB, {grown / 1e6:+.1f} MB'
    )
    assert node.failed > MESSAGES / 4
    assert grown < GROWTH_BYTES
    assert_alive_and_short_spoken(node, took_s)


@pytest.mark.alone
@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_bytes_that_are_no_message_do_not_end_the_node(running, transport):
    """A middleware of another version, or a foreign writer: cut and turned on the wire."""
    node, rng = running[transport], np.random.default_rng(5)
    sent = [(node.images, node.good), (node.infos, good_info)]
    sent += [(publisher, RANGES_OF_NOTHING[kind]) for kind, publisher in node.ranges.items()]
    for _ in range(MESSAGES // 5):
        for publisher, good in sent:
            data = bytearray(serialize_message(stamped(good())))
            if rng.random() < 0.5:
                del data[rng.integers(len(data)) :]
            for _ in range(rng.integers(0, 4)):
                if data:
                    data[rng.integers(min(len(data), 120))] ^= 1 << rng.integers(8)
            publisher.publish(bytes(data))
        time.sleep(0.004)
    node.answer_to_good()
    assert node.process.is_running


def test_malformed_ranges_cost_no_frame_and_true_ones_are_believed_after_them(capfd):
    with Graph(scale_source='ranges') as graph:
        depth = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        statistics, rng = graph.node.statistics[0], np.random.default_rng(7)
        start_s = time.monotonic()

        def answer():
            count = len(depth)
            graph.publish('image', image_message())
            wait_for(lambda: len(depth) > count, 'the answer to a good image')

        for number in range(RANGES):
            for topic, kind in RANGE_TOPICS.items():
                frame_id = FRAMES[rng.integers(len(FRAMES))]
                message = stamped(malformed(kind, number), frame_id=frame_id)
                if rng.random() < 0.1:
                    message.header.stamp.sec = int(rng.choice([-(2**31), 0, 2**31 - 1]))
                    message.header.stamp.nanosec = 2**32 - 1
                graph.publish(topic, message)
                answer()
        took_s = time.monotonic() - start_s
        assert statistics.failed == 0 and statistics.scale.refused > RANGES / 5
        assert 0.5 <= statistics.scale.factor <= 2
        for _ in range(12):
            graph.publish('ranges/scan', stamped(good_scan(), frame_id='laser'))
            time.sleep(0.02)
            answer()
        assert statistics.scale.status == 'tracking' and statistics.scale.reason == ''
    lines = capfd.readouterr().err.splitlines()
    print(f'{3 * RANGES} ranges in {took_s:.0f} s, {statistics.scale}, {len(lines)} lines')
    assert not any('Traceback' in line or 'Warning' in line for line in lines)
    assert max(len(line) for line in lines) < LONGEST_LINE


def assert_alive_and_short_spoken(node: Running, took_s: float) -> None:
    assert node.process.is_running
    lines = node.process.output.splitlines()
    assert not any('Traceback' in line for line in lines)
    assert max(len(line) for line in lines) < LONGEST_LINE
    for warning in ('Frame dropped', 'camera_info wait'):
        assert sum(warning in line for line in lines) <= took_s / WARNING_PERIOD_S + 2, warning


VALUES = {
    bool: (True, False),
    int: (-(2**63), -1, 0, 1, 2, 3, 4, 5, 8, 16, 17, 2**31, 2**63 - 1),
    float: (
        -1.0, -0.0, 0.0, 1e-6, 0.001, 0.05, 0.3, 0.5, 1.0, 1.5, 3.0, 9.9, 50.0, 999.0, 1e9, 1e308,
        float('nan'), float('inf'), float('-inf'),
    ),
    str: ('', ' ', 'on', 'off', 'auto', 'ON', 'reliable', 'none', 'a\nb', 'base_link', 'x' * 5000),
}  # fmt: skip
DIVISIBLE_HW = (120, 120)
"""By every depth_divisor but 7."""
LIVE_FIELDS = [f for f in fields(NodeParams) if f.metadata['change'] == LIVE]


def random_value(rng, field):
    """A value for a parameter: mostly of its type, sometimes out of bounds or of another type."""
    default = field.default
    chance = rng.random()
    if chance < 0.1:
        return default if not isinstance(default, tuple) else list(default)
    if chance < 0.2:
        default = [True, 1, 1.0, 'text'][rng.integers(4)]
    elif field.metadata['choices'] and chance < 0.7:
        return field.metadata['choices'][rng.integers(len(field.metadata['choices']))]
    elif field.metadata['bounds'] and chance < 0.7:
        low, high = field.metadata['bounds']
        drawn = rng.uniform(low, high)
        return type(default)(round(drawn) if isinstance(default, int) else drawn)
    if isinstance(default, tuple):
        choices = VALUES[type(default[0])]
        count = rng.integers(1, 2 * len(default) + 2)
        return [choices[i] for i in rng.integers(0, len(choices), count)]
    choices = VALUES[type(default)]
    return choices[rng.integers(len(choices))]


def test_random_parameters_are_taken_or_refused_in_one_line_and_frames_flow(capfd):
    with Graph(camera_in_base=[0.0, 0.0, 0.4, 0.0, 0.0, 0.0]) as graph:
        # Every output, so that each of them is made under each set.
        got = {topic.name: graph.listen(topic.name, topic.kind) for topic in TOPICS}
        depth, clouds = got['depth/image_rect'], got['points']
        possible = set(got) - {'depth/confidence', 'embedding'}
        graph.publish('camera_info', info_message(*DIVISIBLE_HW))
        wait_for(
            lambda: graph.publish('image', image_message(*DIVISIBLE_HW))
            or all(got[name] for name in possible),
            'every output that a stand-in has',
        )
        first_depth, first_cloud = depth[0].data, clouds[0].data
        rng = np.random.default_rng(6)
        taken, refused, reasons, errors = 0, 0, [], {}
        start_s = time.monotonic()
        for number in range(PARAMETER_SETS):
            chosen = rng.permutation(len(LIVE_FIELDS))[: rng.integers(1, 5)]
            values = {LIVE_FIELDS[i].name: random_value(rng, LIVE_FIELDS[i]) for i in chosen}
            if rng.random() < 0.03:
                values['no_such_parameter'] = 1
            before = {name: current(graph, name) for name in values}
            parameters = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
            atomic = bool(rng.integers(2))
            kind = SetParametersAtomically if atomic else SetParameters
            service = f'/depth_node/set_parameters{"_atomically" if atomic else ""}'
            answer = graph.call(kind, service, kind.Request(parameters=parameters))
            results = [answer.result] if atomic else answer.results
            assert len(results) == 1 if atomic else len(values)
            for i, result in enumerate(results):
                taken += result.successful
                refused += not result.successful
                if not result.successful:
                    reasons.append((number, result.reason))
                    for name in list(values) if atomic else [list(values)[i]]:
                        now = current(graph, name)
                        assert repr(now) == repr(before[name]), (number, name, values)
            graph.publish('image', image_message(*DIVISIBLE_HW))
            assert graph.state == 'active'
            errors.setdefault(graph.node.statistics[0].last_error, (number, values))
        took_s = time.monotonic() - start_s
        flowed, answers = len(depth), {name: len(got[name]) for name in possible}
        # As it was, all at once: limits depend on one another.
        defaults = [Parameter(f.name, value=plain(f.default)) for f in LIVE_FIELDS]
        result = graph.node.set_parameters_atomically(defaults)
        assert result.successful, result.reason
        good = image_message(*DIVISIBLE_HW)
        wait_for(
            lambda: graph.publish('image', good)
            or (depth[-1].data, clouds[-1].data) == (first_depth, first_cloud),
            'the outputs of before',
        )
        statistics = graph.node.statistics[0]
    for error, where in errors.items():
        assert not re.match(r'\w*(Error|Exception): ', error), (error, where)
    assert taken > PARAMETER_SETS / 10 and refused > PARAMETER_SETS / 10
    assert flowed > PARAMETER_SETS / 20
    assert min(answers.values()) > 1, answers
    for number, reason in reasons:
        assert reason.isprintable() and 10 < len(reason) < LONGEST_LINE, (number, reason[:500])
    lines = capfd.readouterr().err.splitlines()
    print(
        f'{PARAMETER_SETS} sets in {took_s:.0f} s: {taken} taken, {refused} refused; '
        f'{statistics.received} frames came, {flowed} answered, {statistics.failed} failed; '
        f'{len(lines)} lines in the log'
    )
    assert not any('Traceback' in line for line in lines)
    assert max(len(line) for line in lines) < LONGEST_LINE


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def current(graph: Graph, name: str):
    return graph.node.get_parameter(name).value if graph.node.has_parameter(name) else None
