"""Values that came from outside, shown in a message of bounded length."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable
from itertools import islice

MAX_CHARACTERS = 200
MAX_BITS = 128  # larger integers are not written out: Python refuses to write very large ones


class _Short(reprlib.Repr):
    """Looks at a few entries of each collection, so that its time does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = MAX_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= MAX_BITS else f"a whole number of {bits:,} bits"


_short = _Short()


def short_repr(value: object) -> str:
    """`repr(value)`, shortened in the middle where it is long."""
    return shortened(_short.repr(value), MAX_CHARACTERS)


def shortened(text: str, max_length: int) -> str:
    """`text` without its middle if it has more than `max_length` characters."""
    half = (max_length - 3) // 2
    return text if len(text) <= max_length else f"{text[:half]}...{text[-half:]}"


def nearest(word: object, known: Iterable[str]) -> str:
    """The name in `known` that is most like `word`; empty if `known` is."""
    short = shortened(str(word), MAX_CHARACTERS)  # the comparison is quadratic
    return next(iter(difflib.get_close_matches(short, known, n=1, cutoff=0.0)), "")


def quoted_list(names: Collection[str], limit: int = 5) -> str:
    """The first `limit` names, quoted, and how many more there are."""
    first = ", ".join(map(repr, islice(names, limit)))
    return first + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
