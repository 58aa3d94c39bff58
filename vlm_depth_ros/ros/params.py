"""The parameters of the node: name, type, default, bounds and description, each said once."""

from dataclasses import dataclass, field, fields
import re
from typing import Any, TYPE_CHECKING

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from vlm_depth_ros.core.config import COMPILES, OutputOptions, PRECISIONS, require, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.parameter import Parameter

LIVE = 'Takes effect with the next frame.'
BESIDE = 'Takes effect once the new model is loaded and warmed up, beside the running one.'
UNCONFIGURED = 'Changeable only while the node is unconfigured.'
AT_START = 'Read once, when the node starts.'

_RUNTIME = {f.name: f.default for f in fields(RuntimeConfig)}
_OUTPUT = {f.name: f.default for f in fields(OutputOptions)}
_QUOTE = "quote 'on' and 'off', which are booleans in YAML and on the command line"
_HOW_TO_WRITE = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number with a point, such as 10.0',
    str: f'a text; {_QUOTE}',
    tuple: "a list of texts, such as ['front', 'rear']",
}
_CAMERA_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')


def _param(
    default: Any,
    change: str,
    description: str,
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {
        'change': change, 'description': description, 'bounds': bounds, 'choices': choices
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeParams:
    """A consistent set of the node's parameters.

    Defaults of the runtime and of the outputs are those of `RuntimeConfig` and `OutputOptions`.

    Raises:
        ConfigError: If a value, or a combination of them, is refused.
    """

    weights: str = _param(
        'pocket', BESIDE, 'Model: the name of a shipped one, or the path of a .safetensors.'
    )
    device: str = _param(
        _RUNTIME['device'], UNCONFIGURED, 'Where the network runs: auto, cpu, cuda or cuda:N.'
    )
    precision: str = _param(
        _RUNTIME['precision'], UNCONFIGURED, 'Arithmetic of the network.', choices=PRECISIONS
    )
    compile: str = _param(
        _RUNTIME['compile'], UNCONFIGURED, 'Run the network by torch.compile.', choices=COMPILES
    )
    tower_weights: str = _param(
        _RUNTIME['tower_weights'],
        UNCONFIGURED,
        'File with the frozen tower, where the model does not embed it (open_clip or Hugging Face '
        'naming); empty: the towers folder, else a download.',
    )
    cameras: tuple[str, ...] = _param(
        ('',),
        UNCONFIGURED,
        "Names that prefix each camera's topics; one empty name uses the topics as they are.",
    )
    image_transport: str = _param(
        'raw',
        UNCONFIGURED,
        'Subscribe to image or to image/compressed.',
        choices=('raw', 'compressed'),
    )
    input_reliability: str = _param(
        'auto',
        LIVE,
        'Reliability of image subscriptions; auto is reliable where every publisher offers it.',
        choices=('auto', 'reliable', 'best_effort'),
    )
    rectify: str = _param(
        'auto',
        LIVE,
        'Undo lens distortion by camera_info; off takes images as rectified; auto is off for '
        'topics named image_rect*.',
        choices=('auto', 'on', 'off'),
    )
    autostart: bool = _param(
        True, AT_START, 'Configure and activate at start; false leaves it to a lifecycle manager.'
    )
    depth_divisor: int = _param(
        _OUTPUT['depth_divisor'], LIVE, 'Depth image size = input size over this.', bounds=(1, 8)
    )
    min_depth_m: float = _param(
        _OUTPUT['min_depth_m'],
        LIVE,
        "Nearer is too near, NaN, in metres; 0 is the model's own limit.",
        bounds=(0.0, 1000.0),
    )
    max_depth_m: float = _param(
        _OUTPUT['max_depth_m'],
        LIVE,
        "Farther is out of range, +Inf, in metres; 0 is the model's own limit.",
        bounds=(0.0, 1000.0),
    )
    near_is_neg_inf: bool = _param(
        _OUTPUT['near_is_neg_inf'], LIVE, 'Too near is -Inf (REP-117) instead of NaN.'
    )
    cloud_stride: int = _param(
        _OUTPUT['cloud_stride'], LIVE, 'Every n-th pixel and row becomes a point.', bounds=(1, 16)
    )
    cloud_organized: bool = _param(
        _OUTPUT['cloud_organized'],
        LIVE,
        'Keep the image grid, with NaN points, instead of finite points only.',
    )
    focal_correction: bool = _param(
        _OUTPUT['focal_correction'],
        LIVE,
        "Scale depth by this camera's focal length over that of the camera of the training.",
    )

    def __post_init__(self):
        """Check each value and all of them together."""
        for f in fields(self):
            _check_one(f.name, getattr(self, f.name), f.metadata)
        _check_cameras(self.cameras)
        require(bool(self.weights), "weights = '': expected a model's name or a path.")
        self.runtime()
        self.output_options()

    def runtime(self) -> RuntimeConfig:
        """How to run the network."""
        return RuntimeConfig(**{name: getattr(self, name) for name in _RUNTIME})

    def output_options(self) -> OutputOptions:
        """What leaves the estimator."""
        return OutputOptions(**{name: getattr(self, name) for name in _OUTPUT})


def declare(node: 'Node') -> None:
    """Declare every parameter of `NodeParams` on `node`.

    Raises:
        ConfigError: If an override has another type.
        rclpy.exceptions.ParameterException: If an override is out of bounds.
    """
    for f in fields(NodeParams):
        default = list(f.default) if isinstance(f.default, tuple) else f.default
        try:
            node.declare_parameter(f.name, default, _descriptor(f.metadata))
        except InvalidParameterTypeException as err:
            raise ConfigError(f'{err}. Write it as {_HOW_TO_WRITE[type(f.default)]}.') from err


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


def _values(node: 'Node') -> dict[str, Any]:
    return {f.name: _plain(node.get_parameter(f.name).value) for f in fields(NodeParams)}


def _is_consistent(values: dict[str, Any]) -> bool:
    try:
        NodeParams(**values)
    except ConfigError:
        return False
    return True


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _descriptor(metadata: Any) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=f'{metadata["description"]} {metadata["change"]}',
        read_only=metadata['change'] == AT_START,
    )
    if metadata['choices']:
        descriptor.additional_constraints = 'One of: ' + ', '.join(metadata['choices'])
        if 'off' in metadata['choices']:
            descriptor.additional_constraints += f'; {_QUOTE}'
    if metadata['bounds']:
        low, high = metadata['bounds']
        if isinstance(low, int):
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor


def _check_one(name: str, value: Any, metadata: Any) -> None:
    if metadata['choices']:
        expected = ', '.join(metadata['choices'])
        require(value in metadata['choices'], f'{name} = {value!r}: expected one of {expected}.')
    if metadata['bounds']:
        low, high = metadata['bounds']
        require(low <= value <= high, f'{name} = {value}: expected {low} to {high}.')


def _check_cameras(cameras: tuple[str, ...]) -> None:
    require(
        len(cameras) > 0 and len(set(cameras)) == len(cameras),
        f"cameras = {list(cameras)}: expected different names, or one empty name ('').",
    )
    require(
        cameras == ('',) or all(_CAMERA_NAME.fullmatch(name) for name in cameras),
        f'cameras = {list(cameras)}: expected names of letters, digits and underscores that start '
        "with a letter; the empty name only alone ('').",
    )
