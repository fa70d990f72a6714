"""MLflow has each configuration once and each point once, whatever happened on the way."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from sqlalchemy.engine import make_url

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.runtime.tracking import mlflow_tracker, store_uri
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.tracking.parent_page import ParentPage
from psvit_ray.runtime.tracking.parent_run import Experiment, open_run, source_tags
from psvit_ray.runtime.tracking.store_uri import (
    artifact_location,
    check,
    check_shared,
    exists,
    resolve_uri,
)
from psvit_ray.search.record import Point, Record, Status
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.results import RANKING
from tests.helpers.mlflow_server import Server
from tests.helpers.processes import free_port, until

pytestmark = pytest.mark.processes  # git is asked for the commit
STAGES = (
    StageSpec(embed_dim=16, num_heads=2, hidden_dim=32, share_groups=(2,)),
    StageSpec(embed_dim=24, num_heads=2, hidden_dim=48, share_groups=(1,)),
)
SPEC = ArchSpec(img_size=8, patch_size=2, in_chans=1, num_classes=10, pooling="2d", stages=STAGES)


def record(
    number: int, top1: tuple[float, ...] = (), status: Status = "running", **fields: Any
) -> Record:
    """`top1` has one number for each epoch; an epoch has 20 steps."""
    points = [
        Point(epoch=e, step=20 * e, metrics={"holdout/top1": value, "train/loss": 1 / e})
        for e, value in enumerate(top1, start=1)
    ]
    train = TrainConfig(seed=number, epochs=5)
    return Record(
        number=number,
        kind="proposal",
        params={"stage1.depth": 2, "pooling": "2d", "lr": 0.003},
        configuration=Configuration(spec=SPEC, train=train),
        status=status,
        curve=tuple(points),
        **fields,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making one takes seconds."""
    return resolve_uri(None, Folder(str(tmp_path_factory.mktemp("store"))))


names = itertools.count()


@pytest.fixture
def experiment(store: str) -> Experiment:
    number = next(names)
    return Experiment(
        tracking_uri=store,
        name=f"psvit/digits-{number}",
        search_id=f"id{number}",
        run_name="a-search",
        description="`a-search` in `/data`",
    )


def written(experiment: Experiment, *records: Record, status: Status = "completed") -> Tracker:
    tracker = Tracker(experiment)
    for one in records:
        tracker.put(one)
    assert tracker.close(status) == 0
    return tracker


def runs(experiment: Experiment) -> tuple[Run, list[Run]]:
    """The one parent, and its children by number. There must be no others, deleted ones neither."""
    client = MlflowClient(experiment.tracking_uri)
    found = client.get_experiment_by_name(experiment.name)
    assert found
    everything = client.search_runs([found.experiment_id], run_view_type=ViewType.ALL)
    (parent,) = [run for run in everything if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in everything if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    assert all(run.info.lifecycle_stage == "active" for run in everything)
    return parent, sorted(children, key=lambda run: run.info.run_name)


def points(experiment: Experiment, run: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(experiment.tracking_uri).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def everything(experiment: Experiment, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every point of a run, no (key, step) twice."""
    found = {name: points(experiment, run, name) for name in run.data.metrics}
    for name, history in found.items():
        steps = [step for step, _ in history]
        assert len(steps) == len(set(steps)), name
    return found


def test_a_search_is_one_parent_and_a_child_for_each_configuration(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = record(0, (50.0, 80.0, 70.0), "completed", test_top1=75.5)
    second = record(1, (40.0,), "failed", reason="Diverged: loss is nan")
    tracker = written(experiment, first, second)

    parent, children = runs(experiment)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "a-search"
    assert parent.data.tags["psvit.search_id"] == experiment.search_id
    assert parent.data.tags["psvit.role"] == "search"
    assert parent.data.tags["mlflow.note.content"] == experiment.description

    assert [run.info.run_name for run in children] == ["000 2|1", "001 failed: 2|1"]
    assert [run.info.status for run in children] == ["FINISHED", "FAILED"]
    assert [tracker.run_id(one.key) for one in (first, second)] == [
        run.info.run_id for run in children
    ]
    assert tracker.run_id("unknown") == ""
    for run, one in zip(children, (first, second), strict=True):
        train = one.configuration.train.model_dump()
        assert run.data.params == {
            "pattern": "2|1",
            "is_deit": "False",
            "pooling": "2d",
            "pool_op": "conv",
            "num_pools": "1",
            "pools_after": "L2",
            "depth": "3",
            "shared_fraction": "0.333",
            "patch_size": "2",
            "stage_widths": "16+24",
            "width_last": "24",
            "stage_heads": "2+2",
            "stage_mlp_widths": "32+48",
            **{f"train.{name}": str(value) for name, value in train.items()},
        }
        tags = {name: v for name, v in run.data.tags.items() if name.startswith("psvit.")}
        tags.pop("psvit.ray_job_id", None)
        assert tags == {
            "psvit.search_id": experiment.search_id,
            "psvit.role": "configuration",
            "psvit.key": one.key,
            "psvit.kind": "proposal",
            "psvit.spec_id": SPEC.spec_id,
            "psvit.pattern": "2|1",
            "psvit.seed": str(one.number),
            "psvit.data": "digits",
            "psvit.status": one.status,
            "psvit.reason": one.reason,
        }
    assert everything(experiment, children[0]) == {
        "cost/mmacs": [(0, first.macs / 1e6)],
        "cost/params_m": [(0, first.params_m)],
        "epoch": [(20, 1.0), (40, 2.0), (60, 3.0)],
        "holdout/top1": [(20, 50.0), (40, 80.0), (60, 70.0)],
        "train/loss": [(20, 1.0), (40, 1 / 2), (60, 1 / 3)],
        "test/top1": [(60, 75.5)],
    }
    assert os.listdir(tmp_path) == []  # MLflow's default is a folder where it was started


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ("completed", "FINISHED"),
        ("stopped", "KILLED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_no_run_is_left_running(experiment: Experiment, ended: Status, status: str) -> None:
    records = record(0), record(0, (50.0,)), record(0, (50.0,), ended)
    written(experiment, *records, status="interrupted")
    parent, (child,) = runs(experiment)
    assert (parent.info.status, child.info.status) == ("KILLED", status)


def test_a_record_given_again_and_again_is_written_once(experiment: Experiment) -> None:
    tracker = Tracker(experiment)
    for epochs in (0, 1, 1, 2, 3, 3):
        tracker.put(record(0, (50.0, math.nan, 70.0)[:epochs]))
        tracker.put(record(1, (10.0, 20.0, 30.0)[:epochs]))
        until(lambda: not tracker._waiting)
    for one in (record(0, (50.0, math.nan, 70.0), "completed"), record(1, (10.0,) * 3, "stopped")):
        tracker.put(one)
        tracker.put(one)
    assert tracker.close("completed") == 0
    _, children = runs(experiment)
    assert len(children) == 2
    (_, first), nan, (_, last) = everything(experiment, children[0])["holdout/top1"]
    assert (first, last) == (50.0, 70.0)
    assert nan[0] == 40
    assert math.isnan(nan[1])
    assert everything(experiment, children[1])["holdout/top1"] == [
        (20, 10.0),
        (40, 20.0),
        (60, 30.0),
    ]


class _Lease:
    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLost


def test_a_driver_that_lost_the_name_leaves_the_runs_to_the_other(experiment: Experiment) -> None:
    lease = _Lease()
    loser = Tracker(experiment, lease)
    loser.put(record(0, (50.0,)))
    until(lambda: not loser._waiting)
    lease.lost = True
    written(experiment, record(0, (50.0, 60.0), "completed"))
    parent, (child,) = runs(experiment)
    before = everything(experiment, child)
    loser.put(record(0, (50.0, 61.0, 62.0), "failed"))
    loser.put(record(1, (50.0,)))
    assert loser.close("interrupted") == 2
    assert not loser._thread.is_alive()
    parent, (child,) = runs(experiment)
    assert everything(experiment, child) == before
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_name_is_lost_between_two_calls_as_well_as_between_two_records(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = _Lease()
    opens = MlflowClient.create_run

    def taken_over(self: MlflowClient, *args: Any, **kwargs: Any) -> Run:
        lease.lost = True
        return opens(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", taken_over)
    loser = Tracker(experiment, lease)
    loser.put(record(0, (50.0,), "completed"))
    assert loser.close("completed") == 1
    parent, children = runs(experiment)
    assert (parent.info.status, children) == ("RUNNING", [])


def test_a_resume_goes_on_with_the_runs_that_are_there(experiment: Experiment) -> None:
    done = record(0, (60.0, 90.0), "completed", test_top1=88.0)
    written(experiment, done, record(1, (50.0,), "interrupted"), status="interrupted")
    _, before = runs(experiment)

    written(experiment, done, record(1, (50.0, 70.0), "completed"), record(2, (1.0,), "stopped"))
    parent, after = runs(experiment)
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in after] == ["FINISHED", "FINISHED", "KILLED"]
    assert [run.info.run_name for run in after] == ["000 2|1", "001 2|1", "002 stopped early: 2|1"]
    assert [run.info.run_id for run in after[:2]] == [run.info.run_id for run in before]
    # What had ended is as it was, the time of its end too.
    assert after[0].info.end_time == before[0].info.end_time
    assert after[0].data.to_dictionary() == before[0].data.to_dictionary()
    assert everything(experiment, after[0]) == everything(experiment, before[0])
    went_on = everything(experiment, after[1])
    assert went_on["holdout/top1"] == [(20, 50.0), (40, 70.0)]


def test_all_that_a_run_lacks_is_one_call_and_what_has_ended_needs_none(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, metrics = MlflowClient.log_batch, list[int]()

    def counting(self: MlflowClient, run_id: str, **given: Any) -> None:
        metrics.append(len(given.get("metrics", ())))
        log_batch(self, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    late = record(0, tuple(map(float, range(mlflow_tracker.POINTS + 1))), "stopped")
    written(experiment, late)
    costs = 2
    assert metrics == [0, 3 * mlflow_tracker.POINTS + costs, 3]
    _, before = runs(experiment)
    assert len(everything(experiment, before[0])["epoch"]) == mlflow_tracker.POINTS + 1
    written(experiment, late)
    assert len(metrics) == 3
    assert runs(experiment)[1][0].data.to_dictionary() == before[0].data.to_dictionary()


def test_nan_and_infinity_are_points(experiment: Experiment) -> None:
    diverged = record(0, (math.nan, 30.0, math.inf, math.nan), "failed", reason="loss is nan")
    for _ in range(2):
        written(experiment, diverged, record(1, (math.nan,), "failed"))
    _, (run, other) = runs(experiment)
    assert [step for step, _ in points(experiment, run, "holdout/top1")] == [20, 40, 60, 80]
    assert [step for step, _ in points(experiment, other, "holdout/top1")] == [20]


def test_searches_of_one_store_do_not_mix(experiment: Experiment) -> None:
    other = experiment.model_copy(update={"search_id": "another", "run_name": "b-search"})
    tracker = written(experiment, record(0, (50.0,), "completed"))
    beside = written(other, record(0, (50.0,), "completed"))
    assert tracker.run_id(record(0).key) != beside.run_id(record(0).key)


def test_what_was_not_taken_when_a_run_was_opened_is_added_later(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "RETRY_S", 0.01)
    log_batch, rng = MlflowClient.log_batch, random.Random(0)
    troubles: list[str] = []

    def flaky(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        """Of three batches one is not taken, and of one the answer is lost."""
        trouble = rng.choice(("refused", "answer lost", "")) if len(troubles) < 30 else ""
        troubles.append(trouble)
        if trouble != "refused":
            log_batch(self, *args, **kwargs)
        if trouble:
            raise requests.ConnectionError

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    tracker = Tracker(experiment)
    tracker.put(record(0, (50.0, 60.0), "completed"))
    until(lambda: not tracker._waiting)
    assert tracker.close("completed") == 0
    _, (run,) = runs(experiment)
    assert run.data.params["pooling"] == "2d"
    history = everything(experiment, run)
    assert history["cost/mmacs"] == [(0, record(0).macs / 1e6)]
    assert history["holdout/top1"] == [(20, 50.0), (40, 60.0)]
    assert {"refused", "answer lost"} <= set(troubles)


def test_a_record_that_the_store_refuses_does_not_hold_up_the_others(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_tracker, "RETRY_S", 0.01)
    monkeypatch.setattr(mlflow_tracker, "FLUSH_S", 0.5)
    refused = record(0, (50.0,))
    (point,) = refused.curve
    unnamed = point.model_copy(update={"metrics": {"*": 1.0}})
    refused = refused.model_copy(update={"curve": (unnamed,)})
    tracker = Tracker(experiment)
    tracker.put(refused)
    until(lambda: "did not take" in caplog.text)
    for number in (1, 2):
        tracker.put(record(number, (50.0,), "completed"))
    assert tracker.close("completed") == 1
    parent, children = runs(experiment)
    assert parent.info.status == "FINISHED"
    ended = [r for r in children if r.data.tags["psvit.key"] != refused.key]
    assert [run.info.status for run in ended] == ["FINISHED", "FINISHED"]


def test_a_long_reason_is_cut_not_refused(experiment: Experiment) -> None:
    written(experiment, record(0, (), "failed", reason="x" * 100_000))
    _, (run,) = runs(experiment)
    assert run.data.tags["psvit.reason"] == "x" * mlflow_tracker.MAX_REASON


def test_a_machine_without_git_tracks_all_the_same(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_tags.cache_clear()
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nowhere")
        written(experiment, record(0, (50.0,), "completed"))
    source_tags.cache_clear()
    _, (run,) = runs(experiment)
    assert "mlflow.source.git.commit" not in run.data.tags


def test_a_server_that_stays_down_costs_little_time_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, seconds in {"RETRY_S": 0.01, "FLUSH_S": 0.1}.items():
        monkeypatch.setattr(mlflow_tracker, name, seconds)
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=r"must answer, got http://127\.0\.0\.1:") as none:
        check(uri)
    tracker = Tracker(Experiment(tracking_uri=uri, name="a", search_id="a", run_name="a"))
    for number in range(3):
        tracker.put(record(number, (50.0,), "completed"))
        tracker.put(record(number, (50.0,), "completed"))
    until(lambda: bool(caplog.records))
    assert tracker.close("completed") == 3
    assert not tracker._thread.is_alive()
    ours = [one for one in caplog.records if one.name == mlflow_tracker.__name__]
    assert len(ours) == 1  # one line an outage
    assert "hunter2" not in caplog.text + str(none.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def test_a_server_that_comes_up_late_gets_every_point(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what REST could stumble on: an empty tag, not a number, infinity."""
    monkeypatch.setattr(mlflow_tracker, "RETRY_S", 0.2)
    caplog.set_level(logging.WARNING, logger=mlflow_tracker.__name__)
    server.start()
    uri = server.uri.replace("//", "//me:hunter2@")
    experiment = Experiment(tracking_uri=uri, name="psvit/a", search_id="a", run_name="a")
    tracker = Tracker(experiment)
    for epochs in range(3):
        for number in range(3):
            tracker.put(record(number, (50.0, math.nan, math.inf)[: epochs + 1]))
    until(lambda: bool(caplog.records))
    assert not tracker.run_id(record(0).key)

    until(server.answers)
    until(lambda: not tracker._waiting)
    for number in range(3):
        tracker.put(record(number, (50.0, math.nan, math.inf, 80.0), "completed"))
    assert tracker.close("completed") == 0
    parent, children = runs(experiment)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 4
    for run in children:
        assert run.data.tags["psvit.reason"] == ""
        history = everything(experiment, run)["holdout/top1"]
        assert [step for step, _ in history] == [20, 40, 60, 80]
        assert (history[0][1], history[3][1]) == (50.0, 80.0)
        assert math.isnan(history[1][1])
    assert "hunter2" not in caplog.text

    client = MlflowClient(server.uri)
    client.delete_run(parent.info.run_id)
    open_run(experiment)
    again, _ = runs(experiment)
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "RUNNING")
    client.delete_experiment(parent.info.experiment_id)
    open_run(experiment)
    assert runs(experiment)[0].info.run_id == parent.info.run_id


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("localhost:5000", "must be the address of a server, as http://host:5000"),
        ("http://", "must be the address of a server"),
        ("foo://host", "must be the address of a server"),
        ("http://not a host", "must answer"),
        ("sqlite:////proc/nothing/mlflow.db", "must be writable"),
    ],
)
def test_an_address_that_is_none_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"tracking_uri {reason}"):
        check(uri)


def test_a_deleted_experiment_is_restored(experiment: Experiment) -> None:
    client = MlflowClient(experiment.tracking_uri)
    client.delete_experiment(client.create_experiment(experiment.name))
    written(experiment, record(0, (50.0,), "completed"))
    parent, (child,) = runs(experiment)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_run_that_was_opened_before_training_is_the_one_that_is_tracked(
    experiment: Experiment,
) -> None:
    open_run(experiment)
    opened, children = runs(experiment)
    assert (opened.info.status, children) == ("RUNNING", [])
    written(experiment, record(0, (50.0,), "completed"))
    parent, (child,) = runs(experiment)
    assert (parent.info.run_id, parent.info.status) == (opened.info.run_id, "FINISHED")
    open_run(experiment)  # a resume
    parent, (same,) = runs(experiment)
    assert (parent.info.run_id, parent.info.status) == (opened.info.run_id, "RUNNING")
    assert same.data.to_dictionary() == child.data.to_dictionary()


def test_no_run_is_opened_for_a_driver_that_lost_the_name(experiment: Experiment) -> None:
    lease = _Lease()
    lease.lost = True
    with pytest.raises(LeaseLost):
        open_run(experiment, lease)
    assert MlflowClient(experiment.tracking_uri).get_experiment_by_name(experiment.name) is None


def test_deleted_runs_are_restored_and_gone_on_with(experiment: Experiment) -> None:
    written(experiment, record(0, (50.0,), "interrupted"), status="interrupted")
    before = runs(experiment)
    client = MlflowClient(experiment.tracking_uri)
    for run in (before[0], *before[1]):
        client.delete_run(run.info.run_id)
    open_run(experiment)
    written(experiment, record(0, (50.0, 60.0), "completed"))
    parent, (child,) = runs(experiment)  # active, all of them
    assert (parent.info.run_id, child.info.run_id) == (
        before[0].info.run_id,
        before[1][0].info.run_id,
    )
    assert everything(experiment, child)["holdout/top1"] == [(20, 50.0), (40, 60.0)]


@pytest.fixture
def database(store: str, tmp_path: Path) -> Path:
    """A store of one's own, with MLflow's tables: making them takes seconds."""
    MlflowClient(store)
    return Path(shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "own 1.db"))


def check_and_open(uri: str) -> None:
    check(uri)
    open_run(Experiment(tracking_uri=uri, name="psvit/a", search_id="a", run_name="a"))


def refused(uri: str) -> str:
    """By the checks before Ray, or by the one that opens a run."""
    with pytest.raises(ValueError, match=r"^tracking_uri must ") as error:
        check_and_open(uri)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("table", ["experiments", "runs"])
def test_what_the_store_does_not_restore_is_told_with_the_command(
    database: Path, table: str
) -> None:
    uri = store_uri.sqlite_uri(database)
    experiment = Experiment(tracking_uri=uri, name="psvit/a", search_id="a", run_name="a")
    open_run(experiment)
    client, (run, _) = MlflowClient(uri), runs(experiment)
    if table == "runs":
        client.delete_run(run.info.run_id)
        what = f"runs restore --run-id {run.info.run_id}"
    else:
        client.delete_experiment(run.info.experiment_id)
        what = f"experiments restore --experiment-id {run.info.experiment_id}"
    with sqlite3.connect(database) as connection:
        connection.execute(
            f"CREATE TRIGGER no BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'not you'); END"
        )
    said = refused(uri)
    assert "not you" in said
    assert said.endswith(f"; run `mlflow {what}` with MLFLOW_TRACKING_URI set to the store")


def spoiled(file: Path, how: str) -> None:
    if how == "read-only":
        content = bytearray(file.read_bytes())
        content[18] = 3  # a format that this SQLite may read, and not write
        file.write_bytes(content)
    elif how == "text":
        file.write_text("no database\n" * 1000)
    elif how == "another":
        file.unlink()
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE runs (distance)")
    elif how == "old":
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    else:
        file.unlink()
        file.mkdir() if how == "folder" else os.mkfifo(file)


@pytest.mark.parametrize(
    ("how", "reason", "advice"),
    [
        ("read-only", "attempt to write a readonly database", "make the file and its folder writ"),
        ("text", "file is not a database", "this is some other file"),
        ("another", "no such column: runs.run_uuid", "this is some other file"),
        ("old", "Detected out-of-date database schema", "run `mlflow db upgrade 'sqlite:///"),
        ("folder", "it is no file", ""),
        ("pipe", "it is no file", ""),
    ],
)
def test_a_file_that_takes_no_run_is_refused_with_what_to_do(
    database: Path, how: str, reason: str, advice: str
) -> None:
    spoiled(database, how)
    said = refused(store_uri.sqlite_uri(database))
    rule = f"tracking_uri must be a store that takes runs, got sqlite:///{database}: "
    assert said.startswith(rule)
    assert reason in said
    assert advice in said


def test_a_file_that_another_process_has_locked_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_uri, "LOCKED_S", 0.1)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    said = refused(store_uri.sqlite_uri(database))
    assert said.endswith("database is locked; end the process that has it locked")
    other.execute("ROLLBACK")
    before = database.read_bytes()
    check(store_uri.sqlite_uri(database))
    assert database.read_bytes() == before


def test_a_store_whose_artifacts_have_no_place_is_refused(database: Path) -> None:
    (database.parent / store_uri.ARTIFACTS).write_text("")
    said = refused(store_uri.sqlite_uri(database))
    assert said.startswith(f"tracking_uri must be a folder, got {database.parent}/mlartifacts: ")


class Website(ThreadingHTTPServer):
    """Answers every request alike, but for MLflow's own sign of life, if it is told to."""

    def __init__(self, status: int, body: str = "", *, health: bool = True) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                alive = health and self.path.endswith("/health")
                self.send_response(200 if alive else status)
                self.end_headers()
                self.wfile.write(b"OK" if alive else body.encode())

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Page)
        self.asked = threading.Thread(target=self.serve_forever, daemon=True)
        self.asked.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.parametrize("health", [True, False])
@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, "", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_"),
        (403, "no", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKI"),
        (200, "<!DOCTYPE html>\n<title>Sign in</title>", "what answers there is no MLflow server"),
    ],
)
def test_a_server_that_takes_no_run_is_refused_with_what_to_do(
    status: int, body: str, advice: str, health: bool
) -> None:
    with Website(status, body, health=health) as site:
        said = refused(f"http://me:hunter2@{site.address}")
    assert f"got http://{site.address}: " in said
    assert advice in said
    assert "NO_PROXY" not in said
    assert "hunter2" not in said


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("status", [403, 502, None])
def test_a_proxy_between_is_named_with_the_variable_that_leaves_it_out(
    variable: str, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Website(200, "{}") as site, Website(status or 200, health=False) as proxy:
        address = proxy.address if status else f"127.0.0.1:{free_port()}"
        monkeypatch.setenv(variable, f"http://me:hunter2@{address}")
        said = refused(f"http://{site.address}")
        hint = (
            f"it was asked through the proxy http://{address}: to reach it directly, add 127.0.0.1 "
            "to NO_PROXY"
        )
        assert said.startswith(f"tracking_uri must answer, got http://{site.address}: ")
        assert said.endswith(hint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        check(f"http://{site.address}")


def test_the_default_store_is_a_file_beside_the_searches(tmp_path: Path) -> None:
    uri = resolve_uri(None, Folder(str(tmp_path)))
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    check(uri)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="tracking_uri must be given, since storage s3://bucket "):
        resolve_uri(None, Folder("s3://me:hunter2@bucket"))


def test_the_store_is_the_one_given_or_that_of_mlflows_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs:5000")
    assert resolve_uri("http://given:5000", Folder(str(tmp_path))) == "http://given:5000"
    assert resolve_uri(None, Folder(str(tmp_path))) == "http://theirs:5000"


def test_the_file_of_a_store_is_what_sqlalchemy_opens() -> None:
    """MLflow gives the URI to SQLAlchemy, whose own parser says which file is meant."""
    draw = random.Random(0)
    for _ in range(1000):
        name = "".join(draw.choices("aZ09%2Fx?#&=+:;@[]*' \"\\üé中~", k=12)).strip("/") or "x"
        uri = resolve_uri(None, Folder(f"/data/{name}"))
        assert make_url(uri).database == f"/data/{name}/mlflow.db"
        assert exists(uri) == Path(f"/data/{name}/mlflow.db").exists()
        assert without_secrets(uri) == uri


def test_a_store_in_a_folder_of_any_name_has_its_file_and_its_artifacts_there(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "50%25 what? #1 [x] 'ü'"
    folder.mkdir()
    uri = resolve_uri(None, Folder(str(folder)))
    experiment = experiment.model_copy(update={"tracking_uri": uri, "name": f"psvit/{folder}"})
    written(experiment, record(0, (50.0,), "failed", reason="bad: a\x00b\n\udcff"))
    parent, (child,) = runs(experiment)
    assert child.data.tags["psvit.reason"] == r"bad: a\x00b\n\udcff"
    MlflowClient(uri).log_text(parent.info.run_id, "x", "table.csv")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert (folder / "mlartifacts" / parent.info.run_id / "artifacts" / "table.csv").is_file()


@pytest.mark.parametrize("uri", ["sqlite:///:memory:", "http://a?b%2F", "postgresql://h/d"])
def test_what_is_no_file_has_no_artifacts_beside_it(uri: str) -> None:
    assert artifact_location(uri) is None


def test_a_file_is_no_store_for_several_hosts() -> None:
    check_shared("sqlite:////shared/mlflow.db", num_hosts=1)
    check_shared("http://mlflow:5000", num_hosts=2)
    with pytest.raises(ValueError, match="tracking_uri must be a tracking server's on a cluster"):
        check_shared("sqlite:////shared/mlflow.db", num_hosts=2)


def test_the_data_of_a_search_is_a_dataset_of_each_run_once(experiment: Experiment) -> None:
    """Also where the store did not take it when the run was opened."""
    bare = record(0, (50.0,))
    written(experiment, bare)
    digest = "0123456789abcdef0123456789abcdef"
    noted = experiment.model_copy(update={"data": "s3://bucket/flowers", "data_digest": digest})
    for _ in range(2):
        written(noted, bare, record(1, (60.0,)))
    parent, children = runs(noted)
    assert len(children) == 2
    for each in (parent, *children):
        assert each.data.tags["psvit.data_digest"] == digest
        assert each.inputs
        (given,) = each.inputs.dataset_inputs
        dataset = given.dataset
        assert (dataset.name, dataset.digest) == ("flowers", digest)
        assert (dataset.source_type, json.loads(dataset.source)) == (
            "s3",
            {"uri": "s3://bucket/flowers"},
        )
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_the_best_so_far_of_a_search_never_falls_and_a_resume_adds_to_it(
    experiment: Experiment,
) -> None:
    """It counts configurations that were trained in full; the steps are those that have ended."""
    ended = [
        record(0, (40.0, 60.0), "completed"),
        record(1, (90.0,), "stopped"),
        record(2, (), "failed", reason="loss is nan"),
        record(3, (70.0,), "completed"),
    ]
    written(experiment, *ended, record(4, (99.0,), "interrupted"), status="interrupted")
    parent, _ = runs(experiment)
    best = [(1, 60.0), (2, 60.0), (3, 60.0), (4, 70.0)]
    assert everything(experiment, parent)["search/best_top1"] == best

    written(experiment, *ended[::-1], record(4, (99.0, 65.0), "completed"))
    parent, _ = runs(experiment)
    assert everything(experiment, parent)["search/best_top1"] == [*best, (5, 70.0)]


def test_the_page_of_a_search_is_written_again_by_a_resume(
    experiment: Experiment, tmp_path: Path
) -> None:
    """MLflow refuses a parameter with another value: the first one stays."""
    folder = Folder(str(tmp_path)) / "a-search"
    for size, best in ((10, 60.0), (11, 70.0)):
        written(experiment, record(0, (best,), "completed"))
        folder.write("table.csv", f"{best}".encode())
        page = ParentPage(experiment)
        assert page.links(RANKING["top1"])
        page.write(
            f"best {best}",
            params={"space_size": size},
            metrics={"winner/holdout_top1": best, "budget/hours": 2.0},
            folder=folder,
            files=["table.csv", "absent.csv"],
            texts={"recipe.yaml": f"size: {size}"},
        )
        assert page.warning == ""
    parent, _ = runs(experiment)
    assert (parent.info.status, parent.data.params) == ("FINISHED", {"space_size": "10"})
    assert parent.data.tags["mlflow.note.content"] == "best 70.0"
    assert parent.data.metrics["winner/holdout_top1"] == 70.0
    assert points(experiment, parent, "budget/hours") == [(0, 2.0)]
    client = MlflowClient(experiment.tracking_uri)
    files = [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert files == ["recipe.yaml", "table.csv"]
    table = client.download_artifacts(parent.info.run_id, "table.csv", str(tmp_path))
    assert Path(table).read_text() == "70.0"


def test_a_page_that_the_store_does_not_take_is_told_and_no_error() -> None:
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    page = ParentPage(Experiment(tracking_uri=uri, name="a", search_id="a", run_name="a"))
    assert page.links(RANKING["top1"]) is None
    page.write("a search")
    assert page.warning
    assert "hunter2" not in page.warning


def test_a_page_of_a_name_that_was_lost_is_the_other_drivers(experiment: Experiment) -> None:
    lease = _Lease()
    lease.lost = True
    page = ParentPage(experiment, lease)
    with pytest.raises(LeaseLost):
        page.links(RANKING["top1"])
    with pytest.raises(LeaseLost):
        page.write("mine")


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_store_that_was_copied_or_moved_writes_into_itself(tmp_path: Path, how: str) -> None:
    """With its folder, as `cp -r outputs elsewhere` does: the old place stays as it is, and what
    was written there is found in the new one."""
    old, new = tmp_path / "50% outputs", tmp_path / "elsewhere"
    old.mkdir()
    before = Experiment(
        tracking_uri=resolve_uri(None, Folder(str(old))),
        name="psvit/a",
        search_id="a",
        run_name="a",
    )
    own = MlflowClient(before.tracking_uri)
    chosen = f"file://{tmp_path}/chosen"
    own.create_experiment("of a user", chosen)
    page = ParentPage(before)
    page.write("first", texts={"first.txt": "1"})
    page_run, _ = runs(before)
    logged = own.create_logged_model(
        page_run.info.experiment_id, source_run_id=page_run.info.run_id
    )
    own.create_registered_model("m")
    own.create_model_version("m", logged.artifact_location, page_run.info.run_id)
    if how == "copied":
        shutil.copytree(old, new)
    else:
        old.rename(new)
    there = sorted(path.relative_to(old) for path in old.rglob("*"))

    _artifact_repos_cache.clear()  # the process of another command has none
    after = before.model_copy(update={"tracking_uri": resolve_uri(None, Folder(str(new)))})
    page = ParentPage(after)
    page.write("second", texts={"second.txt": "2"})
    written(after.model_copy(update={"search_id": "b"}), record(0, (50.0,), "completed"))
    assert page.warning == ""
    assert sorted(path.relative_to(old) for path in old.rglob("*")) == there
    artifacts = new / "mlartifacts" / page_run.info.run_id / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == ["first.txt", "second.txt"]
    client = MlflowClient(after.tracking_uri)
    names = {file.path for file in client.list_artifacts(page_run.info.run_id)}
    assert names == {"first.txt", "second.txt"}
    here = (new / "mlartifacts").as_uri()
    places = [
        client.get_logged_model(logged.model_id).artifact_location,
        client.get_model_version("m", "1").source,
        *(run.info.artifact_uri for run in client.search_runs([page_run.info.experiment_id])),
    ]
    assert [place for place in places if not str(place).startswith(f"{here}/")] == []
    of_user = client.get_experiment_by_name("of a user")
    assert of_user
    assert of_user.artifact_location == chosen
