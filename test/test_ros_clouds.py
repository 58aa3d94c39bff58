"""Clouds of other sensors, as anybody may send them: an array, or one clear line."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, image_message, info_message, stamped, wait_for  # noqa: E402
from sensor_msgs.msg import PointCloud2, PointField  # noqa: E402
from vlm_depth_ros.core.errors import InputError  # noqa: E402
from vlm_depth_ros.ros.clouds import cloud_to_xyz, MOST_POINTS  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402

MOST_UINT32 = 2**32 - 1


def a_cloud(points=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), **changes) -> PointCloud2:
    """Of float32 x, y and z."""
    data = np.asarray(points, '<f4').reshape(-1, 3)
    cloud = PointCloud2(height=1, width=len(data), point_step=12, row_step=12 * len(data))
    cloud.fields = [
        PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, n in enumerate('xyz')
    ]
    cloud.data = byte_array(data.reshape(-1).view(np.uint8))
    for name, value in changes.items():
        setattr(cloud, name, value)
    return cloud


def test_a_cloud_is_its_points():
    np.testing.assert_array_equal(cloud_to_xyz(a_cloud()), [(1, 2, 3), (4, 5, 6)])
    many = np.arange(3 * 3 * MOST_POINTS).reshape(-1, 3)
    np.testing.assert_array_equal(cloud_to_xyz(a_cloud(many)), many[::3])


def test_a_signalling_nan_is_missing_like_any_other():
    cloud = a_cloud()
    cloud.data = byte_array(np.array([0x7F800001, 0, 0, 0, 0, 0], '<u4').view(np.uint8))
    with np.errstate(all='raise'):
        np.testing.assert_array_equal(cloud_to_xyz(cloud), [(np.nan, 0, 0), (0, 0, 0)])


@pytest.mark.parametrize('changes', [
    {},
    {'point_step': MOST_UINT32},
    {'point_step': MOST_UINT32, 'row_step': MOST_UINT32},
    {'point_step': 0},
    {'height': 0, 'width': MOST_UINT32, 'point_step': MOST_UINT32},
    {'fields': []},
], ids=str)  # fmt: skip
def test_a_cloud_without_points_has_none_whatever_else_it_says(changes):
    found = cloud_to_xyz(a_cloud(np.empty((0, 3)), **changes))
    assert found.shape == (0, 3) and found.dtype == float


def test_whatever_a_header_claims_is_an_array_or_one_line():
    """Sizes, steps, offsets, types and counts at random, mostly near their bounds."""
    random = np.random.default_rng(0)
    numbers = [0, 1, 2, 4, 8, 12, 16, 24, 2**16, 2**31 - 1, 2**31, MOST_UINT32 - 3, MOST_UINT32]

    def number():
        return int(random.choice(numbers))

    answered = 0
    for _ in range(3000):
        cloud = a_cloud(np.ones((random.integers(0, 5), 3)))
        for name in ('height', 'width', 'point_step', 'row_step'):
            if random.random() < 0.3:
                setattr(cloud, name, number())
        for field in cloud.fields:
            if random.random() < 0.2:
                field.offset, field.count = number(), number()
            if random.random() < 0.1:
                field.datatype = int(random.integers(0, 256))
        if random.random() < 0.3:
            cloud.row_step = cloud.width * cloud.point_step % 2**32
        cloud.is_bigendian = bool(random.integers(2))
        try:
            found = cloud_to_xyz(cloud)
        except InputError as err:
            assert '\n' not in str(err)
            continue
        assert found.shape[1] == 3 and len(found) <= MOST_POINTS
        answered += 1
    assert answered > 300


def test_an_absurd_cloud_does_not_cost_the_frame():
    with Graph(scale_source='ranges') as graph:
        depths = graph.listen('depth/image_rect')
        graph.publish('camera_info', info_message())
        empty = a_cloud(np.empty((0, 3)), point_step=MOST_UINT32)
        graph.publish('ranges/points', stamped(empty, frame_id='laser'))
        wait_for(lambda: graph.node._surroundings._newest is not None, 'the cloud')
        graph.publish('image', image_message())
        wait_for(lambda: depths, 'depth')
        assert graph.node.statistics[0].failed == 0
