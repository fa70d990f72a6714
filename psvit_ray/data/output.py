"""Results that appear whole or not at all, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pyarrow import fs

from psvit_ray.data import files
from psvit_ray.data.storage import Folder


def check_new_folder(out: Folder, field: str = "out") -> None:
    """Raises ValueError, naming `field`, where something stands in it."""
    if there := out.names():
        raise ValueError(f"{field} must be new or empty, got {out}, which holds {there[0]!r}")


def check_new_file(out: Folder, field: str = "out") -> None:
    """Raises ValueError, naming `field`, where there is a file or a folder of this name."""
    if files.kind(out) != fs.FileType.NotFound:
        raise ValueError(f"{field} must be new, got {out}, which exists")


@contextlib.contextmanager
def new_folder(out: Folder) -> Iterator[Path]:
    """An empty folder to write to, which becomes `out` at the end. After an error nothing is left.

    Raises OSError where it cannot be put there.
    """
    with _beside(out) as work:
        work.mkdir()
        yield work
        out.check_guard()
        if out.is_local:
            os.replace(work, out.uri)  # also onto an empty folder
        else:
            out.upload(work)


@contextlib.contextmanager
def new_file(out: Folder) -> Iterator[TextIO]:
    """A text file to write to, which becomes `out` at the end. After an error nothing is left.

    Raises OSError where it cannot be put there.
    """
    with _beside(out) as work:
        with work.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        out.check_guard()
        if out.is_local:
            os.replace(work, out.uri)
        else:
            above, name = files.parent(out)
            filesystem, path = above.open()
            fs.copy_files(str(work), f"{path}/{name}", destination_filesystem=filesystem)


@contextlib.contextmanager
def _beside(out: Folder) -> Iterator[Path]:
    """A name to write under, on the same disk so that it can be renamed; hidden from listings."""
    if not out.is_local:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "work")
        return
    target = Path(out.uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield work
    finally:
        if work.is_dir():
            shutil.rmtree(work)
        else:
            work.unlink(missing_ok=True)
