"""How a value that came from outside is shown in a message: never longer than a line can be."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MOST_CHARACTERS = 200
MOST_BITS = 128  # of an integer that is written out: Python refuses to write very large ones


class _Short(reprlib.Repr):
    """Looks at a few entries of each collection, so that its time does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = MOST_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= MOST_BITS else f"a whole number of {bits:,} bits"


_short = _Short()


def shown(value: object) -> str:
    """`repr(value)`, shortened in the middle where it is long."""
    return shortened(_short.repr(value), MOST_CHARACTERS)


def shortened(text: str, most: int) -> str:
    """`text`, of which the middle is left out where it has more than `most` characters."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def nearest(word: object, known: Iterable[str]) -> str:
    """The name among `known` that is most like `word`; empty where there is none."""
    looked_at = shortened(str(word), MOST_CHARACTERS)  # the comparison is quadratic
    return next(iter(difflib.get_close_matches(looked_at, known, n=1, cutoff=0.0)), "")
