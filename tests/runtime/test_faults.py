"""What a training survives, and how it ends where it does not: killed, stopped, hung, out of disk.

The long ones are marked `chaos`: `make chaos`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mlflow import MlflowClient
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.runtime.session.config import Resume
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import TrialsResult, run_trials
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.record import Record
from psvit_ray.storage.fence import LEASE, LeaseLost
from psvit_ray.storage.folder import Folder
from psvit_ray.training.agreement import WorkerHung
from psvit_ray.training.checkpoint import MANIFEST
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.source import load_source
from tests.helpers.jobs import train_job
from tests.helpers.mlflow_server import Server
from tests.helpers.mlflow_store import put_store
from tests.helpers.processes import PATIENCE_S, free_port, until, wait_until
from tests.helpers.ray_runs import (
    TWO_EPOCHS,
    assert_told_once,
    configured,
    in_ray_train,
    newest,
    ray_processes,
    record_of,
    session,
    steps_saved,
    striking,
    train_workers,
    undisturbed,
    undisturbed_by,
)
from tests.helpers.training import assert_same_state, in_group

SECRET = "hunter2xyzzy"
SOONER = {**TWO_EPOCHS, "micro_batch_size": 4}
"""Steps that are still long enough to strike between two of them."""


def signalled(number: int, run_folder: Path, *, workers: int) -> Callable[[], bool]:
    """A blow: a signal to the last of the workers, once these have saved something."""
    before: dict[tuple[int, ...], int] = {}

    def blow() -> bool:
        alive = [worker.pid for worker in train_workers(workers)]
        saved = steps_saved(run_folder)
        if not alive or saved <= before.setdefault(tuple(alive), saved):
            return False
        os.kill(alive[-1], number)
        return True

    return blow


def filled(run_folder: Path, title: str) -> Callable[[], bool]:
    """A blow: what trains may write no file of more than a thousand bytes any more."""

    def blow() -> bool:
        if steps_saved(run_folder) < 4:
            return False
        for one in ray_processes(title):
            one.rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return True

    return blow


def freeze_in_group(rank: int, world_size: int, folder: str, frozen: int) -> None:
    """One rank's process stands still within its seventh step; another says what it makes of it."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    if frozen == 0:  # then its store does not answer either
        rendezvous = f"tcp://127.0.0.1:{Path(folder, 'port').read_text()}"
    dist.init_process_group(
        "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=2),
    )
    steps = itertools.count(1)

    def freeze(*_: Any) -> None:
        if next(steps) == 7 and rank == frozen:
            Path(folder, "frozen").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    def prepare(model: torch.nn.Module) -> torch.nn.Module:
        model.register_forward_pre_hook(freeze)
        return DistributedDataParallel(model)

    configuration = configured(epochs=1)
    try:
        list(
            run_training(
                configuration,
                load_source(configuration),
                execution=Execution(prepare_model=prepare, patience_s=2),
            )
        )
    except WorkerHung as error:
        Path(folder, "said").write_text(str(error))
        os.kill(int(Path(folder, "frozen").read_text()), signal.SIGKILL)


@pytest.mark.processes
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_worker_that_freezes_within_a_step_is_named(tmp_path: Path, frozen: int) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        in_group(freeze_in_group, 2, str(tmp_path), frozen)
    said = (tmp_path / "said").read_text()
    assert said == f"rank {frozen} did not reach step 7 within 2 s"


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_killed_mid_epoch_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = configured(**SOONER)
    with striking(signalled(signal.SIGKILL, tmp_path / "a", workers=2)) as landed:
        record = in_ray_train(tmp_path, configuration, WorkerRange(2, 2)).record
    assert landed
    # Ray may find it gone first, or the other worker may miss it.
    said = (
        r"worker [01]: (WorkerHealthCheckFailedError|WorkerHung: rank [01] did not reach step \d+)"
    )
    assert re.match(said, capsys.readouterr().err)
    assert record.status == "completed"
    assert [point.metrics["perf/workers"] for point in record.curve] == [2, 2]
    alone = undisturbed_by(2, tmp_path / "group", configuration)
    assert_same_state(newest(tmp_path / "a" / CHECKPOINTS), alone)
    assert_told_once(f"sqlite:///{tmp_path}/mlflow.db", record)


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_ends_a_training_with_the_reason_and_the_checkpoint_before(
    tmp_path: Path,
) -> None:
    with striking(filled(tmp_path / "a", "RayTrainWorker")) as landed:
        trained = in_ray_train(tmp_path, configured(**SOONER), WorkerRange(1, 1))
    assert landed
    assert (trained.record.status, trained.signal) == ("failed", None)
    assert trained.record.reason.startswith(f"checkpoint cannot be written to {tmp_path}/a/")
    assert "File too large" in trained.record.reason
    assert newest(tmp_path / "a" / CHECKPOINTS).step >= 4


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_ends_a_search_and_is_no_fault_of_its_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configurations = [configured(**SOONER), configured(**SOONER, lr=1e-3)]

    put_store(tmp_path)

    def search(resume: Resume = "never") -> TrialsResult:
        with session(tmp_path, resume=resume) as given:
            return run_trials(
                given,
                FixedProposals(configurations, given.records),
                Trials(max_concurrent=1),
                num_trials=2,
            )

    with striking(filled(tmp_path / "a", "ImplicitFunc")) as landed:
        ended = search()
    assert landed
    assert ended.exit_code == 1
    reason = ended.storage_fault
    assert reason.startswith(f"checkpoint cannot be written to {tmp_path}/a/")
    assert capsys.readouterr().out.count(reason) == 1
    first, *others = ended.records
    assert (first.status, first.reason) == ("interrupted", reason)
    assert all(other.status == "interrupted" for other in others)
    again = search("must")
    assert [record.status for record in again.records] == ["completed"] * 2


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["training", "search"])
def test_a_driver_whose_name_is_taken_over_ends_its_workers_and_writes_no_more(
    tmp_path: Path, kind: str
) -> None:
    endless = configured(**{**SOONER, "epochs": 1000})
    there: list[dict[Path, bytes]] = []

    def written() -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in [*tmp_path.rglob("record/*.json"), *tmp_path.rglob(f"step-*/{MANIFEST}")]
        }

    def take_over() -> bool:
        if steps_saved(tmp_path / "a") < 4:
            return False
        holder = {"owner": "other", "host": "elsewhere", "pid": 1, "time": time.time()}
        Folder(str(tmp_path / "a")).write(LEASE, json.dumps(holder).encode())
        there.append(written())
        return True

    def drive() -> None:
        if kind == "training":
            in_ray_train(tmp_path, endless, WorkerRange(2, 2))
            return
        with session(tmp_path) as given:
            run_trials(given, FixedProposals([endless]), Trials(), num_trials=1)

    lost = "is lost: taken over by process 1 on elsewhere at 20"
    with striking(take_over), pytest.raises(LeaseLost, match=lost):
        drive()
    assert there == [written()]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    assert {run.info.status for run in runs} <= {"RUNNING"}  # the other's to end
    until(lambda: not train_workers(2) and not ray_processes("ImplicitFunc"))


@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_no_number_ends_all_workers_and_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverges = configured(lr=1e9, warmup_epochs=0, weight_decay=0, checkpoint_steps=1)
    record = in_ray_train(tmp_path, diverges, WorkerRange(2, 2)).record
    assert record.status == "failed"
    assert record.reason.startswith("Diverged: train/loss is nan at step ")
    at = int(record.reason.rpartition(" ")[2])
    assert newest(tmp_path / "a" / CHECKPOINTS).step < at
    assert capsys.readouterr().err == ""


@dataclass(frozen=True)
class Stopped:
    """A job that was sent SIGTERM, lost its newest checkpoint, and was resumed."""

    folder: Path
    rays: Path
    """Ray's folder for temporary files, of both jobs."""
    tracking_uri: str
    moment: float
    first: Record
    code: int
    written: float
    """When the newest checkpoint was."""
    said: str
    last: Record

    @property
    def checkpoints(self) -> Path:
        return self.folder / "out" / "a" / CHECKPOINTS


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    folder = tmp_path_factory.mktemp("stopped")
    server = Server(folder)
    server.start()
    uri = server.uri.replace("//", f"//me:{SECRET}@")
    rays = Path(tempfile.mkdtemp(prefix="psvit", dir="/tmp"))  # its sockets need a short path
    env = {"AWS_SECRET_ACCESS_KEY": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET}
    env["RAY_TMPDIR"] = str(rays)
    try:
        until(server.answers)
        job = train_job(folder, uri, **env)
        wait_until(lambda: steps_saved(folder / "out" / "a") > 0, job)
        moment = time.time()
        job.terminate()
        code = job.wait(PATIENCE_S)
        first = record_of(folder / "out" / "a")
        newest_file = max((folder / "out" / "a" / CHECKPOINTS).glob(f"*/{MANIFEST}"))
        written = newest_file.stat().st_mtime
        (newest_file.parent / "state.pt").write_bytes(b"")
        again = train_job(folder, uri, "--resume", **env)
        said = again.communicate(timeout=PATIENCE_S)[0]
        assert again.returncode == 0, said
        last = record_of(folder / "out" / "a")
        yield Stopped(folder, rays, server.uri, moment, first, code, written, said, last)
    finally:
        server.stop()
        shutil.rmtree(rays, ignore_errors=True)


@pytest.mark.processes
def test_sigterm_ends_a_training_with_a_checkpoint_of_that_moment(stopped: Stopped) -> None:
    assert stopped.code == 128 + signal.SIGTERM
    assert stopped.first.status == "interrupted"
    told = re.fullmatch(
        r"stopped by SIGTERM at step (\d+), checkpoint step-0*(\d+)-epoch-\d+", stopped.first.reason
    )
    assert told
    assert told[1] == told[2]
    assert stopped.written > stopped.moment


@pytest.mark.processes
def test_resumed_without_its_newest_checkpoint_a_training_is_the_undisturbed_one(
    stopped: Stopped,
) -> None:
    configuration = stopped.first.configuration
    assert_same_state(newest(stopped.checkpoints), undisturbed(configuration))
    broken = stopped.first.reason.rpartition(" ")[2]
    assert len(re.findall(rf"{broken} is broken: state.pt .*; going on from", stopped.said)) == 1
    assert stopped.last.status == "completed"
    assert_told_once(stopped.tracking_uri, stopped.last)


@pytest.mark.processes
def test_no_secret_of_the_address_or_the_environment_is_written_anywhere(
    stopped: Stopped,
) -> None:
    """Not in the storage, MLflow's database and artifacts, what the job said, or Ray's logs."""
    logs = [*stopped.rays.glob("ray/session_2*/logs")]
    assert len(logs) == 2
    places = [stopped.folder, *logs]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in stopped.said
