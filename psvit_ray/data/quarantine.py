"""`quarantine.csv`: the images that could not be used, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable

from psvit_ray.storage.folder import Folder
from psvit_ray.text import csv_file

QUARANTINE = "quarantine.csv"
COLUMNS = ("source", "path", "reason")
"""Columns of the file: source without secrets, path or row in it, reason."""

BadImageRow = tuple[str, str, str]


def add_to_quarantine(folder: Folder, rows: Iterable[BadImageRow]) -> None:
    """Adds rows to the file, sorted and each once: the same images give the same file, in whatever
    order they are added. Only one writer may call it at a time. Raises OSError."""
    old = read_quarantine(folder)
    new = sorted({*old, *rows})
    if len(new) > len(old):
        folder.write(QUARANTINE, quarantine_csv(new))


def read_quarantine(folder: Folder) -> list[BadImageRow]:
    """Rows of the file; none if there is no file. Raises ValueError if it was changed."""
    try:
        table = csv_file.csv_rows(folder.read(QUARANTINE) or b"")
        return [(source, path, reason) for source, path, reason in table]
    except ValueError as error:
        raise ValueError(
            f"{folder}/{QUARANTINE} must be as it was written, with {', '.join(COLUMNS)}: {error}; "
            "move "
            "it away"
        ) from None


def quarantine_csv(rows: Iterable[BadImageRow]) -> bytes:
    """Content of a file with these rows."""
    return csv_file.csv_bytes(COLUMNS, rows)
