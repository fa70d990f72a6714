"""Names chosen by users, in a form that Ray takes."""

from __future__ import annotations

from urllib.parse import quote

MAX_LENGTH = 200


def ray_name(name: str) -> str:
    """`name` percent-encoded: Ray takes only ASCII in the tags of its metrics, and makes folders of
    the names of runs. A name of ASCII letters, digits, spaces and `-_.~` stays as it is."""
    return quote(name, safe=" ")[:MAX_LENGTH]
