"""A training in Ray Train: one configuration, one or many workers, CPU or GPU."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from psvit_ray.runtime.cluster.network import UseRayInterface
from psvit_ray.runtime.cluster.ray_names import ray_name
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.session.signals import StopSignal, catch_stop_signals
from psvit_ray.runtime.tracking.gauges import Gauges
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.train.callbacks import RecordCallback, SigtermCallback, failure_line
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.control_channel import BEGUN, STOP, STOPPED, ControlChannel
from psvit_ray.runtime.train.elastic import LimitWaiting, NoHostsError, SaveBeforeResize
from psvit_ray.runtime.train.worker import RunTask, train_worker
from psvit_ray.search.record import Record, Status
from psvit_ray.storage.folder import Folder
from psvit_ray.text.durations import time_left
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.checkpoint import checkpoint_names
from psvit_ray.training.config import Configuration

CHECKPOINTS = "checkpoints"
FOLLOW_S = 2.0
LOOK_S = 0.1
MAX_FAILURES = 3
MORE_PATIENCE_S = 20.0
RESIZE_EVERY_S = 60.0
# Train counts on a lost host for some 20 s more, and starts workers there: only this ends the wait.
ELASTIC_START_S = "20"


@dataclass(frozen=True)
class TrainResult:
    """Record of a training, and why it ended."""

    record: Record
    signal: int | None
    """Number of the signal that ended the training early, or None."""


def make_trainer(
    task: RunTask, *, name: str, scratch: str, callbacks: list[UserCallback]
) -> TorchTrainer:
    """A trainer that goes on from the newest of the task's checkpoints, if there is one, and
    restarts its workers from there when one of them dies.

    Args:
        scratch: Folder of this host for what Train itself notes of a run; a run goes on from
            nothing in it.
    """
    workers = task.workers
    # A worker that stands still at a step is named by the others; elsewhere, this ends it.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(task.patience_s + MORE_PATIENCE_S)
    if workers.elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_S)
    # Ray's types of scaling and of callbacks are those of before Train V2.
    scaling: Any = ScalingConfig
    v2_callbacks: list[Any] = [
        *callbacks,
        SigtermCallback(),
        UseRayInterface(),
        SaveBeforeResize(task.channel),
        LimitWaiting(task.wait_minutes),
    ]
    return TorchTrainer(
        # Not as `train_loop_config`, which Ray's dashboard shows: a storage may hold a password.
        functools.partial(train_worker, task.model_dump(mode="json")),
        # By torch's own half hour, a lost worker's peers would wait as long.
        torch_config=TorchConfig(timeout_s=math.ceil(task.patience_s)),
        scaling_config=scaling(
            num_workers=tuple(workers) if workers.elastic else workers.max_workers,
            use_gpu=task.resources_per_worker.get("GPU", 0) > 0,
            resources_per_worker=task.resources_per_worker,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=v2_callbacks,
        ),
    )


def train(
    session: Session,
    configuration: Configuration,
    *,
    workers: WorkerRange,
    resources_per_worker: dict[str, float],
    patience_s: float = 300.0,
    wait_minutes: float = 30.0,
    test: bool = True,
    deadline: float = math.inf,
) -> TrainResult:
    """Trains one configuration outside a search, from the newest checkpoint in the session's
    folder.

    Args:
        patience_s: Seconds after which a worker that does not come to a step is named, and all are
            restarted.
        wait_minutes: Minutes to wait for hosts with room for the workers.
        test: Whether to score the test images once, at the end.
        deadline: Moment of time.monotonic() at which training ends with a checkpoint.

    A SIGINT or SIGTERM to this process, or a SIGTERM to a worker's, ends it with a checkpoint too.
    The record says how it ended. Raises LeaseLost, once the workers have ended, where another
    driver took the name.
    """
    record = next(iter(session.records), None) or Record(
        number=0,
        kind="fixed",
        params={},
        configuration=configuration,
        data_digest=session.data.digest,
    )
    session.store.put(record.model_copy(update={"status": "running", "reason": ""}))
    task = RunTask(
        configuration=configuration,
        data=session.data,
        checkpoints=(session.folder / CHECKPOINTS).uri,
        quarantine=session.folder.uri,
        channel=uuid.uuid4().hex,
        fence=session.fence,
        test=test,
        workers=workers,
        resources_per_worker=resources_per_worker,
        wait_minutes=wait_minutes,
        patience_s=patience_s,
    )

    with tempfile.TemporaryDirectory() as scratch, catch_stop_signals(deadline) as stop_signal:
        trainer = functools.partial(
            make_trainer,
            task,
            name=ray_name(session.name),
            scratch=scratch,
            callbacks=[RecordCallback(session.store, task.fence, task.channel)],
        )
        fit = _Fit(trainer, session.folder / CHECKPOINTS)
        return _Driver(session, ControlChannel(task.channel), stop_signal).drive(fit)


class _Fit(threading.Thread):
    """Calls the trainer's `fit` again and again as long as that makes progress.

    It is a thread, as the main one is to receive signals, of which Train would take SIGINT for
    itself.
    """

    def __init__(self, trainer: Callable[[], TorchTrainer], checkpoints: Folder) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer, self._checkpoints = trainer, checkpoints
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while self._fails():
                pass
        except Exception as error:  # is raised, or told, in the main thread
            self.error = error

    def _fails(self) -> bool:
        before = checkpoint_names(self._checkpoints)[-1:]
        try:
            self._trainer().fit()
        except ray.train.TrainingFailedError as error:
            if _no_hosts(error) or checkpoint_names(self._checkpoints)[-1:] == before:
                raise
            return True
        return False


class _Driver:
    """Watches a run from the driver: hands the record on to MLflow as it grows, prints progress and
    what workers warn about, and passes signals on."""

    def __init__(self, session: Session, channel: ControlChannel, stop_signal: StopSignal) -> None:
        self._store, self._fence = session.store, session.fence
        self._channel, self._stop_signal = channel, stop_signal
        self._tracker = Tracker(session.experiment, session.fence)
        self._gauges = Gauges(session.name)
        self._seen: Record | None = None
        self._first: tuple[int, float] | None = None
        self._began = time.monotonic()
        self._seconds_before = sum(record.seconds for record in session.records)

    def drive(self, fit: _Fit) -> TrainResult:
        """Watches the run until it has ended, and records how."""
        status: Status = "interrupted"
        reason = ""
        fit.start()
        try:
            if reason := self._watch(fit):
                self._put(status, reason)  # at once: it may be killed next
                if self._channel.read(BEGUN):
                    fit.join()
            elif isinstance(fit.error, ray.train.TrainingFailedError):
                status, reason = "failed", _cause(fit.error)
            elif fit.error:
                raise fit.error
            else:
                (record,) = self._store.all()
                status, reason = ("failed" if record.reason else "completed"), record.reason
        finally:
            try:
                record = self._put(status, reason)
            finally:
                self._tracker.close(status)
        by = self._stop_signal.number
        if not self._stop_signal.reason:
            by = signal.SIGTERM  # a worker was sent it
        return TrainResult(record, by if status == "interrupted" else None)

    def _watch(self, fit: _Fit) -> str:
        """Until the run has ended, or stopped: then why."""
        look_at, stop_sent = 0.0, False
        while fit.is_alive():
            fit.join(LOOK_S)
            # The key-value store, or the storage, may be away for a while: then at the next turn.
            with contextlib.suppress(RayError, OSError):
                if (asked := self._stop_signal.reason) and not stop_sent:
                    self._channel.send(STOP, asked)
                    stop_sent = True
                    if not self._channel.read(BEGUN):
                        return f"{asked} before the first step"
                if stop_sent and (stopped := self._channel.read(STOPPED)):
                    return stopped
                if time.monotonic() >= look_at:
                    self._follow()
                    look_at = time.monotonic() + FOLLOW_S
        self._follow()
        return self._channel.read(STOPPED)

    def _follow(self) -> None:
        for note in self._channel.new_notes():
            print(note, file=sys.stderr)
        (record,) = self._store.all()
        if record != self._seen:
            before, self._seen = self._seen, record
            self._tracker.put(record)
            self._gauges.training(point.metrics for point in record.curve[-1:])
            with contextlib.suppress(BrokenPipeError):  # nobody reads any more
                self._say(record, before)

    def _say(self, record: Record, before: Record | None) -> None:
        """Prints the newest epoch, if it is new, and the time left."""
        done, epochs = record.epochs_done, record.configuration.train.epochs
        if done <= (before.epochs_done if before else done):
            return
        first, began = self._first = self._first or (done, time.monotonic())
        left = ""
        if done > first:
            elapsed_s = time.monotonic() - began
            left = f" | {time_left(elapsed_s, done=done - first, remaining=epochs - done)}"
        metrics, metric = record.curve[-1].metrics, record.metric
        value = metric.number(metrics[metric.key])
        print(
            f"[{done}/{epochs}] train loss {metrics['train/loss']:.4f}  hold-out {metric.title} "
            f"{value}  {metrics['perf/img_per_s']:,.0f} images/s{left}",
            flush=True,
        )

    def _put(self, status: Status, reason: str) -> Record:
        self._fence.check()
        (record,) = self._store.all()
        run_id = self._tracker.run_id(record.key) or record.run_id
        seconds = self._seconds_before + time.monotonic() - self._began
        changes = {"status": status, "reason": reason, "run_id": run_id, "seconds": seconds}
        record = record.model_copy(update=changes)
        self._store.put(record)
        self._tracker.put(record)
        return record


def _no_hosts(error: ray.train.TrainingFailedError) -> NoHostsError | None:
    cause = getattr(error, "controller_failure", None)
    return cause if isinstance(cause, NoHostsError) else None


def _cause(error: ray.train.TrainingFailedError) -> str:
    if waited := _no_hosts(error):
        return str(waited)
    failures = getattr(error, "worker_failures", None)
    return failure_line(failures) if failures else without_secrets(str(error)).splitlines()[-1]
