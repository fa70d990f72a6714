"""Messages between a driver and the workers of its run that do not go through Ray Train's
controller.

A driver has three seconds between the SIGTERM of `ray job stop` and its SIGKILL. A report reaches
it through the controller, which looks every two seconds and then takes as long again to end; a file
in the storage may be hidden from other hosts by their caches for longer. Ray's own key-value store,
in the process that every host of a cluster is connected to, answers in milliseconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from psvit_ray.runtime.cluster import ray_private

STOP = "stop"
"""Key for the workers: why the driver asks them to stop."""
SAVE = "save"
"""Key for the workers: number of checkpoints that they have been asked for so far."""
BEGUN = "begun"
"""Key for the driver: the workers have begun, so there is something to stop."""
SAVED = "saved"
"""Key for the controller: number of the requested checkpoints that are written."""
STOPPED = "stopped"
"""Key for the driver: why the workers stopped, and where. All of it is in the storage."""
NOTE = "note-"
NAMESPACE = "psvit"
LOST_S = 60.0  # by then Ray has given up a host that it does not reach


class ControlChannel:
    """The messages of one run. `run` is new for each driver: what an earlier one sent is never
    read."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._read: set[str] = set()

    def send(self, key: str, text: str = "yes") -> None:
        """Sends a value under a key; it replaces an earlier one."""
        ray_private.kv_put(f"{self._run}/{key}", text, NAMESPACE)

    def read(self, key: str) -> str:
        """The value sent under a key; empty where there is none."""
        return ray_private.kv_get(f"{self._run}/{key}", NAMESPACE)

    def clear(self) -> None:
        """Deletes all messages of the run."""
        ray_private.kv_delete(f"{self._run}/", NAMESPACE)

    def send_note(self, text: str) -> None:
        """Sends a note to the user at the driver."""
        self.send(f"{NOTE}{time.time_ns()}-{os.getpid()}", text)

    def new_notes(self) -> list[str]:
        """Notes that were sent since the last call."""
        keys = ray_private.kv_keys(f"{self._run}/{NOTE}", NAMESPACE)
        new = sorted({key.partition("/")[2] for key in keys} - self._read)
        self._read |= {*new}
        return [self.read(key) for key in new]

    @contextlib.contextmanager
    def forwarding_warnings(self) -> Iterator[None]:
        """Sends the warnings that this package logs in a worker as notes, within the block."""
        handler = _WarningHandler(self)
        logger = logging.getLogger("psvit_ray")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class HeadLost(RuntimeError):
    """Ray's head has not answered for so long that it has given this process up."""


class HeadMonitor:
    """Asks Ray's head again and again, in a thread.

    Ray starts another process in the place of one that a cut link separates from the head, and
    leaves this one alive: two must not train one run, nor write its checkpoints. Close it.
    """

    def __init__(self, ask: Callable[[], object], *, every_s: float) -> None:
        self._ask, self._every_s = ask, every_s
        self._answered = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="monitor", daemon=True).start()

    def check(self) -> None:
        """Raises HeadLost where the head has not answered for a minute."""
        silent = time.monotonic() - self._answered
        if silent > LOST_S:
            raise HeadLost(f"Ray's head has not answered for {silent:.0f} s")

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(self._every_s):
            with contextlib.suppress(RayError):  # it is away: it is asked again
                self._ask()
                self._answered = time.monotonic()


class _WarningHandler(logging.Handler):
    def __init__(self, channel: ControlChannel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send_note(record.getMessage())
