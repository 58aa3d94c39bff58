"""Numbers that come from outside: finite, whole, positive, or one clear error."""

from collections.abc import Sequence
import math

from vlm_depth_ros.core.errors import InputError


def number(value: float, what: str) -> float:
    """`value` as a finite float, or an InputError that names `what`."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f'{what} = {value!r}: expected a finite number. Check the calibration.')
    return found


def numbers(values: Sequence[float], what: str, count: int | None) -> tuple[float, ...]:
    """As `number`, `count` of them (any number for None)."""
    found = tuple(number(v, f'{what}[{i}]') for i, v in enumerate(values))
    if count is not None and len(found) != count:
        raise InputError(f'{what} has {len(found)} numbers: expected {count}, row by row.')
    return found


def integer(value: int, what: str) -> int:
    """As `number`, without a fraction."""
    found = number(value, what)
    if found != int(found):
        raise InputError(f'{what} = {value!r}: expected a whole number of pixels.')
    return int(found)


def at_least_one(value: int, what: str) -> int:
    """As `integer`, 1 or more."""
    found = integer(value, what)
    if found < 1:
        raise InputError(f'{what} = {value!r}: expected at least 1.')
    return found
