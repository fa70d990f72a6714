"""Whether this process may still write under a name: a token that is checked before every write.

The token is made when a driver takes the lease on the name. It travels with whatever the driver has
written for it, in other processes and on other hosts, so that none of them writes for a driver that
has lost its lease, however long it was suspended.
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
"""Who took the lease last: it stays when the lease is given back."""


class LeaseLost(RuntimeError):
    """The lease on a name is another driver's, or gone: nothing more may be written under it."""


class Holder(Value):
    """A driver that took the lease on a name."""

    owner: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    number: NonNegativeInt = 0
    """Grows with every taking of a name's lease."""
    host: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    machine: str = ""
    """Where `pid` means this process, as `process.machine` says."""
    started: str = ""
    """When the process started, as `process.started` says."""
    time: Annotated[float, Field(ge=0, lt=1e11)]
    """When it took the lease, by its host's clock, in seconds since 1970."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Fence(Value):
    """The token of one taking of a lease. Crosses process boundaries as primitives."""

    folder: str
    """The lease's folder."""
    owner: str
    number: int

    def check(self) -> None:
        """Raises LeaseLost unless the lease is this token's, and OSError where the storage does not
        answer.

        Reads one small file and remembers nothing. What may still be written for a lease that was
        just lost is what follows the check at once: on a disk a rename, within microseconds;
        elsewhere one request.
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
        """A folder under the same name, that is written only while the lease lasts."""
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
    """What stands in a lease's place: None where nothing does. Raises OSError where the storage
    does not answer."""
    return b"" if is_unreadable(folder) else folder.read(LEASE)


def is_unreadable(folder: Folder) -> bool:
    """Whether something stands in a lease's place that cannot be read: a folder, or a pipe, which
    would be waited for."""
    path = Path(folder.uri, LEASE)
    return folder.is_local and path.exists() and not path.is_file()


def parse_holder(content: bytes | None) -> Holder | None:
    """None for what is no lease: half of one, say."""
    try:
        return Holder.model_validate_json(content or b"")
    except ValidationError:
        return None


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
