"""One depth node, and one model, for several cameras.

    ros2 launch vlm_depth_ros cameras.launch.py names:=front,rear image:=image_raw

It subscribes front/image_raw and front/camera_info, rear/image_raw and rear/camera_info, and
publishes front/points, rear/points and so on. Every argument of depth.launch.py may be given too,
except image_topic and camera_info_topic.
"""

from pathlib import Path
import tempfile

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap
import yaml

SHARE = Path(__file__).resolve().parent.parent
DEPTH = Path(__file__).resolve().parent / 'depth.launch.py'

# name: (default, description). None: must be given.
ARGUMENTS = {
    'names': (None, 'Names of the cameras, which are the namespaces of their topics: front,rear.'),
    'image': ('image_raw', "Last part of the image topics' names, behind that of the camera."),
    'params_file': (str(SHARE / 'config' / 'node.yaml'), 'YAML file with the parameters.'),
}


def split_names(text: str) -> list[str]:
    """Read a list of names; RuntimeError where it is none."""
    names = [name.strip().strip('/') for name in text.split(',')]
    if not all(names) or len(set(names)) < len(names):
        raise RuntimeError(f'names:={text}: expected different names, as in front,rear.')
    return names


def remappings(names: list[str], image: str) -> list[tuple[str, str]]:
    """Answer the remaps of the images; camera_info has its name already."""
    last = image.strip('/').removesuffix('/compressed')
    return [
        (f'{name}/image{suffix}', f'{name}/{last}{suffix}')
        for name in names
        for suffix in ('', '/compressed')
    ]


def with_cameras(params_file: str, names: list[str]) -> str:
    """Write a copy of a parameter file with these cameras; answer its path.

    An own file, because a file wins over a parameter that a launch file sets for all nodes.
    """
    path = Path(params_file).expanduser()
    if not path.is_file():
        raise RuntimeError(f'params_file:={path} is not a file.')
    nodes = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    for node in nodes.values():
        node.get('ros__parameters', {}).pop('cameras', None)
    nodes.setdefault('/**', {}).setdefault('ros__parameters', {})['cameras'] = names
    with tempfile.NamedTemporaryFile(
        'w', prefix='depth_node_', suffix='.yaml', delete=False, encoding='utf-8'
    ) as file:
        yaml.safe_dump(nodes, file)
    return file.name


def start(context) -> list:
    """Answer the remaps and the depth node with them."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    names = split_names(given['names'])
    params_file = with_cameras(given['params_file'], names)
    return [
        *(SetRemap(source, target) for source, target in remappings(names, given['image'])),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(DEPTH)),
            launch_arguments={'params_file': params_file}.items(),
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, description) in ARGUMENTS.items()
        ]
        + [OpaqueFunction(function=start)]
    )
