"""One progress bar for every job that takes seconds."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar('T')


def steps(items: Sequence[T], what: str) -> Iterable[T]:
    """Go through `items` with a bar on stderr that says what is done and when it ends."""
    from rich.console import Console
    from rich.progress import track

    return track(items, what, transient=True, console=Console(stderr=True))
