"""Words between a driver and the workers of its run, past Ray Train's controller.

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
from ray.experimental import internal_kv

STOP = "stop"
"""To the workers: the signal that the driver was sent."""
SAVE = "save"
"""To the workers: how many checkpoints they have been asked for so far."""
BEGUN = "begun"
"""To the driver: there is something to stop."""
SAVED = "saved"
"""To the controller: how many of the checkpoints asked for are written."""
STOPPED = "stopped"
"""To the driver: why the workers stopped, and where. All of it is in the storage."""
NOTE = "note-"
NAMESPACE = "psvit"
LOST_S = 60.0  # by then Ray has given up a host that it does not reach


class ControlChannel:
    """`run` is new for each driver: what an earlier one said is never read."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._read: set[str] = set()

    def send(self, key: str, text: str = "yes") -> None:
        internal_kv._internal_kv_put(f"{self._run}/{key}", text, namespace=NAMESPACE)

    def read(self, key: str) -> str:
        """Empty where nothing was said."""
        value = internal_kv._internal_kv_get(f"{self._run}/{key}", namespace=NAMESPACE)
        return value.decode() if value else ""

    def clear(self) -> None:
        internal_kv._internal_kv_del(f"{self._run}/", del_by_prefix=True, namespace=NAMESPACE)

    def send_note(self, text: str) -> None:
        """For the user, who sits at the driver."""
        self.send(f"{NOTE}{time.time_ns()}-{os.getpid()}", text)

    def new_notes(self) -> list[str]:
        """What has been noted since this was called last."""
        keys = internal_kv._internal_kv_list(f"{self._run}/{NOTE}", namespace=NAMESPACE)
        words = sorted({key.decode().partition("/")[2] for key in keys} - self._read)
        self._read |= {*words}
        return [self.read(key) for key in words]

    @contextlib.contextmanager
    def forwarding_warnings(self) -> Iterator[None]:
        """What this project's code warns about in a worker is noted."""
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
    """Asks the head again and again, in a thread. One that a cut link keeps from answering starts
    another process in the place of this, which Ray leaves alive: two must not train one run, nor
    write its checkpoints. Close it."""

    def __init__(self, ask: Callable[[], object], *, every_s: float) -> None:
        self._ask, self._every_s = ask, every_s
        self._answered = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="monitor", daemon=True).start()

    def check(self) -> None:
        """Raises HeadLost."""
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
