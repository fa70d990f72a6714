"""Names of users as Ray takes them."""

from __future__ import annotations

from urllib.parse import quote

MAX_LENGTH = 200


def ray_name(name: str) -> str:
    """`name` as in a URL: Ray takes ASCII alone in the tags of its metrics, and makes folders of
    the names of runs. A name of ASCII letters, digits, spaces and `-_.~` stays as it is."""
    return quote(name, safe=" ")[:MAX_LENGTH]
