"""A training in one of its Ray Train workers: which checkpoint it starts from, what it asks of the
other workers, what it saves and reports."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import ray.train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device, prepare_model

from psvit_ray.arch.spec import Value
from psvit_ray.data import quarantine
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import DriverData
from psvit_ray.data.splits.split_file import DataChanged
from psvit_ray.runtime.cluster.ray_train_private import preemption_notice
from psvit_ray.runtime.train.callbacks import SigtermCallback
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.control_channel import (
    BEGUN,
    SAVE,
    SAVED,
    STOP,
    STOPPED,
    ControlChannel,
    HeadMonitor,
)
from psvit_ray.storage.fence import Fence, LeaseLost
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.agreement import Request
from psvit_ray.training.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    CheckpointError,
    CheckpointManager,
)
from psvit_ray.training.config import Configuration, PositiveNumber
from psvit_ray.training.engine import Report, run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.results import FailedResult
from psvit_ray.training.source import check_fits
from psvit_ray.training.steps import Diverged, TooManyBadImages

LOOK_S = 0.25
DRIVER_ERRORS = (CheckpointError, LeaseLost)
"""Errors that end a driver's work, and are no fault of a configuration."""
logger = logging.getLogger(__name__)


class RunTask(Value):
    """Task of a run, in a search or alone, which crosses process boundaries as primitives."""

    configuration: Configuration
    data: DriverData
    checkpoints: str
    """Folder of this run's checkpoints."""
    quarantine: str
    """Folder of the file that names images which cannot be read."""
    channel: str
    """Id of the control channel to the driver."""
    fence: Fence
    """Token of the driver's lease, checked before anything is written."""
    test: bool = False
    """Score the test images once, at the end."""
    workers: WorkerRange
    """Numbers of workers; a trial of a search with one worker trains in its own process."""
    resources_per_worker: dict[str, float]
    wait_minutes: float
    """Minutes to wait for hosts with room for the workers."""
    patience_s: PositiveNumber = 300.0
    """Seconds after which a worker that does not come to a step is named by the others."""


def train_worker(raw_task: dict[str, Any]) -> None:
    """Trains in a worker. Every rank reports; rank 0 writes checkpoints."""
    task = RunTask.model_validate(raw_task)
    rank = ray.train.get_context().get_world_rank()
    channel = ControlChannel(task.channel)
    epoch = step = 0
    stopped, failed = False, ""
    with contextlib.ExitStack() as stack:
        if rank == 0:
            channel.send(BEGUN)
            stack.enter_context(channel.forwarding_warnings())
        requests = stack.enter_context(contextlib.closing(WorkerRequests(channel, leads=rank == 0)))
        keeper = stack.enter_context(contextlib.closing(CheckpointWriter(task, rank, requests)))
        try:
            reports = _reports(task, requests, keeper)
            with contextlib.closing(reports):  # type: ignore[type-var]
                for report in reports:
                    keeper.take(report)
                    epoch, step, stopped = report.epoch, report.step, report.stopped
                    if report.metrics:
                        ray.train.report(report.result().to_metrics())
        except (BrokenCheckpoint, DataChanged, Diverged, TooManyBadImages) as error:
            # The configuration's own fault, the same on all workers: a result, not to be tried
            # again.
            failed = without_secrets(f"{type(error).__name__}: {error}")
        keeper.close()
        failed = broadcast_from_rank_zero(failed or keeper.fault)
    if failed:
        result = FailedResult(epoch=epoch, step=step, reason=failed, of_driver=bool(keeper.fault))
        ray.train.report(result.to_metrics())
    elif stopped and rank == 0:
        reason = channel.read(STOP) or "stopped by SIGTERM to a worker"
        at = f"step {step}, checkpoint {keeper.written}"
        channel.send(STOPPED, f"{reason} at {at}")


def _reports(task: RunTask, requests: WorkerRequests, keeper: CheckpointWriter) -> Iterator[Report]:
    device = get_device()
    execution = Execution(
        device=device,
        accelerated=device.type != "cpu",
        prepare_model=prepare_model,
        request=requests,
        patience_s=task.patience_s,
    )
    return run_training(
        task.configuration,
        _agreed_source(task),
        execution=execution,
        start=keeper.agreed_start(),
        test=task.test,
    )


def _agreed_source(task: RunTask) -> Source:
    """The data of a run, the same on all ranks.

    Raises DataChanged, on all ranks, where rank 0 sees other images than the run began with, and
    RuntimeError where another rank does alone.
    """
    rank = ray.train.get_context().get_world_rank()
    source, reason = None, ""
    try:
        source = task.data.open(task.configuration.train)
    except DataChanged as error:
        reason = str(error)
    if agreed := broadcast_from_rank_zero(reason):
        raise DataChanged(agreed)
    if source is None:
        raise RuntimeError(f"rank {rank} sees other images than rank 0: {reason}")
    check_fits(task.configuration, source)
    return source


def record_bad_images(report: Report, folder: Folder) -> None:
    """Adds the report's bad images to `quarantine.csv` and warns the user of their number."""
    if number := len(report.bad_images):
        quarantine.add_to_quarantine(folder, report.bad_images)
        images = "1 image" if number == 1 else f"{number} images"
        logger.warning("%s cannot be read: see %s/%s", images, folder, quarantine.QUARANTINE)


class WorkerRequests:
    """Requests of this worker to all workers before a step; rank 0, which `leads`, makes those that
    concern all. Close it."""

    def __init__(self, channel: ControlChannel, *, leads: bool) -> None:
        self._channel, self._leads = channel, leads
        self._stop = False
        self._saves_requested = self.saves_seen = 0
        self._notice: Any = None
        self._monitor = HeadMonitor(self._look, every_s=LOOK_S) if leads else None

    def __call__(self) -> Request:
        if self._monitor:
            self._monitor.check()
        if self._stop or SigtermCallback.received:
            return "stop"
        notice = preemption_notice()
        if self._leads and (notice, self._saves_requested) != (self._notice, self.saves_seen):
            self._notice, self.saves_seen = notice, self._saves_requested
            return "checkpoint"
        return "none"

    def stop(self) -> None:
        """Asks all workers to stop before the next step."""
        self._stop = True

    def tell_saved(self) -> None:
        """Tells the controller that the requested checkpoint is written."""
        self._channel.send(SAVED, str(self.saves_seen))

    def close(self) -> None:
        if self._monitor:
            self._monitor.close()

    def _look(self) -> None:
        self._saves_requested = int(self._channel.read(SAVE) or 0)
        self._stop = self._stop or bool(self._channel.read(STOP))


class CheckpointWriter:
    """Writes the checkpoints of a run on rank 0, and chooses the one that all ranks start from.
    Close it."""

    def __init__(self, task: RunTask, rank: int, requests: WorkerRequests) -> None:
        keep = task.configuration.train.keep_checkpoints
        self._kept = CheckpointManager(task.fence.over(task.checkpoints), keep=keep)
        self._quarantine = task.fence.over(task.quarantine)
        self._rank, self._requests = rank, requests
        self.written = ""
        self.fault = ""
        """Error of rank 0 while writing a checkpoint, from the storage or a lost lease, or an empty
        string; all workers are asked to stop."""

    def agreed_start(self) -> Checkpoint | None:
        """The newest checkpoint that rank 0 can read, or None if there is none.

        Raises BrokenCheckpoint, on all ranks, if there are checkpoints and rank 0 can read none,
        and RuntimeError where another rank cannot read what rank 0 can.
        """
        checkpoint, reason = None, ""
        if self._rank == 0:
            try:
                checkpoint = self._kept.newest()
            except BrokenCheckpoint as error:
                reason = str(error)
        name, reason = broadcast_from_rank_zero((checkpoint.name if checkpoint else "", reason))
        if reason:
            raise BrokenCheckpoint(reason)
        if self._rank == 0 or not name:
            return checkpoint
        try:
            return self._kept.named(name)
        except BrokenCheckpoint as error:
            raise RuntimeError(f"rank {self._rank} cannot read what rank 0 can: {error}") from error

    def take(self, report: Report) -> None:
        """Writes the checkpoint of a report, where one is due, and names its bad images."""
        if self._rank != 0:
            return
        try:
            record_bad_images(report, self._quarantine)
        except LeaseLost as error:
            self._fail(error)
        if report.checkpoint_due:
            checkpoint = report.checkpoint()
            with contextlib.suppress(*DRIVER_ERRORS):  # of the one before: `_ended` has been told
                writing = self._kept.put(checkpoint, score=report.score)
                writing.add_done_callback(self._ended)
                self.written = checkpoint.name

    def close(self) -> None:
        with contextlib.suppress(*DRIVER_ERRORS):
            self._kept.close()

    def _ended(self, writing: Future[None]) -> None:
        if (error := writing.exception()) is None:
            self._requests.tell_saved()
        elif isinstance(error, DRIVER_ERRORS):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.fault = str(error)
        self._requests.stop()
