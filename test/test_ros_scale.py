"""Metric scale and filters through the node: measured, applied, frozen, reported, and off."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import Transform  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, info_message, stamped, wait_for  # noqa: E402
from sensor_msgs.msg import LaserScan, PointCloud2, PointField, Range  # noqa: E402
from vlm_depth_ros.core.errors import InputError  # noqa: E402
from vlm_depth_ros.ros.clouds import cloud_to_xyz  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402
from vlm_depth_ros.ros.surroundings import matrix_of, TransformTree  # noqa: E402

SAID_M = 2.0
"""What the stand-in network says of everything."""
TRUE_M = SAID_M / 0.7
LOOKS_DOWN = [0.0, 0.0, TRUE_M, 0.0, math.pi / 2, 0.0]


def depth_m(message) -> float:
    """Median of a depth image."""
    return float(np.nanmedian(np.frombuffer(message.data, '<f4')))


def a_scan(distance_m=TRUE_M, frame_id='laser'):
    """A wall across the view, square to the x axis of the scanner."""
    scan = LaserScan(angle_min=-0.4, angle_increment=0.01, range_min=0.1, range_max=30.0)
    angle = scan.angle_min + scan.angle_increment * np.arange(81)
    scan.angle_max = float(angle[-1])
    scan.ranges = (distance_m / np.cos(angle)).astype(np.float32).tolist()
    return stamped(scan, frame_id=frame_id)


def a_cloud(distance_m=TRUE_M):
    """Points of such a wall, x ahead."""
    y, z = np.meshgrid(np.linspace(-0.8, 0.8, 15), np.linspace(-0.6, 0.6, 15))
    points = np.stack([np.full_like(y, distance_m), y, z], axis=-1).reshape(-1, 3)
    cloud = PointCloud2(height=1, width=len(points), point_step=12, row_step=12 * len(points))
    cloud.fields = [
        PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, n in enumerate('xyz')
    ]
    cloud.data = byte_array(points.astype('<f4').view(np.uint8).reshape(-1))
    return stamped(cloud, frame_id='laser')


def a_range(distance_m=TRUE_M):
    """One number and its cone."""
    found = Range(field_of_view=0.3, min_range=0.05, max_range=10.0, range=distance_m)
    return stamped(found, frame_id='laser')


def run(graph, seconds=5.0, step_s=0.2, before_each=lambda stamp_s: None, start_s=100.0):
    """Send frames with stamps `step_s` apart (0: five of one stamp), one after the other's answer.

    Returns:
        The depths.
    """
    depths = graph.listen('depth/image_rect')
    for i in range(round(seconds / step_s) if step_s else 5):
        stamp_s, count = start_s + i * step_s, len(depths)
        before_each(stamp_s)
        graph.publish('image', image_message(stamp_s=stamp_s))
        wait_for(lambda n=count: len(depths) > n, 'a depth image')
    return [depth_m(message) for message in depths]


def values_of(graph):
    """Newest diagnostics of the camera as a mapping, with its message."""
    reports = graph.listen('/diagnostics', DiagnosticArray)
    wait_for(lambda: reports, 'diagnostics')
    status = reports[-1].status[0]
    return {v.key: v.value for v in status.values} | {'message': status.message}


def test_a_known_height_of_the_camera_mends_a_wrong_scale():
    with Graph(scale_source='ground', camera_in_base=LOOKS_DOWN) as graph:
        graph.publish('camera_info', info_message())
        depths = run(graph)
        assert depths[0] == pytest.approx(SAID_M, rel=1e-3)
        assert depths[-1] == pytest.approx(TRUE_M, rel=0.03)
        assert max(np.diff(np.log(depths))) <= np.log1p(0.2) * 0.2 + 1e-3, 'a leap'
        values = values_of(graph)
    assert values['scale status'] == 'tracking'
    assert float(values['scale']) == pytest.approx(1 / 0.7, rel=0.03)
    assert 0 < float(values['scale uncertainty']) < 0.2


@pytest.mark.parametrize(
    ('topic', 'make'),
    [('ranges/scan', a_scan), ('ranges/points', a_cloud), ('ranges/range', a_range)],
)
def test_ranges_of_another_sensor_mend_a_wrong_scale(topic, make):
    with Graph(scale_source='ranges') as graph:
        graph.publish('camera_info', info_message())

        def measured(stamp_s):
            message = make()
            message.header.stamp = image_message(stamp_s=stamp_s).header.stamp
            graph.publish(topic, message)

        depths = run(graph, before_each=measured)
    assert depths[-1] == pytest.approx(TRUE_M, rel=0.03)


def sent_at(scans, graph):
    """A `before_each` that publishes each of `scans` (stamp: distance) once its time has come."""
    left, surroundings = dict(scans), graph.node._surroundings

    def send(at_s):
        scan = stamped(a_scan(left.pop(at_s, TRUE_M)), at_s, 'laser')
        graph.publish('ranges/scan', scan)
        return scan.header

    # What is sent before publisher and reader know each other is lost; no frame sees these.
    if left:
        wait_for(lambda: send(1.0) and surroundings._newest is not None, 'the first scan')

    def before_each(stamp_s):
        for at_s in [at_s for at_s in left if at_s <= stamp_s + 1e-6]:
            header = send(at_s)
            wait_for(lambda h=header: surroundings._newest.header == h, 'the scan')

    return before_each


def test_a_scan_six_times_slower_than_the_camera_mends_a_wrong_scale():
    with Graph(scale_source='ranges') as graph:
        graph.publish('camera_info', info_message())
        before_each = sent_at({100 + i / 5: TRUE_M for i in range(20)}, graph)
        depths = run(graph, 4.0, 1 / 30, before_each)
        values = values_of(graph)
    assert depths[-1] == pytest.approx(TRUE_M, rel=0.03)
    assert max(np.diff(np.log(depths))) <= np.log1p(0.2) / 30 + 1e-3, 'a leap'
    assert values['scale status'] == 'tracking' and values['scale trouble'] == ''
    counted = [int(values[f'scale measurements {k}']) for k in ('accepted', 'refused')]
    assert counted == [18, 2], 'each scan once, the first two without anybody to agree with'


def test_a_single_wrong_scan_counts_once_and_moves_nothing():
    with Graph(scale_source='ranges') as graph:
        graph.publish('camera_info', info_message())
        depths = run(graph, 0.5, 1 / 30, sent_at({100.0: 1.6 * SAID_M}, graph))
        values = values_of(graph)
    assert depths == [pytest.approx(SAID_M)] * 15
    assert values['scale status'] == 'waiting'
    assert values['scale measurements accepted'] == '0'
    assert values['scale measurements refused'] == '1'


def test_each_camera_is_measured_by_a_scan_once():
    with Graph(scale_source='ranges', cameras=['front', 'rear']) as graph:
        depths = [graph.listen(f'{name}/depth/image_rect') for name in ('front', 'rear')]
        for name in ('front', 'rear'):
            graph.publish(f'{name}/camera_info', info_message())
        before_each = sent_at({100.0 + i / 5: TRUE_M for i in range(4)}, graph)
        for i in range(8):
            before_each(100.0 + i / 10)
            for name, got in zip(('front', 'rear'), depths):
                graph.publish(f'{name}/image', image_message(stamp_s=100.0 + i / 10))
                wait_for(lambda g=got, n=i: len(g) > n, 'a depth image')
        states = [statistics.scale for statistics in graph.node.statistics]
    assert [(state.accepted, state.refused) for state in states] == [(2, 2)] * 2


@pytest.mark.parametrize('source', ['ground', 'ranges'])
def test_a_camera_that_stamps_nothing_is_told_about(source):
    with Graph(scale_source=source, camera_in_base=LOOKS_DOWN) as graph:
        graph.publish('camera_info', info_message())
        scans = {0.0: TRUE_M} if source == 'ranges' else {}
        depths = run(graph, 1.0, 0.0, sent_at(scans, graph), start_s=0.0)
        values = values_of(graph)
    assert depths == [pytest.approx(SAID_M)] * len(depths)
    assert values['scale status'] == 'waiting'
    assert 'stands still at 0.000 s' in values['scale trouble']
    assert values['scale trouble'] in values['message']


def test_a_lost_source_freezes_the_scale_and_says_so():
    with Graph(scale_source='ranges') as graph:
        graph.publish('camera_info', info_message())

        def measured(stamp_s):
            scan = a_scan()
            scan.header.stamp = image_message(stamp_s=stamp_s).header.stamp
            if stamp_s < 103:
                graph.publish('ranges/scan', scan)

        depths = run(graph, seconds=7, before_each=measured)
        values = values_of(graph)
    assert depths[-1] == pytest.approx(depths[16], rel=0.01) and depths[-1] > 1.2 * SAID_M
    assert values['scale status'] == 'frozen' and 'apart from the image' in values['message']


def test_another_plane_is_not_taken_for_the_ground():
    looks_ahead = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    with Graph(scale_source='ground', camera_in_base=looks_ahead) as graph:
        graph.publish('camera_info', info_message())
        depths = run(graph, seconds=2)
        values = values_of(graph)
    assert depths == [pytest.approx(SAID_M)] * len(depths)
    assert values['scale status'] == 'waiting' and values['scale trouble']


def test_a_fixed_factor_applies_at_once_and_live():
    with Graph(scale_source='fixed', scale_fixed_factor=1.5) as graph:
        graph.publish('camera_info', info_message())
        assert run(graph, seconds=0.2) == [pytest.approx(1.5 * SAID_M)]
        graph.node.set_parameters([Parameter('scale_fixed_factor', value=0.5)])
        assert run(graph, seconds=0.2)[-1] == pytest.approx(0.5 * SAID_M)
        graph.node.set_parameters([Parameter('scale_source', value='off')])
        assert run(graph, seconds=0.2)[-1] == pytest.approx(SAID_M)


def test_a_wrong_pose_is_told_and_depth_goes_on():
    with Graph(scale_source='ground') as graph:
        graph.publish('camera_info', info_message())
        assert run(graph, seconds=0.4)[-1] == pytest.approx(SAID_M)
        trouble = values_of(graph)['scale trouble']
    assert 'expected a positive height' in trouble


def test_filters_can_be_switched_while_the_node_runs():
    with Graph() as graph:
        graph.publish('camera_info', info_message())
        images = graph.listen('depth/image_rect')

        def valid_share():
            count = len(images)
            graph.publish('image', image_message())
            wait_for(lambda: len(images) > count, 'a depth image')
            return float(np.isfinite(np.frombuffer(images[-1].data, '<f4')).mean())

        assert valid_share() == 1
        graph.node.set_parameters([Parameter('filter_border', value=[0.5, 0.0, 0.0, 0.0])])
        assert valid_share() == 0.5
        # A wall two metres ahead is seen at 45 degrees at the sides of this lens.
        graph.node.set_parameters([Parameter('filter_border', value=[0.0] * 4)])
        graph.node.set_parameters([Parameter('filter_min_grazing_deg', value=60.0)])
        assert valid_share() < 1


def test_clouds_keep_their_own_rate():
    with Graph(cloud_rate_hz=0.05) as graph:
        clouds, depths = graph.listen('points'), graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        for count in range(1, 11):
            graph.publish('image', image_message())
            wait_for(lambda n=count: len(depths) >= n, 'a depth image')
        assert len(clouds) == 1


def test_poses_by_tf_without_tf_are_refused_with_the_way_out(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)  # makes the import fail
    with Graph(pose_source='tf', active=False) as graph:
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        assert not graph.call(ChangeState, '/depth_node/change_state', request).success
    assert "set pose_source to 'parameters'" in capfd.readouterr().err


def test_poses_come_from_tf_where_it_is_installed(monkeypatch):
    down = Transform()
    down.translation.z = TRUE_M
    down.rotation.x, down.rotation.w = 1.0, 0.0  # z of the optical frame points down

    class Listener:
        def __init__(self, buffer, node):
            self.node = node

        def unregister(self):
            pass

    class Buffer:
        asked = []

        def lookup_transform(self, target, source, time):
            self.asked.append((target, source))
            return SimpleNamespace(transform=down)

    stand_in = SimpleNamespace(Buffer=Buffer, TransformListener=Listener)
    monkeypatch.setitem(sys.modules, 'tf2_ros', stand_in)
    with Graph(pose_source='tf', scale_source='ground', base_frame='base_footprint') as graph:
        graph.publish('camera_info', info_message())
        assert run(graph)[-1] == pytest.approx(TRUE_M, rel=0.03)
    assert set(Buffer.asked) == {('base_footprint', 'camera_optical_frame')}


def test_a_frame_that_tf_does_not_know_is_told_in_a_short_line(monkeypatch):
    class Buffer:
        def lookup_transform(self, target, source, time):
            raise LookupError(f'{source!r} passed to lookupTransform does not exist')

    stand_in = SimpleNamespace(Buffer=Buffer, TransformListener=lambda buffer, node: None)
    monkeypatch.setitem(sys.modules, 'tf2_ros', stand_in)
    tree = TransformTree(None)
    with pytest.raises(InputError, match="from 'laser' to 'camera': 'laser' passed to lookup"):
        tree.a_from_b('camera', 'laser')
    with pytest.raises(InputError) as error:
        tree.a_from_b('camera', 'F\n' * 50_000)
    line = str(error.value)
    assert line.isprintable() and len(line) < 600 and '(100000 characters)' in line


def test_a_quaternion_becomes_the_rotation_it_stands_for():
    quarter = Transform()
    quarter.translation.x = 3.0
    quarter.rotation.z = quarter.rotation.w = math.sqrt(0.5)
    np.testing.assert_allclose(matrix_of(quarter) @ (1, 0, 0, 1), (3, 1, 0, 1), atol=1e-12)


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (lambda c: setattr(c, 'fields', c.fields[:2]), 'expected x, y and z'),
        (lambda c: setattr(c, 'width', 10**6), 'expected unpadded rows'),
        (lambda c: setattr(c, 'point_step', 8), 'expected unpadded rows'),
    ],
)
def test_a_damaged_cloud_is_refused(damage, said):
    cloud = a_cloud()
    damage(cloud)
    with pytest.raises(InputError, match=said):
        cloud_to_xyz(cloud)


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('camera_in_base', [0.0] * 5, 'camera_in_base has 5 numbers'),
        ('camera_in_base', [0.0] * 5 + [math.nan], 'six finite numbers'),
        ('filter_median_px', 4, 'filter_median_px = 4'),
        ('filter_edge_ratio', 0.5, 'filter_edge_ratio = 0.5'),
        ('filter_border', [0.5, 0.5, 0.0, 0.0], 'filter_border = '),
        ('scale_source', 'laser', 'scale_source = '),
        ('base_frame', '', 'base_frame = '),
    ],
)
def test_a_refused_parameter_says_what_was_expected(name, value, said):
    with Graph(active=False) as graph:
        before = graph.node.get_parameter(name).value
        answer = graph.node.set_parameters([Parameter(name, value=value)])[0]
        assert not answer.successful and said in answer.reason
        assert graph.node.get_parameter(name).value == before
