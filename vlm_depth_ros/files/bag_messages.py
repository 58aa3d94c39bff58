"""What the estimator packs, as messages: a bag made at a desk equals what the node publishes."""

from collections.abc import Iterable, Iterator, Mapping
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.packing import (
    camera_info_of,
    gate_depth,
    pack_cloud,
    pack_depth,
    PackedCameraInfo,
    PackedCloud,
    PackedImage,
    POINT_FIELDS,
)
from vlm_depth_ros.files.bag_arrays import CAMERA_INFO, IMAGE, POINT_CLOUD
from vlm_depth_ros.files.bags import BagWriter
from vlm_depth_ros.files.source import SourceFrame

Packed = PackedImage | PackedCloud | PackedCameraInfo


def packed_message(
    packed: Packed, stamp_ns: int, frame_id: str, types: Mapping[str, type]
) -> tuple[str, Any]:
    """Wrap packed bytes into a message.

    Args:
        packed: What `core.packing` made.
        stamp_ns: Stamp of the header.
        frame_id: Optical frame of the header.
        types: Message classes by type name.

    Returns:
        The message type and the message.

    Raises:
        InputError: If `packed` is none of the packed forms.
    """
    if isinstance(packed, PackedImage):
        msgtype, fields = IMAGE, _image_fields(packed)
    elif isinstance(packed, PackedCloud):
        msgtype, fields = POINT_CLOUD, _cloud_fields(packed, types['sensor_msgs/msg/PointField'])
    elif isinstance(packed, PackedCameraInfo):
        roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
        msgtype, fields = CAMERA_INFO, {**_camera_fields(packed), 'roi': roi}
    else:
        raise InputError(
            f'{type(packed).__name__}: expected a PackedImage, PackedCloud or PackedCameraInfo.'
        )
    stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 1_000_000_000))
    header = types['std_msgs/msg/Header'](stamp, frame_id)
    return msgtype, types[msgtype](header=header, **fields)


def packed_frame(frame: SourceFrame, stride: int, organized: bool) -> Iterator[tuple[str, Packed]]:
    """Give the topics that a node would publish for a frame, as far as it is known.

    Raises:
        InputError: If depth, image and intrinsics of the frame are not for one size.
    """
    height, width = frame.rgb.shape[:2]
    rgb = np.ascontiguousarray(frame.rgb)
    info = None if frame.intrinsics is None else camera_info_of(frame.intrinsics)
    yield '/image', PackedImage(height, width, 'rgb8', width * 3, rgb.reshape(-1))
    if info:
        yield '/camera_info', info
    if frame.depth_m is None:
        return
    depth = gate_depth(torch.tensor(frame.depth_m), 0.0, math.inf, near_is_neg_inf=False)
    yield '/depth/image_rect', pack_depth(depth)
    if info:
        yield '/depth/camera_info', info
        yield '/points', pack_cloud(depth, frame.intrinsics, torch.tensor(rgb), stride, organized)


def write_frames(
    path: str | Path,
    frames: Iterable[SourceFrame],
    *,
    frame_id: str = 'camera_optical_frame',
    stride: int = 2,
    organized: bool = False,
    rate_hz: float = 10.0,
    compress: bool = False,
) -> int:
    """Write frames as a bag with the topics of the node, in the layouts of `core.packing`.

    Always /image (rgb8); with intrinsics /camera_info; with depth /depth/image_rect (32FC1); with
    both /depth/camera_info and /points too.

    Args:
        path: New or old .mcap file.
        frames: Taken one by one.
        frame_id: Optical frame of every header.
        stride: Every n-th pixel and row becomes a point.
        organized: Clouds keep rows and NaN.
        rate_hz: Frames without a stamp get index / rate.
        compress: As of `BagWriter`.

    Returns:
        The number of frames.

    Raises:
        InputError: If there are none, a frame does not fit itself, or nothing can be written.
    """
    count = 0
    with BagWriter(path, compress=compress) as bag:
        for frame in frames:
            stamp_s = count / rate_hz if frame.stamp_s is None else frame.stamp_s
            for topic, packed in packed_frame(frame, stride, organized):
                bag.add_packed(topic, packed, round(stamp_s * 1e9), frame_id)
            count += 1
    return count


def _image_fields(packed: PackedImage) -> dict[str, Any]:
    return {
        'height': packed.height,
        'width': packed.width,
        'encoding': packed.encoding,
        'is_bigendian': 0,
        'step': packed.step,
        'data': packed.data,
    }


def _cloud_fields(packed: PackedCloud, point_field: type) -> dict[str, Any]:
    return {
        'height': packed.height,
        'width': packed.width,
        'fields': [point_field(name, offset, form, 1) for name, offset, form in POINT_FIELDS],
        'is_bigendian': False,
        'point_step': packed.point_step,
        'row_step': packed.row_step,
        'data': packed.data,
        'is_dense': packed.is_dense,
    }


def _camera_fields(packed: PackedCameraInfo) -> dict[str, Any]:
    return {
        'height': packed.height,
        'width': packed.width,
        'distortion_model': packed.distortion_model,
        **{name: np.array(getattr(packed, name), np.float64) for name in 'dkrp'},
        'binning_x': 0,
        'binning_y': 0,
    }
