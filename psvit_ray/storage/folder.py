"""A folder on a disk or in an object store, the same either way.

A disk is written by `disk`, so that what is written lasts; a store by the file systems of pyarrow,
which `file_systems` opens. They are imported when a folder is opened: a configuration, which only
names folders, does without.
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
"""What parts a URI, and stays when it is encoded."""


class Guard(Protocol):
    """Decides whether this process may still write."""

    def check(self) -> None:
        """Raises where it may not."""


@dataclass(frozen=True)
class Folder:
    """`uri` is an absolute path, or a URI such as `s3://bucket/prefix`."""

    uri: str
    guard: Guard | None = field(default=None, compare=False, repr=False)
    """Checked before anything here, or in a folder below, is written or deleted: the last time
    immediately before the rename that makes a file count."""

    @classmethod
    def at(cls, uri: str) -> Folder:
        """A path is made absolute, also one written `file://`; in any other URI, spaces and letters
        beyond ASCII are percent-encoded.

        `~` and `~user` are homes; a path that begins with ~ and no user's name must exist. Raises
        ValueError for that, and for what no path may hold.
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
        """What it holds, with the same query, which says how a store is reached."""
        if self.is_local:
            return Folder(f"{self.uri}/{name}", self.guard)
        path, mark, query = self.uri.partition("?")
        return Folder(f"{path}/{quote(name)}{mark}{query}", self.guard)

    def __str__(self) -> str:
        """Fit to be shown: without user and password."""
        return without_secrets(self.uri)

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    def check_guard(self) -> None:
        """Raises what the guard does, where there is one and this process may not write."""
        if self.guard:
            self.guard.check()

    def open(self) -> tuple[fs.FileSystem, str]:
        """pyarrow's file system, kept for this process, and the path in it.

        Raises ArrowInvalid, which is a ValueError, for a storage of a kind that pyarrow does not
        know, and OSError, which says what was tried, where a store does not answer its first
        question within STORE_TIMEOUT_S seconds.
        """
        from psvit_ray.storage import file_systems

        return file_systems.open_uri(self.uri)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[tuple[fs.FileSystem, str]]:
        """Whatever a store says no with is an OSError."""
        from psvit_ray.storage import file_systems

        opened = self.open()
        with file_systems.refusals_as_os_errors():
            yield opened

    def read(self, name: str) -> bytes | None:
        """What stands in a file, or None where there is none. Raises OSError."""
        try:
            if self.is_local:
                return Path(self.uri, name).read_bytes()
            with (
                self._asking() as (filesystem, path),
                filesystem.open_input_stream(f"{path}/{name}") as file,
            ):
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Replaces a file whole: a reader sees the old or the new, never a part. With `durable` it
        is there after a power cut too, once this returns. What means nothing without the process
        that wrote it, such as a heartbeat, need not be.

        Raises OSError where it cannot be written.
        """
        self.check_guard()
        if self.is_local:
            target = Path(self.uri, name)
            disk.write(target, content, durable=durable, before_rename=self.check_guard)
            return
        with self._asking() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)
            # A store replaces whole by itself, and what it has taken lasts.
            with filesystem.open_output_stream(f"{path}/{name}") as file:
                file.write(content)

    def delete(self, name: str) -> None:
        """Deletes a file; a folder of this name is somebody else's and stays. Raises OSError where
        a file is there and cannot be deleted."""
        self.check_guard()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if self.is_local:
                os.unlink(Path(self.uri, name))
            else:
                with self._asking() as (filesystem, path):
                    filesystem.delete_file(f"{path}/{name}")

    def delete_files(self, names: Iterable[str]) -> None:
        """Deletes these files, in this order, with what writers that died left half written of
        them, and then the folder, if nothing else is in it. Only where nobody writes any more.

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
            with self._asking() as (filesystem, path), contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(path)

    def delete_leftovers(self, names: Iterable[str]) -> None:
        """Deletes what writers of these files that died left half written. Only where nobody writes
        any more. Raises OSError."""
        written = "|".join(map(re.escape, names))
        for name in self.names(hidden=True):
            if re.fullmatch(rf"\.({written})\.[0-9a-f]{{8}}", name):
                self.delete(name)

    def upload(self, local: Path) -> None:
        from pyarrow import fs

        self.check_guard()
        with self._asking() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)
            fs.copy_files(str(local), path, destination_filesystem=filesystem)

    def names(self, *, hidden: bool = False) -> list[str]:
        """Files and folders in it, in order; none where it does not exist. With `hidden` also those
        whose names begin with a dot, as those do that a process which died left half written.

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
        """Bytes of every file directly in it, but for those half written. Raises OSError."""
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

        with self._asking() as (filesystem, path):
            return filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))

    def check_writable(self, field: str = "storage") -> None:
        """Raises ValueError with the reason, naming `field`. Leaves nothing behind."""
        if self.is_local:
            there = Path(self.uri)
            try:
                while not there.exists():
                    there = there.parent
                if not there.is_dir():
                    raise ValueError(f"{field} must be a folder, got {self}: {there} is a file")
                tempfile.TemporaryFile(dir=there).close()
            except OSError as error:
                raise ValueError(
                    f"{field} must be writable, got {self}: {error.strerror} in {there}"
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
