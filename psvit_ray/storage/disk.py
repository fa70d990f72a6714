"""Files on a disk that are still there after a power cut, once they are said to be written.

What a process writes is at first in memory only: a file lasts once it is synced, its name once the
folder that holds it is. A file that was renamed but not synced is empty after a power cut.
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
    """Replaces a file whole, and makes the folders above it: a reader sees the old content or the
    new, never a part. With `durable`, so does one that comes after a power cut.

    Raises OSError, and what `before_rename` does; then the old content stays.
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
    """A name in the same folder to write under until all is written; hidden from listings."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def rename_into_place(work: Path, path: Path, *, durable: bool = True) -> None:
    """Renames a synced file or folder; with `durable` the new name lasts. Raises OSError."""
    os.replace(work, path)
    if durable:
        sync_folder(path.parent)


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Makes a folder and those above it that are missing. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    if durable:
        _make_last(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        if durable:
            sync_folder(folder.parent)


@functools.lru_cache(maxsize=1024)
def _make_last(path: Path) -> None:
    """Of a folder that stands there already: another process may have made it and been killed."""
    if path.parent != path:
        with contextlib.suppress(PermissionError):  # not made by us then
            sync_folder(path.parent)
        _make_last(path.parent)


def sync_tree(path: Path) -> None:
    """Makes a folder last with all that is below it. Raises OSError."""
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                sync(file.fileno())
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last. Raises OSError."""
    with _descriptor(path) as folder:
        sync(folder)


def sync(file: int) -> None:
    """Waits until an open file, or folder, is on the disk. Raises OSError.

    A file system that syncs no folders, such as some network ones, says EINVAL.
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
