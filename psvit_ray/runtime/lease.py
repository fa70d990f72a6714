"""One live driver for a name: a file with a heartbeat in the storage."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psvit_ray.data.storage import Folder

HEARTBEAT_S = 5.0
EXPIRES_S = 30.0
SETTLES_S = 1.0
FILE = "lease.json"
LOCK = ".lease.lock"
logger = logging.getLogger(__name__)


class InUse(ValueError):
    """Another driver is alive under this name."""


class Lease:
    """Held while in the `with` block; refreshed by a thread.

    Raises InUse if another driver holds it; with `wait`, only if that one still does after the
    time that a dead one's lease lasts. One whose process has died on this host, or that has not
    been refreshed for 30 s (hosts' clocks agree within seconds), is taken over. A driver that was
    held up for so long that another took over is interrupted, as by Ctrl-C.
    """

    def __init__(self, folder: Folder, *, wait: bool = False) -> None:
        self._folder, self._wait = folder, wait
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)

    def __enter__(self) -> Self:
        patience = time.monotonic() + (EXPIRES_S + HEARTBEAT_S if self._wait else 0)
        while holder := self._take():
            if time.monotonic() >= patience:
                raise self._refusal(holder)
            time.sleep(min(_left(holder), HEARTBEAT_S))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._alone():
            if self._is_mine():
                self._folder.delete(FILE)

    def check(self) -> None:
        """Raises InUse where entering would at once. Writes nothing."""
        if not self._wait and (holder := self._holder()):
            raise self._refusal(holder)

    def _take(self) -> dict[str, Any] | None:
        """Takes the lease, or gives who holds it."""
        with self._alone():
            if holder := self._holder():
                return holder
            self._write()
        if not self._folder.is_local:
            # No locks there: of two that came at the same moment the later writer wins, and the
            # other sees it here, or at its next heartbeat.
            time.sleep(SETTLES_S)
            if not self._is_mine():
                return self._take()
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time looks and writes. On a disk, where the system ends a dead one's lock."""
        if not self._folder.is_local:
            yield
            return
        path = Path(self._folder.uri, LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _refresh(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                with self._alone():
                    if (holder := self._read()) and holder["owner"] != self._owner:
                        break
                    self._write()
            except OSError:
                continue  # the storage's trouble shows where records are written
        else:
            return
        logger.error("lease was taken over by process %s on %s", holder["pid"], holder["host"])
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _refusal(self, holder: dict[str, Any]) -> InUse:
        return InUse(
            f"name is in use by process {holder['pid']} on {holder['host']} in {self._folder}; "
            f"if that one has died, its lease ends in {_left(holder):.0f} s"
        )

    def _is_mine(self) -> bool:
        holder = self._read()
        return holder is not None and holder["owner"] == self._owner

    def _read(self) -> dict[str, Any] | None:
        content = self._folder.read(FILE)
        return json.loads(content) if content else None

    def _write(self) -> None:
        mine = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "time": time.time(),
        }
        self._folder.write(FILE, json.dumps(mine).encode())

    def _holder(self) -> dict[str, Any] | None:
        holder = self._read()
        if not holder or not _left(holder):
            return None
        here = holder["host"] == socket.gethostname()
        if here and holder["started"] and _started(holder["pid"]) != holder["started"]:
            return None
        return holder


def _left(holder: dict[str, Any]) -> float:
    """Seconds until this lease ends by itself."""
    return max(0.0, holder["time"] + EXPIRES_S - time.time())


def _started(pid: int) -> str:
    """When this process started, in clock ticks since boot: a pid alone may be used again. Empty
    where there is no such process, or no /proc to ask."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]  # a zombie has died; nobody has asked yet
