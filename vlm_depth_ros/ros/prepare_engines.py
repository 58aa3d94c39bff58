"""A program that the node starts beside itself: convert its network for other engines.

``python -m vlm_depth_ros.ros.prepare_engines WEIGHTS PRECISION TOWER_WEIGHTS`` prints a line of
JSON: the fields of `core.faster_engines.Prepared`, and ``trouble``, empty if all is well.
"""

from dataclasses import asdict
import json
import logging
import os
import sys

from vlm_depth_ros.core.threads import nap_between_operations
from vlm_depth_ros.ros.process import one_line

NICENESS = 10
"""A tenth of a core that the node wants too; at 19, a sixtieth, it might take half an hour."""


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
    os.nice(NICENESS)
    nap_between_operations()
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
