"""`quarantine.csv`: the images that could not be used, beside what was made of the others."""

from __future__ import annotations

from collections.abc import Iterable

from psvit_ray.storage.folder import Folder
from psvit_ray.text import csv_file

QUARANTINE = "quarantine.csv"
COLUMNS = ("source", "path", "reason")
"""Source without secrets, path or row in it, and what is wrong."""

BadImageRow = tuple[str, str, str]


def add(folder: Folder, rows: Iterable[BadImageRow]) -> None:
    """Adds what is not there yet. The same images give the same file, in whichever order and in
    however many runs they were found. One writer at a time. Raises OSError."""
    there = read(folder)
    together = sorted({*there, *rows})
    if len(together) > len(there):
        folder.write(QUARANTINE, content(together))


def read(folder: Folder) -> list[BadImageRow]:
    """None where there is no file. Raises ValueError for one that is not as it was written."""
    try:
        table = csv_file.rows(folder.read(QUARANTINE) or b"")
        return [(source, path, reason) for source, path, reason in table]
    except ValueError as error:
        raise ValueError(
            f"{folder}/{QUARANTINE} must be as it was written, with {', '.join(COLUMNS)}: {error}; "
            "move "
            "it away"
        ) from None


def content(rows: Iterable[BadImageRow]) -> bytes:
    """The file of these rows."""
    return csv_file.content(COLUMNS, rows)
