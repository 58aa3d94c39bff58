"""What a camera sees, in the numbers that a spatio-temporal voxel layer (STVL) clears by."""

from dataclasses import dataclass
import math

from vlm_depth_ros.core.geometry import CameraIntrinsics


@dataclass(frozen=True)
class StvlFrustum:
    """The largest frustum of STVL's depth camera that lies inside the view."""

    vertical_fov_angle: float
    """Radians, from edge to edge."""
    horizontal_fov_angle: float
    """Radians; less than the angle of the image, since STVL turns about y and then about x."""
    reach: float
    """``max_z`` is at least this times ``obstacle_range``: STVL goes it along the corner ray."""


def stvl_frustum(intrinsics: CameraIntrinsics) -> StvlFrustum:
    """Angles and reach of a camera, by depth_camera_frustum.cpp of STVL (ComputePlaneNormals).

    Its corners lie at |x| / z = tan(h / 2) / cos(v / 2) and |y| / z = tan(v / 2), about the
    optical axis; of a principal point that is not in the middle the narrower side counts.
    """
    half_x, half_y = (
        min(centre + 0.5, side - centre - 0.5) / focal
        for centre, side, focal in (
            (intrinsics.cx_px, intrinsics.width_px, intrinsics.fx_px),
            (intrinsics.cy_px, intrinsics.height_px, intrinsics.fy_px),
        )
    )
    vertical = math.atan(half_y)
    horizontal = math.atan(half_x * math.cos(vertical))
    return StvlFrustum(
        2 * vertical, 2 * horizontal, 1 / (math.cos(vertical) * math.cos(horizontal))
    )
