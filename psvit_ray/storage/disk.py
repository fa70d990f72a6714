"""Durable writes to a disk: a file is still there after a power cut once a function here returns.

A process writes to memory first: content is durable once the file is synced, and its name once the
folder that holds it is synced. A file that was renamed but not synced is empty after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write(
    path: Path,
    content: bytes,
    *,
    durable: bool = True,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Replaces a file atomically, and makes the folders above it: a reader sees the old content or
    the new, never a part. With `durable`, so does a reader after a power cut.

    `before_rename` is called when the content is written under a temporary name. Raises OSError, or
    what `before_rename` raises; then the old content stays.
    """
    make_folder(path.parent, durable=durable)
    work = temporary_path(path)
    try:
        with work.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                sync(file.fileno())
        before_rename()
        rename_into_place(work, path, durable=durable)
    except Exception:
        with contextlib.suppress(OSError):
            os.unlink(work)
        raise


def temporary_path(path: Path) -> Path:
    """A hidden path in the same folder, to write to until all is written."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def rename_into_place(work: Path, path: Path, *, durable: bool = True) -> None:
    """Renames a synced file or folder; with `durable` the new name survives a power cut. Raises
    OSError."""
    os.replace(work, path)
    if durable:
        sync_folder(path.parent)


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Makes a folder and the missing ones above it. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    if durable:
        _sync_name(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        if durable:
            sync_folder(folder.parent)


@functools.lru_cache(maxsize=1024)
def _sync_name(path: Path) -> None:
    """Makes the name of an existing folder durable: the process that made it may have been killed
    before it synced."""
    if path.parent != path:
        with contextlib.suppress(PermissionError):  # not made by us then
            sync_folder(path.parent)
        _sync_name(path.parent)


def sync_tree(path: Path) -> None:
    """Makes a folder and all below it durable. Raises OSError."""
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                sync(file.fileno())
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    with _descriptor(path) as folder:
        sync(folder)


def sync(file: int) -> None:
    """Waits until an open file or folder is on the disk. Raises OSError.

    File systems that cannot sync folders, as some network ones, answer EINVAL, which is ignored.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield file
    finally:
        os.close(file)
