"""Rules for the names that a user gives to files and folders."""

from __future__ import annotations

MAX_NAME_BYTES = 240
"""Longest name, in bytes of UTF-8. File systems take 255, and until a file is complete it is called
`.NAME.0123abcd`."""
MAX_SHOWN = 40


def check_file_name(name: str, field: str) -> None:
    """Raises ValueError, naming `field`, for a name that some disk, terminal or database does not
    take: one that is empty, too long or has control characters."""
    if not name:
        raise ValueError(f"{field} must not be empty")
    if not name.isprintable():
        char = next(char for char in name if not char.isprintable())
        raise ValueError(
            f"{field} must be of printable characters, got {char!r} in {_short_name(name)}"
        )
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise ValueError(
            f"{field} must be at most {MAX_NAME_BYTES} bytes long in UTF-8, got {size} in "
            f"{_short_name(name)}"
        )


def check_folder_name(name: str, field: str) -> None:
    """Raises ValueError as `check_file_name` does, and for names of hidden folders and paths to
    other folders."""
    check_file_name(name, field)
    if "/" in name or "\\" in name or name[0] in ".-" or name != name.strip():
        raise ValueError(
            f"{field} must be usable as a folder name, got {_short_name(name)}: without / and \\, "
            "without . or - at its start, without spaces around it"
        )


def _short_name(name: str) -> str:
    return repr(name) if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]!r}..."
