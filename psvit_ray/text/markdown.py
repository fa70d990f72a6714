"""Text of users in Markdown: class names, names of runs, paths."""

from __future__ import annotations

import re

from psvit_ray.text.printable import printable

_MEANING = re.compile(r"[!\"#$%&()*+:;<=>?@\[\\\]^_`{|}~]|(?<=www)\.", re.IGNORECASE)


def text(value: object) -> str:
    """`value` as text of one line, also in a table: nothing in it is a heading, a link, HTML, a
    formula or a cell of its own. Not at the start of a line, where also `-` and `1.` mean
    something."""
    return _MEANING.sub(r"\\\g<0>", printable(str(value)))


def code(value: object) -> str:
    """`value` as code of one line, also in a table; as text where code could not hold it."""
    plain = str(value)
    fits = plain.isprintable() and plain.strip() == plain != "" and not re.search(r"[`|]", plain)
    return f"`{plain}`" if fits else text(value)
