"""A folder on a disk or in an object store, the same either way (pyarrow's file systems)."""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyarrow import fs


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
        """A path is made absolute, also one written `file://`; any other URI stays."""
        uri = uri.removeprefix("file://")
        return cls(uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute()))

    def __truediv__(self, name: str) -> Folder:
        """What it holds, with the same query, which says how a store is reached."""
        path, mark, query = (self.uri, "", "") if self.is_local else self.uri.partition("?")
        return Folder(f"{path}/{name}{mark}{query}", self.guard)

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
        """Raises ValueError for a kind of storage that pyarrow does not know."""
        try:
            filesystem, path = fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError) as error:
            reason = without_secrets(str(error))
            raise ValueError(f"storage must be a path or a URI, got {self}: {reason}") from None
        return filesystem, path

    def read(self, name: str) -> bytes | None:
        """What stands in a file, or None where there is none."""
        filesystem, path = self.open()
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file whole: a reader sees the old or the new, never a part.

        Raises OSError where it cannot be written.
        """
        self.check_guard()
        filesystem, path = self.open()
        filesystem.create_dir(path, recursive=True)
        target = f"{path}/{name}"
        # Object stores replace whole by themselves; a disk does by renaming.
        written = f"{path}/.{name}.{uuid.uuid4().hex[:8]}" if self.is_local else target
        try:
            with filesystem.open_output_stream(written) as file:
                file.write(content)
            if written != target:
                self.check_guard()
                filesystem.move(written, target)
        except Exception:
            if written != target:
                with contextlib.suppress(OSError):
                    filesystem.delete_file(written)
            raise

    def delete(self, name: str) -> None:
        self.check_guard()
        filesystem, path = self.open()
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")

    def delete_all(self) -> None:
        self.check_guard()
        filesystem, path = self.open()
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)

    def upload(self, local: Path) -> None:
        self.check_guard()
        filesystem, path = self.open()
        filesystem.create_dir(path, recursive=True)
        fs.copy_files(str(local), path, destination_filesystem=filesystem)

    def download(self, local: Path) -> None:
        filesystem, path = self.open()
        fs.copy_files(path, str(local), source_filesystem=filesystem)

    def names(self) -> list[str]:
        """Files and folders in it, in order; none where it does not exist. Files half written by
        a process that died are not among them."""
        filesystem, path = self.open()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(file.base_name for file in found if not file.base_name.startswith("."))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file directly in it, but for those half written."""
        filesystem, path = self.open()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return {
            file.base_name: file.size
            for file in found
            if file.is_file and not file.base_name.startswith(".")
        }

    def delete_leftovers(self) -> None:
        """What processes that died left half written. Only where nobody writes any more."""
        filesystem, path = self.open()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        for file in found:
            if re.fullmatch(r"\..+\.[0-9a-f]{8}", file.base_name):
                self.delete(file.base_name)

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
        except OSError as error:
            reason = without_secrets(str(error))
            raise ValueError(f"{field} must be writable, got {self}: {reason}") from None


def without_secrets(text: str) -> str:
    """Without user and password of the URIs in it. A raw password may hold slashes, as AWS's do."""
    return re.sub(r"://(?:[^/@\s]*|[^/:@\s]+:[^@\s]*)@", "://", text)
