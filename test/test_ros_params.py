"""Parameters: one default for each, bounds that hold, and live changes with reasons."""

from dataclasses import fields, replace
from pathlib import Path
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from rcl_interfaces.msg import ParameterType  # noqa: E402
from rcl_interfaces.srv import DescribeParameters  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros_graph import Graph, image_message, info_message, wait_for  # noqa: E402
from vlm_depth_ros.core.config import RuntimeConfig  # noqa: E402
from vlm_depth_ros.core.errors import ConfigError  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402
from vlm_depth_ros.ros.node_params import LIVE, NodeParams  # noqa: E402
import yaml  # noqa: E402

NODE_YAML = Path(__file__).parents[1] / 'config' / 'node.yaml'


def set_parameter(graph: Graph, name: str, value: object):
    """Set one parameter the way ``ros2 param set`` does; the node's answer."""
    return graph.node.set_parameters([Parameter(name, value=value)])[0]


@pytest.fixture(scope='module')
def graph():
    with Graph() as graph:
        yield graph


def test_node_yaml_holds_every_parameter_with_the_default_of_the_code():
    written = yaml.safe_load(NODE_YAML.read_text())['/**']['ros__parameters']
    defaults = {
        f.name: list(f.default) if isinstance(f.default, tuple) else f.default
        for f in fields(NodeParams)
    }
    assert written == defaults
    # 10 where 10.0 is meant stops a node at its start, and 1 == True.
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in defaults.items()}


def test_defaults_are_those_of_the_core():
    assert NodeParams().runtime() == RuntimeConfig()
    assert NodeParams().output_options == OutputOptions()


@pytest.mark.parametrize('name', ['depth_divisor', 'cloud_stride'])
def test_bounds_are_those_of_the_core(name):
    low, high = next(f for f in fields(NodeParams) if f.name == name).metadata['bounds']
    for allowed in (low, high):
        replace(OutputOptions(), **{name: allowed})
    for refused in (low - 1, high + 1):
        with pytest.raises(ConfigError):
            replace(OutputOptions(), **{name: refused})


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'weights': ''}, "weights = ''"),
        ({'device': 'gpu'}, "device = 'gpu': expected"),
        ({'precision': 'fp8'}, "precision = 'fp8'"),
        ({'compile': 'yes'}, "compile = 'yes'"),
        ({'image_transport': 'theora'}, "image_transport = 'theora': expected one of raw, compr"),
        ({'input_reliability': 'both'}, "input_reliability = 'both'"),
        ({'rectify': 'yes'}, "rectify = 'yes': expected one of auto, on, off"),
        ({'cameras': ()}, 'cameras = .*expected different names'),
        ({'cameras': ('a', 'a')}, 'cameras = .*expected different names'),
        ({'cameras': ('', 'a')}, 'cameras = .*the empty name only alone'),
        ({'cameras': ('2nd',)}, 'cameras = .*start with a letter'),
        ({'min_depth_m': 5.0, 'max_depth_m': 4.0}, 'must be below'),
        ({'max_depth_m': float('nan')}, 'max_depth_m = nan'),
        ({'cloud_stride': 0}, 'cloud_stride = 0'),
    ],
)
def test_node_params_refuse_what_cannot_work(change, says):
    with pytest.raises(ConfigError, match=says):
        NodeParams(**change)


def test_every_parameter_is_described_with_type_and_bounds(graph):
    request = DescribeParameters.Request(names=[f.name for f in fields(NodeParams)])
    answer = graph.call(DescribeParameters, '/depth_node/describe_parameters', request)
    by_name = {d.name: d for d in answer.descriptors}
    types = {
        bool: ParameterType.PARAMETER_BOOL,
        int: ParameterType.PARAMETER_INTEGER,
        float: ParameterType.PARAMETER_DOUBLE,
        str: ParameterType.PARAMETER_STRING,
        (str,): ParameterType.PARAMETER_STRING_ARRAY,
        (float,): ParameterType.PARAMETER_DOUBLE_ARRAY,
    }

    def kind_of(default):
        return (type(default[0]),) if isinstance(default, tuple) else type(default)

    for f in fields(NodeParams):
        d = by_name[f.name]
        assert d.type == types[kind_of(f.default)] and len(d.description) > 20, f.name
        assert d.read_only == (f.name in ('autostart', 'executor'))
        assert (f.metadata['change'] == LIVE) == ('next frame' in d.description)
    assert by_name['cloud_stride'].integer_range[0].to_value == 16
    assert by_name['max_depth_m'].floating_point_range[0].to_value == 1000.0
    assert 'compressed' in by_name['image_transport'].additional_constraints


@pytest.mark.parametrize(
    ('name', 'value', 'says'),
    [
        ('cloud_stride', 0, 'cloud_stride'),
        ('cloud_stride', 2.5, 'type'),
        ('max_depth_m', -1.0, 'max_depth_m'),
        ('min_depth_m', 11.0, 'nothing is left of the 0.001 to 10 m'),
        ('rectify', 'maybe', 'expected one of auto, on, off'),
        ('weights', 'other', "weights 'other': neither a file nor a shipped name"),
        ('precision', 'bf16', 'only while the node is unconfigured'),
        ('device', 'cuda', 'only while the node is unconfigured'),
        ('cameras', ['front'], 'only while the node is unconfigured'),
        ('autostart', False, 'read-only'),
    ],
)
def test_a_bad_live_change_is_rejected_with_a_reason(graph, name, value, says):
    before = graph.node.get_parameter(name).value
    result = set_parameter(graph, name, value)
    assert not result.successful
    assert says.lower() in result.reason.lower()
    assert graph.node.get_parameter(name).value == before


def test_setting_the_same_value_again_is_no_change(graph):
    assert set_parameter(graph, 'weights', 'pocket').successful


def test_a_live_change_takes_effect_with_the_next_frame(graph):
    clouds = graph.listen('points')
    graph.publish('camera_info', info_message())

    def next_cloud():
        clouds.clear()
        graph.publish('image', image_message())
        wait_for(lambda: clouds, 'a cloud')
        return clouds[0]

    assert next_cloud().width == 24 * 32
    assert set_parameter(graph, 'cloud_stride', 1).successful
    assert set_parameter(graph, 'cloud_organized', True).successful
    cloud = next_cloud()
    assert (cloud.height, cloud.width) == (48, 64)
    assert set_parameter(graph, 'max_depth_m', 1.5).successful
    assert not next_cloud().is_dense  # The stand-in answers 2 m: all beyond range.


def test_mistakes_can_be_put_right_one_by_one_while_unconfigured():
    with Graph(active=False, device='gpu', precision='fp8') as graph:
        assert set_parameter(graph, 'device', 'cpu').successful
        assert set_parameter(graph, 'precision', 'fp32').successful
        assert set_parameter(graph, 'weights', 'other').successful
        assert not set_parameter(graph, 'device', 'gpu').successful


@pytest.mark.parametrize(
    ('argument', 'says'),
    [
        ('max_depth_m:=10', 'such as 10.0'),
        ('rectify:=off', "quote 'on' and 'off'"),
        ('cameras:=front', "['front', 'rear']"),
        ('cloud_stride:=99', 'cloud_stride'),
        ('executor:=quick', "executor = 'quick': expected one of single, events"),
    ],
)
def test_a_wrong_parameter_at_the_start_ends_the_process_with_one_line(argument, says):
    command = [sys.executable, '-m', 'vlm_depth_ros.ros.node', '--ros-args', '-p', argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and says in lines[0], done.stderr
