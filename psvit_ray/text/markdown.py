"""Text of users in Markdown: class names, names of runs, paths."""

from __future__ import annotations

import re

from psvit_ray.text.printable import printable

_MEANING = re.compile(r"[!\"#$%&()*+:;<=>?@\[\\\]^_`{|}~]|(?<=www)\.", re.IGNORECASE)


def text(value: object) -> str:
    """`value` as text of one line, also in a table: nothing in it is a heading, a link, HTML, a
    formula or a cell of its own. Do not put it at the start of a line, where `-` and `1.` begin a
    list."""
    return _MEANING.sub(r"\\\g<0>", printable(str(value)))


def code(value: object) -> str:
    """`value` as inline code, also in a table; as `text` if it holds what code cannot."""
    plain = str(value)
    fits = plain.isprintable() and plain.strip() == plain != "" and not re.search(r"[`|]", plain)
    return f"`{plain}`" if fits else text(value)
