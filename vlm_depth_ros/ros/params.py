"""Parameters of the node on the graph: declaring, reading and changing `NodeParams`."""

import array
from dataclasses import fields
from typing import Any, TYPE_CHECKING

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.ros.node_params import AT_START, NodeParams, QUOTE, UNCONFIGURED
from vlm_depth_ros.ros.param_checks import check_value

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.parameter import Parameter

_HOW_TO_WRITE = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number with a point, such as 10.0',
    str: f'a text; {QUOTE}',
}
_HOW_TO_WRITE_LISTS = {
    str: "a list of texts, such as ['front', 'rear']",
    float: 'a list of numbers with points, such as [0.0, 1.0]',
}


def declare(node: 'Node') -> None:
    """Declare every parameter of `NodeParams` on `node`.

    Raises:
        ConfigError: If an override has another type, or one of `AT_START` a value that is refused.
        rclpy.exceptions.ParameterException: If an override is out of bounds.
    """
    for f in fields(NodeParams):
        default = list(f.default) if isinstance(f.default, tuple) else f.default
        try:
            declared = node.declare_parameter(f.name, default, _descriptor(f.metadata))
        except InvalidParameterTypeException as err:
            raise ConfigError(f'{err}. Write it as {_how_to_write(f.default)}.') from err
        if f.metadata['change'] == AT_START:  # Other mistakes can be put right later.
            check_value(f.name, declared.value, f.metadata)


def read(node: 'Node') -> NodeParams:
    """Return the current values of all parameters.

    Raises:
        ConfigError: If they do not go together.
    """
    return NodeParams(**_values(node))


def changed(node: 'Node', proposed: list['Parameter'], configured: bool) -> NodeParams | None:
    """Return what the node's parameters would be; names that are not ours are passed over.

    Returns:
        The new set. None if it is inconsistent, but was so before and the node is not configured:
        several mistakes of a parameter file can be put right one by one.

    Raises:
        ConfigError: If a value is refused, or may not change in this state of the node.
    """
    current = _values(node)
    metadata = {f.name: f.metadata for f in fields(NodeParams)}
    values = {p.name: _plain(p.value) for p in proposed if p.name in metadata}
    for name, value in values.items():
        # Parameter files set everything again: what stays the same is no change.
        if configured and value != current[name] and metadata[name]['change'] == UNCONFIGURED:
            raise ConfigError(
                f'{name} can be changed only while the node is unconfigured. Deactivate it and '
                f'clean it up (ros2 lifecycle set NODE deactivate, then cleanup), set {name}, '
                'then configure and activate.'
            )
    try:
        return NodeParams(**current | values)
    except ConfigError:
        if configured or _is_consistent(current):
            raise
        return None


def _how_to_write(default: Any) -> str:
    if isinstance(default, tuple):
        return _HOW_TO_WRITE_LISTS[type(default[0])]
    return _HOW_TO_WRITE[type(default)]


def _values(node: 'Node') -> dict[str, Any]:
    return {f.name: _plain(node.get_parameter(f.name).value) for f in fields(NodeParams)}


def _is_consistent(values: dict[str, Any]) -> bool:
    try:
        NodeParams(**values)
    except ConfigError:
        return False
    return True


def _plain(value: Any) -> Any:
    # rclpy keeps numbers as an array.array, and names as a list.
    return tuple(value) if isinstance(value, list | array.array) else value


def _descriptor(metadata: Any) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=f'{metadata["description"]} {metadata["change"]}',
        read_only=metadata['change'] == AT_START,
    )
    if metadata['choices']:
        descriptor.additional_constraints = 'One of: ' + ', '.join(metadata['choices'])
        if 'off' in metadata['choices']:
            descriptor.additional_constraints += f'; {QUOTE}'
    if metadata['bounds']:
        low, high = metadata['bounds']
        if isinstance(low, int):
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor
