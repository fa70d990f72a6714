"""The parent run of a search, training or comparison in MLflow, and the experiment that it is in.

Beside `mlflow_tracker`, `parent_page` and `registry` the only importer of MLflow.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Run, ViewType
from mlflow.exceptions import MlflowException

from psvit_ray.arch.spec import Value
from psvit_ray.runtime.tracking import moved_store, store_uri
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Guard
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets

MAX_EXPERIMENT_NAME = 256  # a column of MLflow's databases
MAX_DATASET_NAME = 500
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


class ParentRun:
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
        self.is_search = experiment.role == "search"

    @property
    def client(self) -> MlflowClient:
        """The client, for one call. Raises LeaseLost where the runs belong to another driver by
        now."""
        if self._client is None:
            moved_store.adopt(self._experiment.tracking_uri)
            self._client = MlflowClient(self._experiment.tracking_uri)
        if self._guard:
            self._guard.check()
        return self._client

    def forget(self) -> None:
        """Has the next `open` look again whether the run is there."""
        self.run_id = ""

    def open(self, *, running: bool = True) -> None:
        """Opens store, experiment and run at the first call, and says that it is `running`. What
        was deleted in the UI is restored: else nothing could be written."""
        if self.run_id:
            return
        self.experiment_id = self._open_experiment()
        of_search = f"tags.`psvit.search_id` = '{self._experiment.search_id}'"
        run = self.find(f"{of_search} and tags.`psvit.role` != 'configuration'")
        if run is None:
            tags = source_tags() | {
                "psvit.search_id": self._experiment.search_id,
                "psvit.role": self._experiment.role,
                "mlflow.note.content": self._experiment.description,
            }
            run = self.client.create_run(
                self.experiment_id, run_name=self._experiment.run_name, tags=tags
            )
        self.note_data(run)
        if running:
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
        ParentRun(experiment, guard).open()
    except (LeaseLost, OSError):  # of the guard: MLflow's own errors are none
        raise
    except Exception as error:  # of any of MLflow's stores, and what is beneath them
        reason = "; ".join([brief(error), *getattr(error, "__notes__", ())])
        raise store_uri.refusal(experiment.tracking_uri, reason) from None


@contextlib.contextmanager
def _by_hand(command: str) -> Iterator[None]:
    """Adds to an error of MLflow the command that does the same by hand."""
    try:
        yield
    except MlflowException as error:
        error.add_note(f"run `{command}` with MLFLOW_TRACKING_URI set to the store")
        raise


def brief(error: Exception) -> str:
    # Of a database's error, SQLAlchemy adds the statement.
    message = printable(" ".join(without_secrets(str(error)).split())).partition(" [SQL: ")[0]
    return f"{type(error).__name__}: {message:.300}"


@functools.cache
def source_tags() -> dict[str, str]:
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
