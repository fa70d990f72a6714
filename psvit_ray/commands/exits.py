"""How a job ends: one line on standard error and an exit code, whatever went wrong.

Code 2 is for what the user gave, 1 for what the surroundings lack and for faults of this package,
130 for Ctrl-C, 141 where nobody reads the output any more (`| head`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import tempfile
import threading
import traceback
from typing import NoReturn

from psvit_ray.text.messages import shortened
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets

LONGEST_LINE = 4_000
LONGEST_TRACEBACK = 1_000_000
OF_A_PATH = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS, errno.ENOTEMPTY, errno.EINVAL),
}
"""What a path that the user gave is wrong with; any other OSError is of the surroundings."""
NO_MEMORY = re.compile(r"not enough memory|out of memory|can't allocate memory", re.IGNORECASE)


def printable_output() -> None:
    """Characters that the terminal has not are written as escapes: no line ends a job."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else closed by the caller
            stream.reconfigure(errors="backslashreplace")


def end(error: BaseException) -> NoReturn:
    """Exits, as `error` asks for."""
    _die_of_ctrl_c()
    cause = getattr(error, "cause", None)  # Ray's errors have the remote one, without its traceback
    if isinstance(cause, Exception):
        error = cause
    match error:
        case SystemExit():
            raise error
        case KeyboardInterrupt():
            print("interrupted", file=sys.stderr)
            leave(130)
        case BrokenPipeError() if not _is_read():
            leave(128 + signal.SIGPIPE)
        case ValueError():
            fail(2, str(error))
        case ModuleNotFoundError(name=str(name)) if not name.startswith("psvit_ray"):
            fail(1, f"the package {name} is not installed")
        case OSError():
            fail(2 if error.errno in OF_A_PATH else 1, _of_system(error))
        case _ if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            fail(1, f"there is not enough memory: {_brief(error)}")
        case _:
            where = _written_down(error)
            fail(1, f"unexpected {type(error).__name__}: {_brief(error)}; {where}")


def fail(code: int, message: str) -> NoReturn:
    """Exits with `code` after one line on standard error."""
    line = shortened(printable(" ".join(without_secrets(message).split())), LONGEST_LINE)
    with contextlib.suppress(OSError):
        print(f"error: {line}", file=sys.stderr)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exits. Neither output that nobody takes nor Ctrl-C in what Python does at its exit makes a
    traceback."""
    _die_of_ctrl_c()
    if not _is_read():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _is_read() -> bool:
    """Whether standard output takes what was printed."""
    if sys.stdout is None:
        return True
    try:
        sys.stdout.flush()
    except OSError:
        return False
    with contextlib.suppress(OSError):  # no file at all, as under a test
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)
        return not any(event & select.POLLERR for _, event in pipe.poll(0))
    return True


def _die_of_ctrl_c() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _of_system(error: OSError) -> str:
    """The reason and the file, without the number of the error."""
    if error.strerror and error.filename is not None:
        return f"{error.strerror}: {os.fsdecode(error.filename)}"
    return re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return shortened(lines[0], LONGEST_LINE // 4)


def _written_down(error: BaseException) -> str:
    """Where the traceback is: in a file that only this user may read."""
    text = without_secrets("".join(traceback.format_exception(error)))
    try:
        number, path = tempfile.mkstemp(prefix="psvit_ray-", suffix=".traceback.txt")
        with open(number, "w", errors="backslashreplace") as file:
            file.write(shortened(text, LONGEST_TRACEBACK))
    except OSError as fault:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"at {last.filename}:{last.lineno} (no traceback was written: {fault.strerror})"
    return f"its traceback is in {path}"
