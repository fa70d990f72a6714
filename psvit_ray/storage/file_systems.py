"""pyarrow's file systems, all of which are opened here, so that waiting for a store is bounded."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote

import pyarrow as pa
from pyarrow import fs

from psvit_ray.text.secrets import without_secrets

STORE_TIMEOUT_S = 60.0
"""Seconds to wait for the first answer of a store in a process. The libraries retry for minutes,
Google's for 15, even without credentials."""
GCS_RETRY_S = 60
"""Seconds for which Google's library retries after an error of the network."""
GCS_RETRY_AT_FIRST_S = 20
"""Seconds for which Google's library retries the first request, so that its own reason comes before
STORE_TIMEOUT_S."""
BUCKETS = ("s3", "gs", "gcs")
"""Schemes of URIs whose host is a bucket."""
CREDENTIALS = {
    "s3": "those of AWS_ACCESS_KEY_ID, of ~/.aws or of this machine's role",
    "gs": "those of GOOGLE_APPLICATION_CREDENTIALS, of gcloud or of this machine's account (for a "
    "public bucket put anonymous@ before its name)",
    "abfs": "those of Azure's variables, of az or of this machine's identity",
}
"""Credentials that the library of each store looks for, in words."""


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of an absolute path or a URI, kept for this process, and the path in it.

    Raises as `Folder.open`.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    store, path = _split_uri(uri)
    filesystem, root = _connected(store, os.getpid())
    return filesystem, "/".join(part for part in (root, path) if part)


@contextlib.contextmanager
def refusals_as_os_errors() -> Iterator[None]:
    """Context that raises the errors of a store as OSError, with the reason on one line."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(_shortened(error)) from None


def _split_uri(uri: str) -> tuple[str, str]:
    """The URI of a store, with its query, and the path in it, so that folders of one store share a
    connection."""
    address, mark, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme not in BUCKETS or "@" in path:  # a raw password may hold a slash
        return uri, ""
    return f"{scheme}://{bucket}{mark}{query}", unquote(path).strip("/")


@functools.lru_cache(maxsize=32)
def _connected(uri: str, process: int) -> tuple[fs.FileSystem, str]:
    """The file system and root of a store's URI. Connections do not survive a fork, so the process
    id is part of the cache's key. Raises as `Folder.open`."""
    try:
        if "://" in uri and uri not in _reachable:
            _check_answers(uri)
            _reachable.add(uri)
        return fs.FileSystem.from_uri(_retrying(uri, GCS_RETRY_S))
    except ValueError as error:
        raise pa.ArrowInvalid(_shortened(error)) from None


_reachable: set[str] = set()
"""URIs of the stores that have answered this process, or the one that it was forked from."""


def _check_answers(uri: str) -> None:
    """Checks that a store answers a request, even with a refusal. Raises ValueError for a URI that
    pyarrow does not know, and OSError if there is no answer."""
    began, reason = time.monotonic(), ""
    try:
        # A process can be killed, a call into a library that waits cannot be interrupted.
        done = subprocess.run(
            [sys.executable, "-c", _QUESTION],
            input=_retrying(uri, GCS_RETRY_AT_FIRST_S),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=STORE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        reason = "no answer"
    else:
        if done.returncode == INVALID:
            raise ValueError(done.stdout)
        if done.returncode and not re.search(r"DENIED|FORBIDDEN|\b403\b", done.stdout, re.I):
            reason = _shortened(done.stdout or f"the library ended with {done.returncode}")
    if reason:
        shown, seconds = without_secrets(uri), time.monotonic() - began
        raise OSError(f"{shown} cannot be reached: {reason} after {seconds:.0f} s; {_tried(uri)}")


INVALID = 3
_QUESTION = f"""
import sys
from pyarrow import fs
try:
    filesystem, path = fs.FileSystem.from_uri(sys.stdin.read())
    filesystem.get_file_info(path)
except Exception as error:
    print(error)
    sys.exit({INVALID} if isinstance(error, ValueError) else 1)
"""


def _retrying(uri: str, seconds: int) -> str:
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={seconds}"


def _tried(uri: str) -> str:
    """Address, credentials and proxies that were used, in words."""
    location, _, query = uri.partition("?")
    scheme, _, rest = location.partition("://")
    scheme = {"gcs": "gs", "abfss": "abfs"}.get(scheme, scheme)
    user, at, _ = rest.rpartition("@")
    address = parse_qs(query).get("endpoint_override", [""])[0]
    tried = [f"tried {address}"] if address else []
    if at and scheme in ("s3", "gs"):
        tried.append("no credentials" if user == "anonymous" else "the credentials of the URI")
    elif scheme in CREDENTIALS:
        tried.append(f"credentials tried: {CREDENTIALS[scheme]}")
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        if proxy := os.environ.get(name):
            tried.append(f"{name} is {without_secrets(proxy)}")
    return ", ".join(tried)


def _shortened(error: object) -> str:
    return textwrap.shorten(without_secrets(str(error)), 500, placeholder=" ...")
