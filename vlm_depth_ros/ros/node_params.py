"""What can be set on the node: name, type, default, bounds and description, each said once."""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from vlm_depth_ros.core.cloud_options import FRAMES
from vlm_depth_ros.core.compressed_depth import FORMATS
from vlm_depth_ros.core.config import COMPILES, ENGINES, PRECISIONS, require, RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.mounting import base_from_sensor
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.core.scale import SOURCES
from vlm_depth_ros.ros.param_checks import check_cameras, check_value

LIVE = 'Takes effect with the next frame.'
BESIDE = 'Takes effect once the new model is loaded and warmed up, beside the running one.'
UNCONFIGURED = 'Changeable only while the node is unconfigured.'
AT_START = 'Read once, when the node starts.'

_RUNTIME = {f.name: f.default for f in fields(RuntimeConfig)}
_OUTPUT = {f.name: f.default for f in fields(OutputOptions)}
_GROUPS = {name: type(default) for name, default in _OUTPUT.items() if is_dataclass(default)}
"""Options of one subject: the field `median_px` of `filter` is the parameter filter_median_px."""
QUOTE = "quote 'on' and 'off', which are booleans in YAML and on the command line"


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


def _option(group: str, name: str, description: str, choices: tuple[str, ...] = ()) -> Any:
    """A live parameter whose default and bounds are those of an option in `_GROUPS`."""
    default = getattr(_OUTPUT[group], name)
    return _param(default, LIVE, description, _GROUPS[group].BOUNDS.get(name), choices)


@dataclass(frozen=True)
class NodeParams:
    """A consistent set of the node's parameters.

    Defaults of the runtime and of the outputs are those of `RuntimeConfig` and `OutputOptions`.

    Raises:
        ConfigError: If a value, or a combination of them, is refused.
    """

    weights: str = _param(
        'pocket',
        BESIDE,
        'Model: the name of a shipped one, or the path of a .safetensors or an exported .onnx.',
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
    engine: str = _param(
        _RUNTIME['engine'], UNCONFIGURED, 'What runs the network.', choices=ENGINES
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
    executor: str = _param(
        'single',
        AT_START,
        "What calls the callbacks: rclpy's single-threaded executor or its experimental one of "
        'events, which is tried first and left alone where it does not work.',
        choices=('single', 'events'),
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

    cloud_rate_hz: float = _param(
        0.0, LIVE, 'Clouds a second at most; 0 is one for every frame.', bounds=(0.0, 1000.0)
    )

    cloud_voxel_m: float = _option(
        'cloud', 'voxel_m', 'One mean point for each cube of this side, metres; 0 is off.'
    )
    cloud_crop_min_m: tuple[float, ...] = _option(
        'cloud', 'crop_min_m', 'Least x, y, z of the box that keeps its points; -1000 is no bound.'
    )
    cloud_crop_max_m: tuple[float, ...] = _option(
        'cloud', 'crop_max_m', 'Greatest x, y, z of that box; 1000 is no bound.'
    )
    cloud_crop_in: str = _option(
        'cloud', 'crop_in', 'Frame of that box; the points stay in the optical frame.', FRAMES
    )
    clearing_range_m: float = _option(
        'clearing',
        'range_m',
        'How far from the camera points_clearing puts a point on each ray that sees farther: '
        "beyond the costmap's obstacle_max_range, within its raytrace_max_range.",
    )
    clearing_stride: int = _option(
        'clearing', 'stride', 'Every n-th pixel and row has such a ray, 1 to 32.'
    )
    scan_min_height_m: float = _option(
        'scan', 'min_height_m', 'Bottom of the band of heights in base_frame that scan shows.'
    )
    scan_max_height_m: float = _option('scan', 'max_height_m', 'Top of that band.')
    scan_range_min_m: float = _option(
        'scan', 'range_min_m', "Least distance of scan from base_frame's origin."
    )
    scan_range_max_m: float = _option(
        'scan', 'range_max_m', 'Greatest distance of scan; +Inf means free up to here.'
    )
    scan_angle_min_rad: float = _option(
        'scan', 'angle_min_rad', 'First angle of scan, to the left; both 0: what the camera sees.'
    )
    scan_angle_max_rad: float = _option('scan', 'angle_max_rad', 'Last angle of scan.')
    scan_angle_increment_rad: float = _option(
        'scan', 'angle_increment_rad', 'Angle from one range of scan to the next.'
    )
    scan_stride: int = _option('scan', 'stride', 'Every n-th pixel and row is used, 1 to 16.')
    compressed_format: str = _option(
        'compressed', 'format', 'Form of depth/image_rect/compressedDepth.', FORMATS
    )
    compressed_png_level: int = _option(
        'compressed', 'png_level', '0 is fast and large, 9 slow and small.'
    )
    compressed_depth_max_m: float = _option(
        'compressed', 'depth_max_m', 'Depth from here on is lost there, with a warning.'
    )
    compressed_depth_quantization: float = _option(
        'compressed', 'depth_quantization', 'Depth at which a step is about 1 m there.'
    )

    base_frame: str = _param(
        'base_link', LIVE, "The robot's frame: x forward, y left, z up (REP-103)."
    )
    pose_source: str = _param(
        'parameters',
        UNCONFIGURED,
        'Where the poses of camera and range sensor in base_frame come from: camera_in_base and '
        'ranges_in_base, or tf.',
        choices=('parameters', 'tf'),
    )
    camera_in_base: tuple[float, ...] = _param(
        (0.0,) * 6,
        LIVE,
        "Pose of the camera's body frame (camera_link, x ahead) in base_frame: x, y, z in metres, "
        'roll, pitch, yaw in radians as in URDF; six numbers, or six for each camera.',
    )
    ranges_in_base: tuple[float, ...] = _param(
        (0.0,) * 6, LIVE, 'Pose of the range sensor in base_frame, likewise.'
    )

    scale_source: str = _option(
        'scale',
        'source',
        'What makes depth metric: ground is the height of the camera above it, ranges is what '
        'comes on ranges/scan, ranges/points or ranges/range.',
        SOURCES,
    )
    scale_fixed_factor: float = _option(
        'scale', 'fixed_factor', 'Depth is multiplied by this with scale_source fixed.'
    )
    scale_min_factor: float = _option(
        'scale', 'min_factor', 'A measured factor below is refused.'
    )
    scale_max_factor: float = _option(
        'scale', 'max_factor', 'A measured factor above is refused.'
    )
    scale_max_change_per_s: float = _option(
        'scale', 'max_change_per_s', 'Share by which the applied factor changes in a second.'
    )
    scale_lost_after_s: float = _option(
        'scale', 'lost_after_s', 'Without a trusted measurement for so long it counts as frozen.'
    )
    ground_z_m: float = _option(
        'ground', 'z_m', 'Height of the ground in base_frame: below 0 for a base at the axles.'
    )

    filter_min_confidence: float = _option(
        'filter', 'min_confidence', 'Depth of a lower confidence becomes NaN; 0 is off.'
    )
    filter_border: tuple[float, ...] = _option(
        'filter',
        'border',
        'Shares at the top, bottom, left and right that become NaN: where the robot sees itself.',
    )
    filter_median_px: int = _option(
        'filter', 'median_px', 'Side of the median window: 0 (off), 3 or 5.'
    )
    filter_max_gradient: float = _option(
        'filter',
        'max_gradient',
        'Flying pixels: most that 1/z changes to the next pixel, as a share of itself; 0 is off.',
    )
    filter_min_grazing_deg: float = _option(
        'filter', 'min_grazing_deg', 'Least angle between the ray and the surface; 0 is off.'
    )
    filter_edge_ratio: float = _option(
        'filter',
        'edge_ratio',
        'Depths that differ by more than this factor are not blended by enlarging; 0 is off.',
    )
    filter_guide_px: int = _option(
        'filter', 'guide_px', 'Depth follows the edges of the picture: half a window; 0 is off.'
    )
    temporal_weight: float = _option(
        'temporal', 'weight', 'Share of the depth before where nothing changed; 0 is off.'
    )
    temporal_max_change: float = _option(
        'temporal', 'max_change', 'A larger relative change of depth is taken over at once.'
    )

    def __post_init__(self):
        """Check each value and all of them together."""
        for f in fields(self):
            check_value(f.name, getattr(self, f.name), f.metadata)
        check_cameras(self.cameras)
        require(bool(self.weights), "weights = '': expected a model's name or a path.")
        require(bool(self.base_frame), "base_frame = '': expected the name of a frame.")
        self.runtime()
        _ = self.output_options  # Its parts check themselves.
        self._check_poses()

    def needs_pose(self, wants: frozenset[str]) -> bool:
        """Whether a frame of which `wants` is wanted needs to know where its camera sits."""
        cloud = self.output_options.cloud
        return (
            self.scale_source == 'ground'
            or 'scan' in wants
            or ('points' in wants and cloud.crops and cloud.crop_in == 'base')
        )

    @property
    def says_pose(self) -> bool:
        """Whether the place of the cameras was ever said: six zeros are no pose but a default."""
        return self.pose_source == 'tf' or any(self.camera_in_base)

    def camera_pose(self, index: int) -> tuple[float, ...]:
        """Six numbers of one camera, by its place in `cameras`."""
        if len(self.camera_in_base) == 6:
            return self.camera_in_base
        return self.camera_in_base[6 * index : 6 * index + 6]

    def runtime(self) -> RuntimeConfig:
        """How to run the network."""
        return RuntimeConfig(**{name: getattr(self, name) for name in _RUNTIME})

    @cached_property
    def output_options(self) -> OutputOptions:
        """What leaves the estimator; asked for several times a frame, so made once."""
        groups = {group: self._group(group, kind) for group, kind in _GROUPS.items()}
        plain = {name: getattr(self, name) for name in _OUTPUT if name not in groups}
        return OutputOptions(**plain, **groups)

    def _group(self, group: str, kind: type) -> Any:
        names = [f.name for f in fields(kind) if hasattr(self, f'{group}_{f.name}')]
        try:
            return kind(**{name: getattr(self, f'{group}_{name}') for name in names})
        except ConfigError as err:
            raise ConfigError(f'{group}_{err}') from err

    def _check_poses(self) -> None:
        n = len(self.camera_in_base)
        require(
            n in (6, 6 * len(self.cameras)),
            f'camera_in_base has {n} numbers: expected 6, or 6 for each of '
            f'{len(self.cameras)} cameras.',
        )
        for start in range(0, n, 6):
            base_from_sensor(self.camera_in_base[start : start + 6])
        base_from_sensor(self.ranges_in_base, 'ranges_in_base')
