"""The address of the store that MLflow's runs are in."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from requests import RequestException, get
from requests.utils import get_environ_proxies, select_proxy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
ARTIFACTS = "mlartifacts"
LOCKED_S = 5.0
"""Seconds for which a SQLite file may be locked by another process before it is refused."""
ADVICE = {
    "out-of-date database schema": "back it up and run `mlflow db upgrade {uri}`; one of a newer "
    "MLflow needs that MLflow",
    "database is locked": "end the process that has it locked",
    "readonly database": "make the file and its folder writable",
    "not a database|no such (column|table)": "this is some other file: name one that is MLflow's, "
    "or a new one",
    "HTTP 40[13]|error code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED|Unauthorized|Forbidden|"
    "not authenticated": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, of a user who may write",
    "valid JSON|<html|<!doctype": "what answers there is no MLflow server, but a login page or "
    "another website",
}
"""Advice by a regular expression of the store's answer."""


def resolve_uri(given: str | None, storage: Folder) -> str:
    """The address that is given, or MLFLOW_TRACKING_URI; else a SQLite file beside the searches, so
    that they can be compared in one UI.

    Raises ValueError where none is given and the storage is no disk.
    """
    if uri := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not storage.is_local:
        raise ValueError(
            f"tracking_uri must be given, since storage {storage} is no disk for MLflow's default "
            "SQLite file; give the http:// address of a tracking server"
        )
    return sqlite_uri(Path(storage.uri, "mlflow.db"))


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file, whatever characters its path has."""
    path = str(file.absolute())
    if not re.search("[%?]", path):
        return f"sqlite:///{path}"
    # MLflow makes the folder that it reads in a URI of `sqlite:///`, without decoding it.
    return URL.create("sqlite+pysqlite", database=path).render_as_string(hide_password=False)


def check(tracking_uri: str) -> None:
    """Raises ValueError if the server does not answer, or the address is no store's. Writes
    nothing."""
    scheme, _, path = tracking_uri.partition("://")
    if scheme.partition("+")[0] not in SERVERS + DATABASES or not path:
        raise ValueError(
            "tracking_uri must be the address of a server, as http://host:5000, or a database, as "
            f"sqlite:////folder/mlflow.db, got {without_secrets(tracking_uri)!r}"
        )
    if file := sqlite_file(tracking_uri):
        _check_file(tracking_uri, file)
    if scheme not in SERVERS:
        return
    try:
        answer = get(f"{tracking_uri.rstrip('/')}/health", timeout=5)
    except (RequestException, ValueError) as error:  # ValueError: an address that is none
        raise refusal(tracking_uri, type(error).__name__, "must answer") from None
    if not answer.ok:
        raise refusal(tracking_uri, f"HTTP {answer.status_code}", "must answer")


def _check_file(tracking_uri: str, file: Path) -> None:
    for folder in (file.parent, file.parent / ARTIFACTS):
        Folder.at(str(folder)).check_writable("tracking_uri")
    if not file.exists():
        return
    if not file.is_file():
        raise refusal(tracking_uri, "it is no file")
    # MLflow itself would try again for minutes.
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=LOCKED_S)) as database:
            database.execute("BEGIN IMMEDIATE")  # takes the lock of a writer, and writes nothing
    except sqlite3.Error as error:
        raise refusal(tracking_uri, str(error)) from None


def refusal(
    tracking_uri: str, reason: str, rule: str = "must be a store that takes runs"
) -> ValueError:
    """The error for a store that does not do what it must: it gives the store's reason, and what to
    do about it."""
    uri = without_secrets(tracking_uri)
    parts = [f"tracking_uri {rule}, got {uri}: {reason}"]
    parts += [
        advice.format(uri=shlex.quote(uri))
        for pattern, advice in ADVICE.items()
        if re.search(pattern, reason, re.IGNORECASE)
    ]
    if proxy := _proxy(tracking_uri):
        parts.append(
            f"it was asked through the proxy {without_secrets(proxy)}: to reach it directly, add "
            f"{urlsplit(tracking_uri).hostname} to NO_PROXY"
        )
    return ValueError("; ".join(parts))


def _proxy(tracking_uri: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names, where NO_PROXY does not list the
    host."""
    if not tracking_uri.startswith(SERVERS):
        return None
    try:
        proxy = select_proxy(tracking_uri, get_environ_proxies(tracking_uri))
    except ValueError:  # an address that is none
        return None
    return str(proxy) if proxy else None


def check_shared(tracking_uri: str, *, num_hosts: int) -> None:
    """Raises ValueError for a SQLite file on a cluster: a driver that is submitted again may stand
    on another host, and SQLite's locks do not hold on shared disks."""
    if num_hosts > 1 and sqlite_file(tracking_uri):
        raise ValueError(
            f"tracking_uri must be a tracking server's on a cluster of {num_hosts} hosts, got "
            f"{without_secrets(tracking_uri)}; add --tracking-uri http://HOST:5000"
        )


def exists(tracking_uri: str) -> bool:
    """Whether the store exists. Asking it would create a SQLite file that is not there."""
    file = sqlite_file(tracking_uri)
    return file is None or file.exists()


def artifact_location(tracking_uri: str) -> str | None:
    """Location of artifacts: a folder beside a SQLite file, for which MLflow would take the working
    directory; None elsewhere, where the store knows."""
    file = sqlite_file(tracking_uri)
    return (file.absolute().parent / ARTIFACTS).as_uri() if file else None


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite address; None for any other address, and for a database in memory.
    Raises ValueError where it is no URI."""
    if not tracking_uri.startswith("sqlite"):
        return None
    try:
        database = make_url(tracking_uri).database
    except ArgumentError as error:
        raise ValueError(f"tracking_uri must be a URI: {without_secrets(str(error))}") from None
    return Path(database) if database and database != ":memory:" else None
