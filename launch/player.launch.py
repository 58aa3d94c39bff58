"""Play a recording as a camera into the depth node; everything ends with the recording.

    ros2 launch vlm_depth_ros player.launch.py source:=clip.mp4 horizontal_fov_deg:=70 rviz:=true

Every argument of depth.launch.py may be given too.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

DEPTH = Path(__file__).resolve().parent / 'depth.launch.py'

# name: (default, type of the player's parameter, description)
ARGUMENTS = {
    'source': (None, str, 'A folder with pairs.csv, a folder of images, a video or a bag.'),
    'rate_hz': ('0.0', float, "Frames per second; 0.0 keeps the source's own times."),
    'loop': ('false', bool, 'true: start again at the end.'),
    'horizontal_fov_deg': ('0.0', float, 'Camera for a source that does not know its own.'),
}


def start_player(context) -> list[Node]:
    """Answer the player, run by the interpreter that runs the node."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    values = {
        name: given(name).lower() == 'true' if kind is bool else kind(given(name))
        for name, (_, kind, _) in ARGUMENTS.items()
    }
    values['source'] = str(Path(values['source']).expanduser().absolute())
    values['image_transport'] = given('image_transport') or 'raw'
    values['wait_for_subscribers'] = 1  # the network loads for some seconds
    return [
        Node(
            executable=given('python'),
            arguments=['-m', 'vlm_depth_ros.ros.camera_player'],
            exec_name='camera_player',
            name='camera_player',
            namespace=given('namespace'),
            parameters=[values],
            output='both',
            on_exit=Shutdown(),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, start the node and then the player."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, _, description) in ARGUMENTS.items()
        ]
        + [
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(DEPTH))),
            OpaqueFunction(function=start_player),
        ]
    )
