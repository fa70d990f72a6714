"""What the page of a search's parent run shows in MLflow: a description, parameters, metrics and
files, and the addresses at which the runs of the search are compared.

It is written at the search's start and at its end, whole each time. Where the store does not take
it, the search loses nothing, and a resume writes it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from psvit_ray.runtime.tracking import shared_view
from psvit_ray.runtime.tracking.parent_run import Experiment, ParentRun, brief
from psvit_ray.runtime.tracking.shared_view import Links
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Folder, Guard
from psvit_ray.training.results import RankingMetric

NOTE = "mlflow.note.content"
MAX_PARAM = 6_000
"""Characters that MLflow takes as the value of a parameter."""


class ParentPage:
    """The page of the parent run. `warning` says why it could not be written; empty if it was."""

    def __init__(self, experiment: Experiment, guard: Guard | None = None) -> None:
        self._experiment, self._parent = experiment, ParentRun(experiment, guard)
        self.warning = ""

    def links(self, metric: RankingMetric, searched: Sequence[str] = ()) -> Links | None:
        """Makes the page at which runs are compared, and gives its addresses; None where the store
        does not answer.

        Args:
            metric: What the table is sorted by.
            searched: Training settings that are searched.
        """
        try:
            self._parent.open(running=False)
            shared = self._share(metric, [f"train.{name}" for name in searched])
        except LeaseLost:
            raise
        except Exception as error:  # of any of MLflow's stores, and what is beneath them
            self.warning = brief(error)
            return None
        experiment, parent = self._experiment, self._parent
        return shared_view.links(
            experiment.tracking_uri,
            parent.experiment_id,
            parent.run_id,
            experiment.search_id,
            metric,
            shared=shared,
        )

    def _share(self, metric: RankingMetric, axes: Sequence[str]) -> bool:
        """Whether the experiment has a tag with the state of the page, which its MLflow reads."""
        experiment, now = self._experiment, int(time.time() * 1000)
        value = shared_view.tag_value(experiment.run_name, experiment.search_id, metric, axes, now)
        if value is None or not shared_view.reads_state(experiment.tracking_uri):
            return False
        tag = shared_view.tag_name(experiment.search_id)
        try:
            self._parent.client.set_experiment_tag(self._parent.experiment_id, tag, value)
        except MlflowException:  # a user who may write runs, but no experiment
            return False
        return True

    def write(
        self,
        description: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        folder: Folder | None = None,
        files: Sequence[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Replaces the description, adds points to metrics that changed, uploads `files` of
        `folder` and `texts` by the names of their files. A parameter that is there stays, as MLflow
        changes none.

        Args:
            step: Number of configurations that have ended, as the step of the metrics.
        """
        try:
            self._write(description, params or {}, metrics or {}, step)
            for name, text in (texts or {}).items():
                self._parent.client.log_text(self._parent.run_id, text, name)
            if folder:
                self._upload(folder, files)
        except LeaseLost:
            raise
        except Exception as error:  # as in `links`
            self.warning = brief(error)

    def _write(
        self,
        description: str,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        step: int,
    ) -> None:
        parent, now = self._parent, int(time.time() * 1000)
        parent.open(running=False)
        run = parent.client.get_run(parent.run_id)
        parent.client.set_tag(parent.run_id, NOTE, description)
        fresh = [
            Param(name, str(value)[:MAX_PARAM])
            for name, value in params.items()
            if name not in run.data.params
        ]
        changed = [
            Metric(name, value, now, step)
            for name, value in metrics.items()
            if run.data.metrics.get(name) != value
        ]
        if fresh or changed:
            parent.client.log_batch(parent.run_id, metrics=changed, params=fresh)

    def _upload(self, folder: Folder, files: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as work:
            for name in files:
                if (content := folder.read(name)) is not None:
                    Path(work, name).write_bytes(content)
            self._parent.client.log_artifacts(self._parent.run_id, work)
