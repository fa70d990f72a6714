"""One live driver for a name: a file with a heartbeat in the storage."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psvit_ray.data.storage import Folder

HEARTBEAT_S = 5.0
EXPIRES_S = 30.0
FILE = "lease.json"


class InUse(ValueError):
    """Another driver is alive under this name."""


class Lease:
    """Held while in the `with` block; refreshed by a thread.

    Raises InUse if another driver holds it. One whose process has died on this host, or that has
    not been refreshed for 30 s (hosts' clocks agree within seconds), is taken over.
    """

    def __init__(self, folder: Folder, *, wait: bool = False) -> None:
        self._folder, self._wait = folder, wait
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)

    def __enter__(self) -> Self:
        while holder := self._holder():
            left = EXPIRES_S - (time.time() - holder["time"])
            if not self._wait:
                raise InUse(
                    f"name is in use by process {holder['pid']} on {holder['host']} in "
                    f"{self._folder}; if that one has died, its lease ends in {left:.0f} s"
                )
            time.sleep(min(left, HEARTBEAT_S))
        self._write()
        # Of two that came at the same moment the later writer wins, and the other sees it here.
        time.sleep(0.1 if self._folder.is_local else 1.0)
        if (holder := self._read()) and holder["owner"] != self._owner:
            raise InUse(f"name was taken at the same moment by process {holder['pid']}")
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
        self._folder.delete(FILE)

    def _refresh(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._write()
            except OSError:
                continue  # the storage's trouble shows where records are written

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
        if not holder or time.time() - holder["time"] > EXPIRES_S:
            return None
        here = holder["host"] == socket.gethostname()
        if here and _started(holder["pid"]) != holder["started"]:
            return None
        return holder


def _started(pid: int) -> str:
    """When this process started, in clock ticks since boot: a pid alone may be used again. Empty
    where there is no such process, or no /proc to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
