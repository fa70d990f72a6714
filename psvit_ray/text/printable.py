"""Text of users on one line of a terminal or a record."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with everything that a terminal would act on instead of showing it (line breaks,
    control characters, escape sequences, changes of direction, bytes that are not UTF-8) as Python
    writes it: `\\n`, `\\x1b`, `\\u202e`, `\\udcff`."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
