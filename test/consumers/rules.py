"""A rule: what a consumer demands of live messages, and where its source says so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32."""


@dataclass(frozen=True)
class Live:
    """What the node published for one camera image, as it came over DDS, and that image."""

    image: object
    """sensor_msgs/Image of the camera."""
    rgb: object
    """``rgb/image_rect``."""
    rgb_info: object
    """``rgb/camera_info``."""
    depth: object
    """``depth/image_rect``."""
    depth_info: object
    """``depth/camera_info``."""
    points: object
    """``points``, compact."""
    organized: object
    """``points`` of the same scene with ``cloud_organized: true`` and ``cloud_stride: 1``."""
    confidence: object
    """``depth/confidence``."""
    compressed: object
    """``depth/image_rect/compressedDepth``, PNG."""
    compressed_rvl: object
    """The same of the same scene, RVL."""
    clearing: object
    """``points_clearing``."""
    scan: object
    """``scan``."""
    topics: tuple[str, ...]
    """What the node offers, relative names."""
    received_s: float
    """Time of the arrival, by the clock of the stamps."""


class Rule(NamedTuple):
    """A demand of one consumer."""

    source: str
    """Repository, commit, file and lines, or function."""
    check: Callable[[Live], str | None]
    """None, or one sentence: what this consumer would do with the messages."""


RULES: dict[str, Rule] = {}
"""``consumer.rule``: rule."""


def rule(source: str) -> Callable:
    """Register a check under the names of its module and of itself."""

    def register(check: Callable[[Live], str | None]) -> Callable:
        RULES[f'{check.__module__.rsplit(".", 1)[-1]}.{check.__name__}'] = Rule(source, check)
        return check

    return register


def stamp_s(message: object) -> float:
    """Stamp of a message in seconds."""
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def depth_of(image: object) -> np.ndarray:
    """(H, W) float32 as C++ reads it: little endian, rows `step` bytes apart."""
    rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)
    return np.ascontiguousarray(rows[:, : 4 * image.width]).view('<f4')


def pinhole(info: object) -> tuple[float, float, float, float]:
    """fx, cx, fy, cy of P: what image_geometry calls the model of a rectified image."""
    return info.p[0], info.p[2], info.p[5], info.p[6]


def float_fields(cloud: object) -> set[str]:
    """Names of the fields that ``PointCloud2Iterator<float>`` reads as what they are."""
    return {f.name for f in cloud.fields if f.datatype == FLOAT32 and f.count == 1}


def xyz_of(cloud: object) -> np.ndarray:
    """(N, 3) float32, every point of the message, by the offsets of its fields."""
    offsets = {field.name: field.offset for field in cloud.fields}
    points = np.frombuffer(cloud.data, np.uint8).reshape(-1, cloud.point_step)
    columns = [points[:, offsets[n] : offsets[n] + 4] for n in 'xyz']
    return np.ascontiguousarray(np.concatenate(columns, axis=1)).view('<f4')
