"""A fencing token: before every write under a run's name, it is checked that its lease still holds.

The token is made when a driver takes the lease on the name, and goes to the processes on all hosts
that write for the driver. So none of them writes for a driver that has lost its lease, however long
it was suspended.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, ValidationError

from psvit_ray.arch.spec import Value
from psvit_ray.storage.folder import Folder

LEASE = "lease.json"
LAST = ".lease.last"
"""Name of the file that says who took the lease last; it stays when the lease is released."""


class LeaseLost(RuntimeError):
    """The lease on a name is another driver's, or gone: nothing more may be written under it."""


class Holder(Value):
    """The driver that holds the lease on a name; the content of the lease's file."""

    owner: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    """Random identifier of this taking of the lease."""
    number: NonNegativeInt = 0
    """Serial number of this taking of the lease, which grows with each."""
    host: str
    """Name of the driver's host."""
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    """Process id of the driver."""
    machine: str = ""
    """Identifier of the machine (or container) in which `pid` is valid, as `process.machine`."""
    started: str = ""
    """Start time of the process, as `process.started`."""
    time: Annotated[float, Field(ge=0, lt=1e11)]
    """Time at which the lease was taken, by the host's clock, in seconds since 1970."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Fence(Value):
    """The token of one taking of a lease. It crosses process boundaries as primitives."""

    folder: str
    """Path or URI of the lease's folder."""
    owner: str
    """Identifier of the taking, as in `Holder`."""
    number: int
    """Number of the taking, as in `Holder`."""

    def check(self) -> None:
        """Raises LeaseLost unless the lease is this token's, and OSError if the storage does not
        answer.

        It reads one small file, and nothing is cached. After a lease was lost, one write can still
        follow a check that just passed: on a disk a rename, within microseconds; in an object store
        one request.
        """
        folder = Folder(self.folder)
        content = read_lease(folder)
        holder = parse_holder(content)
        if holder is None or holder.owner != self.owner:
            raise LeaseLost(
                f"lease on {folder} is lost: {self._reason(folder, content)}; nothing more is "
                "written here"
            )

    def over(self, uri: str) -> Folder:
        """A folder that is written only while the lease holds."""
        return Folder(uri, guard=self)

    def _reason(self, folder: Folder, content: bytes | None) -> str:
        if holder := parse_holder(content):
            return f"taken over by {holder} at {_moment(holder.time)}"
        with contextlib.suppress(OSError):
            last = parse_holder(folder.read(LAST))
            if last and last.number > self.number:
                return f"taken over by {last} at {_moment(last.time)}, which has given it back"
        return f"{LEASE} {'is gone' if content is None else 'cannot be read'}"


def read_lease(folder: Folder) -> bytes | None:
    """Content of a lease's file; None if there is none, and empty if something else is in its
    place. Raises OSError if the storage does not answer."""
    return b"" if is_unreadable(folder) else folder.read(LEASE)


def is_unreadable(folder: Folder) -> bool:
    """Whether a folder, or a pipe, which would block a reader, is in the place of a lease's
    file."""
    path = Path(folder.uri, LEASE)
    return folder.is_local and path.exists() and not path.is_file()


def parse_holder(content: bytes | None) -> Holder | None:
    """The holder in a lease's file; None if the content is not that of a lease, such as half of
    one."""
    try:
        return Holder.model_validate_json(content or b"")
    except ValidationError:
        return None


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
