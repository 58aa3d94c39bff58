"""config/nav2 and its neighbours: names that exist, topics that exist, numbers that agree."""

import importlib
import math
from pathlib import Path
import re
from types import SimpleNamespace

from consumers import collision_monitor, costmap, depthimage_to_laserscan, stvl
from consumers.costmap import Source
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'config'
SAMPLES = sorted([*(CONFIG / 'nav2').glob('*.yaml'), CONFIG / 'rtabmap.yaml',
                  CONFIG / 'depthimage_to_laserscan.yaml'])  # fmt: skip

# The parameters that each consumer declares; see the file for the place.
COSTMAP = (
    # navigation2 a3a9704 nav2_costmap_2d/src/costmap_2d_ros.cpp:394-433
    'update_frequency publish_frequency global_frame robot_base_frame rolling_window width height '
    'resolution robot_radius transform_tolerance plugins track_unknown_space'
)
SOURCE = (
    # navigation2 a3a9704 nav2_costmap_2d/plugins/obstacle_layer.cpp:135-176
    'topic data_type marking clearing min_obstacle_height max_obstacle_height obstacle_max_range '
    'obstacle_min_range raytrace_max_range raytrace_min_range sensor_frame inf_is_valid '
    'observation_persistence expected_update_rate'
)
VOXEL_LAYER = (
    # navigation2 a3a9704 nav2_costmap_2d/plugins/voxel_layer.cpp:70-86, obstacle_layer.cpp:89-99
    'plugin enabled footprint_clearing_enabled origin_z z_resolution z_voxels unknown_threshold '
    'mark_threshold min_obstacle_height max_obstacle_height combination_method publish_voxel_map '
    'observation_sources'
)
INFLATION_LAYER = (
    # navigation2 a3a9704 nav2_costmap_2d/plugins/inflation_layer.cpp:94-104
    'plugin enabled cost_scaling_factor inflation_radius'
)
STVL_LAYER = (
    # spatio_temporal_voxel_layer 403d9ed src/spatio_temporal_voxel_layer.cpp:87-127
    'plugin observation_sources transform_tolerance enabled publish_voxel_map voxel_size '
    'combination_method mark_threshold update_footprint_enabled track_unknown_space decay_model '
    'voxel_decay mapping_mode map_save_duration'
)
STVL_SOURCE = (
    # spatio_temporal_voxel_layer 403d9ed src/spatio_temporal_voxel_layer.cpp:178-202
    'topic sensor_frame observation_persistence expected_update_rate data_type '
    'min_obstacle_height max_obstacle_height inf_is_valid marking clearing obstacle_range min_z '
    'max_z vertical_fov_angle vertical_fov_padding horizontal_fov_angle decay_acceleration filter '
    'voxel_min_points clear_after_reading enabled model_type'
)
COLLISION_MONITOR = (
    # navigation2 a3a9704 nav2_collision_monitor/src/collision_monitor_node.cpp:101,266-283,308,359
    'enabled cmd_vel_in_topic cmd_vel_out_topic state_topic base_frame_id odom_frame_id '
    'transform_tolerance source_timeout base_shift_correction stop_pub_timeout polygons '
    'observation_sources'
)
POLYGON = (
    # navigation2 a3a9704 nav2_collision_monitor/src/polygon.cpp:421-482, circle.cpp:107
    'type radius action_type enabled min_points visualize time_before_collision '
    'simulation_time_step'
)
MONITOR_SOURCE = (
    # navigation2 a3a9704 nav2_collision_monitor/src/pointcloud.cpp:190-195, source.cpp:167-176
    'type topic enabled source_timeout min_height max_height min_range use_global_height'
)
LIFECYCLE_MANAGER = (
    # navigation2 a3a9704 nav2_lifecycle_manager/src/lifecycle_manager.cpp:43-51
    'node_names autostart bond_timeout service_timeout'
)
RTABMAP = (
    # rtabmap_ros aec4f91 rtabmap_slam/src/CoreWrapper.cpp:174,210, rtabmap_odom/src/
    # OdometryROS.cpp:133-137, nodelets/rgbd_odometry.cpp:95-107, rtabmap_sync/src/
    # CommonDataSubscriber.cpp:372-396,527; the rest by rtabmap_demos/launch
    'frame_id wait_for_transform approx_sync topic_queue_size sync_queue_size subscribe_depth '
    'subscribe_rgb odom_frame_id publish_tf Grid/RangeMax Grid/RangeMin Grid/MaxObstacleHeight '
    'Grid/MaxGroundHeight Grid/RayTracing Reg/Force3DoF Vis/MinDepth Vis/MaxDepth'
)
LASERSCAN = (
    # depthimage_to_laserscan 79b60bf src/DepthImageToLaserScanROS.cpp:65-72
    'scan_time range_min range_max scan_height output_frame'
)
REMAPPED = {
    # rtabmap_ros aec4f91 rtabmap_odom/src/nodelets/rgbd_odometry.cpp:367-368
    'rtabmap.yaml': {'rgb/image', 'depth/image'},
    # depthimage_to_laserscan 79b60bf src/DepthImageToLaserScanROS.cpp:52-61
    'depthimage_to_laserscan.yaml': {'depth', 'depth_camera_info', 'scan'},
}
OFFERED = {
    # depthimage_to_laserscan 79b60bf src/DepthImageToLaserScanROS.cpp:63
    'scan': 'depth/scan',
}
"""Topics of consumers, and what they are called instead: the node offers these names itself."""


def read(name):
    return yaml.safe_load((CONFIG / name).read_text(encoding='utf-8'))


def parameters(name, *nodes):
    """Parameters of a node in a file; the keys lead there."""
    part = read(name)
    for node in nodes:
        part = part[node]
    return part['ros__parameters']


def unknown(given, known):
    """Names that are not among the known ones; sections are left out."""
    return {n for n, value in given.items() if not isinstance(value, dict)} - set(known.split())


@pytest.fixture(scope='module')
def voxel():
    return parameters('nav2/costmap_voxel.yaml', 'local_costmap', 'local_costmap')


@pytest.fixture(scope='module')
def voxel_sources(voxel):
    return Source.all_of(voxel['voxel_layer'])


@pytest.fixture(scope='module')
def stvl_layer():
    return parameters('nav2/costmap_stvl.yaml', 'local_costmap', 'local_costmap')['stvl_layer']


@pytest.fixture(scope='module')
def topics():
    """What the node takes and offers."""
    pytest.importorskip('rclpy', reason='no ROS here')
    outputs = importlib.import_module('vlm_depth_ros.ros.outputs')
    return {topic.name for topic in outputs.TOPICS} | {'image', 'camera_info'}


@pytest.mark.parametrize('path', SAMPLES, ids=lambda path: path.name)
def test_sample_is_a_parameter_file_that_explains_itself(path):
    text = path.read_text(encoding='utf-8')
    nodes = yaml.safe_load(text)
    assert isinstance(nodes, dict) and nodes
    assert text.startswith('#') and text.count('#') >= 5
    assert 'ros__parameters' in text


def test_every_costmap_parameter_is_one_of_nav2(voxel):
    layer = voxel['voxel_layer']
    assert unknown(voxel, COSTMAP) == set()
    assert unknown(layer, VOXEL_LAYER) == set()
    assert unknown(voxel['inflation_layer'], INFLATION_LAYER) == set()
    for name in layer['observation_sources'].split():
        assert unknown(layer[name], SOURCE) == set()
    named = {n for n, value in layer.items() if isinstance(value, dict)}
    assert named == set(layer['observation_sources'].split())


def test_every_stvl_parameter_is_one_of_stvl(stvl_layer):
    costmap = parameters('nav2/costmap_stvl.yaml', 'local_costmap', 'local_costmap')
    assert unknown(costmap, COSTMAP) == set()
    assert unknown(stvl_layer, STVL_LAYER) == set()
    for name in stvl_layer['observation_sources'].split():
        assert unknown(stvl_layer[name], STVL_SOURCE) == set()


def test_every_collision_monitor_parameter_is_one_of_it():
    monitor = parameters('nav2/collision_monitor.yaml', 'collision_monitor')
    assert unknown(monitor, COLLISION_MONITOR) == set()
    for name in monitor['polygons']:
        assert unknown(monitor[name], POLYGON) == set()
    for name in monitor['observation_sources']:
        assert unknown(monitor[name], MONITOR_SOURCE) == set()


def test_every_other_parameter_is_one_of_its_node():
    manager = parameters('nav2/lifecycle_manager.yaml', 'lifecycle_manager_depth')
    assert unknown(manager, LIFECYCLE_MANAGER) == set()
    scan = parameters('depthimage_to_laserscan.yaml', 'depthimage_to_laserscan')
    assert unknown(scan, LASERSCAN) == set()
    for node in ('/**', 'rtabmap', 'rgbd_odometry'):
        assert unknown(parameters('rtabmap.yaml', node), RTABMAP) == set()


def test_rtabmaps_own_parameters_are_strings():
    for node in ('rtabmap', 'rgbd_odometry'):
        own = {n: v for n, v in parameters('rtabmap.yaml', node).items() if '/' in n}
        assert own and all(isinstance(value, str) for value in own.values())


@pytest.mark.parametrize('path', SAMPLES, ids=lambda path: path.name)
def test_what_a_sample_sets_for_our_node_is_valid(path):
    pytest.importorskip('rclpy', reason='no ROS here')
    params = importlib.import_module('vlm_depth_ros.ros.params')
    ours = yaml.safe_load(path.read_text(encoding='utf-8')).get('depth_node')
    if ours:
        params.NodeParams(**ours['ros__parameters'])


@pytest.mark.parametrize('path', SAMPLES, ids=lambda path: path.name)
def test_topics_exist(path, topics):
    def walk(part):
        for name, value in part.items():
            if isinstance(value, dict):
                yield from walk(value)
            elif name == 'topic':
                yield value

    text = path.read_text(encoding='utf-8')
    for topic in walk(yaml.safe_load(text)):
        # Relative, it would be looked for in the namespace of the costmap on older Nav2.
        assert topic.startswith('/') and topic[1:] in topics
    remaps = re.findall(r'-r ([\w/]+):=([\w/]+)', text)
    assert {given for given, _ in remaps} - {'__node'} == REMAPPED.get(path.name, set())
    taken = {name: to for name, to in remaps if name != '__node'}
    moved = {name: to for name, to in taken.items() if name in OFFERED}
    assert all(OFFERED[name] == to and to not in topics for name, to in moved.items())
    assert {to for name, to in taken.items() if name not in OFFERED} <= topics


def test_voxel_ranges_agree_from_near_to_far(voxel, voxel_sources):
    depth_node = parameters('nav2/costmap_voxel.yaml', 'depth_node')
    clearing_m, two_cells_m = depth_node['clearing_range_m'], 2 * voxel['resolution']
    for source in voxel_sources:
        assert source.obstacle_max_range < clearing_m - two_cells_m
        assert clearing_m <= source.raytrace_max_range
        assert source.obstacle_max_range <= voxel['width'] / 2
        ranges_m = (source.obstacle_max_range, source.raytrace_max_range)
        assert ranges_m == (costmap.OBSTACLE_MAX_RANGE_M, costmap.RAYTRACE_MAX_RANGE_M)
    assert clearing_m < depth_node['max_depth_m'] == costmap.MAX_DEPTH_M
    assert depth_node['cloud_rate_hz'] >= voxel['update_frequency']


def test_only_the_cloud_marks_and_all_heights_clear(voxel_sources):
    assert [s.topic for s in voxel_sources if s.marking] == ['/points']
    assert {s.topic for s in voxel_sources if s.clearing} == {'/points', '/points_clearing'}
    for source in voxel_sources:
        assert source.data_type == 'PointCloud2'
        assert source.marking != source.clearing
        # A point at the range, seen straight up or down.
        wide = source.max_obstacle_height >= 10 and source.min_obstacle_height <= -10
        assert wide == source.clearing


def test_the_camera_and_all_marks_fit_into_the_voxels(voxel):
    layer = voxel['voxel_layer']
    top_m = layer['origin_z'] + layer['z_voxels'] * layer['z_resolution']
    assert layer['z_voxels'] <= 16
    assert layer['points_mark']['max_obstacle_height'] <= min(top_m, layer['max_obstacle_height'])


def test_stvl_frustum_is_that_of_the_camera_in_its_comment(stvl_layer):
    clear, mark = stvl_layer['points_clear'], stvl_layer['points_mark']
    info = SimpleNamespace(
        p=[525.0, 0, 319.5, 0, 0, 525.0, 239.5, 0, 0, 0, 1, 0], width=640, height=480
    )
    frustum = stvl.frustum_of(info, mark['obstacle_range'], clear['min_z'])
    for name in ('vertical_fov_angle', 'horizontal_fov_angle'):
        assert getattr(frustum, name) - 0.01 < clear[name] <= getattr(frustum, name)
    assert frustum.max_z <= clear['max_z'] < frustum.max_z + 0.2


def test_stvl_frustum_holds_every_mark_and_nothing_beside_the_view():
    f, w, h, reach_m = 525.0, 640, 480, 3.5
    info = SimpleNamespace(p=[f, 0, 319.5, 0, 0, f, 239.5, 0, 0, 0, 1, 0], width=w, height=h)
    frustum = stvl.frustum_of(info, reach_m)
    v, u = np.mgrid[-20 : h + 20 : 7, -20 : w + 20 : 7]
    rays = np.stack([(u - 319.5) / f, (v - 239.5) / f, np.ones(u.shape)], -1).reshape(-1, 3)
    inside_view = ((u > 0) & (u < w - 1) & (v > 0) & (v < h - 1)).ravel()
    marks = rays * (0.99 * reach_m / np.linalg.norm(rays, axis=1, keepdims=True))
    np.testing.assert_array_equal(stvl.is_inside(marks, frustum), inside_view)
    # The angle of the image, as one would first write it, clears beside the view.
    naive = frustum._replace(horizontal_fov_angle=2 * math.atan(w / 2 / f))
    assert stvl.is_inside(marks, naive)[~inside_view].any()
    # And max_z equal to the marking range misses the far marks in the middle.
    short = frustum._replace(max_z=reach_m)
    assert not stvl.is_inside(marks, short)[inside_view].all()


def test_stvl_forgets_what_is_gone_within_2_s(stvl_layer):
    costmap = parameters('nav2/costmap_stvl.yaml', 'local_costmap', 'local_costmap')
    decay_s, rate_hz = stvl_layer['voxel_decay'], costmap['update_frequency']
    acceleration = stvl_layer['points_clear']['decay_acceleration']
    assert stvl_layer['decay_model'] == 0
    assert stvl.seconds_to_clear(decay_s, acceleration, rate_hz) <= 2
    assert stvl.seconds_to_clear(decay_s, 0.0, rate_hz) > 10


def test_stvl_clearing_source_keeps_no_clouds(stvl_layer):
    """measurement_buffer.cpp:135-138,220-222: with persistence it reads a cloud it never made."""
    clear = stvl_layer['points_clear']
    assert (clear['marking'], clear['clearing']) == (False, True)
    assert clear['observation_persistence'] == 0.0
    assert clear['topic'] == stvl_layer['points_mark']['topic']


def test_stvl_keeps_no_reading_of_a_node_that_died(stvl_layer):
    """RemoveStaleObservations: without persistence the newest one stays until it is reset."""
    for name in stvl_layer['observation_sources'].split():
        assert stvl_layer[name]['clear_after_reading'] is True


def test_a_costmap_notices_that_the_node_is_gone(voxel, stvl_layer):
    """observation_buffer.cpp isCurrent: a period in seconds, for all that its name says.

    Of the sources that mark: what STVL's clearing source hears never counts as an update
    (measurement_buffer.cpp:135-138), so it would be late for ever.
    """
    for file, layer in (('voxel', voxel['voxel_layer']), ('stvl', stvl_layer)):
        sources = [layer[name] for name in layer['observation_sources'].split()]
        late_s = {s['expected_update_rate'] for s in sources if 'expected_update_rate' in s}
        assert late_s == {1.0}
        assert all(s['marking'] == ('expected_update_rate' in s) for s in sources)
        depth_node = parameters(f'nav2/costmap_{file}.yaml', 'depth_node')
        assert late_s.pop() > 3 / depth_node['cloud_rate_hz']


def test_all_samples_see_the_same_heights_and_marks(voxel, stvl_layer):
    mark = voxel['voxel_layer']['points_mark']
    monitor = parameters('nav2/collision_monitor.yaml', 'collision_monitor')['points']
    rtabmap = parameters('rtabmap.yaml', 'rtabmap')
    low_high = (mark['min_obstacle_height'], mark['max_obstacle_height'])
    stvl_mark = stvl_layer['points_mark']
    assert (stvl_mark['min_obstacle_height'], stvl_mark['max_obstacle_height']) == low_high
    assert (monitor['min_height'], monitor['max_height']) == low_high
    ground, obstacle = rtabmap['Grid/MaxGroundHeight'], rtabmap['Grid/MaxObstacleHeight']
    assert (float(ground), float(obstacle)) == low_high
    assert float(rtabmap['Grid/RangeMax']) == mark['obstacle_max_range']
    assert stvl_mark['obstacle_range'] == mark['obstacle_max_range']


def test_free_rays_of_the_scan_end_beyond_the_marks(voxel):
    scan = parameters('depthimage_to_laserscan.yaml', 'depthimage_to_laserscan')
    mark = voxel['voxel_layer']['points_mark']
    assert mark['obstacle_max_range'] < scan['range_max'] < mark['raytrace_max_range']
    assert scan['output_frame'] and not scan['output_frame'].endswith('optical_frame')
    assert (scan['range_min'], scan['range_max']) == depthimage_to_laserscan.RANGE_M
    assert scan['scan_height'] == depthimage_to_laserscan.SCAN_HEIGHT


def test_collision_monitor_takes_a_cloud_of_one_inference_ago():
    monitor = parameters('nav2/collision_monitor.yaml', 'collision_monitor')
    assert monitor['source_timeout'] == collision_monitor.SOURCE_TIMEOUT_S
    assert monitor['points']['type'] == 'pointcloud'
    assert 'use_global_height' not in monitor['points']  # it needs a field "height"


def test_one_of_node_and_manager_starts_and_there_is_no_bond():
    manager = parameters('nav2/lifecycle_manager.yaml', 'lifecycle_manager_depth')
    node = parameters('nav2/lifecycle_manager.yaml', 'depth_node')
    assert (manager['autostart'], node['autostart']) == (True, False)
    assert manager['bond_timeout'] == 0.0
    assert manager['node_names'] == ['depth_node']


def test_ranges_in_the_text_are_those_of_the_samples(voxel):
    mark = voxel['voxel_layer']['points_mark']
    text = (ROOT / 'docs' / 'nav2.md').read_text(encoding='utf-8')
    depth_node = parameters('nav2/costmap_voxel.yaml', 'depth_node')
    said = dict(re.findall(r'^\| `([\w.]+)` \| ([\d.]+) m \|', text, re.MULTILINE))
    assert {name: float(value) for name, value in said.items()} == {
        'obstacle_max_range': mark['obstacle_max_range'],
        'clearing_range_m': depth_node['clearing_range_m'],
        'raytrace_max_range': mark['raytrace_max_range'],
        'max_depth_m': depth_node['max_depth_m'],
        'min_obstacle_height': mark['min_obstacle_height'],
        'max_obstacle_height': mark['max_obstacle_height'],
    }
