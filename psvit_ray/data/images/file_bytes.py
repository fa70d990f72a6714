"""The bytes of an image file; an error of the file is one of that image alone."""

from __future__ import annotations

import errno
import os
import stat

from psvit_ray.data.images.bad_image import BadImage
from psvit_ray.data.images.limits import MAX_BYTES
from psvit_ray.storage.files import is_file_error
from psvit_ray.storage.folder import Folder


def read_image_file(folder: Folder, path: str) -> bytes:
    """Bytes of a file below a folder. Raises BadImage if the file cannot be read, is not a regular
    file or is too large, and OSError if the storage fails."""
    try:
        if folder.is_local:
            return read_local(os.path.join(folder.uri, path))
        filesystem, root = folder.open()
        with filesystem.open_input_file(f"{root}/{path}") as file:
            _check_size(file.size())
            return file.read()
    except OSError as error:
        if is_file_error(error):
            reason = os.strerror(error.errno) if error.errno else "not found"
            raise BadImage(reason.lower()) from None
        raise
    except UnicodeError:
        raise BadImage("no path of a file here: not UTF-8") from None


def check_regular(path: str) -> None:
    """Raises BadImage for a folder, and for a pipe, device or socket, which might never end;
    OSError if a local path does not exist."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise BadImage(os.strerror(errno.EISDIR).lower())
    if not stat.S_ISREG(mode):
        raise BadImage("not a regular file")


def read_local(path: str) -> bytes:
    """Bytes of a file on a disk. Raises BadImage if it is not a regular file or too large, and
    OSError."""
    if "\0" in path:
        raise BadImage("no path of a file: embedded null byte")
    check_regular(path)  # before it is opened, to which a device may answer in any way
    with open(path, "rb", opener=_without_waiting) as file:
        _check_size(os.fstat(file.fileno()).st_size)
        content = file.read(MAX_BYTES + 1)
    _check_size(len(content))
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes")
