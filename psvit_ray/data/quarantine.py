"""`quarantine.csv`: the images that could not be used, beside what was made of the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from psvit_ray.data.storage import Folder

NAME = "quarantine.csv"
COLUMNS = ("source", "path", "reason")
"""Source without secrets, path or row in it, and what is wrong."""

Row = tuple[str, str, str]


def add(folder: Folder, rows: Iterable[Row]) -> None:
    """Adds what is not there yet. The same images give the same file, in whichever order and in
    however many runs they were found. One writer at a time. Raises OSError."""
    there = read(folder)
    together = sorted({*there, *rows})
    if len(together) > len(there):
        folder.write(NAME, content(together))


def read(folder: Folder) -> list[Row]:
    """None where there is no file."""
    text = (folder.read(NAME) or b"").decode(errors="surrogateescape")
    return [(source, path, reason) for source, path, reason in [*csv.reader(io.StringIO(text))][1:]]


def content(rows: Iterable[Row]) -> bytes:
    """The file of these rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # names of files as bytes
