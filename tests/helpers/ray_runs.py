"""Trainings and searches in a real Ray, and the processes in which they happen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch.distributed as dist
from mlflow import MlflowClient
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.data.sources.load_data import load_data
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import Session, open_session
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS, TrainResult, train
from psvit_ray.search.record import Point, Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training import checkpoint
from psvit_ray.training.checkpoint import MANIFEST, Checkpoint, CheckpointManager
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.source import load_source
from tests.helpers.mlflow_store import put_store
from tests.helpers.training import SPEC, in_group, join_group

# 24 steps an epoch, image by image, so that there is a moment to strike between two of them.
TWO_EPOCHS = {
    **{"epochs": 2, "warmup_epochs": 1, "batch_size": 48, "micro_batch_size": 1},
    **{"num_loaders": 1, "checkpoint_steps": 2},
}


def configured(**changes: object) -> Configuration:
    train = TrainConfig.model_validate(
        {"epochs": 3, "warmup_epochs": 1, "drop_path": 0.1, "model_ema_decay": 0.9, **changes}
    )
    return Configuration(spec=SPEC, train=train)


@contextmanager
def session(
    folder: Path, name: str = "a", num_workers: int = 1, **launch: object
) -> Iterator[Session]:
    with open_session(
        SessionConfig.model_validate({"storage": str(folder), "name": name, **launch}),
        default_name="unused",
        identity={},
        source=load_data(TrainConfig()),
        num_workers=num_workers,
        resources=WorkerResources(),
    ) as given:
        yield given


def undisturbed(configuration: Configuration) -> Checkpoint:
    *_, last = run_training(configuration, load_source(configuration))
    return last.checkpoint()


def newest(checkpoints: Path) -> Checkpoint:
    found = CheckpointManager(Folder(str(checkpoints))).newest()
    assert found is not None
    return found


def ray_processes(title: str) -> list[psutil.Process]:
    """Of this session's Ray."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # A loader's process is forked, and bears the title of the one that it works for.
            if title in " ".join(process.cmdline()) and process.ppid() not in found:
                found[process.pid] = process
    return list(found.values())


def train_workers(num_workers: int) -> list[psutil.Process]:
    """The processes of a Ray Train worker group, once all are there."""
    found = ray_processes("RayTrainWorker")
    return found if len(found) == num_workers else []


def steps_saved(run_folder: Path) -> int:
    """How far the newest checkpoint is that is whole."""
    found = sorted((run_folder / CHECKPOINTS).rglob(f"step-*/{MANIFEST}"))
    return int(found[-1].parent.name.split("-")[1]) if found else 0


@contextmanager
def striking(*blows: Callable[[], bool]) -> Iterator[list[int]]:
    """One after the other, each as soon as it is possible; gives which have landed."""
    landed: list[int] = []
    ended = threading.Event()

    def strike() -> None:
        for number, blow in enumerate(blows):
            while not blow():
                if ended.wait(0.1):  # to look through all processes takes a core
                    return
            landed.append(number)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield landed
    finally:
        ended.set()
        thread.join()


def in_ray_train(
    folder: Path, configuration: Configuration, workers: WorkerRange, *, patience_s: float = 300
) -> TrainResult:
    put_store(folder)
    with session(folder, num_workers=workers.min_workers) as given:
        return train(
            given,
            configuration,
            workers=workers,
            resources_per_worker={"CPU": 1},
            patience_s=patience_s,
        )


def train_in_group(rank: int, world_size: int, folder: str, configuration: Configuration) -> None:
    join_group(rank, world_size, folder)
    execution = Execution(prepare_model=DistributedDataParallel)
    *_, last = run_training(configuration, load_source(configuration), execution=execution)
    if rank == 0:
        last.checkpoint().save(Folder(f"{folder}/last"))
    dist.destroy_process_group()


def undisturbed_by(world_size: int, folder: Path, configuration: Configuration) -> Checkpoint:
    """The same run without Ray."""
    if world_size == 1:
        return undisturbed(configuration)
    folder.mkdir()
    in_group(train_in_group, world_size, str(folder), configuration)
    return checkpoint.load_checkpoint(Folder(str(folder / "last")))


def assert_told_once(tracking_uri: str, record: Record) -> None:
    """MLflow has every point of the curve, once."""
    client = MlflowClient(tracking_uri)
    for name in ("epoch", "train/loss", "holdout/top1"):
        history = client.get_metric_history(record.run_id, name)
        assert [point.step for point in history] == [point.step for point in record.curve]


def record_of(run_folder: Path) -> Record:
    (record,) = RecordStore(Folder(str(run_folder))).all()
    return record


def curve_of(run_folder: Path) -> tuple[Point, ...]:
    """Empty before there is a record."""
    return next((one.curve for one in RecordStore(Folder(str(run_folder))).all()), ())
