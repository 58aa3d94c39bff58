"""depth_image_proc: depth and camera_info to clouds, and into another camera's image.

ros-perception/image_pipeline 30b982a (5.0.1); image_transport of ros-perception/image_common
f6e4ab6; image_geometry of ros-perception/vision_opencv 8b42d66.
"""

import numpy as np

from consumers.rules import depth_of, Live, pinhole, rule, xyz_of

PROC = 'image_pipeline 30b982a depth_image_proc'
COLOURS = ('rgb8', 'rgba8', 'bgr8', 'bgra8', 'mono8')


def camera_info_topic(image_topic: str) -> str:
    """Where image_transport looks for the camera_info of an image."""
    return '/'.join([*image_topic.split('/')[:-1], 'camera_info'])


def cloud_from_depth(depth_m: np.ndarray, info: object) -> np.ndarray:
    """(H, W, 3): whatever is finite becomes a point by P, the rest NaN."""
    fx, cx, fy, cy = pinhole(info)
    v, u = np.mgrid[: depth_m.shape[0], : depth_m.shape[1]].astype(np.float32)
    z = np.where(np.isfinite(depth_m), depth_m, np.nan)
    return np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z], -1)


def registered(depth_m: np.ndarray, depth_info: object, rgb_info: object) -> np.ndarray:
    """Depth drawn into the image of `rgb_info`, both cameras in one frame; the nearest wins."""
    target = np.full((rgb_info.height, rgb_info.width), np.nan, np.float32)
    fx, cx, fy, cy = pinhole(rgb_info)
    points = cloud_from_depth(depth_m, depth_info).reshape(-1, 3)
    points = points[np.isfinite(points[:, 2])]
    x, y, z = points[np.argsort(-points[:, 2])].T  # the last one written stays
    with np.errstate(divide='ignore', invalid='ignore'):
        u, v = np.trunc(fx * x / z + cx + 0.5), np.trunc(fy * y / z + cy + 0.5)
    inside = (u >= 0) & (u < rgb_info.width) & (v >= 0) & (v < rgb_info.height)
    target[v[inside].astype(int), u[inside].astype(int)] = z[inside]
    return target


@rule('image_common f6e4ab6 image_transport/src/camera_common.cpp:56-70 getCameraInfoTopic')
def camera_info_lies_beside_the_image(live: Live) -> str | None:
    wanted = camera_info_topic('depth/image_rect')
    if wanted not in live.topics:
        return f'waits for {wanted} forever'
    return None


@rule('image_common f6e4ab6 image_transport/src/camera_subscriber.cpp:52,126 TimeSync')
def camera_info_has_the_stamp_of_the_image(live: Live) -> str | None:
    if live.depth.header.stamp != live.depth_info.header.stamp:
        return 'image and camera_info are never paired: the synchroniser wants equal stamps'
    return None


@rule(f'{PROC}/src/point_cloud_xyz.cpp:114-122 PointCloudXyzNode::depthCb')
def xyz_knows_the_encoding(live: Live) -> str | None:
    if live.depth.encoding not in ('32FC1', '16UC1', 'mono16'):
        return f'drops the frame: unsupported encoding {live.depth.encoding}'
    return None


@rule(f'{PROC}/include/depth_image_proc/conversions.hpp:78-82 convertDepth')
def rows_are_read_as_they_lie(live: Live) -> str | None:
    depth = live.depth
    if depth.is_bigendian:
        return 'reads the bytes of every number in the wrong order'
    if depth.step % 4 or depth.step < 4 * depth.width:
        return f'rows run together: step {depth.step} for {depth.width} floats'
    if len(depth.data) < depth.step * depth.height:
        return 'reads beyond the end of the data'
    return None


@rule(f'{PROC}/include/depth_image_proc/depth_traits.hpp:61 DepthTraits<float>::valid')
def every_finite_depth_is_a_depth(live: Live) -> str | None:
    depth_m = depth_of(live.depth)
    if (depth_m[np.isfinite(depth_m)] <= 0).any():
        return 'makes a point at the lens, or behind it, of every pixel without depth'
    return None


@rule(f'{PROC}/include/depth_image_proc/conversions.hpp:59-65,95-97 convertDepth')
def xyz_gives_the_same_cloud(live: Live) -> str | None:
    if live.depth_info.p[0] == 0 or live.depth_info.p[5] == 0:
        return 'divides by a focal length of 0: P is empty, and K is not looked at'
    expected = cloud_from_depth(depth_of(live.depth), live.depth_info).reshape(-1, 3)
    ours = xyz_of(live.organized)
    if not np.allclose(ours, expected, atol=1e-4, equal_nan=True):
        return 'its cloud and ours differ: camera_info is not that of the depth image'
    return None


@rule('vision_opencv 8b42d66 image_geometry/src/pinhole_camera_model.cpp:105-217 fromCameraInfo')
def camera_info_has_no_second_window(live: Live) -> str | None:
    info = live.depth_info
    if (info.height, info.width) != (live.depth.height, live.depth.width):
        return 'takes the camera for one of another size'
    if max(info.binning_x, info.binning_y) > 1 or info.roi.x_offset or info.roi.y_offset:
        return 'moves and scales the principal point a second time'
    return None


@rule(f'{PROC}/src/point_cloud_xyzrgb.cpp:163-204 PointCloudXyzrgbNode::imageCb')
def xyzrgb_has_two_images_of_one_size(live: Live) -> str | None:
    if (live.depth.height, live.depth.width) != (live.rgb.height, live.rgb.width):
        return 'drops the frame: depth and RGB differ in size'
    return None


@rule(f'{PROC}/src/point_cloud_xyzrgb.cpp:149-156 PointCloudXyzrgbNode::imageCb')
def xyzrgb_has_two_images_of_one_frame(live: Live) -> str | None:
    if live.depth.header.frame_id != live.rgb.header.frame_id:
        return 'warns, and colours the points by another camera'
    return None


@rule(f'{PROC}/src/point_cloud_xyzrgb.cpp:63-88 exact_sync')
def xyzrgb_pairs_the_images_exactly(live: Live) -> str | None:
    if not live.depth.header.stamp == live.rgb.header.stamp == live.rgb_info.header.stamp:
        return 'with exact_sync it never calls back; without, it pairs two moments'
    return None


@rule(f'{PROC}/src/point_cloud_xyzrgb.cpp:210-248,261-269 PointCloudXyzrgbNode::imageCb')
def xyzrgb_knows_both_encodings(live: Live) -> str | None:
    if live.depth.encoding not in ('32FC1', '16UC1'):
        return f'drops the frame: unsupported depth {live.depth.encoding}'
    if live.rgb.encoding not in COLOURS:
        return f'needs cv_bridge to convert {live.rgb.encoding}, or drops the frame'
    return None


@rule(f'{PROC}/src/register.cpp:197-206 RegisterNode::imageCb')
def register_knows_the_encoding(live: Live) -> str | None:
    if live.depth.encoding not in ('32FC1', '16UC1'):
        return f'drops the frame: unsupported encoding {live.depth.encoding}'
    return None


@rule(f'{PROC}/src/register.cpp:167-184 RegisterNode::imageCb')
def register_finds_the_frames(live: Live) -> str | None:
    frame = live.depth_info.header.frame_id
    if not frame or frame != live.depth.header.frame_id:
        return f'asks the transform tree for {frame!r}, which is not where the depth was measured'
    return None


@rule(f'{PROC}/src/register.cpp:244-281 RegisterNode::convert')
def register_into_the_own_camera_changes_nothing(live: Live) -> str | None:
    depth_m = depth_of(live.depth)
    drawn = registered(depth_m, live.depth_info, live.rgb_info)
    expected = np.where(np.isfinite(depth_m), depth_m, np.nan)
    if not np.allclose(drawn, expected, rtol=1e-5, equal_nan=True):
        return 'depth lands on other pixels of the image that it was made of'
    return None
