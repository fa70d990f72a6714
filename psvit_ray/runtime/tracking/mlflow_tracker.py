"""Runs in MLflow: one parent run for a search, one child for each configuration. Beside `registry`,
it is the only importer of MLflow.

The runs are written from the record by one thread of one process. It is given whole records, and
writes what the store lacks of them: so an outage loses nothing, a resume writes no point twice, and
only the newest state of a configuration ever waits.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from psvit_ray.arch.spec import Value
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.runtime.tracking.configuration_run import (
    KIND,
    RUN_STATUS,
    STATUS,
    costs,
    has_ended,
    run_name,
    run_params,
    status_name,
)
from psvit_ray.search.oneshot.scores import Score, generations, ranking_metric, score_rows
from psvit_ray.search.record import Record, Status
from psvit_ray.search.rows import table_csv
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Guard
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets

RETRY_S = 5.0
FLUSH_S = 60.0
CANDIDATES = "candidates"
MAX_REASON = 1000  # MLflow refuses a tag that is much longer
MAX_EXPERIMENT_NAME = 256  # a column of MLflow's databases
MAX_DATASET_NAME = 500
POINTS = 50  # of a batch: MLflow takes 1,000 metrics, of which an epoch has some ten
logger = logging.getLogger(__name__)


Role = Literal["search", "training", "comparison"]


class Experiment(Value):
    """Where runs are written. `search_id` names the parent run permanently: a resume finds it."""

    tracking_uri: str
    name: str
    search_id: str
    run_name: str
    role: Role = "search"
    """What the parent run is of; its children are of the role `configuration`."""
    description: str = ""
    data: str = ""
    """Name of the data that all its runs are trained on."""
    data_digest: str = ""


def experiment_name(data: str) -> str:
    """Name of the experiment of all runs on `data`, short enough for MLflow's databases."""
    name = f"psvit/{printable(data_set_name(data))}"
    if len(name) <= MAX_EXPERIMENT_NAME:
        return name
    digest = hashlib.sha256(data.encode()).hexdigest()[:12]
    return f"{name[: MAX_EXPERIMENT_NAME - len(digest) - 1]}-{digest}"


def data_set_name(data: str) -> str:
    """Name of a data set that is given by path, URI, pattern or as `torchvision:NAME:ROOT`: what a
    person calls it, wherever it lies."""
    kind, _, rest = data.partition(":")
    if kind.startswith("torchvision"):
        return rest.partition(":")[0]
    _, is_uri, path = data.partition("://")
    parts = PurePosixPath(path if is_uri else os.path.abspath(data)).parts
    plain = [part for part in parts if part != "/" and not re.search(r"[*?[]", part)]
    return re.sub(r"\.(parquet|arrow)$", "", plain[-1]) if plain else "data"


class _ParentRun:
    """The parent run of a session, opened in the store."""

    def __init__(self, experiment: Experiment, guard: Guard | None) -> None:
        # A store that is down is tried again by the tracker, with the newest record and after a
        # check, not inside the client.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Where a run ends, the client prints the store's address: with user and password.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._experiment, self._guard = experiment, guard
        self._client: MlflowClient | None = None
        self.experiment_id = self.run_id = ""

    @property
    def client(self) -> MlflowClient:
        """The client, for one call. Raises LeaseLost where the runs belong to another driver by
        now."""
        if self._client is None:
            self._client = MlflowClient(self._experiment.tracking_uri)
        if self._guard:
            self._guard.check()
        return self._client

    def forget(self) -> None:
        """Has the next `open` look again whether the run is there."""
        self.run_id = ""

    def open(self) -> None:
        """Opens store, experiment and run at the first call. What was deleted in the UI is
        restored: else nothing could be written."""
        if self.run_id:
            return
        self.experiment_id = self._open_experiment()
        of_search = f"tags.`psvit.search_id` = '{self._experiment.search_id}'"
        run = self.find(f"{of_search} and tags.`psvit.role` != 'configuration'")
        if run is None:
            tags = _source_tags() | {
                "psvit.search_id": self._experiment.search_id,
                "psvit.role": self._experiment.role,
                "mlflow.note.content": self._experiment.description,
            }
            run = self.client.create_run(
                self.experiment_id, run_name=self._experiment.run_name, tags=tags
            )
        self.note_data(run)
        self.client.update_run(run.info.run_id, status="RUNNING")
        self.run_id = run.info.run_id

    def _open_experiment(self) -> str:
        name, uri = self._experiment.name, self._experiment.tracking_uri
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(name, store_uri.artifact_location(uri))
            except MlflowException as error:  # another driver may just have made it
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self.client.get_experiment_by_name(name)
            assert experiment
        if experiment.lifecycle_stage == "deleted":
            with _by_hand(f"mlflow experiments restore --experiment-id {experiment.experiment_id}"):
                self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def find(self, filter_string: str) -> Run | None:
        """The run that a filter finds, restored if it was deleted."""
        runs = self.client.search_runs([self.experiment_id], filter_string, ViewType.ALL)
        run = min(runs, key=lambda run: run.info.lifecycle_stage == "deleted", default=None)
        if run and run.info.lifecycle_stage == "deleted":
            with _by_hand(f"mlflow runs restore --run-id {run.info.run_id}"):
                self.client.restore_run(run.info.run_id)
        return run

    def note_data(self, run: Run) -> None:
        """Logs the data as MLflow's dataset of the run, which the web page shows, and its digest as
        a tag to search for."""
        data, digest = self._experiment.data, self._experiment.data_digest
        if not digest or (run.inputs and run.inputs.dataset_inputs):
            return
        self.client.set_tag(run.info.run_id, "psvit.data_digest", digest)
        scheme, has_scheme, _ = data.partition("://")
        dataset = Dataset(
            name=data_set_name(data)[:MAX_DATASET_NAME],
            digest=digest,
            source_type=scheme if has_scheme else "local",
            source=json.dumps({"uri": data}),
        )
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [context])])


def open_run(experiment: Experiment, guard: Guard | None = None) -> None:
    """Opens the parent run of a session, with which its trackers go on: a store that takes no runs
    is found before anything is trained.

    Raises ValueError, which says what MLflow answered and what to do, and the errors of `guard`.
    """
    try:
        _ParentRun(experiment, guard).open()
    except (LeaseLost, OSError):  # of the guard: MLflow's own errors are none
        raise
    except Exception as error:  # of any of MLflow's stores, and what is beneath them
        reason = "; ".join([_brief(error), *getattr(error, "__notes__", ())])
        raise store_uri.refusal(experiment.tracking_uri, reason) from None


@contextlib.contextmanager
def _by_hand(command: str) -> Iterator[None]:
    """Adds to an error of MLflow the command that does the same by hand."""
    try:
        yield
    except MlflowException as error:
        error.add_note(f"run `{command}` with MLFLOW_TRACKING_URI set to the store")
        raise


class Tracker:
    """Writes records to MLflow in a thread of its own. Closing it waits for what is still to be
    written, a minute at most."""

    def __init__(self, experiment: Experiment, guard: Guard | None = None) -> None:
        """`guard` is checked before each call; once it says that the runs belong to another driver,
        the thread ends and leaves them as they are."""
        self._parent, self._search_id = _ParentRun(experiment, guard), experiment.search_id
        self._run_ids: dict[str, str] = {}
        self._steps: dict[str, set[int]] = {}
        self._statuses: dict[str, str] = {}
        self._waiting: OrderedDict[str, Record | tuple[Score, ...]] = OrderedDict()
        self._changed = threading.Condition()
        self._parent_status = ""
        self._closing = False
        self._give_up = float("inf")
        self._thread = threading.Thread(target=self._write_all, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queues a record to be written; returns at once."""
        with self._changed:
            self._waiting[record.key] = record
            self._changed.notify()

    def put_scores(self, scores: Iterable[Score]) -> None:
        """Queues the scores of a one-shot search; returns at once.

        Thousands of runs would drown the others: scores are points on the parent run, one for each
        generation, and a table there.
        """
        with self._changed:
            self._waiting[CANDIDATES] = tuple(scores)
            self._changed.notify()

    def run_id(self, key: str) -> str:
        """Id of the run of a configuration in MLflow; empty until it is opened."""
        return self._run_ids.get(key, "")

    def close(self, status: Status) -> int:
        """Ends the parent run with `status`. Returns how many configurations could not be written:
        they stand in the record, and a resume writes them."""
        with self._changed:
            self._closing, self._parent_status = True, RUN_STATUS[status]
            self._give_up = time.monotonic() + FLUSH_S
            self._changed.notify()
        self._thread.join(FLUSH_S + 30)
        return len(self._waiting)

    def _write_all(self) -> None:
        failed = False
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                key, waiting = next(iter(self._waiting.items()), ("", None))
            try:
                self._parent.open()
                if waiting is None:
                    self._parent.client.set_terminated(self._parent.run_id, self._parent_status)
                    return
                if isinstance(waiting, Record):
                    self._write(waiting)
                else:
                    self._write_scores(waiting)
                with self._changed:
                    if self._waiting[key] is waiting:
                        del self._waiting[key]
                failed = False
            except LeaseLost:
                return  # the runs are another driver's
            except Exception as error:  # whatever it is: no trial may be lost by it
                if not failed:
                    logger.warning("MLflow did not take a record, trying again: %s", _brief(error))
                failed = True
                if time.monotonic() > self._give_up:
                    with contextlib.suppress(Exception):
                        self._parent.open()
                        self._parent.client.set_terminated(self._parent.run_id, self._parent_status)
                    return
                self._distrust(key)
                time.sleep(1 if self._closing else RETRY_S)

    def _distrust(self, key: str) -> None:
        """Forgets, after a failure, what is known of the store: it is asked again what it has, and
        whether the runs are still there. The other records go first, in case the fault lies in this
        one."""
        self._parent.forget()
        if key:
            self._run_ids.pop(key, None)
            self._steps.pop(key, None)
            self._statuses.pop(key, None)
            with self._changed:
                self._waiting.move_to_end(key)

    def _write(self, record: Record) -> None:
        key = record.key
        if key not in self._run_ids:
            run = self._open(record)
            self._run_ids[key], self._statuses[key] = run.info.run_id, run.info.status
            if has_ended(run.info.status, run.data.tags, record):
                return
        run_id = self._run_ids[key]
        if key not in self._steps:
            history = self._parent.client.get_metric_history(run_id, "epoch")
            self._steps[key] = {metric.step for metric in history}
        steps = self._steps[key]

        now = int(time.time() * 1000)
        tags = [
            RunTag(STATUS, status_name(record.status)),
            RunTag("psvit.reason", printable(record.reason)[:MAX_REASON]),
        ]
        lacking = [point for point in record.curve if point.step not in steps]
        for first in range(0, max(len(lacking), 1), POINTS):
            points = lacking[first : first + POINTS]
            metrics = [
                Metric(name, value, now, point.step)
                for point in points
                for name, value in (point.metrics | {"epoch": float(point.epoch)}).items()
            ]
            self._parent.client.log_batch(run_id, metrics=metrics, tags=tags)
            steps.update(point.step for point in points)
        if record.status in RUN_STATUS:
            self._end(record, now)
        elif self._statuses[key] != "RUNNING":
            self._parent.client.update_run(run_id, status="RUNNING", name=run_name(record))
        self._statuses[key] = RUN_STATUS.get(record.status, "RUNNING")

    def _write_scores(self, scores: Sequence[Score]) -> None:
        if CANDIDATES not in self._steps:
            history = self._parent.client.get_metric_history(
                self._parent.run_id, "candidates/scored"
            )
            self._steps[CANDIDATES] = {metric.step for metric in history}
        now = int(time.time() * 1000)
        name = ranking_metric(scores).name
        for generation in generations(scores):
            if generation.number not in self._steps[CANDIDATES]:
                values = {
                    "candidates/scored": float(generation.scored),
                    f"candidates/best_{name}": generation.best_so_far,
                    f"candidates/generation_best_{name}": generation.best,
                    f"candidates/generation_median_{name}": generation.quartiles[1],
                }
                points = [
                    Metric(name, value, now, generation.number) for name, value in values.items()
                ]
                self._parent.client.log_batch(self._parent.run_id, points)
                self._steps[CANDIDATES].add(generation.number)
        table = table_csv(score_rows(scores)).decode()
        self._parent.client.log_text(self._parent.run_id, table, f"{CANDIDATES}.csv")

    def _open(self, record: Record) -> Run:
        """The run of a configuration: a resume finds the run that is there, and adds what the store
        did not take when it was opened."""
        spec, train = record.configuration.spec, record.configuration.train
        tags = {"psvit.search_id": self._search_id, "psvit.key": record.key}
        run = self._parent.find(" and ".join(f"tags.`{n}` = '{v}'" for n, v in tags.items()))
        if run is None:
            tags |= _source_tags() | {
                "mlflow.parentRunId": self._parent.run_id,
                "psvit.role": "configuration",
                KIND: record.kind,
                "psvit.spec_id": spec.spec_id,
                "psvit.pattern": spec.pattern,
                "psvit.seed": str(train.seed),
                "psvit.data": train.data,
            }
            run = self._parent.client.create_run(
                self._parent.experiment_id, run_name=run_name(record), tags=tags
            )
        self._parent.note_data(run)
        now = int(time.time() * 1000)
        fresh = [Param(n, v) for n, v in run_params(record).items() if n not in run.data.params]
        unknown = [
            Metric(n, v, now, 0) for n, v in costs(record).items() if n not in run.data.metrics
        ]
        if fresh or unknown:
            self._parent.client.log_batch(run.info.run_id, params=fresh, metrics=unknown)
        return run

    def _end(self, record: Record, now: int) -> None:
        """Ends the run of a configuration; changes nothing of one that has ended so already."""
        run = self._parent.client.get_run(self._run_ids[record.key])
        parent, run_id = self._parent, run.info.run_id
        if record.test_top1 is not None:
            tested = record.test_metrics | {"test/top1": record.test_top1}
            lacking = [
                Metric(name, value, now, record.curve[-1].step)
                for name, value in tested.items()
                if run.data.metrics.get(name) != value
            ]
            if lacking:
                parent.client.log_batch(run_id, metrics=lacking)
        if run.info.run_name != run_name(record):
            parent.client.update_run(run_id, name=run_name(record))
        if run.info.status != RUN_STATUS[record.status]:
            parent.client.set_terminated(run_id, RUN_STATUS[record.status])


def _brief(error: Exception) -> str:
    # Of a database's error, SQLAlchemy adds the statement.
    message = printable(" ".join(without_secrets(str(error)).split())).partition(" [SQL: ")[0]
    return f"{type(error).__name__}: {message:.300}"


@functools.cache
def _source_tags() -> dict[str, str]:
    """Tags for the commit of the checkout, where there is one, and for the Ray job, where there is
    one."""
    tags = {}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, no checkout
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        tags["mlflow.source.git.commit"] = completed.stdout.strip()
    if job := os.environ.get("RAY_JOB_ID"):
        tags["psvit.ray_job_id"] = job
    return tags
