"""The examples in launch/: each starts the node by way of depth.launch.py, and its source."""

from pathlib import Path
import runpy

import pytest
from test_launch import LAUNCH_FILE, WITHOUT_LAUNCH, without_ros
import yaml

LAUNCH = LAUNCH_FILE.parent
EXAMPLES = ['bag', 'cameras', 'player', 'usb_camera']


def rules_of(name):
    return without_ros(LAUNCH / f'{name}.launch.py')


def test_every_launch_file_is_an_example_or_the_node():
    names = {path.name.removesuffix('.launch.py') for path in LAUNCH.glob('*.launch.py')}
    assert names == {'depth', *EXAMPLES}


@pytest.mark.parametrize('name', EXAMPLES)
def test_example_says_how_to_start_it_and_what_its_arguments_are(name):
    text = (LAUNCH / f'{name}.launch.py').read_text(encoding='utf-8')
    assert f'ros2 launch vlm_depth_ros {name}.launch.py ' in text
    arguments = rules_of(name)['ARGUMENTS']
    assert all(values[-1].endswith('.') for values in arguments.values())
    assert not set(arguments) & (set(rules_of('depth')['ARGUMENTS']) - {'params_file'})


def test_names_of_cameras_are_a_list(name='cameras'):
    split = rules_of(name)['split_names']
    assert split('front') == ['front']
    assert split('front, /rear/') == ['front', 'rear']
    for text in ('', 'front,', 'front,front'):
        with pytest.raises(RuntimeError, match=f'names:={text}: expected different names'):
            split(text)


def test_every_camera_is_remapped_raw_and_compressed():
    remappings = rules_of('cameras')['remappings']
    for image in ('image_raw', 'image_raw/compressed', '/image_raw'):
        assert remappings(['front', 'rear'], image) == [
            ('front/image', 'front/image_raw'),
            ('front/image/compressed', 'front/image_raw/compressed'),
            ('rear/image', 'rear/image_raw'),
            ('rear/image/compressed', 'rear/image_raw/compressed'),
        ]


def test_cameras_go_into_a_copy_of_the_parameters(tmp_path):
    with_cameras = rules_of('cameras')['with_cameras']
    mine = tmp_path / 'mine.yaml'
    mine.write_text(
        '/**:\n  ros__parameters: {device: cpu}\n'
        "depth_node:\n  ros__parameters: {cameras: [''], weights: pocket}\n"
    )
    copy = Path(with_cameras(str(mine), ['front', 'rear']))
    nodes = yaml.safe_load(copy.read_text(encoding='utf-8'))
    copy.unlink()
    assert nodes['/**']['ros__parameters'] == {'device': 'cpu', 'cameras': ['front', 'rear']}
    assert nodes['depth_node']['ros__parameters'] == {'weights': 'pocket'}
    with pytest.raises(RuntimeError, match=r'params_file:=.*none\.yaml is not a file'):
        with_cameras(str(tmp_path / 'none.yaml'), ['front'])


def test_a_bag_is_played_with_its_clock(tmp_path):
    play_command = rules_of('bag')['play_command']
    given = {'bag': str(tmp_path), 'rate': '0.5', 'loop': 'false', 'delay': '5.0'}
    assert play_command(given) == [
        'ros2', 'bag', 'play', str(tmp_path), '--clock', '--rate', '0.5', '--delay', '5.0'
    ]  # fmt: skip
    assert play_command({**given, 'loop': 'true'})[-1] == '--loop'
    with pytest.raises(RuntimeError, match=r'bag:=.*gone does not exist'):
        play_command({**given, 'bag': str(tmp_path / 'gone')})


def test_the_usb_camera_looks_along_z_of_its_frame():
    arguments = rules_of('usb_camera')['ARGUMENTS']
    assert arguments['frame_id'][0].endswith('_optical_frame')
    # ros-drivers/usb_cam 772b25f src/usb_cam_node.cpp:67-76 declare_parameter
    declared = {
        'camera_info_url': str, 'framerate': float, 'frame_id': str, 'image_height': int,
        'image_width': int, 'pixel_format': str, 'video_device': str,
    }  # fmt: skip
    assert {name: kind for name, (_, kind, _) in arguments.items()} == declared


# From here on with launch itself.


def visited(name, **arguments):
    """The command lines that an example would start, in order, and the context."""
    launch = pytest.importorskip('launch', reason=WITHOUT_LAUNCH)
    pytest.importorskip('launch_ros', reason=WITHOUT_LAUNCH)
    context = launch.LaunchContext()
    context.launch_configurations.update({'python': 'python3', **arguments})
    commands = []

    def visit(entity):
        if isinstance(entity, launch.actions.ExecuteProcess):
            commands.append(command_of(context, entity))
            return
        for inner in entity.visit(context) or ():
            visit(inner)

    module = runpy.run_path(str(LAUNCH / f'{name}.launch.py'))
    for entity in module['generate_launch_description']().entities:
        visit(entity)
    return commands


def command_of(context, process):
    from launch.utilities import perform_substitutions

    if hasattr(process, '_perform_substitutions'):  # the public way would start the process
        process._perform_substitutions(context)
        specific = {
            'name': '__node:=NAME',
            'ns': f'__ns:={getattr(process, "expanded_node_namespace", "")}',
        }
        context.extend_locals({'ros_specific_arguments': specific})
    return [perform_substitutions(context, part) for part in process.cmd]


def test_bag_example_gives_the_node_the_time_of_the_recording(tmp_path):
    bag, node = visited('bag', bag=str(tmp_path), image_topic='/cam/image_raw')
    assert bag[:3] == ['ros2', 'bag', 'play']
    assert node[:3] == ['python3', '-m', 'vlm_depth_ros.ros.node']
    assert 'image:=/cam/image_raw' in node
    files = [node[i + 1] for i, word in enumerate(node) if word == '--params-file']
    assert 'use_sim_time: true' in Path(files[-1]).read_text(encoding='utf-8')


def test_cameras_example_starts_one_node_for_all():
    (node,) = visited('cameras', names='front,rear', namespace='robot')
    assert '__ns:=/robot' in node
    for rule in ('front/image:=front/image_raw', 'rear/image:=rear/image_raw'):
        assert node[node.index(rule) - 1] == '-r'
    files = [node[i + 1] for i, word in enumerate(node) if word == '--params-file']
    given = yaml.safe_load(Path(files[0]).read_text(encoding='utf-8'))
    assert given['/**']['ros__parameters']['cameras'] == ['front', 'rear']


def test_usb_camera_example_says_what_it_needs(monkeypatch):
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/nonexistent')
    with pytest.raises(RuntimeError, match='usb_camera.launch.py needs usb_cam'):
        visited('usb_camera')
