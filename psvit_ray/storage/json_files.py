"""JSON files that the product writes and reads back; an error names the file, the reason and the
remedy in one line."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from psvit_ray.storage.folder import Folder


class UnreadableFile(ValueError):
    """A file exists and cannot be used; the message has its path, the reason and the remedy."""


def read_json(
    folder: Folder, name: str, kind: TypeAdapter[Any], noun: str, remedy: str = ""
) -> Any:
    """The validated value in a JSON file; None if there is no such file.

    `noun` names in messages what the file should be, such as "a record"; `remedy` says what a user
    may do if it is not. Raises UnreadableFile, and OSError if the storage itself fails.
    """
    content = content_of(folder, name, remedy)
    if content is None:
        return None
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        reason = reason_of(error) if content.strip() else "it is empty"
        raise _unreadable_file(f"{folder / name} is not {noun}: {reason}", remedy) from None


def content_of(folder: Folder, name: str, remedy: str = "") -> bytes | None:
    """Content of a file; None if there is none. Raises as `read_json`."""
    try:
        return folder.read(name)
    except (IsADirectoryError, PermissionError) as error:
        reason = (error.strerror or "no access").lower()
        raise _unreadable_file(f"{folder / name} cannot be read: {reason}", remedy) from None


def _unreadable_file(fault: str, remedy: str) -> UnreadableFile:
    return UnreadableFile(f"{fault}; {remedy}" if remedy else fault)


def reason_of(error: ValidationError) -> str:
    """The first error that pydantic reports, with the path of its field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
