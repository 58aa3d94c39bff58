"""What a robot may change at any frame: size, range, scale, filters, form of the cloud.

Free of torch, so that the node can declare its parameters before the network is there.
"""

from dataclasses import dataclass
import math
from numbers import Integral
from typing import ClassVar

from vlm_depth_ros.core.cloud_options import ClearingOptions, CloudOptions, ScanOptions
from vlm_depth_ros.core.compressed_depth import CompressedDepthOptions
from vlm_depth_ros.core.config import require, require_within
from vlm_depth_ros.core.scale import ScaleOptions
from vlm_depth_ros.core.scale_ground import GroundOptions
from vlm_depth_ros.core.scale_ranges import RangeOptions

MEDIANS = (0, 3, 5)


@dataclass(frozen=True)
class FilterOptions:
    """What is removed from depth; 0 turns each one off, and all are off."""

    min_confidence: float = 0.0
    """Depth of a lower confidence goes, or of none (NaN)."""
    border: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """What goes at the top, bottom, left and right, as shares of the height and the width: where
    the network was never taught, or where the robot sees itself."""
    median_px: int = 0
    """Side of the median's window: 3 or 5."""
    max_gradient: float = 0.0
    """Most that 1/z may change from a pixel to the next, as a share of itself. A floor reaches it
    ``1 / max_gradient`` pixels below its horizon."""
    min_grazing_deg: float = 0.0
    """Least angle between the viewing ray and the surface."""
    edge_ratio: float = 0.0
    """Neighbours whose depths differ by more than this factor are not blended when depth is
    enlarged (`upsample_keeping_edges`)."""
    guide_px: int = 0
    """Depth is enlarged along the edges of the picture (`upsample_guided`), but where neighbours
    differ by `edge_ratio`: half of the window, in pixels of the network's own depth."""

    BOUNDS: ClassVar = {
        'min_confidence': (0.0, 1.0),
        'max_gradient': (0.0, 1.0),
        'min_grazing_deg': (0.0, 60.0),
    }
    MOST_GUIDE_PX: ClassVar = 16

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)
        require(
            self.median_px in MEDIANS,
            f'median_px = {self.median_px!r}: expected 0 (off), 3 or 5 pixels.',
        )
        require(
            self.edge_ratio == 0 or (_is_number(self.edge_ratio) and 1 < self.edge_ratio <= 10),
            f'edge_ratio = {self.edge_ratio!r}: expected 0 (off), or above 1 and up to 10.',
        )
        require(
            isinstance(self.guide_px, Integral) and 0 <= self.guide_px <= self.MOST_GUIDE_PX,
            f'guide_px = {self.guide_px!r}: expected 0 (off), or up to {self.MOST_GUIDE_PX} '
            "pixels of the network's depth.",
        )
        self._check_border()

    def _check_border(self) -> None:
        require(
            isinstance(self.border, tuple)
            and len(self.border) == 4
            and all(_is_number(share) and 0 <= share < 1 for share in self.border)
            and max(sum(self.border[:2]), sum(self.border[2:])) < 1,
            f'border = {self.border!r}: expected four shares (top, bottom, left, right) from 0 to '
            'below 1 that leave something between them.',
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


@dataclass(frozen=True)
class TemporalOptions:
    """How far to lean on the frame before; off unless `weight` is above 0."""

    weight: float = 0.0
    """Share of the depth before in the depth of now, where nothing changed."""
    max_change: float = 0.05
    """A relative change of depth of this much or more is taken over at once."""
    max_grey: float = 12.0
    """So is depth where the picture changed by this much or more, of 255."""
    cut_share: float = 0.6
    """More changed pixels than this share: another scene, so the past is dropped."""
    max_gap_s: float = 0.5
    """A longer pause drops the past too."""

    BOUNDS: ClassVar = {
        'weight': (0.0, 0.95),
        'max_change': (0.001, 0.5),
        'max_grey': (1.0, 255.0),
        'cut_share': (0.05, 1.0),
        'max_gap_s': (0.01, 60.0),
    }

    def __post_init__(self):
        """Check every bound."""
        require_within(self, self.BOUNDS)


@dataclass(frozen=True)
class OutputOptions:
    """What leaves the estimator for a robot: size, range, cloud form; may change at any frame."""

    depth_divisor: int = 1
    """Depth image = input size over this integer."""
    min_depth_m: float = 0.0
    """Nearer is too near; 0 takes the model's own range."""
    max_depth_m: float = 0.0
    """Farther is beyond range (+Inf); 0 takes the model's own range."""
    near_is_neg_inf: bool = False
    """Too near becomes -Inf (REP-117) instead of NaN."""
    cloud_stride: int = 2
    """Every n-th pixel and row of the depth image becomes a point."""
    cloud_organized: bool = False
    """Keep rows and NaN (height > 1) instead of finite points only (height 1)."""
    focal_correction: bool = True
    """Scale depth by the focal length of the camera at hand over the training camera's."""
    scale: ScaleOptions = ScaleOptions()
    ground: GroundOptions = GroundOptions()
    ranges: RangeOptions = RangeOptions()
    filter: FilterOptions = FilterOptions()
    temporal: TemporalOptions = TemporalOptions()
    cloud: CloudOptions = CloudOptions()
    clearing: ClearingOptions = ClearingOptions()
    scan: ScanOptions = ScanOptions()
    compressed: CompressedDepthOptions = CompressedDepthOptions()

    def __post_init__(self):
        """Check every bound."""
        for name, most in (('depth_divisor', 8), ('cloud_stride', 16)):
            value = getattr(self, name)
            require(
                isinstance(value, Integral) and 1 <= value <= most,
                f'{name} = {value!r}: expected an integer from 1 to {most}.',
            )
        for name in ('min_depth_m', 'max_depth_m'):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 0,
                f"{name} = {value}: expected a finite number of metres, 0 for the model's own.",
            )
        require(
            self.max_depth_m == 0 or self.min_depth_m < self.max_depth_m,
            f'min_depth_m = {self.min_depth_m} must be below max_depth_m = {self.max_depth_m}.',
        )
        self.cloud.require_form(self.cloud_organized)
