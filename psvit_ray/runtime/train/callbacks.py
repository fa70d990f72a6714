"""What Ray Train calls in its controller and in its workers.

The controller is a process of its own, which begins before the workers do: what is here imports
neither what trains nor MLflow.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from ray.train import Checkpoint, UserCallback

from psvit_ray.runtime.cluster.ray_train_private import WorkerCallback
from psvit_ray.runtime.train.control_channel import STOP, ControlChannel
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.fence import Fence, LeaseLost
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.agreement import WorkerHung
from psvit_ray.training.results import result_of


class RecordCallback(UserCallback):
    """Writes the record, in Train's controller: the process that calls `fit` sees no reports."""

    def __init__(self, store: RecordStore, fence: Fence, channel: str) -> None:
        self._store, self._fence, self._channel = store, fence, channel

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        try:
            self._fence.check()  # the record may be gone with the lease
            (record,) = self._store.all()
            self._store.put(record.reported(result_of(metrics[0])))
        except LeaseLost as error:
            ControlChannel(self._channel).send(STOP, str(error))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        ControlChannel(self._channel).send_note(failure_line(worker_exceptions))


def failure_line(failures: dict[int, Exception]) -> str:
    """One line about the failures of workers. A worker that hangs is named by another; the other
    failures follow from it."""
    rank, failure = min(
        failures.items(), key=lambda item: (not isinstance(item[1], WorkerHung), item[0])
    )
    return without_secrets(f"worker {rank}: {type(failure).__name__}: {failure}").splitlines()[0]


class SigtermCallback(WorkerCallback):
    """Notes the first SIGTERM to a worker's process; a second one ends it at once.

    Train calls this in the main thread, which alone may set a handler; the run is in another.
    """

    received = False

    def after_init_train_context(self) -> None:
        def note(number: int, frame: FrameType | None) -> None:
            SigtermCallback.received = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        signal.signal(signal.SIGTERM, note)
