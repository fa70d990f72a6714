"""A folder on a disk or in an object store, with one interface for both.

Disks are written durably by `disk`, stores by pyarrow's file systems, which `file_systems` opens.
These are imported when a folder is opened, as configurations only name folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote

from psvit_ray.storage import disk
from psvit_ray.text.secrets import without_secrets

if TYPE_CHECKING:
    from pyarrow import fs

RESERVED = ":/?#[]@!$&'()*+,;=%~|"
"""Characters of URIs that are not percent-encoded."""


class Guard(Protocol):
    """A check whether this process may still write, such as `fence.Fence`."""

    def check(self) -> None:
        """Raises an error if this process may not write any more."""


@dataclass(frozen=True)
class Folder:
    """A folder on a disk or in an object store, which need not exist."""

    uri: str
    """Absolute path, or URI such as `s3://bucket/prefix`."""
    guard: Guard | None = field(default=None, compare=False, repr=False)
    """Guard that is checked before anything here, or in a folder below, is written or deleted: on a
    disk also immediately before the rename that replaces a file."""

    @classmethod
    def at(cls, uri: str) -> Folder:
        """The folder at a user's path or URI. Paths, also those written `file://`, are made
        absolute, with `~` and `~user` as homes; spaces and letters beyond ASCII in other URIs are
        percent-encoded.

        Raises ValueError for text that cannot be a path, and for a path that begins with `~`, names
        no user and does not exist.
        """
        if re.search("[\0\ud800-\udfff]", uri):
            raise ValueError(f"path must be UTF-8 without NUL, got {uri!r}")
        if uri.startswith("file://"):
            uri = unquote(uri.removeprefix("file://"))
        elif re.match("[A-Za-z][A-Za-z0-9+.-]*://", uri):
            return cls(quote(uri.rstrip("/"), safe=RESERVED))
        path = os.path.expanduser(uri)
        if path.startswith("~") and not os.path.exists(path):
            raise ValueError(
                f"path must begin with ~/ or the ~ of a user, or exist, got {uri!r}; for a new one "
                f"of that name write ./{uri}"
            )
        return cls(str(Path(path).absolute()))

    def __truediv__(self, name: str) -> Folder:
        """The folder or file `name` in this folder, with the same query in its URI."""
        if self.is_local:
            return Folder(f"{self.uri}/{name}", self.guard)
        path, mark, query = self.uri.partition("?")
        return Folder(f"{path}/{quote(name)}{mark}{query}", self.guard)

    def __str__(self) -> str:
        """The path or URI without user and password."""
        return without_secrets(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk."""
        return "://" not in self.uri

    def check_guard(self) -> None:
        """Raises the guard's error if there is a guard and this process may not write any more."""
        if self.guard:
            self.guard.check()

    def open(self) -> tuple[fs.FileSystem, str]:
        """pyarrow's file system, cached in this process, and the path in it.

        Raises ArrowInvalid, which is a ValueError, for a kind of storage that pyarrow does not
        know, and OSError, which says what was tried, if a store does not answer within
        `STORE_TIMEOUT_S` seconds.
        """
        from psvit_ray.storage import file_systems

        return file_systems.open_uri(self.uri)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[fs.FileSystem, str]]:
        """Context of `open`'s results, in which errors of a store are raised as OSError."""
        from psvit_ray.storage import file_systems

        filesystem, path = self.open()
        with file_systems.refusals_as_os_errors():
            yield filesystem, path

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if there is none. Raises OSError."""
        try:
            if self.is_local:
                return Path(self.uri, name).read_bytes()
            with (
                self._connected() as (filesystem, path),
                filesystem.open_input_stream(f"{path}/{name}") as file,
            ):
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Replaces a file atomically: a reader sees the old content or the new, never a part. With
        `durable` it survives a power cut once this returns; a heartbeat, which means nothing
        without the process that wrote it, need not.

        Raises OSError if it cannot be written.
        """
        self.check_guard()
        if self.is_local:
            target = Path(self.uri, name)
            disk.write(target, content, durable=durable, before_rename=self.check_guard)
            return
        with self._connected() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)
            # A store replaces objects atomically, and they are durable.
            with filesystem.open_output_stream(f"{path}/{name}") as file:
                file.write(content)

    def delete(self, name: str) -> None:
        """Deletes a file, if there is one; a folder of this name belongs to somebody else and
        stays. Raises OSError if the file cannot be deleted."""
        self.check_guard()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if self.is_local:
                os.unlink(Path(self.uri, name))
            else:
                with self._connected() as (filesystem, path):
                    filesystem.delete_file(f"{path}/{name}")

    def delete_files(self, names: Iterable[str]) -> None:
        """Deletes these files in this order, with the temporary files of them that killed writers
        left, and then the folder, if it is empty. To be called only when nobody writes any more.

        Raises OSError.
        """
        names = list(names)
        for name in names:
            self.delete(name)
        with contextlib.suppress(NotADirectoryError):
            self.delete_leftovers(names)
        self.check_guard()
        if self.is_local:
            with contextlib.suppress(OSError):  # somebody else's file is in it
                os.rmdir(self.uri)
        elif not self._listed():
            with self._connected() as (filesystem, path), contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(path)

    def delete_leftovers(self, names: Iterable[str]) -> None:
        """Deletes the temporary files that killed writers of these files left. To be called only
        when nobody writes any more. Raises OSError."""
        written = "|".join(map(re.escape, names))
        for name in self.names(hidden=True):
            if re.fullmatch(rf"\.({written})\.[0-9a-f]{{8}}", name):
                self.delete(name)

    def upload(self, local: Path) -> None:
        """Copies all files of the local folder `local` to this folder of a store. Raises
        OSError."""
        from pyarrow import fs

        self.check_guard()
        with self._connected() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)
            fs.copy_files(str(local), path, destination_filesystem=filesystem)

    def names(self, *, hidden: bool = False) -> list[str]:
        """Sorted names of the files and folders in this folder; none if it does not exist. With
        `hidden` also names that begin with a dot, as those of temporary files do.

        Raises OSError.
        """
        names: list[str] = []
        if not self.is_local:
            names = [file.base_name for file in self._listed()]
        else:
            with contextlib.suppress(FileNotFoundError):
                names = os.listdir(self.uri)
        return sorted(name for name in names if hidden or not name.startswith("."))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in this folder, without temporary files. Raises OSError."""
        if not self.is_local:
            files = [file for file in self._listed() if file.is_file]
            return {f.base_name: f.size for f in files if not f.base_name.startswith(".")}
        sizes = {}
        for path in (Path(self.uri, name) for name in self.names()):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if path.is_file():
                    sizes[path.name] = path.stat().st_size
        return sizes

    def _listed(self) -> list[fs.FileInfo]:
        from pyarrow import fs

        with self._connected() as (filesystem, path):
            return filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))

    def check_writable(self, field: str = "storage") -> None:
        """Raises ValueError with the reason, naming `field`, if nothing can be written to this
        folder. Nothing is left behind."""
        if self.is_local:
            existing = Path(self.uri)
            try:
                while not existing.exists():
                    existing = existing.parent
                if not existing.is_dir():
                    raise ValueError(f"{field} must be a folder, got {self}: {existing} is a file")
                tempfile.TemporaryFile(dir=existing).close()
            except OSError as error:
                raise ValueError(
                    f"{field} must be writable, got {self}: {error.strerror} in {existing}"
                ) from None
            return
        marker = f".writable-{uuid.uuid4().hex[:8]}"
        try:
            self.write(marker, b"")
            self.delete(marker)
        except ValueError as error:
            raise ValueError(f"{field} must be a path or a URI, got {self}: {error}") from None
        except OSError as error:
            reason = without_secrets(str(error))
            raise ValueError(f"{field} must be writable, got {self}: {reason}") from None
