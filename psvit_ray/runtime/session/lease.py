"""A lease that lets only one driver write under a name: a file in the storage that says whose it
is, and a heartbeat."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO, TypeVar

from psvit_ray.runtime.session import process
from psvit_ray.storage.fence import (
    LAST,
    LEASE,
    Fence,
    Holder,
    LeaseLost,
    is_unreadable,
    parse_holder,
    read_lease,
)
from psvit_ray.storage.folder import Folder

HEARTBEAT_S = 5.0
EXPIRES_S = 30.0
SETTLES_S = 1.0
LOOK_S = 0.5
LOCK = ".lease.lock"
Outcome = TypeVar("Outcome")
logger = logging.getLogger(__name__)


class NameInUse(ValueError):
    """Another live driver holds the name."""


class Lease:
    """A lease held for the duration of the `with` block, which gets the token that all writes are
    checked against; a thread renews it with a heartbeat.

    Raises NameInUse if another driver holds the lease; with `wait`, only if it still does after the
    time in which the lease of a dead driver expires. A driver whose process lives on this machine
    keeps its lease, however long it is suspended; the lease of one whose process has ended here is
    taken at once. Of any other driver only the heartbeat can be seen: its lease is taken when the
    heartbeat has not changed for 30 s, by this process' own clock. Clocks of two hosts are never
    compared.

    A driver that has lost its lease, or whose heartbeat fails, is interrupted as by Ctrl-C, and the
    block ends with LeaseLost, or with the error of the heartbeat.
    """

    def __init__(self, folder: Folder, *, wait: bool = False) -> None:
        self._folder, self._wait = folder, wait
        self._owner = uuid.uuid4().hex
        self._watch = _Watch(folder)
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(name="lease", daemon=True)

    def __enter__(self) -> Fence:
        token = self._once_free(self._take)
        self._thread = threading.Thread(target=self._keep, args=(token,), name="lease", daemon=True)
        self._thread.start()
        return token

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            if self._failure is None:  # it is the user's
                raise
        try:
            self._give_back()
        except (OSError, NameInUse) as reason:
            logger.warning("lease on %s ends by itself: %s", self._folder, reason)
        if self._failure:
            raise self._failure

    def check(self) -> None:
        """Raises NameInUse where entering would. Writes nothing."""
        if not self._wait:
            self._once_free(lambda: self._watch.look() == "free" or None)

    def _once_free(self, attempt: Callable[[], Outcome | None]) -> Outcome:
        """The result of `attempt`, once it has one."""
        patience = time.monotonic() + (EXPIRES_S + HEARTBEAT_S if self._wait else 0)
        announced = False
        while (result := attempt()) is None:
            if self._watch.state == "held" and time.monotonic() >= patience:
                raise NameInUse(self._watch.refusal())
            if not announced:
                logger.warning(self._watch.waiting())
                announced = True
            time.sleep(LOOK_S)
        return result

    def _take(self) -> Fence | None:
        """Takes the lease, or returns None where another driver holds it."""
        with self._alone() as locked:
            if self._watch.look() != "free":
                return None
            before = [self._watch.holder, parse_holder(self._folder.read(LAST))]
            me = Holder(
                owner=self._owner,
                number=1 + max((holder.number for holder in before if holder), default=0),
                host=socket.gethostname(),
                pid=os.getpid(),
                machine=process.machine(),
                started=process.started(os.getpid()),
                time=time.time(),
            )
            content = me.model_dump_json().encode()
            self._folder.write(LAST, content)
            self._folder.write(LEASE, content)
            if self._watch.holder:
                self._folder.delete(_heartbeat_of(self._watch.holder.owner))
            self._watch.look()  # from now on another's is a change
        if not locked:
            # Of two that came at the same moment the later writer wins, and the other sees it here,
            # or at its next heartbeat.
            time.sleep(SETTLES_S)
            if not self._is_mine():
                self._watch.look()
                return None
        return Fence(folder=self._folder.uri, owner=me.owner, number=me.number)

    def _give_back(self) -> None:
        if self._is_mine():
            with self._alone():
                if self._is_mine():
                    self._folder.delete(LEASE)
        self._folder.delete(_heartbeat_of(self._owner))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Locks the lease for one driver at a time, where the storage has locks; yields whether it
        is locked. The system frees the lock of a process that has ended."""
        if not self._folder.is_local:
            yield False
            return
        path = Path(self._folder.uri, LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            yield self._locked(file)

    def _locked(self, file: TextIO) -> bool:
        patience = time.monotonic() + EXPIRES_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= patience:
                    raise NameInUse(
                        f"name is in use in {self._folder}: a process that is suspended, or very "
                        f"slow, has its {LOCK} locked"
                    ) from None
                time.sleep(0.01)
            except OSError:
                return False  # a file system without locks

    def _keep(self, token: Fence) -> None:
        """Writes the heartbeat, to a file of its own, so that a late one takes no lease back."""
        beats = 0
        try:
            while not self._ended.wait(HEARTBEAT_S):
                # The storage's trouble shows where records are written.
                with contextlib.suppress(OSError):
                    token.check()
                    beats += 1
                    beat = str(beats).encode()
                    self._folder.write(_heartbeat_of(self._owner), beat, durable=False)
        except Exception as error:  # whatever it is: no driver goes on without a heartbeat
            self._failure = error
            reason = error if isinstance(error, LeaseLost) else f"heartbeat failed: {error!r}"
            logger.error("%s; this driver ends", reason)
            if not self._ended.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _is_mine(self) -> bool:
        holder = parse_holder(read_lease(self._folder))
        return holder is not None and holder.owner == self._owner


class _Watch:
    """The state of another driver's lease, as seen from here over time."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._seen: tuple[bytes | None, bytes | None] | None = None
        """The lease and its heartbeat."""
        self._since = 0.0
        """When they were first seen so; by time.monotonic()."""
        self._changed = False
        self.holder: Holder | None = None
        self.state: Literal["free", "held", "unclear"] = "unclear"
        self._process: process.State = "unknown"

    def look(self) -> Literal["free", "held", "unclear"]:
        """Held is what is seen to live; unclear, of what only time can tell. Raises ValueError
        where no file stands in the lease's place."""
        asked_at = time.monotonic()  # what the storage answers late may be old by then
        content = read_lease(self._folder)
        if content == b"" and is_unreadable(self._folder):
            raise ValueError(f"{self._folder / LEASE} must be a file: remove what stands there")
        self.holder = parse_holder(content)
        beat = self._folder.read(_heartbeat_of(self.holder.owner)) if self.holder else None
        if (content, beat) != self._seen:
            self._changed = self._seen is not None
            self._seen, self._since = (content, beat), time.monotonic()
        self.state = self._judged(silent_s=asked_at - self._since)
        return self.state

    def _judged(self, *, silent_s: float) -> Literal["free", "held", "unclear"]:
        if self._seen is None or self._seen[0] is None:
            return "free"
        self._process = "unknown"
        if self.holder and self.holder.machine and self.holder.machine == process.machine():
            self._process = process.state(self.holder.pid, self.holder.started)
            if self._process != "unknown":
                return "free" if self._process == "ended" else "held"
        if silent_s >= EXPIRES_S:
            return "free"
        return "held" if self._changed else "unclear"

    @property
    def _who(self) -> str:
        return str(self.holder or f"a driver whose {LEASE} cannot be read")

    def waiting(self) -> str:
        """A line that says for whom this driver waits, and for how long."""
        ends = "it ends"
        if self.state == "unclear":
            ends = f"it shows no sign of life for {EXPIRES_S:.0f} s"
        return f"name is in use by {self._who} in {self._folder}; waiting, to go on once {ends}"

    def refusal(self) -> str:
        """A line that says who holds the lease, and what to do."""
        in_use = f"name is in use by {self._who} in {self._folder}"
        if self.holder is None or self._process == "unknown":
            return f"{in_use}; its heartbeat is alive"
        pid = self.holder.pid
        if self._process == "suspended":
            return (
                f"{in_use}; process {pid} on this host is suspended (state T): `kill -CONT {pid}` "
                f"lets it go on, `kill -KILL {pid}` ends it"
            )
        return f"{in_use}; `kill {pid}` ends it"


def _heartbeat_of(owner: str) -> str:
    return f".lease.{owner}"
