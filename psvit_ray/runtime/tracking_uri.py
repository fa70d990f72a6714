"""Which store MLflow's runs are in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from requests import RequestException, get
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from psvit_ray.data.secrets import without_secrets
from psvit_ray.data.storage import Folder

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def of(given: str | None, storage: Folder) -> str:
    """What is given, or MLflow's own variable says; else a SQLite file beside the searches, so that
    they can be compared in one UI.

    Raises ValueError where the storage is no disk.
    """
    if uri := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not storage.is_local:
        raise ValueError(
            f"tracking_uri must be given, since storage {storage} is no disk for MLflow's default "
            "SQLite file; give the http:// address of a tracking server"
        )
    return sqlite(Path(storage.uri, "mlflow.db"))


def sqlite(file: Path) -> str:
    """The URI of a SQLite file, whatever its path is made of."""
    path = str(file.absolute())
    if not re.search("[%?]", path):
        return f"sqlite:///{path}"
    # MLflow makes the folder that it reads in a URI of `sqlite:///`, without decoding it.
    return URL.create("sqlite+pysqlite", database=path).render_as_string(hide_password=False)


def check(tracking_uri: str) -> None:
    """Raises ValueError if the server does not answer, or it is no store. Writes nothing."""
    shown = without_secrets(tracking_uri)
    scheme, _, path = tracking_uri.partition("://")
    if scheme.partition("+")[0] not in SERVERS + DATABASES or not path:
        raise ValueError(
            "tracking_uri must be the address of a server, as http://host:5000, or a database, as "
            f"sqlite:////folder/mlflow.db, got {shown!r}"
        )
    if file := _sqlite_file(tracking_uri):
        try:
            Folder.at(str(file.parent)).check_writable()
        except ValueError as error:
            raise ValueError(str(error).replace("storage", "tracking_uri", 1)) from None
    if scheme not in SERVERS:
        return
    try:
        answer = get(f"{tracking_uri.rstrip('/')}/health", timeout=5)
    except (RequestException, ValueError) as error:  # ValueError: an address that is none
        reason = type(error).__name__
        raise ValueError(f"tracking_uri must answer, got {shown}: {reason}") from None
    if not answer.ok:
        raise ValueError(f"tracking_uri must answer, got {shown}: HTTP {answer.status_code}")


def check_shared(tracking_uri: str, *, num_hosts: int) -> None:
    """Raises ValueError for a SQLite file on a cluster: a driver that is submitted again may stand
    on another host, and SQLite's locks do not hold on shared disks."""
    if num_hosts > 1 and _sqlite_file(tracking_uri):
        raise ValueError(
            f"tracking_uri must be a tracking server's on a cluster of {num_hosts} hosts, got "
            f"{without_secrets(tracking_uri)}; add --tracking-uri http://HOST:5000"
        )


def exists(tracking_uri: str) -> bool:
    """Whether there is a store; asking for what is in a SQLite file that is not there makes it."""
    file = _sqlite_file(tracking_uri)
    return file is None or file.exists()


def artifacts(tracking_uri: str) -> str | None:
    """Where artifacts go: beside a SQLite file, for which MLflow would take the folder that this
    happens to run in; elsewhere the store knows."""
    file = _sqlite_file(tracking_uri)
    return (file.absolute().parent / "mlartifacts").as_uri() if file else None


def _sqlite_file(tracking_uri: str) -> Path | None:
    """None for anything else, also a database in memory. Raises ValueError where it is no URI."""
    if not tracking_uri.startswith("sqlite"):
        return None
    try:
        database = make_url(tracking_uri).database
    except ArgumentError as error:
        raise ValueError(f"tracking_uri must be a URI: {without_secrets(str(error))}") from None
    return Path(database) if database and database != ":memory:" else None
