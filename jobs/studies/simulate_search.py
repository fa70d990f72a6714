"""What a search of many configurations asks of its driver and of MLflow, without training any.

    python -m jobs.studies.simulate_search --num-trials 1000  # as in cluster/SCALING.md
    python -m jobs.studies.simulate_search --num-trials 40 --slots 4 --epoch-s 0.5

Real: the proposals, Ray and Tune with as many trials at once as there are slots, ASHA, the record,
MLflow on SQLite, the driver that is killed at half of the search and the one that goes on.
Not real: a trial computes nothing. It reports the curve of `recorded_curve.json`, whose errors
are scaled by the MACs of its network, and its checkpoint is a number; images are not read. Slots
are Ray's CPUs in name alone; a trial waits most of the time and takes 180 MiB.

Starts a Ray of its own, or joins that of RAY_ADDRESS. Nothing that is written stays. Exit code 1:
after the resume a configuration or a point was missing or there twice.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import multiprocessing
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import ray
from mlflow import MlflowClient
from pydantic import Field

from jobs.studies.replay import replay
from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.commands import command_line
from psvit_ray.data.sources.image_source import Source
from psvit_ray.report import leaderboard
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import open_session
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.runtime.tune.asha import AshaConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import run_trials
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.proposals import Proposal, Proposals
from psvit_ray.search.record import FINAL_STATUSES, Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, PositiveNumber, TrainConfig
from psvit_ray.training.results import TOP1
from psvit_ray.training.source import load_source

RECORDED = Path(__file__).parent / "recorded_curve.json"
NAME = "simulated"
ROWS = 10  # of the driver's table
MIB = 2**20
BEST_FIRST = f"metrics.`{TOP1}` DESC"
Rows = list[list[str]]


class SimulateSearch(Value):
    """Measure a search without its training: driver, record and MLflow."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: space and training."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    slots: Annotated[int, Field(ge=2, le=10_000)] = 64
    """Number of trials at the same time."""
    epoch_s: PositiveNumber = 5.0
    """Seconds of an epoch of a trial, approximately."""


class Sample(NamedTuple):
    """Measurement of a driver, made when it has proposed a configuration or one has ended."""

    ended: int
    """Number of configurations that have ended, those of the driver before it included."""
    new: int
    """Number of configurations proposed first by this driver; unfinished ones are not new."""
    at: float
    """Time by `time.monotonic()`, which is the same for all processes of a machine."""
    cpu_s: float
    mlflow_s: float
    """Processor seconds in the thread that writes to MLflow."""
    proposing_s: float
    """Processor seconds for proposals."""
    rss: int
    """Resident memory in bytes."""


class DriverEnd(NamedTuple):
    """Last message of a driver."""

    searched_at: float
    written_at: float
    """Time at which leaderboard and picture were written."""
    untracked: int


class TimedProposals:
    """Proposals whose processor time is measured."""

    def __init__(
        self, proposals: Proposals, records: Sequence[Record], tell: Callable[[Sample], None]
    ) -> None:
        self._proposals, self._tell = proposals, tell
        self._process = psutil.Process()
        self._known = {record.key for record in records}
        self._ended = sum(record.status in FINAL_STATUSES for record in records)
        self._new = 0
        self._proposing_s = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restore of its own, which is never used

    def ask(self) -> Proposal | None:
        with self._timed():
            proposal = self._proposals.ask()
        self._new += proposal is not None and proposal.key not in self._known
        self._tell(self._sample())
        return proposal

    def tell(self, key: str, top1: float | None) -> None:
        with self._timed():
            self._proposals.tell(key, top1)
        self._ended += 1
        self._tell(self._sample())

    @contextlib.contextmanager
    def _timed(self) -> Any:
        began = time.thread_time()
        yield
        self._proposing_s += time.thread_time() - began

    def _sample(self) -> Sample:
        writers = {thread.native_id for thread in threading.enumerate() if thread.name == "mlflow"}
        return Sample(
            ended=self._ended,
            new=self._new,
            at=time.monotonic(),
            cpu_s=time.process_time(),
            mlflow_s=sum(
                thread.user_time + thread.system_time
                for thread in self._process.threads()
                if thread.id in writers
            ),
            proposing_s=self._proposing_s,
            rss=self._process.memory_info().rss,
        )


def drive(job: SimulateSearch, folder: str, resumes: bool, connection: Connection) -> None:
    """A search as jobs/tune_psvit.py runs it, but for the trials. It runs in a process of its
    own."""
    recorded = json.loads(RECORDED.read_text())
    trials = Trials(max_concurrent=job.slots, resources=WorkerResources(gpus_per_worker=0))
    with (
        contextlib.redirect_stdout(sys.stderr),
        open_session(
            session_config(folder, resumes),
            default_name=NAME,
            identity={"train": job.train.model_dump(mode="json")},
            source=source_of(job),
            num_workers=1,
            resources=trials.resources,
        ) as session,
    ):
        outcome = run_trials(
            session,
            TimedProposals(
                Proposals(job.search, job.train, session.records), session.records, connection.send
            ),
            trials,
            num_trials=job.search.num_trials,
            halving=asha_config(job),
            trainable=functools.partial(
                replay,
                recorded=recorded["epochs"],
                macs=count_macs(ArchSpec.model_validate(recorded["spec"])),
                epoch_s=job.epoch_s,
            ),
        )
        searched_at = time.monotonic()
        text = leaderboard.summary(outcome.records, session.folder, session.experiment.tracking_uri)
        leaderboard.write(outcome.records, session.folder, title=session.name, text=text)
        connection.send(DriverEnd(searched_at, time.monotonic(), outcome.untracked))


def session_config(folder: str, resumes: bool) -> SessionConfig:
    return SessionConfig(
        storage=folder,
        name=NAME,
        resume="must" if resumes else "never",
        tracking_uri=store_uri.sqlite_uri(Path(folder, "mlflow.db")),
    )


def asha_config(job: SimulateSearch) -> AshaConfig | None:
    if not job.search.reduction_factor:
        return None
    return AshaConfig(
        epochs=job.train.epochs,
        grace_epochs=job.search.grace_epochs,
        reduction_factor=job.search.reduction_factor,
    )


def source_of(job: SimulateSearch) -> Source:
    return load_source(Configuration(spec=job.search.space.smallest()[0], train=job.train))


class DriverRun(NamedTuple):
    """Messages of a driver, as seen from outside."""

    began: float
    samples: list[Sample]
    end: DriverEnd | None
    """Last message; None from a driver that was killed."""


def run_driver(
    job: SimulateSearch, folder: str, *, resumes: bool, kill_at: float = math.inf
) -> DriverRun:
    """Runs a driver from its start to its end, or to the SIGKILL when `kill_at` configurations have
    ended.

    Raises RuntimeError where it ends otherwise.
    """
    spawn = multiprocessing.get_context("spawn")
    hears, says = spawn.Pipe(duplex=False)
    began, samples, end = time.monotonic(), [], None
    driver = spawn.Process(target=drive, args=(job, folder, resumes, says))
    driver.start()
    says.close()
    with contextlib.suppress(EOFError):
        while True:
            message = hears.recv()
            if isinstance(message, DriverEnd):
                end = message
                continue
            samples.append(message)
            if message.ended >= kill_at:
                driver.kill()
                break
    driver.join()
    expected = -signal.SIGKILL if kill_at < math.inf else 0
    if driver.exitcode != expected:
        raise RuntimeError(f"a driver ended with exit code {driver.exitcode}")
    return DriverRun(began, samples, end)


def work(job: SimulateSearch) -> int:
    recorded = len(json.loads(RECORDED.read_text())["epochs"])
    if job.train.epochs > recorded:
        raise ValueError(
            f"epochs must be at most {recorded}, as in {RECORDED.name}, got {job.train.epochs}"
        )
    job.search.check(job.train)
    source_of(job)
    if "RAY_ADDRESS" not in os.environ:
        cluster.start_ray(num_cpus=job.slots, log_to_driver=False, logging_level=logging.ERROR)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory() as folder:
        first = run_driver(job, folder, resumes=False, kill_at=job.search.num_trials / 2)
        second = run_driver(job, folder, resumes=True)
        print(aligned(growth(first, second, job.search.num_trials)), end="\n\n")
        print(aligned([*driver_facts(first, second), *store_facts(folder)]))
        faults = find_faults(folder, job.search.num_trials)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def growth(first: DriverRun, second: DriverRun, num_trials: int) -> Rows:
    """Table of the cost of a configuration, and of memory, as there are more and more."""
    rows = [
        ["driver", "configurations", "s", "driver's CPU s each", "of it proposals", "MLflow"]
        + ["MiB"]
    ]
    for number, run in (("first", first), ("second", second)):
        before = run.samples[0]
        for row in range(1, ROWS + 1):
            after = next((s for s in run.samples if s.ended * ROWS >= row * num_trials), None)
            if after is None or after.ended <= before.ended:
                continue
            ended = after.ended - before.ended
            rows.append(
                [number, str(after.ended), f"{after.at - run.began:.0f}"]
                + [f"{(after.cpu_s - before.cpu_s) / ended:.2f}"]
                + [f"{(after.proposing_s - before.proposing_s) / ended:.2f}"]
                + [f"{(after.mlflow_s - before.mlflow_s) / ended:.2f}"]
                + [f"{after.rss / MIB:.0f}"]
            )
            before = after
    return rows


def driver_facts(first: DriverRun, second: DriverRun) -> Rows:
    begun, resumed = first.samples[0], second.samples[0]
    new = next(sample for sample in second.samples if sample.new)
    assert second.end
    last = second.samples[-1].at
    return [
        ["first driver, s to its first trial", _seconds(begun.at - first.began)],
        ["first driver, CPU s to its first trial", _seconds(begun.cpu_s)],
        ["second, s to its first trial", _seconds(resumed.at - second.began)],
        ["second, CPU s to its first trial", _seconds(resumed.cpu_s)],
        ["second, s to its first new configuration", _seconds(new.at - second.began)],
        [
            "second, s from its last configuration to its end",
            _seconds(second.end.searched_at - last),
        ],
        ["leaderboard and picture, s", _seconds(second.end.written_at - second.end.searched_at)],
        ["MLflow did not take", str(second.end.untracked)],
    ]


def store_facts(folder: str) -> Rows:
    """Table of the sizes of record and MLflow's store, and of the seconds of a user's queries."""
    files = list((Path(folder) / NAME / "record").iterdir())
    began = time.perf_counter()
    RecordStore(Folder(folder) / NAME).all()
    read_s = time.perf_counter() - began
    client = MlflowClient(store_uri.sqlite_uri(Path(folder, "mlflow.db")))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(experiments, "tags.`psvit.role` = 'search'")

    def timed(**query: Any) -> str:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            client.search_runs(experiments, **query)
            times.append(time.perf_counter() - began)
        return f"{statistics.median(times):.2f}"

    children = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    return [
        ["record, files", str(len(files))],
        ["record, MiB", f"{sum(file.stat().st_size for file in files) / MIB:.1f}"],
        ["record, s to read it", f"{read_s:.2f}"],
        ["MLflow, MiB", f"{(Path(folder) / 'mlflow.db').stat().st_size / MIB:.1f}"],
        ["MLflow, s for the best 100", timed(order_by=[BEST_FIRST], max_results=100)],
        ["MLflow, s for all of the search", timed(filter_string=children, max_results=50_000)],
    ]


def find_faults(folder: str, num_trials: int) -> list[str]:
    """Messages about configurations or points that are missing or twice in the record or in
    MLflow."""
    records = RecordStore(Folder(folder) / NAME).all()
    with contextlib.closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:

        def count(query: str) -> int:
            return int(database.execute(f"SELECT COUNT(*) FROM {query}").fetchone()[0])

        twice = "(SELECT 1 FROM metrics GROUP BY run_uuid, key, step HAVING COUNT(*) > 1)"
        checks = {
            "ended configurations": (
                sum(record.status in FINAL_STATUSES for record in records),
                num_trials,
            ),
            "configurations of distinct numbers": (
                len({record.number for record in records}),
                num_trials,
            ),
            "runs in MLflow": (count("runs"), num_trials + 1),
            "epochs in MLflow": (
                count("metrics WHERE key = 'epoch'"),
                sum(len(record.curve) for record in records),
            ),
            "points that MLflow has twice": (count(twice), 0),
        }
    return [
        f"{what}: {there} instead of {expected}"
        for what, (there, expected) in checks.items()
        if there != expected
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}"


if __name__ == "__main__":
    command_line.run(SimulateSearch, work)
