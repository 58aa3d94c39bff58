"""All heads in one dictionary, and the one function that builds them."""

from collections.abc import Mapping

from vlm_depth_ros.core.config import from_mapping
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.base import DepthHead
from vlm_depth_ros.core.heads.depthblip2 import DepthBlip2Head
from vlm_depth_ros.core.heads.depthclip import DepthClipHead
from vlm_depth_ros.core.heads.dpt import DptHead
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.linear_bins import LinearBinsHead
from vlm_depth_ros.core.heads.moa_depthclip import MoaDepthClipHead
from vlm_depth_ros.core.heads.space_clip import SpaceClipHead

HEADS: dict[str, type[DepthHead]] = {
    head.name: head
    for head in (
        SpaceClipHead, LinearHead, MoaDepthClipHead, DepthClipHead, DepthBlip2Head,
        LinearBinsHead, DptHead,
    )
}  # fmt: skip


def build_head(options: Mapping, spec: BackboneSpec) -> DepthHead:
    """Build the head that ``options['name']`` names, on the tower that `spec` describes.

    Raises:
        ConfigError: If the name or an option is unknown, or head and tower do not fit.
    """
    options = dict(options)
    name = options.pop('name', None)
    if name not in HEADS:
        raise ConfigError(f'head.name {name!r} is unknown. Available: {", ".join(HEADS)}.')
    head = HEADS[name]
    return head(from_mapping(head.Config, options, f'head {name}'), spec)
