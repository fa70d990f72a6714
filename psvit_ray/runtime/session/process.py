"""The state of another process of this machine: whether it lives, and whether it is suspended."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from pathlib import Path
from typing import Literal

import psutil

State = Literal["running", "suspended", "ended", "unknown"]


def machine() -> str:
    """Identity of the space in which a pid means the same process as here: one boot of one machine
    and, in it, one PID namespace.

    Two containers may share their host's name, but not this. Empty where it cannot be found: then
    nothing may be concluded from a pid.
    """
    try:
        if platform.system() == "Linux":
            if os.readlink("/proc/self") != str(os.getpid()):
                return ""  # a /proc of another PID namespace is mounted here
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            space = os.readlink("/proc/self/ns/pid")
            with contextlib.suppress(FileNotFoundError):  # a kernel that has no such
                # It shifts when a process is said to have started.
                space += " " + os.readlink("/proc/self/ns/time")
            return f"{boot} {space}"
        # No PID namespaces there. A hardware address that is made up, for want of one, is marked.
        address = uuid.getnode()
        return "" if address >> 40 & 1 else f"{address:012x} {psutil.boot_time():.0f}"
    except (OSError, psutil.Error):
        return ""


def started(pid: int) -> str:
    """Start time of a process of this machine, by a clock that is never set: a pid alone may be
    used again. Empty where there is no such process, or it may not be looked at."""
    return _look(pid)[0]


def state(pid: int, started_at: str) -> State:
    """State of the process with this pid that started at `started_at`, on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "ended"
    except PermissionError:
        pass  # another user's, perhaps one that /proc hides
    now, status = _look(pid)
    if not now or not started_at:
        return "unknown"
    if now != started_at or status == psutil.STATUS_ZOMBIE:  # nobody has asked yet how it ended
        return "ended"
    stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return "suspended" if stopped else "running"


def _look(pid: int) -> tuple[str, str]:
    """Start time and status, in psutil's words, of a process."""
    try:
        process = psutil.Process(pid)
        if platform.system() != "Linux":
            return repr(process.create_time()), process.status()
        # psutil's time is made of the wall clock, which may be set: the kernel counts from boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], process.status()
    except (OSError, psutil.Error):
        return "", ""
