"""What a navigation stack reads beside depth: free space, scan, compressed depth, rgb."""

import math

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, info_message, wait_for  # noqa: E402
from sensor_msgs.msg import (  # noqa: E402
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
)
from vlm_depth_ros.core.compressed_depth import decompress_depth  # noqa: E402

DEPTH_M = 2.0
"""Everything is a wall so far ahead; the camera is 0.4 m above the ground."""
AHEAD = [0.1, 0.0, 0.4, 0.0, 0.0, 0.0]


def one(graph, topic, kind=None, **image):
    """The newest message on a topic after one more frame."""
    got = graph.listen(topic, kind)
    graph.publish('image', image_message(**image))
    wait_for(lambda: got, f'a message on {topic}')
    return got[-1]


def points_of(cloud) -> np.ndarray:
    """(N, 4) of a cloud."""
    return np.frombuffer(cloud.data, '<f4').reshape(-1, 4)


@pytest.fixture
def graph():
    with Graph(camera_in_base=AHEAD) as graph:
        graph.publish('camera_info', info_message())
        yield graph


def test_free_space_is_a_point_on_each_ray_that_sees_farther(graph):
    graph.node.set_parameters([Parameter('clearing_range_m', value=1.5)])
    cloud = one(graph, 'points_clearing', PointCloud2)
    xyz = points_of(cloud)[:, :3]
    assert cloud.is_dense and cloud.width == 12 * 16  # every fourth pixel and row
    np.testing.assert_allclose(np.linalg.norm(xyz, axis=1), 1.5, rtol=1e-5)
    assert cloud.header.frame_id == 'camera_optical_frame'


def test_what_is_nearer_than_the_clearing_range_clears_nothing(graph):
    assert one(graph, 'points_clearing', PointCloud2).width == 0


def test_a_scan_is_about_the_base_and_in_its_frame(graph):
    # 64 columns are wider apart than the bins of half a degree.
    graph.node.set_parameters([Parameter('scan_angle_increment_rad', value=0.1)])
    scan = one(graph, 'scan', LaserScan, stamp_s=77.25)
    assert scan.header.frame_id == 'base_link'
    assert scan.header.stamp.sec == 77
    ahead = round(-scan.angle_min / scan.angle_increment)
    # The wall is 2 m from the camera, which sits 0.1 m before the base.
    assert scan.ranges[ahead] == pytest.approx(DEPTH_M + AHEAD[0], rel=0.01)
    assert len(scan.ranges) == round((scan.angle_max - scan.angle_min) / scan.angle_increment) + 1


def test_a_scan_names_the_frame_in_which_it_was_computed():
    """The name changes while the network runs: by tf that would be another place."""
    with Graph(latency_s=0.3, camera_in_base=AHEAD, scan_angle_increment_rad=0.1) as graph:
        graph.publish('camera_info', info_message())
        scans = graph.listen('scan', LaserScan)
        graph.publish('image', image_message())
        wait_for(lambda: graph.calls, 'the network')
        assert graph.node.set_parameters([Parameter('base_frame', value='other')])[0].successful
        assert not scans
        wait_for(lambda: scans, 'a scan')
    assert scans[0].header.frame_id == 'base_link'


def test_nobody_gets_a_scan_before_the_place_of_the_camera_is_said(capfd):
    """Who reads /scan wants the lidar; and six zeros are no pose but a default."""
    with Graph(scan_angle_increment_rad=0.1) as graph:
        graph.publish('camera_info', info_message())
        scans = graph.listen('scan', LaserScan)
        for _ in range(3):
            one(graph, 'depth/image_rect')
        assert not scans
        assert capfd.readouterr().err.count('Set camera_in_base to the pose') == 1
        graph.node.set_parameters([Parameter('camera_in_base', value=AHEAD)])
        wait_for(lambda: graph.publish('image', image_message()) or scans, 'a scan')
    assert 'Another node' not in capfd.readouterr().err


def test_a_lidar_on_the_topic_of_the_scan_is_told_once(graph, capfd):
    graph.node.set_parameters([Parameter('scan_angle_increment_rad', value=0.1)])
    one(graph, 'scan', LaserScan)
    graph.tester.create_publisher(LaserScan, 'scan', 1)
    wait_for(lambda: graph.node.count_publishers('scan') == 2, 'the other publisher')
    for _ in range(3):
        one(graph, 'scan', LaserScan)
    told = capfd.readouterr().err
    assert told.count('Another node publishes /scan too') == 1 and '-r scan:=depth/scan' in told


def test_space_behind_the_range_of_depth_is_not_called_free(graph, capfd):
    """A wall at 3.5 m, depth up to 3 m, clearing up to 4 m: nobody has looked so far."""
    graph.model.depth_m = 3.5
    values = {'max_depth_m': 3.0, 'clearing_range_m': 4.0, 'scan_angle_increment_rad': 0.1}
    graph.node.set_parameters([Parameter(name, value=value) for name, value in values.items()])
    clouds = graph.listen('points_clearing', PointCloud2)
    scan = one(graph, 'scan', LaserScan)
    wait_for(lambda: clouds, 'its free space')
    assert clouds[-1].width == 0 and np.isnan(scan.ranges).all()
    told = capfd.readouterr().err
    assert told.count('clearing_range_m = 4 lies beyond the range of depth, 3 m') == 1
    assert told.count('scan_range_max_m = 5 lies beyond the range of depth, 3 m') == 1
    graph.node.set_parameters([Parameter('max_depth_m', value=8.0)])
    assert np.isfinite(one(graph, 'scan', LaserScan).ranges).any()


def test_a_picture_without_depth_has_no_cloud_but_the_open_has_an_empty_one(graph, capfd):
    """STVL clears its frustum by the header of any cloud; a collision monitor goes on."""
    clouds = graph.listen('points', PointCloud2)
    graph.model.depth_m = math.nan
    one(graph, 'depth/image_rect')
    assert not clouds and 'No points: the whole picture is unknown' in capfd.readouterr().err
    graph.model.depth_m = 500.0
    wait_for(lambda: graph.publish('image', image_message()) or clouds, 'a cloud')
    assert clouds[-1].width == 0


def test_a_scan_that_cannot_see_its_band_says_so_and_depth_goes_on(graph, capfd):
    graph.node.set_parameters([Parameter('scan_max_height_m', value=60.0)])
    graph.node.set_parameters([Parameter('scan_min_height_m', value=50.0)])
    scans = graph.listen('scan', LaserScan)
    assert one(graph, 'depth/image_rect').width == 64
    assert not scans and 'No scan: the camera sees nothing between 50' in capfd.readouterr().err


@pytest.mark.parametrize('form', ['png', 'rvl'])
def test_compressed_depth_decodes_to_the_depth_image(graph, form):
    graph.node.set_parameters([Parameter('compressed_format', value=form)])
    message = one(graph, 'depth/image_rect/compressedDepth', CompressedImage)
    assert message.format == f'32FC1; compressedDepth {form}'
    depth_m = decompress_depth(message.format, message.data)
    assert depth_m.shape == (48, 64)
    np.testing.assert_allclose(depth_m, DEPTH_M, rtol=1e-3)


def test_depth_that_compression_loses_is_told(graph, capfd):
    graph.node.set_parameters([Parameter('compressed_depth_max_m', value=1.5)])
    message = one(graph, 'depth/image_rect/compressedDepth', CompressedImage)
    assert np.isnan(decompress_depth(message.format, message.data)).all()
    assert 'compressedDepth loses 3072 pixels' in capfd.readouterr().err


def test_the_image_at_the_size_of_depth_needs_no_network(graph):
    graph.node.set_parameters([Parameter('depth_divisor', value=2)])
    infos = graph.listen('rgb/camera_info', CameraInfo)
    image = one(graph, 'rgb/image_rect', Image)
    wait_for(lambda: infos, 'its camera_info')
    assert (image.encoding, image.width, image.height, image.step) == ('rgb8', 32, 24, 96)
    assert (infos[-1].width, infos[-1].height, infos[-1].k[0]) == (32, 24, 32.0)
    assert infos[-1].header == image.header
    assert graph.calls == 0


def test_a_crop_box_in_the_base_keeps_what_is_inside(graph):
    box = {'cloud_crop_min_m': [-1000.0, -1000.0, 0.1], 'cloud_crop_max_m': [1000.0, 0.0, 0.9]}
    graph.node.set_parameters([Parameter(name, value=value) for name, value in box.items()])
    points = points_of(one(graph, 'points', PointCloud2))
    # Optical to base: z up is -y of the optical frame, 0.4 m up; left is -x.
    up, left = 0.4 - points[:, 1], -points[:, 0]
    assert len(points) and up.min() >= 0.1 and up.max() <= 0.9 and left.max() <= 0


def test_voxels_thin_a_cloud(graph):
    dense = one(graph, 'points', PointCloud2).width
    graph.node.set_parameters([Parameter('cloud_voxel_m', value=0.5)])
    clouds = graph.listen('points', PointCloud2)
    graph.publish('image', image_message())
    wait_for(lambda: clouds, 'a thinned cloud')
    assert 0 < clouds[-1].width < dense / 10


def test_voxels_of_an_organised_cloud_are_refused(graph):
    graph.node.set_parameters([Parameter('cloud_voxel_m', value=0.1)])
    answer = graph.node.set_parameters([Parameter('cloud_organized', value=True)])[0]
    assert not answer.successful and 'organised' in answer.reason


def test_without_a_camera_there_is_neither_scan_nor_free_space():
    with Graph(camera_in_base=AHEAD) as graph:
        scans = graph.listen('scan', LaserScan)
        free = graph.listen('points_clearing', PointCloud2)
        assert math.isclose(
            np.nanmedian(np.frombuffer(one(graph, 'depth/image_rect').data, '<f4')), DEPTH_M
        )
        assert not scans and not free
