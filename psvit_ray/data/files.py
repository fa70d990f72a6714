"""Files below a folder, on a disk or in an object store: which there are, and their content."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pyarrow import fs

from psvit_ray.data.images import BadImage
from psvit_ray.data.secrets import without_secrets
from psvit_ray.data.storage import Folder


def read(folder: Folder, path: str) -> bytes:
    """A file below a folder. Raises BadImage for a fault of this file, OSError where storage
    fails."""
    try:
        if folder.is_local:
            return Path(folder.uri, path).read_bytes()
        filesystem, root = folder.open()
        with filesystem.open_input_file(f"{root}/{path}") as file:
            return file.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise BadImage((os.strerror(error.errno) if error.errno else "not found").lower()) from None


def kind(folder: Folder) -> fs.FileType:
    """File, Directory or NotFound. Raises as `Folder.open`."""
    filesystem, path = folder.open()
    return filesystem.get_file_info(path).type


def below(folder: Folder) -> tuple[list[str], list[str]]:
    """All folders and all files below it, in order, as paths relative to it; hidden ones are not
    among them. Links are followed. Raises as `Folder.open`."""
    folders, files = [], []
    if folder.is_local:  # asks for nothing but names, which on a network disk is much faster
        for root, subfolders, names in os.walk(folder.uri, onerror=_raise, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            base = os.path.relpath(root, folder.uri)
            prefix = "" if base == "." else f"{base}/"
            folders += [prefix + name for name in subfolders]
            files += [prefix + name for name in names if not name.startswith(".")]
    else:
        filesystem, path = folder.open()
        for found in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
            relative = found.path[len(path) :].strip("/")
            if not re.search(r"(^|/)\.", relative):
                (files if found.is_file else folders).append(relative)
    return sorted(folders), sorted(files)


def _raise(error: OSError) -> None:
    raise error


def parent(folder: Folder) -> tuple[Folder, str]:
    """The folder that holds what this path or URI names, and its name."""
    base, mark, query = _parts(folder.uri)
    above, _, name = base.rpartition("/")
    return Folder(f"{above}{mark}{query}" or "/"), name if folder.is_local else unquote(name)


def has_wildcards(folder: Folder) -> bool:
    return re.search(r"[*?[]", _parts(folder.uri)[0]) is not None


def matching(folder: Folder) -> tuple[Folder, list[str]]:
    """For a path or URI with wildcards, the folder above the first, and the files below it that
    match, in order, relative to it. `*` stays within a name. Raises as `Folder.open`."""
    pattern: list[str] = []
    while has_wildcards(folder):
        folder, name = parent(folder)
        pattern.insert(0, name)
    return folder, [path for path in below(folder)[1] if _matches(path, pattern)]


def _matches(path: str, pattern: list[str]) -> bool:
    names = PurePosixPath(path).parts
    return len(names) == len(pattern) and all(map(fnmatch.fnmatchcase, names, pattern))


def _parts(uri: str) -> tuple[str, str, str]:
    """What is before the `?` of a URI, the `?`, and what is after it. A path has none."""
    return uri.partition("?") if "://" in uri else (uri, "", "")


def reason(error: Exception) -> str:
    """What a library says, in one line and without secrets."""
    return " ".join(without_secrets(str(error)).split())
