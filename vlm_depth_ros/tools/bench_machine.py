"""On which machine a figure was measured, with which versions, and what else ran there."""

from datetime import datetime, timezone
from importlib import metadata
import os
from pathlib import Path
import platform
import shlex
import sys
import time
from typing import Any

import torch
from vlm_depth_ros import __version__

LIBRARIES = ('torch', 'numpy', 'openvino', 'onnxruntime', 'open_clip_torch', 'transformers',
             'ros-rclpy', 'rclpy')  # fmt: skip
BUSY_SHARE = 0.05
"""Of all cores, taken by others during the run: from here on the machine was not idle."""


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'memory_gb': round(pages / 2**30, 1),
        'gpu': torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
        'cuda': torch.version.cuda if device.type == 'cuda' else None,
        'system': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        'vlm_depth_ros': __version__,
        'versions': {name: v for name in LIBRARIES if (v := _version(name))},
    }


def occasion() -> dict[str, str]:
    """When, and by which command."""
    return {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'command': shlex.join(['vlm-depth', *sys.argv[1:]]),
    }


class Load:
    """Watches what other processes take, from its making to `found`."""

    def __init__(self):
        self._start = os.getloadavg()[0]
        self._begun = self._now()

    def found(self) -> dict[str, Any]:
        """Load averages, the share of all cores that others took, and whether it was idle."""
        (wall, busy, own), (wall_0, busy_0, own_0) = self._now(), self._begun
        cores = os.cpu_count()
        others = max(0.0, (busy - busy_0) - (own - own_0)) / ((wall - wall_0) * cores)
        return {
            'load_average_before': self._start,
            'load_average_after': os.getloadavg()[0],
            'others_share': others,
            'was_idle': others < BUSY_SHARE,
        }

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Wall time, busy seconds of all cores, and those of this process and its children."""
        return time.monotonic(), busy_s(), sum(os.times()[:4])


def busy_s(stat: str | None = None) -> float:
    """Seconds of all cores in which they worked, since the machine started.

    Args:
        stat: Content of ``/proc/stat``; None: of this machine.
    """
    stat = Path('/proc/stat').read_text() if stat is None else stat
    user, nice, system, _, _, irq, softirq = map(int, stat.split('\n')[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


def _processor() -> str:
    """The model's name, where Linux tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
