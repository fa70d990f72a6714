"""Runs in a real Ray: the same run wherever it happens, and what survives a killed worker."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.runtime.tune.asha import AshaConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import TrialsResult, run_trials
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration
from tests.helpers.mlflow_store import put_store
from tests.helpers.ray_runs import (
    configured,
    in_ray_train,
    newest,
    session,
    train_workers,
    undisturbed,
)
from tests.helpers.training import assert_same_state

pytestmark = pytest.mark.usefixtures("ray_cluster")


def in_ray_tune(folder: Path, *configurations: Configuration, num_workers: int = 1) -> TrialsResult:
    put_store(folder)
    with session(folder, num_workers=num_workers) as given:
        return run_trials(
            given,
            FixedProposals(configurations),
            Trials(workers_per_trial=num_workers),
            num_trials=len(configurations),
            test=True,
        )


def test_a_run_is_the_same_alone_in_ray_train_and_in_a_tune_trial(tmp_path: Path) -> None:
    configuration = configured()
    alone = undisturbed(configuration)

    record = in_ray_train(tmp_path / "train", configuration, WorkerRange(1, 1)).record
    assert record.status == "completed"
    assert_same_state(newest(tmp_path / "train" / "a" / CHECKPOINTS), alone)

    outcome = in_ray_tune(tmp_path / "tune", configuration)
    (trial,) = outcome.records
    assert_same_state(newest(tmp_path / "tune" / "a" / CHECKPOINTS / trial.key), alone)

    assert trial.test_correct == record.test_correct
    assert [p.metrics["holdout/loss"] for p in trial.curve] == [
        p.metrics["holdout/loss"] for p in record.curve
    ]
    assert record.test_top1 == pytest.approx(
        100 * record.test_correct.count("1") / len(record.test_correct)
    )


def test_a_training_is_one_live_run_in_mlflow(tmp_path: Path) -> None:
    record = in_ray_train(tmp_path, configured(), WorkerRange(1, 1)).record
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_of = client.get_run(record.run_id)
    assert run_of.info.status == "FINISHED"
    assert run_of.data.metrics["test/top1"] == record.test_top1
    history = client.get_metric_history(record.run_id, "holdout/top1")
    assert [(m.step, m.value) for m in history] == [
        (p.step, p.metrics["holdout/top1"]) for p in record.curve
    ]


@contextmanager
def killing(victim: Callable[[], psutil.Process | None]) -> Iterator[list[int]]:
    """SIGKILLs a process of ours as soon as there is one to kill; gives its pid."""
    killed: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            if process := victim():
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def test_a_search_with_two_workers_a_trial_survives_a_kill_and_frees_what_it_stops(
    tmp_path: Path,
) -> None:
    import ray

    good, bad = configured(epochs=6), configured(epochs=6, lr=1.1e-5)

    def victim() -> psutil.Process | None:
        saved = any((tmp_path / "a" / CHECKPOINTS / good.key).glob("step-*/manifest.json"))
        return next(iter(train_workers(2)), None) if saved else None

    with killing(victim) as killed, session(tmp_path, num_workers=2) as given:
        outcome = run_trials(
            given,
            FixedProposals([good, bad]),
            Trials(workers_per_trial=2),
            num_trials=2,
            halving=AshaConfig(epochs=6, grace_epochs=1, reduction_factor=2),
        )
    assert killed
    first, second = outcome.records
    assert (first.status, first.epochs_done) == ("completed", 6)
    assert [point.epoch for point in first.curve] == list(range(1, 7))
    assert second.status == "stopped"
    assert second.epochs_done < 6
    assert second.reason == f"behind the others after {second.epochs_done} epochs"
    patience = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < patience:
        time.sleep(0.5)
    assert ray.available_resources()["CPU"] == 2


def test_a_configuration_at_fault_is_a_result_and_others_go_on(tmp_path: Path) -> None:
    diverges = configured(lr=1e9, warmup_epochs=0, weight_decay=0)
    outcome = in_ray_tune(tmp_path, diverges, configured())
    failed, fine = outcome.records
    assert failed.status == "failed"
    assert failed.reason.startswith("Diverged: train/loss is")
    assert fine.status == "completed"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(failed.run_id).info.status == "FAILED"
    assert client.get_run(failed.run_id).data.tags["psvit.reason"] == failed.reason


def test_more_workers_than_the_cluster_can_ever_give_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"workers must be at most 2, .* got 3"),
        session(tmp_path, num_workers=3),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_takes_no_run_is_refused_and_the_name_stays_new(tmp_path: Path) -> None:
    another = tmp_path / "another.db"
    with sqlite3.connect(another) as connection:
        connection.execute("CREATE TABLE runs (distance)")
    with (
        pytest.raises(ValueError, match=r"^tracking_uri must be .*run_uuid; this is some other f"),
        session(tmp_path, tracking_uri=f"sqlite:///{another}"),
    ):
        raise AssertionError
    assert Folder(str(tmp_path / "a")).names() == []
    with session(tmp_path) as given:  # with the same name, and no --resume
        client = MlflowClient(given.experiment.tracking_uri)
        found = client.get_experiment_by_name(given.experiment.name)
        assert found
        (run,) = client.search_runs([found.experiment_id])
        assert run.data.tags["psvit.search_id"] == given.experiment.search_id
        assert (run.info.run_name, run.info.status) == ("a", "RUNNING")


def test_a_run_whose_output_nobody_reads_any_more_is_tracked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = os.fdopen(writer, "w")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        record = in_ray_train(tmp_path, configured(epochs=12), WorkerRange(1, 1)).record
    with pytest.raises(BrokenPipeError):
        closed.close()  # what was printed there is still in its buffer
    assert (record.status, record.epochs_done) == ("completed", 12)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(record.run_id)
    assert (run.info.status, run.data.metrics["epoch"]) == ("FINISHED", 12)
