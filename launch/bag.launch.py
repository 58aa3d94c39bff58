"""Play a rosbag2 recording with its own clock into the depth node.

    ros2 launch vlm_depth_ros bag.launch.py bag:=drive.mcap image_topic:=/camera/image_raw

With the transforms of the recording, unlike player.launch.py, which reads a bag without ROS but
only its images. Every argument of depth.launch.py may be given too; everything ends with the bag.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

DEPTH = Path(__file__).resolve().parent / 'depth.launch.py'

# name: (default, description). None: must be given.
ARGUMENTS = {
    'bag': (None, 'A recording: a folder, an .mcap or a .db3 file.'),
    'rate': ('1.0', 'Speed; 0.5 is half of it.'),
    'loop': ('false', 'true: start again at the end.'),
    'delay': ('5.0', 'Seconds before it starts: the network loads meanwhile.'),
}


def play_command(given: dict[str, str]) -> list[str]:
    """Answer the command line of `ros2 bag play`; RuntimeError where there is no bag."""
    bag = Path(given['bag']).expanduser().absolute()
    if not bag.exists():  # found out later, it would leave a node running
        raise RuntimeError(f'bag:={bag} does not exist.')
    loop = ['--loop'] if given['loop'].lower() in ('true', '1') else []
    timing = ['--clock', '--rate', given['rate'], '--delay', given['delay']]
    return ['ros2', 'bag', 'play', str(bag), *timing, *loop]


def start_bag(context) -> list[ExecuteProcess]:
    """Answer the player."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    return [ExecuteProcess(cmd=play_command(given), output='both', on_exit=Shutdown())]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, start the depth node and then the recording."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, description) in ARGUMENTS.items()
        ]
        + [
            DeclareLaunchArgument(
                'use_sim_time',
                default_value='true',
                description='true: time from the recording.',
            ),
            OpaqueFunction(function=start_bag),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(DEPTH))),
        ]
    )
