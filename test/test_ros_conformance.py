"""Live messages of the node, put before the rules of those who read them; and each rule bites.

A rule is written anew from its consumer's source, and says where it stands there
(`consumers.RULES`). One planted violation for each of them shows that it would notice.
"""

import array
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
pytest.importorskip('cv2', reason='the node needs OpenCV')
import consumers  # noqa: E402, F401  registers the rules
from consumers.costmap import ObstacleLayer, VoxelLayer  # noqa: E402
from consumers.rules import depth_of, Live, RULES, xyz_of  # noqa: E402
from consumers.scene import Box, depth_of_scene, Robot  # noqa: E402
from nav2_sample import CHAIR, DEPTH_NODE, FAR_WALL, Nav2, ROBOT  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, info_message, StandInModel, wait_for  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.core.geometry import CameraIntrinsics  # noqa: E402
from vlm_depth_ros.core.heads.base import HeadOutput  # noqa: E402
from vlm_depth_ros.ros.outputs import TOPICS  # noqa: E402

SIZE_PX = {'height': 96, 'width': 128}
MAX_DEPTH_M = 8.0
CAMERA_IN_BASE = [0.15, 0.0, 0.4, 0.0, 0.1, 0.0]
RECORDED = {
    # Output of the node: field of `Live`.
    'depth/image_rect': 'depth',
    'depth/camera_info': 'depth_info',
    'depth/confidence': 'confidence',
    'depth/image_rect/compressedDepth': 'compressed',
    'rgb/image_rect': 'rgb',
    'rgb/camera_info': 'rgb_info',
    'points': 'points',
    'points_clearing': 'clearing',
    'scan': 'scan',
}


class SceneModel(StandInModel):
    """From left to right: no depth, a slanted wall from 1.5 m to 3 m, and the open."""

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """Answer it, with a confidence."""
        depth_m = super().forward(image).depth_m.clone()
        depth_m[:] = torch.linspace(1.5, 3.0, 32)
        depth_m[..., :9], depth_m[..., 20:] = 0.0, 20.0
        return HeadOutput(depth_m, confidence=torch.full_like(depth_m, 0.75))


def take(graph: Graph, topic: str, got: list, image: object) -> object:
    """The message that answers `image`."""

    def answers() -> list:
        return [m for m in got if m.header.stamp == image.header.stamp]

    wait_for(answers, topic)
    return answers()[0]


@pytest.fixture(scope='module')
def live():
    """One frame of the real node over real DDS; the clouds compact and organised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('ros_graph.StandInModel', SceneModel)
        graph = Graph(
            max_depth_m=MAX_DEPTH_M,
            cloud_stride=1,
            camera_in_base=CAMERA_IN_BASE,
            clearing_range_m=4.0,
        )
    with graph:
        kinds = {topic.name: topic.kind for topic in TOPICS if topic.name in RECORDED}
        got = {name: graph.listen(name, kind) for name, kind in kinds.items()}
        graph.publish('camera_info', info_message(**SIZE_PX))
        image = image_message(**SIZE_PX)
        graph.publish('image', image)
        first = {topic: take(graph, topic, messages, image) for topic, messages in got.items()}
        received_s = time.time()
        changes = {'cloud_organized': True, 'compressed_format': 'rvl'}
        graph.node.set_parameters([Parameter(k, value=v) for k, v in changes.items()])
        again = image_message(**SIZE_PX)
        graph.publish('image', again)
        compressed = 'depth/image_rect/compressedDepth'
        organized = take(graph, 'points', got['points'], again)
        compressed_rvl = take(graph, compressed, got[compressed], again)
    return Live(
        image=image,
        organized=organized,
        compressed_rvl=compressed_rvl,
        topics=tuple(topic.name for topic in TOPICS),
        received_s=received_s,
        **{RECORDED[name]: message for name, message in first.items()},
    )


# What is planted.


def set_depth(live: Live, change: Callable[[np.ndarray], None]) -> None:
    values = depth_of(live.depth).copy()
    change(values)
    live.depth.data = array.array('B', values.tobytes())


def set_points(cloud: object, change: Callable[[np.ndarray], None]) -> None:
    points = np.frombuffer(cloud.data, '<f4').reshape(-1, cloud.point_step // 4).copy()
    change(points[:, :3])
    cloud.data = array.array('B', points.tobytes())


def unknown_as(value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(np.isnan(values), value)


def clamped(values: np.ndarray) -> None:
    values[np.isposinf(values)] = 4.0


def other_encoding(live: Live) -> None:
    live.depth.encoding = '64FC1'


def colour_picture(live: Live) -> None:
    live.depth.encoding = 'bgr8'


def millimetres_as_mono16(live: Live) -> None:
    live.depth.encoding = 'mono16'


def raw_bayer(live: Live) -> None:
    live.rgb.encoding = 'bayer_gbrg8'


def padded_rows(live: Live) -> None:
    live.depth.step += 2


def later_depth(live: Live) -> None:
    live.depth.header.stamp.nanosec = (live.depth.header.stamp.nanosec + 1) % 10**9


def stamped_on_sending(live: Live) -> None:
    live.points.header.stamp.sec += 1


def stale(live: Live) -> None:
    live.points.header.stamp.sec -= 5


def later_info(live: Live) -> None:
    live.depth_info.header.stamp.sec += 1


def later_rgb_info(live: Live) -> None:
    live.rgb_info.header.stamp.nanosec = (live.rgb_info.header.stamp.nanosec + 1) % 10**9


def own_frame(live: Live) -> None:
    live.depth.header.frame_id = 'depth_link'


def own_info_frame(live: Live) -> None:
    live.depth_info.header.frame_id = 'depth_link'


def empty_frame(live: Live) -> None:
    live.points.header.frame_id = ''


def unscaled_info(live: Live) -> None:
    live.depth_info.p = live.depth_info.p * 2


def size_of_the_sensor(live: Live) -> None:
    live.depth_info.width *= 2


def half_size(live: Live) -> None:
    live.depth.width //= 2


def still_distorted(live: Live) -> None:
    live.depth_info.d[0] = -0.3


def pincushion(live: Live) -> None:
    live.depth_info.d[0] = 0.5


def principal_point_at_the_edge(live: Live) -> None:
    live.depth_info.p[6] = 3.0


def zeros(live: Live) -> None:
    set_depth(live, unknown_as(0.0))


def unknown_is_too_near(live: Live) -> None:
    set_depth(live, unknown_as(-np.inf))


def saturated(live: Live) -> None:
    set_depth(live, clamped)


def points_of_zeros(live: Live) -> None:
    set_points(live.organized, unknown_as(0.0))


def wall_at_the_maximum(live: Live) -> None:
    set_points(live.organized, unknown_as(4.0))


def nan_in_the_compact_cloud(live: Live) -> None:
    set_points(live.points, lambda xyz: xyz.__setitem__(0, np.nan))


def falsely_dense(live: Live) -> None:
    live.organized.is_dense = True


def body_frame(live: Live) -> None:
    set_points(live.points, lambda xyz: xyz.__setitem__(slice(None), xyz[:, [2, 0, 1]]))


def doubles(live: Live) -> None:
    live.points.fields[2].datatype = 8


def nameless_z(live: Live) -> None:
    live.points.fields[2].name = 'depth'


def padded_cloud(live: Live) -> None:
    live.points.row_step += 16


def clearing_at_the_marks(live: Live) -> None:
    set_points(live.clearing, lambda xyz: xyz.__imul__(0.8))


def clearing_beyond_depth(live: Live) -> None:
    set_points(live.clearing, lambda xyz: xyz.__imul__(1.1 * MAX_DEPTH_M / xyz[:, 2].min()))


def clearing_from_the_base(live: Live) -> None:
    live.clearing.header.frame_id = 'base_link'


def short_scan(live: Live) -> None:
    live.scan.range_max = 3.0


def scan_of_fewer_bins(live: Live) -> None:
    live.scan.ranges = live.scan.ranges[: len(live.scan.ranges) // 2]


def scan_of_zeros(live: Live) -> None:
    live.scan.ranges[0] = 0.0


def of_another_plugin(live: Live) -> None:
    live.compressed.format = '32FC1; zstd'


def header_of_another_range(live: Live) -> None:
    live.compressed.data[4:8] = array.array('B', np.float32(20000.0).tobytes())


def rvl_of_words_the_other_way(live: Live) -> None:
    words = np.frombuffer(live.compressed_rvl.data, np.uint8)[20:].reshape(-1, 4)[:, ::-1]
    live.compressed_rvl.data[20:] = array.array('B', words.tobytes())


def depth_where_there_is_none(live: Live) -> None:
    set_depth(live, lambda values: values.__setitem__((slice(None), slice(50, 70)), np.nan))


def no_info_topic(live: Live) -> Live:
    return replace(live, topics=('depth', 'depth/info', 'points'))


PLANTED = {
    'depth_image_proc.camera_info_lies_beside_the_image': no_info_topic,
    'depth_image_proc.camera_info_has_the_stamp_of_the_image': later_info,
    'depth_image_proc.xyz_knows_the_encoding': other_encoding,
    'depth_image_proc.rows_are_read_as_they_lie': padded_rows,
    'depth_image_proc.every_finite_depth_is_a_depth': zeros,
    'depth_image_proc.xyz_gives_the_same_cloud': unscaled_info,
    'depth_image_proc.camera_info_has_no_second_window': size_of_the_sensor,
    'depth_image_proc.xyzrgb_has_two_images_of_one_size': half_size,
    'depth_image_proc.xyzrgb_has_two_images_of_one_frame': own_frame,
    'depth_image_proc.xyzrgb_pairs_the_images_exactly': later_depth,
    'depth_image_proc.xyzrgb_knows_both_encodings': raw_bayer,
    'depth_image_proc.register_knows_the_encoding': millimetres_as_mono16,
    'depth_image_proc.register_finds_the_frames': own_info_frame,
    'depth_image_proc.register_into_the_own_camera_changes_nothing': unscaled_info,
    'depthimage_to_laserscan.encoding_is_known': colour_picture,
    'depthimage_to_laserscan.corner_rays_are_those_of_the_depth_image': still_distorted,
    'depthimage_to_laserscan.every_column_has_its_ray': pincushion,
    'depthimage_to_laserscan.band_of_rows_lies_in_the_image': principal_point_at_the_edge,
    'depthimage_to_laserscan.free_space_is_infinity_in_the_scan': saturated,
    'depthimage_to_laserscan.unknown_is_no_range': unknown_is_too_near,
    'costmap.cloud_has_x_y_z': doubles,
    'costmap.points_lie_back_to_back': padded_cloud,
    'costmap.every_point_is_worth_its_transport': nan_in_the_compact_cloud,
    'costmap.frame_is_in_the_transform_tree': empty_frame,
    'costmap.stamp_is_that_of_the_image': stamped_on_sending,
    'costmap.no_point_marks_the_robot_itself': points_of_zeros,
    'costmap.nothing_is_marked_where_depth_is_out_of_range': wall_at_the_maximum,
    'costmap.clearing_points_end_between_marks_and_rays': clearing_at_the_marks,
    'costmap.what_is_cleared_was_looked_through': clearing_beyond_depth,
    'costmap.clearing_points_start_in_the_camera': clearing_from_the_base,
    'costmap.free_rays_of_the_scan_end_beyond_the_marks': short_scan,
    'costmap.scan_is_one_moment_of_even_angles': scan_of_fewer_bins,
    'costmap.ranges_of_the_scan_are_within_its_limits': scan_of_zeros,
    'compressed_depth.format_is_known': of_another_plugin,
    'compressed_depth.depth_comes_back_within_a_step': header_of_another_range,
    'compressed_depth.what_is_no_depth_comes_back_as_unknown': depth_where_there_is_none,
    'compressed_depth.rvl_holds_what_png_holds': rvl_of_words_the_other_way,
    'stvl.cloud_has_x_y_z': nameless_z,
    'stvl.is_dense_is_true': falsely_dense,
    'stvl.camera_looks_along_z_of_its_frame': body_frame,
    'collision_monitor.cloud_has_x_y_z': nameless_z,
    'collision_monitor.stamp_is_the_time_of_the_image': stale,
    'collision_monitor.no_point_sits_in_the_sensor': points_of_zeros,
    'rtabmap.sizes_have_one_ratio': half_size,
    'rtabmap.depth_encoding_is_known': colour_picture,
    'rtabmap.colour_encoding_is_known': raw_bayer,
    'rtabmap.depth_has_the_stamp_of_the_image': later_depth,
    'rtabmap.camera_info_has_the_stamp_of_the_image': later_rgb_info,
    'rtabmap.depth_has_the_frame_of_the_image': own_frame,
}


def test_the_frame_has_all_that_depth_can_be(live):
    depth_m = depth_of(live.depth)
    assert (np.isnan(depth_m).any(), np.isposinf(depth_m).any()) == (True, True)
    assert 1.4 < np.nanmin(depth_m) < 2 and depth_m[np.isfinite(depth_m)].max() <= MAX_DEPTH_M
    assert (live.points.height, live.organized.height) == (1, SIZE_PX['height'])
    assert len(xyz_of(live.points)) == np.isfinite(depth_m).sum()


def test_confidence_belongs_to_the_depth(live):
    confidence, depth_m = depth_of(live.confidence), depth_of(live.depth)
    assert live.confidence.header == live.depth.header
    assert confidence.shape == depth_m.shape
    np.testing.assert_array_equal(np.isnan(confidence), np.isnan(depth_m))
    known = confidence[~np.isnan(confidence)]
    assert ((known >= 0) & (known <= 1)).all()


@pytest.mark.parametrize('name', RULES)
def test_consumer_takes_what_the_node_publishes(live, name):
    assert RULES[name].check(live) is None, RULES[name].source


@pytest.mark.parametrize('name', RULES)
def test_consumer_would_notice(live, name):
    messages = deepcopy(live)
    messages = PLANTED[name](messages) or messages
    complaint = RULES[name].check(messages)
    assert complaint and '\n' not in complaint, RULES[name].source


def test_every_rule_has_one_violation_and_a_source():
    assert set(PLANTED) == set(RULES)
    assert all(any(c.isdigit() for c in rule.source) for rule in RULES.values())


def test_each_form_of_compressed_depth_is_put_before_the_rules(live):
    forms = live.compressed.format, live.compressed_rvl.format
    assert [form.split()[-1] for form in forms] == ['png', 'rvl']
    swapped = replace(live, compressed=live.compressed_rvl, compressed_rvl=live.compressed)
    assert RULES['compressed_depth.format_is_known'].check(swapped)
    for form in ('compressed', 'compressed_rvl'):
        messages = deepcopy(live)
        getattr(messages, form).data[4:8] = array.array('B', np.float32(20000.0).tobytes())
        assert RULES['compressed_depth.depth_comes_back_within_a_step'].check(messages), form


# Live clouds on Nav2's grid: the node with the shipped numbers, and exact scenes for a network.

CAMERA_HW = (480, 640)
CAMERA = CameraIntrinsics(640.0, 640.0, 319.5, 239.5, 640, 480)
NETWORK = Robot(ROBOT.camera_in_base, CAMERA.resized((120, 160)))
BUMPER = Box((0.40, -1.0, 0.15), (0.45, 1.0, 0.32))
"""Of the robot itself, before its camera: the lowest 29 % of the image."""


class BoxesModel(StandInModel):
    """Sees a floor and boxes from `ROBOT`, exactly."""

    boxes: tuple[Box, ...] = ()

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """Answer their depth."""
        super().forward(image)
        depth_m = torch.from_numpy(depth_of_scene(NETWORK, self.boxes).copy())
        return HeadOutput(depth_m.expand(len(image), 1, -1, -1))


@pytest.fixture(scope='module')
def seen():
    """What the node publishes of boxes, as Nav2 gets it: topic: (N, 3) points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('ros_graph.StandInModel', BoxesModel)
        # Of the numbers the rate alone is another: every image is awaited here.
        graph = Graph(
            **DEPTH_NODE | {'cloud_rate_hz': 0.0},
            camera_in_base=list(ROBOT.camera_in_base),
            filter_guide_px=3,
            filter_median_px=5,
            filter_edge_ratio=1.2,
        )
    with graph:
        got = {topic: graph.listen(topic, PointCloud2) for topic in ('points', 'points_clearing')}
        graph.publish('camera_info', info_message(*CAMERA_HW))

        def see(boxes=(), border=(0.0,) * 4):
            graph.model.boxes = boxes
            graph.node.set_parameters([Parameter('filter_border', value=list(border))])
            image = image_message(*CAMERA_HW)
            graph.publish('image', image)
            return {f'/{topic}': xyz_of(take(graph, topic, g, image)) for topic, g in got.items()}

        yield see


@pytest.mark.parametrize('kind', [ObstacleLayer, VoxelLayer])
@pytest.mark.parametrize('behind', [(), (FAR_WALL,)], ids=['the open', 'a far wall'])
def test_live_clouds_mark_a_chair_and_clear_it_within_2_s(seen, kind, behind):
    nav2 = Nav2(kind).see(seen((CHAIR, *behind)))
    assert nav2.chair >= 10
    assert nav2.chair == len(nav2.layer.marked()), 'a phantom'
    without, taken_away_s = seen(behind), nav2.passed_s
    while nav2.chair:
        assert nav2.passed_s - taken_away_s < 2
        nav2.see(without)
    assert len(nav2.layer.marked()) == 0


def test_without_the_live_clearing_cloud_the_chair_stays(seen):
    nav2 = Nav2(VoxelLayer, sources=('/points',)).see(seen((CHAIR,)))
    nav2.see_for_2_s(seen())
    assert nav2.chair


@pytest.mark.parametrize('kind', [ObstacleLayer, VoxelLayer])
def test_a_visible_bumper_is_an_obstacle_until_filter_border_masks_it(seen, kind):
    hit = Nav2(kind).see(seen((CHAIR, BUMPER)))
    assert hit.marked_in((0.0, -0.5), (0.8, 0.5)) > 5
    masked = Nav2(kind).see(seen((CHAIR, BUMPER), border=(0.0, 0.3, 0.0, 0.0)))
    assert masked.marked_in((0.0, -0.5), (0.8, 0.5)) == 0
    assert masked.chair >= 10


# Two cameras that a person may well set up, and what becomes of them.


@dataclass(frozen=True)
class Camera:
    """An RGB image beside a depth image of another size."""

    height: int
    width: int


@pytest.mark.parametrize(
    ('rgb', 'rtabmap_takes_it', 'xyzrgb_takes_it'),
    [
        (Camera(96, 128), True, True),
        (Camera(192, 256), True, False),  # depth_divisor: 2
        (Camera(192, 384), False, False),
    ],
)
def test_depth_of_half_the_size_suits_rtabmap_but_not_xyzrgb(
    live, rgb, rtabmap_takes_it, xyzrgb_takes_it
):
    messages = deepcopy(live)
    messages.rgb.height, messages.rgb.width = rgb.height, rgb.width
    ratio = RULES['rtabmap.sizes_have_one_ratio'].check(messages)
    size = RULES['depth_image_proc.xyzrgb_has_two_images_of_one_size'].check(messages)
    assert (ratio is None, size is None) == (rtabmap_takes_it, xyzrgb_takes_it)
