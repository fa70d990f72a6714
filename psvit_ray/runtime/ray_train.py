"""A run in Ray Train workers: one configuration, one or many workers, CPU or GPU."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import (
    TorchConfig,
    TorchTrainer,
    get_device,
    prepare_data_loader,
    prepare_model,
)

from psvit_ray.arch.spec import Value
from psvit_ray.data.storage import Folder
from psvit_ray.runtime.launch import Session
from psvit_ray.runtime.tracking import Tracker
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.training import checkpoint
from psvit_ray.training.config import Configuration
from psvit_ray.training.engine import Diverged, Place, load_source, run

CHECKPOINTS = "checkpoints"
FOLLOW_S = 2.0
MAX_FAILURES = 3
STALLED_COLLECTIVE_S = 300  # torch's own half hour leaves a lost worker's peers waiting for ever


class WorkerTask(Value):
    """What a worker is told; crosses process boundaries as primitives."""

    configuration: Configuration
    test: bool = False
    """Score the test images once, at the end."""


def make_trainer(
    task: WorkerTask,
    *,
    storage: Folder,
    name: str,
    num_workers: int,
    resources_per_worker: dict[str, float],
    callbacks: list[UserCallback],
) -> TorchTrainer:
    """A trainer that goes on from the newest checkpoint under `storage/name`, if there is one, and
    restarts its workers from there when one of them dies."""
    return TorchTrainer(
        train_worker,
        train_loop_config=task.model_dump(mode="json"),
        torch_config=TorchConfig(timeout_s=STALLED_COLLECTIVE_S),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=resources_per_worker.get("GPU", 0) > 0,
            resources_per_worker=resources_per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.uri,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    )


def train_worker(raw_task: dict[str, Any]) -> None:
    """Runs in every worker; every rank reports."""
    task = WorkerTask.model_validate(raw_task)
    configuration = task.configuration
    source = load_source(configuration)
    start = None
    if saved := ray.train.get_checkpoint():
        with saved.as_directory() as folder:
            start = checkpoint.load(Path(folder))
    place = Place(
        device=get_device(),
        prepare_model=prepare_model,
        prepare_loader=functools.partial(prepare_data_loader, add_dist_sampler=False),
    )

    values: dict[str, Any] = {"epoch": 0, "step": 0}
    try:
        for report in run(configuration, source, place=place, start=start, test=task.test):
            values = report.values()
            with tempfile.TemporaryDirectory() as scratch:
                ray.train.report(
                    values,
                    checkpoint=_saved(report.save, Path(scratch))
                    if report.checkpoint_due
                    else None,
                )
    except Diverged as error:  # the configuration's own fault: a result, not to be tried again
        ray.train.report({"epoch": values["epoch"], "step": values["step"], "failed": str(error)})


def _saved(save: Any, scratch: Path) -> Checkpoint | None:
    """Rank 0 alone has a checkpoint to report: its state is everybody's."""
    if ray.train.get_context().get_world_rank() != 0:
        return None
    save(scratch / "checkpoint")
    return Checkpoint.from_directory(scratch / "checkpoint")


def train(
    session: Session,
    configuration: Configuration,
    *,
    num_workers: int,
    resources_per_worker: dict[str, float],
) -> Record:
    """Trains one configuration outside a search, and scores the test images once, at the end.

    Goes on from the newest checkpoint under the session's name. The record says how it ended.
    """
    record = next(iter(session.records), None) or Record(
        number=0, kind="fixed", params={}, configuration=configuration
    )
    record = record.model_copy(update={"status": "running", "reason": ""})
    session.store.put(record)
    trainer = make_trainer(
        WorkerTask(configuration=configuration, test=True),
        storage=session.folder,
        name=CHECKPOINTS,
        num_workers=num_workers,
        resources_per_worker=resources_per_worker,
        callbacks=[_Recorder(session.folder.uri)],
    )
    tracker = Tracker(session.experiment)
    status, reason = "interrupted", ""
    try:
        with _following(session.store, tracker):
            trainer.fit()
        (record,) = session.store.all()
        reason = record.reason
        status = "failed" if reason else "completed"
    except ray.train.TrainingFailedError as error:
        status, reason = "failed", _cause(error)
    finally:
        (record,) = session.store.all()
        changes = {"status": status, "reason": reason, "run_id": tracker.run_id(record.key)}
        record = record.model_copy(update=changes)
        session.store.put(record)
        tracker.put(record)
        tracker.close({"completed": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))
    return record


def _cause(error: ray.train.TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in failures.items():
        return f"worker {rank}: {type(failure).__name__}: {failure}".splitlines()[0]
    return str(error).splitlines()[-1]


class _Recorder(UserCallback):
    """Writes the record, in the Train controller: the process that calls `fit` sees no reports."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        store = RecordStore(Folder(self._folder))
        (record,) = store.all()
        store.put(record.reported(metrics[0]))


@contextmanager
def _following(store: RecordStore, tracker: Tracker) -> Iterator[None]:
    """Hands the record on to the tracker as it grows, so that MLflow shows a run while it lasts."""
    ended = threading.Event()

    def follow() -> None:
        seen: list[Record] = []
        while not ended.wait(FOLLOW_S):
            if (records := store.all()) != seen:
                seen = records
                for record in records:
                    tracker.put(record)

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
