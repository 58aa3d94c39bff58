"""Waiting until the node has chosen the engine that it goes on with.

With ``engine: auto`` the node looks for a faster engine once frames have come for some seconds:
another process converts the network, then some frames decide.
"""

from pathlib import Path
import subprocess
import time
from typing import TYPE_CHECKING

from vlm_depth_ros.ros.demo import spin
from vlm_depth_ros.ros.engine_search import PROGRAM

if TYPE_CHECKING:
    from vlm_depth_ros.ros.bench_reader import BenchReader

SETTLED_S, SETTLED_CLOUDS = 8.0, 40
"""Nothing has changed for so long, and for so many clouds: more than the search waits before it
begins, and than its comparison of engines takes."""
LIMIT_S = 180.0


def wait_until_settled(reader: 'BenchReader', node: subprocess.Popen) -> bool:
    """Wait until the node goes on with one engine; call it while images are played.

    Args:
        reader: Hears what the node reports.
        node: Its process.

    Returns:
        False if it took longer than `LIMIT_S`, or the node ended.
    """
    end_s = time.monotonic() + LIMIT_S
    engine, since_s, clouds = reader.engine, time.monotonic(), reader.count
    while (now_s := time.monotonic()) < end_s and node.poll() is None:
        if reader.engine != engine or is_converting(node.pid):
            engine, since_s, clouds = reader.engine, now_s, reader.count
        elif now_s - since_s >= SETTLED_S and reader.count - clouds >= SETTLED_CLOUDS:
            return True
        spin(reader, 0.25)
    return False


def is_converting(pid: int) -> bool:
    """Whether a process has a child that prepares engines."""
    try:
        lists = [path.read_text() for path in Path(f'/proc/{pid}/task').glob('*/children')]
        children = [child for text in lists for child in text.split()]
        commands = [Path(f'/proc/{child}/cmdline').read_text() for child in children]
    except OSError:  # one of them ended meanwhile
        return True
    return any(PROGRAM in command for command in commands)
