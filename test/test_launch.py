"""depth.launch.py: what is given is forwarded, what is not given is left alone."""

import ast
import importlib
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time

import pytest

WITHOUT_LAUNCH = 'launch and launch_ros come with a ROS installation only'
LAUNCH_FILE = Path(__file__).resolve().parent.parent / 'launch' / 'depth.launch.py'
ARGUMENTS = {
    'namespace', 'params_file', 'weights', 'device', 'precision', 'image_topic',
    'camera_info_topic', 'image_transport', 'use_sim_time', 'autostart', 'log_level', 'rviz',
    'python',
}  # fmt: skip


def without_ros(path):
    """Run a launch file without its imports from ROS, for the functions that need none."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    from_ros = ('launch', 'launch_ros', 'ament_index_python')
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in from_ros)
    ]
    for node in ast.walk(tree):  # annotations name classes of launch
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    space = {'__file__': str(path), '__name__': 'launch_file'}
    exec(compile(tree, str(path), 'exec'), space)
    return space


@pytest.fixture(scope='module')
def rules():
    """The names in depth.launch.py."""
    return without_ros(LAUNCH_FILE)


def given(**arguments):
    return {**dict.fromkeys(ARGUMENTS, ''), **arguments}


@pytest.mark.parametrize(
    ('image', 'camera_info'),
    [
        ('/camera/image_raw', '/camera/camera_info'),
        ('/camera/image_raw/compressed', '/camera/camera_info'),
        ('camera/color/image_rect', 'camera/color/camera_info'),
        ('image', 'camera_info'),
        ('/image', '/camera_info'),
        ('/front/image_raw/', '/front/camera_info'),
    ],
)
def test_camera_info_is_looked_for_beside_the_image(rules, image, camera_info):
    assert rules['camera_info_beside'](image) == camera_info


def test_both_image_topics_are_remapped(rules):
    for spelling in ('/cam/image_raw', '/cam/image_raw/compressed'):
        assert rules['remappings'](spelling, '') == [
            ('image', '/cam/image_raw'),
            ('image/compressed', '/cam/image_raw/compressed'),
            ('camera_info', '/cam/camera_info'),
        ]


def test_a_given_camera_info_topic_wins(rules):
    assert rules['remappings']('/cam/image_raw', '/rig/info')[-1] == ('camera_info', '/rig/info')
    assert rules['remappings']('', '/rig/info') == [('camera_info', '/rig/info')]


def test_nothing_given_remaps_and_sets_nothing(rules):
    assert rules['remappings']('', '') == []
    assert rules['parameters'](given()) == {}


def test_given_parameters_keep_their_type(rules):
    values = rules['parameters'](
        given(weights='0', device='cuda:1', use_sim_time='true', autostart='False')
    )
    assert values == {
        'weights': '0', 'device': 'cuda:1', 'use_sim_time': True, 'autostart': False
    }  # fmt: skip


def test_a_compressed_topic_selects_the_transport(rules):
    topic = '/cam/image_raw/compressed'
    assert rules['parameters'](given(image_topic=topic)) == {'image_transport': 'compressed'}
    explicit = rules['parameters'](given(image_topic=topic, image_transport='raw'))
    assert explicit == {'image_transport': 'raw'}


def test_home_is_expanded_in_weights(rules):
    home = os.path.expanduser('~')
    assert rules['parameters'](given(weights='~/w.safetensors'))['weights'].startswith(home)


def test_neither_true_nor_false_is_refused_by_name(rules):
    with pytest.raises(RuntimeError, match='autostart:=maybe is neither true nor false'):
        rules['parameters'](given(autostart='maybe'))


def test_the_active_virtual_environment_runs_the_node(rules, monkeypatch, tmp_path):
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()
    python.touch()
    monkeypatch.setenv('VIRTUAL_ENV', str(tmp_path))
    assert rules['default_python']() == str(python)
    monkeypatch.setenv('VIRTUAL_ENV', str(tmp_path / 'gone'))
    assert rules['default_python']() == sys.executable
    monkeypatch.delenv('VIRTUAL_ENV')
    assert rules['default_python']() == sys.executable


def test_every_argument_of_the_interface_is_declared(rules):
    assert set(rules['ARGUMENTS']) == ARGUMENTS


def test_parameters_set_by_arguments_exist_in_the_node(rules):
    pytest.importorskip('rclpy', reason='no ROS here')
    params = importlib.import_module('vlm_depth_ros.ros.params')
    forwarded = rules['parameters'](
        given(weights='w', device='d', precision='p', image_transport='raw', autostart='true')
    )
    assert set(forwarded) <= set(params.NodeParams.__dataclass_fields__)


def test_what_the_player_example_sets_are_parameters_of_the_player():
    pytest.importorskip('rclpy', reason='no ROS here')
    player = importlib.import_module('vlm_depth_ros.ros.camera_player')
    arguments = without_ros(LAUNCH_FILE.with_name('player.launch.py'))['ARGUMENTS']
    types = {name: kind for name, (_, kind, _) in arguments.items()}
    assert types == {name: type(player.PARAMETERS[name][0]) for name in types}


# From here on with launch itself.


@pytest.fixture
def launched(tmp_path):
    """Answer a function: launch arguments -> the command line of each process that would start."""
    launch = pytest.importorskip('launch', reason=WITHOUT_LAUNCH)
    pytest.importorskip('launch_ros', reason=WITHOUT_LAUNCH)
    module = runpy.run_path(str(LAUNCH_FILE))

    def run(**arguments):
        context = launch.LaunchContext()
        context.launch_configurations.update({'params_file': '', **arguments})
        description = module['generate_launch_description']()
        for entity in description.entities[:-1]:
            entity.visit(context)
        commands = []
        for node in description.entities[-1].visit(context):
            node._perform_substitutions(context)  # the public way would start the process
            specific = {'name': '__node:=NAME', 'ns': f'__ns:={node.expanded_node_namespace}'}
            context.extend_locals({'ros_specific_arguments': specific})
            text = [launch.utilities.perform_substitutions(context, part) for part in node.cmd]
            commands.append(text)
        return commands

    return run


LAUNCH_IT = """
import runpy, sys
import launch
from launch.actions import SetLaunchConfiguration
description = runpy.run_path(sys.argv[1])['generate_launch_description']()
given = [SetLaunchConfiguration('python', sys.argv[2]), SetLaunchConfiguration('params_file', '')]
service = launch.LaunchService(noninteractive=True)
service.include_launch_description(launch.LaunchDescription([*given, *description.entities]))
sys.exit(service.run())
"""
STAND_IN = """#!/bin/sh
trap 'exit 0' INT
echo $$ > "$0.pid"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['SIGINT', 'SIGTERM'])
def test_a_signal_ends_the_launch_with_its_node_and_exit_code_0(number, tmp_path):
    for name in ('launch', 'launch_ros'):
        pytest.importorskip(name, reason=WITHOUT_LAUNCH)
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    environment = {**os.environ, 'ROS_LOG_DIR': str(tmp_path)}
    launch = subprocess.Popen(
        [sys.executable, '-c', LAUNCH_IT, str(LAUNCH_FILE), str(python)], env=environment
    )
    try:
        pid_file = Path(f'{python}.pid')
        for _ in range(600):
            if pid_file.exists() and pid_file.read_text().strip():
                break
            time.sleep(0.05)
        launch.send_signal(number)
        assert launch.wait(timeout=10) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)
    finally:
        launch.kill()
        launch.wait()


def forwarded_parameters(command):
    """Answer the contents of the parameter files of a command line, in order."""
    yaml = pytest.importorskip('yaml')
    files = [command[i + 1] for i, word in enumerate(command) if word == '--params-file']
    return [yaml.safe_load(Path(name).read_text(encoding='utf-8')) for name in files]


def test_launch_starts_the_module_with_the_given_python(launched):
    (command,) = launched(python='/opt/venv/bin/python')
    assert command[:3] == ['/opt/venv/bin/python', '-m', 'vlm_depth_ros.ros.node']
    assert forwarded_parameters(command) == []
    assert '__ns:=/' in command


def test_launch_arguments_win_over_the_parameter_file(launched, tmp_path):
    mine = tmp_path / 'mine.yaml'
    mine.write_text('/**:\n  ros__parameters:\n    weights: from_file\n    device: cpu\n')
    (command,) = launched(params_file=str(mine), weights='1', namespace='front')
    first, last = forwarded_parameters(command)
    assert first['/**']['ros__parameters']['device'] == 'cpu'
    # By its full name: that is stronger than /** whatever the order.
    assert last == {'/front/depth_node': {'ros__parameters': {'weights': '1'}}}


def test_launch_remaps_raw_and_compressed_images(launched):
    (command,) = launched(image_topic='/cam/image_raw', log_level='debug')
    for rule in (
        'image:=/cam/image_raw',
        'image/compressed:=/cam/image_raw/compressed',
        'camera_info:=/cam/camera_info',
    ):
        assert command[command.index(rule) - 1] == '-r'
    assert command[command.index('--log-level') + 1] == 'debug'


def test_launch_refuses_a_missing_parameter_file(launched, tmp_path):
    with pytest.raises(RuntimeError, match=r'params_file:=.*none\.yaml is not a file'):
        launched(params_file=str(tmp_path / 'none.yaml'))


def test_launch_says_what_rviz_needs(launched, monkeypatch):
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/nonexistent')
    with pytest.raises(RuntimeError, match='rviz:=true needs rviz2'):
        launched(rviz='true')
