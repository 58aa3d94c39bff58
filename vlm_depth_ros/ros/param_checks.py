"""Which values of single parameters are refused, and what the refusal says."""

from collections.abc import Mapping
import re
from typing import Any

from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.texts import quoted

_CAMERA_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')


def check_value(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Refuse a value outside the ``choices`` or ``bounds`` of its field's metadata.

    Raises:
        ConfigError: If it is.
    """
    if metadata['choices']:
        expected = ', '.join(metadata['choices'])
        require(
            value in metadata['choices'],
            f'{name} = {quoted(str(value))}: expected one of {expected}.',
        )
    if metadata['bounds']:
        low, high = metadata['bounds']
        require(low <= value <= high, f'{name} = {value}: expected {low} to {high}.')


def check_cameras(cameras: tuple[str, ...]) -> None:
    """Refuse names that cannot prefix topics, or that are given twice.

    Raises:
        ConfigError: If there is one.
    """
    require(
        len(cameras) > 0 and len(set(cameras)) == len(cameras),
        f"cameras = {list(cameras)}: expected different names, or one empty name ('').",
    )
    require(
        cameras == ('',) or all(_CAMERA_NAME.fullmatch(name) for name in cameras),
        f'cameras = {list(cameras)}: expected names of letters, digits and underscores that start '
        "with a letter; the empty name only alone ('').",
    )
