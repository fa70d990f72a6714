"""Files below a folder, on a disk or in an object store: which there are, and their content."""

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
"""What is wrong with one file. A disk that fails (EIO), a server that has forgotten the file
(ESTALE), too many open files and whatever else there is are the storage's."""
UNKNOWN_SIZE = -1
"""In place of the size of a file."""
STAT_THREADS, STATS_PER_TASK = 16, 1_000
"""Threads that ask for the sizes of files, and of how many in turn."""
NOT_DATA = ("__MACOSX", "@eaDir", "lost+found")


@dataclass(frozen=True)
class Listing:
    """What is below a folder, as paths relative to it, in order; hidden names, and the folders that
    a Mac or a NAS leaves, are not among them."""

    folders: list[str]
    files: list[str]
    links: dict[str, str]
    """Names left out, as they lead to a folder or file that is there under another name, which is
    the value. Links to a folder around them, which never end, lead to that folder."""
    sizes: dict[str, int] | None = None
    """Bytes of the files, where listing an object store has told them."""

    @property
    def notes(self) -> list[str]:
        """What a user should be told, a line each."""
        if not self.links:
            return []
        name, kept = next(iter(self.links.items()))
        return [
            f"left out, as each file is used once: {len(self.links):,} links or second names, such "
            f"as {printable_path(name)}, which is {printable_path(kept) or 'a folder around it'}"
        ]


def is_file_error(error: OSError) -> bool:
    """Whether an error is this file's own; any other is the storage's, and meets all files."""
    return isinstance(error, FileNotFoundError | PermissionError) or error.errno in FILE_ERRORS


def file_type(folder: Folder) -> fs.FileType:
    """File, Directory or NotFound. Raises as `Folder.open`."""
    filesystem, path = folder.open()
    return filesystem.get_file_info(path).type


def list_below(folder: Folder, only: Iterable[str] = ("",)) -> Listing:
    """All folders and files below it, or below `only` some folders in it. Links are followed, but
    each file comes once: by its own name rather than by a link's with the same suffix, and else by
    the first. Raises as `Folder.open`."""
    if folder.is_local:
        return _walked(folder.uri, only)
    folders: list[str] = []
    sizes: dict[str, int] = {}
    filesystem, path = folder.open()
    for found in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
        relative = found.path[len(path) :].strip("/")
        if all(map(_is_visible, relative.split("/"))):
            if found.is_file:
                sizes[relative] = UNKNOWN_SIZE if found.size is None else found.size
            else:
                folders.append(relative)
    return Listing(sorted(folders), sorted(sizes), {}, sizes)


def sizes(folder: Folder, paths: Sequence[str], listing: Listing) -> np.ndarray:
    """(N,) int64: bytes of these files; UNKNOWN_SIZE for what cannot be asked, as a link that leads
    nowhere. Many are asked at the same time: on a network disk nearly all the time is waiting."""
    if listing.sizes is not None:
        return np.array([listing.sizes[path] for path in paths], dtype=np.int64)
    parts = [
        paths[first : first + STATS_PER_TASK] for first in range(0, len(paths), STATS_PER_TASK)
    ]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = list(pool.map(functools.partial(_sizes, folder.uri), parts))
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def _sizes(root: str, paths: Sequence[str]) -> np.ndarray:
    found = np.full(len(paths), UNKNOWN_SIZE, dtype=np.int64)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError, ValueError):  # whoever reads it says what is wrong
            found[number] = os.stat(f"{root}/{path}").st_size
    return found


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_DATA


def _walked(root: str, only: Iterable[str]) -> Listing:
    """Asks for nothing but names, which on a network disk is much faster; links are looked at."""
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
    """Whether a path is that of a folder, or of something in it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_own(real: str) -> bool:
    """Whether a file in a folder that was walked is in the listing."""
    return _is_visible(os.path.basename(real)) and os.path.isfile(real)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _inode(path: str) -> int:
    """0 for what cannot be had, as a link that leads nowhere."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _hard_links(root: str, files: list[str], inodes: list[int]) -> dict[str, str]:
    """Names of files that have another name before them, and that name. What only looks so by its
    number, which some file systems give to several files, is asked for."""
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
    """The folder that holds what this path or URI names, and its name."""
    base, mark, query = _parts(folder.uri)
    above, _, name = base.rpartition("/")
    return Folder(f"{above}{mark}{query}" or "/"), name if folder.is_local else unquote(name)


def has_wildcards(folder: Folder) -> bool:
    return re.search(r"[*?[]", _parts(folder.uri)[0]) is not None


def list_matching(folder: Folder) -> tuple[Folder, list[str]]:
    """For a path or URI with wildcards, the folder above the first, and the files below it that
    match, in order, relative to it; of several names of one file the first. `*` stays within a
    name. Raises as `Folder.open`."""
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
    """Whether a relative path is as a pattern says, name by name."""
    names, wanted = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    return len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted))


def printable_path(path: str) -> str:
    """A path fit to be shown and written down: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _parts(uri: str) -> tuple[str, str, str]:
    """What is before the `?` of a URI, the `?`, and what is after it. A path has none."""
    return uri.partition("?") if "://" in uri else (uri, "", "")


def error_text(error: Exception) -> str:
    """What a library says, in one line and without secrets."""
    return " ".join(without_secrets(str(error)).split())
