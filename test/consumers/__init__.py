"""What others do with the node's messages, written anew from their sources, one module each.

`rules.RULES` holds every rule once these modules are imported.
"""

from consumers import (  # noqa: F401
    collision_monitor,
    compressed_depth,
    costmap,
    depth_image_proc,
    depthimage_to_laserscan,
    rtabmap,
    stvl,
)
