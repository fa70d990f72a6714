"""JSON files that the product wrote and reads back: a value, or one line that says which file
cannot be read, why, and what to do."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from psvit_ray.storage.folder import Folder


class UnreadableFile(ValueError):
    """A file that is there and cannot be used, with its path, the reason and what to do."""


def read_json(
    folder: Folder, name: str, kind: TypeAdapter[Any], noun: str, remedy: str = ""
) -> Any:
    """The value in a JSON file, checked; None where there is no such file.

    `noun` says what should stand there, such as `a record`; `remedy` what a user may do where
    something else does. Raises UnreadableFile, and OSError where the storage itself fails.
    """
    content = content_of(folder, name, remedy)
    if content is None:
        return None
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        reason = reason_of(error) if content.strip() else "it is empty"
        raise _unreadable(f"{folder / name} is not {noun}: {reason}", remedy) from None


def content_of(folder: Folder, name: str, remedy: str = "") -> bytes | None:
    """What stands in a file; None where there is none. Raises as `read_json`."""
    try:
        return folder.read(name)
    except (IsADirectoryError, PermissionError) as error:
        reason = (error.strerror or "no access").lower()
        raise _unreadable(f"{folder / name} cannot be read: {reason}", remedy) from None


def _unreadable(fault: str, remedy: str) -> UnreadableFile:
    return UnreadableFile(f"{fault}; {remedy}" if remedy else fault)


def reason_of(error: ValidationError) -> str:
    """The first fault that pydantic found, with its place."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
