"""Text of users on one line of a terminal or a record."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, with Python's escapes (`\\n`, `\\x1b`, `\\u202e`, `\\udcff`) for whatever
    a terminal would act on: line breaks, control characters, changes of direction, bytes that are
    not UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
