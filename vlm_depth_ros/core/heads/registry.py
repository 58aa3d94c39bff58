"""All heads in one dictionary, and the one function that builds them."""

from collections.abc import Mapping
from dataclasses import fields

from vlm_depth_ros.core.config import from_mapping, require
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.base import DepthHead
from vlm_depth_ros.core.heads.depthblip2 import DepthBlip2Head
from vlm_depth_ros.core.heads.depthclip import DepthClipHead
from vlm_depth_ros.core.heads.dpt import DptHead
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.linear_bins import LinearBinsHead
from vlm_depth_ros.core.heads.moa_depthclip import MoaDepthClipHead
from vlm_depth_ros.core.heads.scale_shape import ScaleShapeHead
from vlm_depth_ros.core.heads.space_clip import SpaceClipHead

HEADS: dict[str, type[DepthHead]] = {
    head.name: head
    for head in (
        SpaceClipHead, LinearHead, MoaDepthClipHead, DepthClipHead, DepthBlip2Head,
        LinearBinsHead, DptHead, ScaleShapeHead,
    )
}  # fmt: skip


def build_head(
    options: Mapping, spec: BackboneSpec, range_m: tuple[float, float] | None = None
) -> DepthHead:
    """Build the head that ``options['name']`` names, on the tower that `spec` describes.

    Args:
        options: Name and options.
        spec: The tower.
        range_m: Depths that the whole model is for: those of a head whose answer is bound to a
            range of its own, unless it says the same. None: whatever the head says.

    Raises:
        ConfigError: If the name or an option is unknown, head and tower do not fit, or head and
            model have different ranges.
    """
    options = dict(options)
    name = options.pop('name', None)
    if name not in HEADS:
        raise ConfigError(f'head.name {name!r} is unknown. Available: {", ".join(HEADS)}.')
    head = HEADS[name]
    if range_m is not None and 'depth_range_m' in {f.name for f in fields(head.Config)}:
        own = options.setdefault('depth_range_m', range_m)
        require(
            tuple(own) == tuple(range_m),
            f'head {name} answers {tuple(own)} m, but depth_range_m of the model is '
            f'{tuple(range_m)}: expected one range. Leave that of the head out.',
        )
    return head(from_mapping(head.Config, options, f'head {name}'), spec)
