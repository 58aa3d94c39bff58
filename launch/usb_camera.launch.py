"""A USB camera, depth from it, and RViz when asked.

    ros2 launch vlm_depth_ros usb_camera.launch.py camera_info_url:=file:///opt/robot/camera.yaml

Needs the driver: sudo apt install ros-$ROS_DISTRO-usb-cam. Every argument of depth.launch.py may
be given too. Without a calibration there is depth and no cloud; `ros2 run camera_calibration
cameracalibrator` writes one.
"""

from pathlib import Path

from ament_index_python.packages import get_package_prefix, PackageNotFoundError
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

DEPTH = Path(__file__).resolve().parent / 'depth.launch.py'

# name: (default, type of the driver's parameter, description)
ARGUMENTS = {
    'video_device': ('/dev/video0', str, 'The camera.'),
    'image_width': ('640', int, 'Pixels; a size that the camera has.'),
    'image_height': ('480', int, 'Pixels.'),
    'framerate': ('30.0', float, 'Frames per second.'),
    'pixel_format': ('yuyv2rgb', str, 'yuyv2rgb, mjpeg2rgb, uyvy2rgb, ... as the driver knows.'),
    'camera_info_url': ('', str, 'Calibration: file:///... or package://...'),
    'frame_id': (
        'camera_optical_frame',
        str,
        'Frame of the images: z ahead, x right, y down (REP-103).',
    ),
}


def require_driver(_) -> None:
    """Raise RuntimeError, saying what to install, where usb_cam is missing."""
    try:
        get_package_prefix('usb_cam')
    except PackageNotFoundError as err:
        raise RuntimeError(
            'usb_camera.launch.py needs usb_cam, which is missing: '
            'sudo apt install ros-$ROS_DISTRO-usb-cam'
        ) from err


def start_camera(context) -> list[Node]:
    """Answer the driver, in the namespace of the depth node."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    return [
        Node(
            package='usb_cam',
            executable='usb_cam_node_exe',
            name='usb_cam',
            namespace=given('namespace'),
            parameters=[{name: kind(given(name)) for name, (_, kind, _) in ARGUMENTS.items()}],
            output='both',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, start the depth node and then the camera."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, _, description) in ARGUMENTS.items()
        ]
        + [
            DeclareLaunchArgument(
                'image_topic', default_value='image_raw', description="The driver's own topic."
            ),
            OpaqueFunction(function=require_driver),  # before there is a node to be left running
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(DEPTH))),
            OpaqueFunction(function=start_camera),
        ]
    )
