"""The executable ``depth_node``: ``ros2 run vlm_depth_ros depth_node``, or this module by ``-m``.

The node itself is in `depth_node`, imported only after signals are handled.
"""

import sys

from vlm_depth_ros.ros.process import run, Stop


def main(args: list[str] | None = None) -> int:
    """Run the depth node until a signal comes; the exit code."""
    return run(_create, args)


def _create(stop: Stop) -> object:
    from vlm_depth_ros.ros.depth_node import DepthNode

    return DepthNode(interruptible=stop.interruptible)


if __name__ == '__main__':
    sys.exit(main())
