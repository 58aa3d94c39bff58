"""The executable ``depth_node``: ``ros2 run vlm_depth_ros depth_node``, or this module by ``-m``.

The node itself is in `depth_node`, imported only after signals are handled.
"""

import logging
import sys
from typing import Any

from vlm_depth_ros.ros.process import run, Stop


def main(args: list[str] | None = None) -> int:
    """Run the depth node until a signal comes; the exit code."""
    return run(_create, args)


def one_thread_of_opencv() -> None:
    """Keep OpenCV to the thread that calls it.

    Its passes over an image take a fraction of a millisecond, about what it costs to wake a second
    thread, which then takes a core from the network, the camera driver and whoever reads.
    """
    import cv2  # Only after signals are handled, as all that takes long to import.

    cv2.setNumThreads(1)


def _create(stop: Stop) -> object:
    from vlm_depth_ros.ros.depth_node import DepthNode

    one_thread_of_opencv()
    node = DepthNode(interruptible=stop.interruptible)
    log = logging.getLogger('vlm_depth_ros')
    log.addHandler(ToRosLog(node.get_logger()))
    log.setLevel(logging.INFO)
    return node


class ToRosLog(logging.Handler):
    """What the core has to say, such as a frozen scale, in the log of the node."""

    def __init__(self, logger: Any):
        """Pass records on to the logger of a node."""
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; of three levels, as rclpy wants a call in a line of its own for each."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


if __name__ == '__main__':
    sys.exit(main())
