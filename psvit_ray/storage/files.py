"""Listing of files below a folder, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import heapq
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import numpy as np
from pyarrow import fs

from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

FILE_ERRORS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ENXIO,
    errno.ENODEV,
    errno.EOVERFLOW,
}
"""Errors of a single file. All others are errors of the storage, such as a failing disk (EIO), a
server that has forgotten a file (ESTALE), or too many open files."""
UNKNOWN_SIZE = -1
"""Stands for the size of a file whose size cannot be read."""
STAT_THREADS, STATS_PER_TASK = 16, 1_000
"""Threads that read the sizes of files, and files of each task."""
NOT_DATA = ("__MACOSX", "@eaDir", "lost+found")
"""Names of folders that systems leave among data, which are skipped."""


@dataclass(frozen=True)
class Listing:
    """Sorted paths below a folder, relative to it, without hidden ones and those of `NOT_DATA`."""

    folders: list[str]
    """Folders below the folder."""
    files: list[str]
    """Files below the folder, each once."""
    links: dict[str, str]
    """Second names that were left out, and the name under which the same file or folder is listed.
    For a link to a folder around it, which would never end, that name is empty."""
    sizes: dict[str, int] | None = None
    """Bytes of each file, if listing an object store gave them."""

    @property
    def notes(self) -> list[str]:
        """Notes for the user, one line each."""
        if not self.links:
            return []
        name, kept = next(iter(self.links.items()))
        return [
            f"left out, as each file is used once: {len(self.links):,} links or second names, such "
            f"as {printable_path(name)}, which is {printable_path(kept) or 'a folder around it'}"
        ]


def is_file_error(error: OSError) -> bool:
    """Whether an error concerns a single file, rather than the storage and so all files."""
    return isinstance(error, FileNotFoundError | PermissionError) or error.errno in FILE_ERRORS


def file_type(folder: Folder) -> fs.FileType:
    """pyarrow's FileType (File, Directory or NotFound) of a path. Raises as `Folder.open`."""
    filesystem, path = folder.open()
    return filesystem.get_file_info(path).type


def list_below(folder: Folder, only: Iterable[str] = ("",)) -> Listing:
    """All folders and files below a folder, or below the folders `only` in it.

    Links are followed, but each file is listed once: under its own name rather than a link's with
    the same suffix, else under the first name. Raises as `Folder.open`.
    """
    if folder.is_local:
        return _walked(folder.uri, only)
    folders: list[str] = []
    sizes: dict[str, int] = {}
    filesystem, path = folder.open()
    for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
        relative = info.path[len(path) :].strip("/")
        if all(map(_is_visible, relative.split("/"))):
            if info.is_file:
                sizes[relative] = UNKNOWN_SIZE if info.size is None else info.size
            else:
                folders.append(relative)
    return Listing(sorted(folders), sorted(sizes), {}, sizes)


def sizes(folder: Folder, paths: Sequence[str], listing: Listing) -> np.ndarray:
    """Bytes of each of `paths`, (N,) int64; UNKNOWN_SIZE where it cannot be read, as of a broken
    link. Threads read many at a time, as on a network disk nearly all the time is waiting."""
    if listing.sizes is not None:
        return np.array([listing.sizes[path] for path in paths], dtype=np.int64)
    parts = [
        paths[first : first + STATS_PER_TASK] for first in range(0, len(paths), STATS_PER_TASK)
    ]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        sizes_of_parts = list(pool.map(functools.partial(_sizes, folder.uri), parts))
    return np.concatenate([np.empty(0, dtype=np.int64), *sizes_of_parts])


def _sizes(root: str, paths: Sequence[str]) -> np.ndarray:
    sizes = np.full(len(paths), UNKNOWN_SIZE, dtype=np.int64)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError, ValueError):  # reading the file will tell the reason
            sizes[number] = os.stat(f"{root}/{path}").st_size
    return sizes


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_DATA


def _walked(root: str, only: Iterable[str]) -> Listing:
    """Listing of a folder on a disk. Only names are read, which is much faster on a network disk;
    links are resolved."""
    top = os.path.realpath(root)
    name_of: dict[str, str] = {}  # of each real folder, and of each file that a link leads to
    folders: list[str] = []
    files: list[str] = []
    inodes: list[int] = []
    links: list[str] = []  # that are to be looked at, a heap
    left_out: dict[str, str] = {}

    def walk(name: str, real: str) -> None:
        todo = [(name, real)]
        while todo:
            name, real = todo.pop()
            with os.scandir(os.path.join(root, name)) as entries:
                there = [entry for entry in entries if _is_visible(entry.name)]
            for entry in there:
                path = f"{name}/{entry.name}" if name else entry.name
                if entry.is_symlink():
                    heapq.heappush(links, path)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append((path, add_folder(path, os.path.join(real, entry.name))))
                else:
                    files.append(path)
                    inodes.append(entry.inode())

    def add_folder(name: str, real: str) -> str:
        folders.append(name)
        name_of[real] = name
        return real

    for name in only:
        real = os.path.realpath(os.path.join(root, name))
        name_of[real] = name
        walk(name, real)
    while links:
        link = heapq.heappop(links)
        there = os.path.join(root, link)
        real = os.path.realpath(there)
        above, last = os.path.split(real)
        if real in name_of:
            left_out[link] = name_of[real]
        elif above in name_of and _is_own(real) and _suffix(real) == _suffix(link):
            left_out[link] = os.path.join(name_of[above], last)
        elif not os.path.isdir(there):
            name_of[real] = link
            files.append(link)
            inodes.append(_inode(there))
        elif is_in(top, real) or is_in(os.path.realpath(os.path.dirname(there)), real):
            left_out[link] = ""
        else:
            walk(link, add_folder(link, real))
    left_out |= _hard_links(root, files, inodes)
    files = [name for name in files if name not in left_out]
    folders += [name for name in only if name]
    return Listing(sorted(folders), sorted(files), dict(sorted(left_out.items())))


def is_in(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_own(real: str) -> bool:
    """Whether a path in a listed folder is in the listing itself."""
    return _is_visible(os.path.basename(real)) and os.path.isfile(real)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _inode(path: str) -> int:
    """Inode of a path, or 0 if it cannot be read, as of a broken link."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _hard_links(root: str, files: list[str], inodes: list[int]) -> dict[str, str]:
    """Later names of each file with several, and its first name. Some file systems give one inode
    number to several files, so equal numbers are checked with `os.stat`."""
    numbers = np.array(inodes, dtype=np.uint64)
    values, counts = np.unique(numbers, return_counts=True)
    several = np.flatnonzero(np.isin(numbers, values[(counts > 1) & (values > 0)]))
    first: dict[tuple[int, int, str], str] = {}
    others = {}
    for name in sorted(files[place] for place in several):
        try:
            status = os.stat(os.path.join(root, name))
        except OSError:
            continue
        kept = first.setdefault((status.st_dev, status.st_ino, _suffix(name)), name)
        if kept != name:
            others[name] = kept
    return others


def parent(folder: Folder) -> tuple[Folder, str]:
    """The folder above a path or URI, and the last name of that path."""
    base, mark, query = _parts(folder.uri)
    above, _, name = base.rpartition("/")
    return Folder(f"{above}{mark}{query}" or "/"), name if folder.is_local else unquote(name)


def has_wildcards(folder: Folder) -> bool:
    """Whether a path or URI is a pattern."""
    return re.search(r"[*?[]", _parts(folder.uri)[0]) is not None


def list_matching(folder: Folder) -> tuple[Folder, list[str]]:
    """Files that match a path or URI with wildcards: the folder above the first wildcard, and the
    sorted paths relative to it. Of several names of one file the first is given; `*` does not match
    a slash. Raises as `Folder.open`."""
    pattern: list[str] = []
    while has_wildcards(folder):
        folder, name = parent(folder)
        pattern.insert(0, name)
    if not folder.is_local:
        wanted = "/".join(pattern)
        return folder, [path for path in list_below(folder).files if matches(path, wanted)]
    names = [""]
    for part in pattern:  # not all that is below, of which a link's other name would be left out
        names = [
            os.path.join(name, entry)
            for name in names
            if os.path.isdir(os.path.join(folder.uri, name))
            for entry in sorted(os.listdir(os.path.join(folder.uri, name)))
            if _is_visible(entry) and fnmatch.fnmatchcase(entry, part)
        ]
    files = [name for name in names if not os.path.isdir(os.path.join(folder.uri, name))]
    once = {os.path.realpath(os.path.join(folder.uri, name)): name for name in reversed(files)}
    return folder, sorted(once.values())


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path matches a pattern, name by name."""
    names, wanted = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    return len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted))


def printable_path(path: str) -> str:
    """A path as text to show or record: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _parts(uri: str) -> tuple[str, str, str]:
    """A URI's text before its `?`, the `?`, and its query; a path has neither of the two."""
    return uri.partition("?") if "://" in uri else (uri, "", "")


def error_text(error: Exception) -> str:
    """A library's message on one line and without secrets."""
    return " ".join(without_secrets(str(error)).split())
