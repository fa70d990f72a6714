"""Output files and folders that appear complete or not at all, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pyarrow import fs

from psvit_ray.storage import disk, files
from psvit_ray.storage.file_names import check_file_name
from psvit_ray.storage.folder import Folder


def writable(uri: str, field: str) -> Folder:
    """The folder at `uri`, which need not exist. Raises ValueError, naming `field`, if it cannot be
    written, or if Ray would delete what is written to it."""
    folder = Folder.at(uri)
    job_package = "/runtime_resources/working_dir_files/"
    if folder.is_local and job_package in folder.uri:
        raise ValueError(
            f"{field} must be an absolute path or a URI in a submitted job, got {uri!r}: the job's "
            "own folder is a copy that Ray deletes"
        )
    folder.check_writable(field)
    return folder


def check_new_folder(out: Folder, field: str = "out") -> None:
    """Raises ValueError, naming `field`, if the folder holds anything, hidden or not, or if
    `check_file_name` refuses its name."""
    _check_name(out, field)
    if files.file_type(out) == fs.FileType.File:
        raise ValueError(f"{field} must be a new or empty folder, got {out}, which is a file")
    if there := out.names(hidden=True):
        raise ValueError(f"{field} must be new or empty, got {out}, which holds {there[0]!r}")


def check_new_file(out: Folder, field: str = "out") -> None:
    """Raises ValueError, naming `field`, if there is a file or a folder of this name, or if
    `check_file_name` refuses the name."""
    _check_name(out, field)
    if files.file_type(out) != fs.FileType.NotFound:
        raise ValueError(f"{field} must be new, got {out}, which exists")


def _check_name(out: Folder, field: str) -> None:
    """Checks that the name leaves room for the longer one that a file on a disk has until it is
    complete."""
    if out.is_local and (name := Path(out.uri).name):  # `/` has none
        check_file_name(name, field)


@contextlib.contextmanager
def new_folder(out: Folder) -> Iterator[Path]:
    """Context of an empty folder to write to, which becomes `out` at the end. After an error
    nothing is left.

    Raises OSError if it cannot be moved or uploaded there.
    """
    with _beside(out) as work:
        work.mkdir()
        yield work
        if out.is_local:
            disk.sync_tree(work)
        out.check_guard()
        if out.is_local:
            disk.rename_into_place(work, Path(out.uri))  # also onto an empty folder
        else:
            out.upload(work)


@contextlib.contextmanager
def new_file(out: Folder) -> Iterator[TextIO]:
    """Context of a text file to write to, which becomes `out` at the end. After an error nothing is
    left.

    Raises OSError if it cannot be moved or uploaded there.
    """
    with _beside(out) as work:
        with work.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            file.flush()
            disk.sync(file.fileno())
        out.check_guard()
        if out.is_local:
            disk.rename_into_place(work, Path(out.uri))
        else:
            above, name = files.parent(out)
            filesystem, path = above.open()
            fs.copy_files(str(work), f"{path}/{name}", destination_filesystem=filesystem)


@contextlib.contextmanager
def _beside(out: Folder) -> Iterator[Path]:
    """Context of a hidden path to write to, on the same disk so that it can be renamed."""
    if not out.is_local:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "work")
        return
    target = Path(out.uri)
    disk.make_folder(target.parent)
    work = disk.temporary_path(target)
    try:
        yield work
    finally:  # it bears a name that nobody else gave
        if work.is_dir():
            shutil.rmtree(work)
        else:
            work.unlink(missing_ok=True)
