"""Start one depth node, and RViz when asked.

    ros2 launch vlm_depth_ros depth.launch.py image_topic:=/camera/image_raw rviz:=true

An argument that is not given changes nothing: the parameter keeps its value from `params_file`.
One that is given wins over that file. `--show-args` lists them all. There is no variant for a
component container: it cannot load rclpy nodes.
"""

import os
from pathlib import Path
import signal
import sys
import threading

from ament_index_python.packages import get_package_prefix, PackageNotFoundError
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch.utilities import AsyncSafeSignalManager
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(__file__).resolve().parent.parent


def default_python() -> str:
    """Answer the interpreter of the activated virtual environment, else the one that runs this."""
    active = Path(os.environ.get('VIRTUAL_ENV', ''), 'bin', 'python')
    return str(active) if active.is_absolute() and active.exists() else sys.executable or 'python3'


# name: (default, description). An empty default means "as params_file says".
ARGUMENTS = {
    'namespace': ('', 'Namespace of the node; all its topics are relative to it.'),
    'params_file': (str(SHARE / 'config' / 'node.yaml'), 'YAML file with the parameters.'),
    'weights': ('', 'A weights file (.safetensors), or the name of one that ships (pocket).'),
    'device': ('', 'auto, cpu, cuda, cuda:1, ...'),
    'precision': ('', 'auto, fp32, fp16 or bf16.'),
    'image_topic': (
        '',
        'Topic of the camera images. With compressed transport the base name: '
        '/camera/image_raw stands for /camera/image_raw/compressed, and both spellings are taken.',
    ),
    'camera_info_topic': ('', "Topic of the camera_info; by default beside the image's topic."),
    'image_transport': ('', 'raw or compressed.'),
    'use_sim_time': ('', 'true: time from /clock.'),
    'autostart': ('', 'false: wait for a lifecycle manager to configure and activate the node.'),
    'log_level': ('', 'debug, info, warn, error, or LOGGER:=LEVEL.'),
    'rviz': ('false', 'true: open RViz with the image, the depth and the coloured cloud.'),
    'python': (default_python(), 'Interpreter for the node: the one that has torch.'),
}


def to_bool(name: str, text: str) -> bool:
    """Read a launch argument that is true or false; RuntimeError names it otherwise."""
    if text.lower() not in ('true', 'false', '1', '0'):
        raise RuntimeError(f'{name}:={text} is neither true nor false.')
    return text.lower() in ('true', '1')


def base_topic(image_topic: str) -> str:
    """Answer the name without the suffix by which image_transport marks compressed images."""
    return image_topic.rstrip('/').removesuffix('/compressed')


def camera_info_beside(image_topic: str) -> str:
    """Answer where image_transport looks for the camera_info of an image topic.

    The last token is replaced: /camera/image_raw and /camera/image_raw/compressed have theirs at
    /camera/camera_info.
    """
    return '/'.join([*base_topic(image_topic).split('/')[:-1], 'camera_info'])


def remappings(image_topic: str, camera_info_topic: str) -> list[tuple[str, str]]:
    """Answer the remaps of the inputs; a remap of `image` leaves `image/compressed` alone."""
    pairs = []
    if image_topic:
        base = base_topic(image_topic)
        pairs += [('image', base), ('image/compressed', f'{base}/compressed')]
    if camera_info_topic or image_topic:
        pairs += [('camera_info', camera_info_topic or camera_info_beside(image_topic))]
    return pairs


def parameters(given: dict[str, str]) -> dict[str, str | bool]:
    """Answer the node parameters that were given as launch arguments."""
    values: dict[str, str | bool] = {
        name: given[name]
        for name in ('weights', 'device', 'precision', 'image_transport')
        if given[name]
    }
    if given['image_topic'].endswith('/compressed'):
        values.setdefault('image_transport', 'compressed')
    if 'weights' in values:
        values['weights'] = os.path.expanduser(values['weights'])  # no shell expands NAME:=~/...
    for name in ('use_sim_time', 'autostart'):
        if given[name]:
            values[name] = to_bool(name, given[name])
    return values


def require_rviz() -> None:
    """Raise RuntimeError, saying what to install, where rviz2 is missing."""
    try:
        get_package_prefix('rviz2')
    except PackageNotFoundError as err:
        raise RuntimeError(
            'rviz:=true needs rviz2, which is missing: sudo apt install ros-$ROS_DISTRO-rviz2'
        ) from err


def stop_on_sigterm(context) -> None:
    """Let SIGTERM end the launch as Ctrl-C does: the nodes first, then exit code 0.

    Left alone, SIGTERM (`docker stop`, `timeout`, a supervisor) kills `ros2 launch` at once, and
    the node runs on without a parent: https://github.com/ros2/launch/issues/666. The signal
    manager that is running has no public name; without its private one nothing changes.
    """
    manager = getattr(AsyncSafeSignalManager, '_AsyncSafeSignalManager__current', None)
    if manager is None or threading.current_thread() is not threading.main_thread():
        return
    manager.handle(signal.SIGTERM, lambda _: context.emit_event_sync(Shutdown(reason='SIGTERM')))
    signal.signal(signal.SIGTERM, lambda *_: None)  # any handler will do: it wakes the manager up


def start(context) -> list[Node]:
    """Answer the processes for the arguments as they were given."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    with_rviz = to_bool('rviz', given['rviz'] or 'false')
    if with_rviz:  # found out later, it would leave a node running
        require_rviz()
    stop_on_sigterm(context)
    remaps = remappings(given['image_topic'], given['camera_info_topic'])
    values = parameters(given)
    sources = []
    if given['params_file']:
        path = Path(given['params_file']).expanduser().absolute()
        if not path.is_file():  # launch_ros would only warn, and start with the defaults
            raise RuntimeError(f'params_file:={path} is not a file.')
        sources.append(str(path))
    if values:  # a plain string would be read as YAML: weights:=1e3 would arrive as a number
        sources.append({k: ParameterValue(v, value_type=type(v)) for k, v in values.items()})
    depth = Node(
        executable=given['python'],
        arguments=['-m', 'vlm_depth_ros.ros.node'],
        exec_name='depth_node',
        name='depth_node',
        # Also when empty: launch_ros then addresses the parameters below to the node's full name,
        # and those win over a file that says /** as well as over one that says /depth_node.
        namespace=given['namespace'],
        parameters=sources,
        remappings=remaps,
        ros_arguments=['--log-level', given['log_level']] if given['log_level'] else None,
        output='both',
        emulate_tty=sys.stdout.isatty(),  # colours on a terminal, none in a log
    )
    if not with_rviz:
        return [depth]
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=given['namespace'],
        arguments=['-d', str(SHARE / 'config' / 'depth.rviz')],
        parameters=[{'use_sim_time': values.get('use_sim_time', False)}],
        remappings=remaps,
        output='log',
    )
    return [depth, rviz]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, description) in ARGUMENTS.items()
        ]
        + [OpaqueFunction(function=start)]
    )
