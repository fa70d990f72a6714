"""A SQLite store that was copied or moved with its folder.

MLflow keeps the absolute location of artifacts in the database: a copy would go on writing to the
folder that it was copied from. MLflow has no call that changes a location.
"""

from __future__ import annotations

import contextlib
import sqlite3

from psvit_ray.runtime.tracking import store_uri

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables of MLflow's databases and their columns with locations of artifacts."""


def adopt(tracking_uri: str) -> None:
    """Makes the folder of artifacts beside a SQLite file the one that the file names, where it
    names such a folder elsewhere. Locations that a user chose stay as they are.

    Raises sqlite3.Error where the file cannot be written.
    """
    file, here = store_uri.sqlite_file(tracking_uri), store_uri.artifact_location(tracking_uri)
    if file is None or here is None or not file.is_file():
        return
    with contextlib.closing(sqlite3.connect(file, timeout=store_uri.LOCKED_S)) as database:
        for before in _elsewhere(database, here):
            with database:  # all columns or none
                for table, column in _columns(database):
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )


def _elsewhere(database: sqlite3.Connection, here: str) -> list[str]:
    """Folders of artifacts that an earlier place of the file had beside it."""
    if ("experiments", "artifact_location") not in _columns(database):
        return []
    rows = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    named = {str(location) for (location,) in rows}
    return sorted(
        location
        for location in named - {here}
        if location.startswith("file:") and location.endswith(f"/{store_uri.ARTIFACTS}")
    )


def _columns(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """The columns of LOCATIONS that the database has: older versions of MLflow lack some."""
    return [
        (table, column)
        for table, column in LOCATIONS
        if column in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    ]
