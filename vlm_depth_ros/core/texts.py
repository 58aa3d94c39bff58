"""Texts that come from outside, made fit for one line of a log."""

LONGEST = 60
"""Characters shown of a longer text."""


def quoted(text: str) -> str:
    """`text` in quotes with what cannot be printed escaped; of a long one, its start and length.

    A name in a message may hold a line of its own, a terminal's commands or a megabyte.
    """
    if len(text) <= LONGEST:
        return repr(text)
    return f'{text[:LONGEST]!r}... ({len(text)} characters)'
