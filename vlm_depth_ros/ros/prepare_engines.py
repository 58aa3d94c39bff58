"""A program that the node starts beside itself: convert its network for other engines.

``python -m vlm_depth_ros.ros.prepare_engines WEIGHTS PRECISION TOWER_WEIGHTS`` prints a line of
JSON: the fields of `core.faster_engines.Prepared`, and ``trouble``, empty if all is well.
"""

import ctypes
from dataclasses import asdict
import json
import logging
import os
import signal
import sys

from vlm_depth_ros.ros.process import one_line

NICENESS = 10
"""A tenth of a core that the node wants too; at 19, a sixtieth, it might take half an hour."""


PR_SET_PDEATHSIG = 1
"""prctl(2)."""


class Heard(logging.Handler):
    """Keeps what the core warns of."""

    def __init__(self):
        """Begin without any."""
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


def main(args: list[str]) -> int:
    """Convert and check what `args` name, mostly while nobody else needs the cores."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # A killed node leaves no orphan.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # The node's own may know no nice.
    os.nice(NICENESS)
    heard, found = Heard(), {}
    logging.getLogger('vlm_depth_ros').addHandler(heard)
    try:
        from vlm_depth_ros.core.faster_engines import prepare

        found = asdict(prepare(*args))
    except Exception as err:
        heard.texts.append(one_line(err))
    print(json.dumps(found | {'trouble': ' '.join(heard.texts)}))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
