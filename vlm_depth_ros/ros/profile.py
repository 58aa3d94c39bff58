"""The middleware settings without which stock readers do not receive large messages."""

from collections.abc import MutableMapping
from importlib import metadata, resources
import os

SEGMENT_BYTES = 64 * 2**20
"""Size of the shared-memory segment in ``assets/fastdds.xml``; a test compares the two."""
VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""Where Fast DDS 3 and Fast DDS 2 look for a profile."""
FIRST_RCLPY_WITH_FAST_DDS_3 = 9
"""Kilted. Humble and Jazzy, with Fast DDS 2, do not read the new name; Kilted warns of the old."""


def profile_path() -> str:
    """Where our Fast DDS profile lies."""
    return str(resources.files('vlm_depth_ros') / 'assets' / 'fastdds.xml')


def profile_variable() -> str:
    """Name of the environment variable that this distribution's Fast DDS reads."""
    try:
        major = int(metadata.version('rclpy').split('.')[0])
    except metadata.PackageNotFoundError:
        major = FIRST_RCLPY_WITH_FAST_DDS_3
    return VARIABLES[0 if major >= FIRST_RCLPY_WITH_FAST_DDS_3 else 1]


def use_large_segment(
    environ: MutableMapping[str, str] | None = None, shared_memory: str = '/dev/shm'
) -> str:
    """Name our Fast DDS profile in the environment; to be called before ``rclpy.init``.

    Nothing changes where the user has named a profile or where another middleware runs. The
    *publisher's* segment decides whether a best-effort reader gets a large message, so one process
    with this profile serves readers with stock settings.

    Args:
        environ: The environment to change; the process's own by default.
        shared_memory: The file system that Fast DDS puts segments in.

    Returns:
        A warning to log, or ``''``. Without room for the segment the profile stays off, because
        Fast DDS would then do without shared memory altogether.
    """
    environ = os.environ if environ is None else environ
    if environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        return ''
    if any(environ.get(name) for name in VARIABLES):
        return ''
    free_bytes = _free_bytes(shared_memory)
    if free_bytes is not None and free_bytes < SEGMENT_BYTES * 1.05:
        return (
            f'{shared_memory} has {free_bytes / 2**20:.0f} MB free and the shared-memory segment '
            f'needs {SEGMENT_BYTES / 2**20:.0f} MB: best-effort readers will miss large images '
            'and clouds. Start the container with --ipc=host or --shm-size=256m.'
        )
    environ[profile_variable()] = profile_path()
    return ''


def _free_bytes(path: str) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:  # Not Linux: Fast DDS keeps its segments elsewhere.
        return None
    return status.f_bavail * status.f_frsize
