"""An evaluation of an exported model as a run in MLflow, below the run of the model's training."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from psvit_ray.runtime.tracking import store_uri
from psvit_ray.text.secrets import without_secrets


def training_run(tracking_uri: str, run_id: str) -> Run:
    """The run of a training. Raises ValueError where the store does not have it."""
    store_uri.check(tracking_uri)
    if not run_id:
        raise ValueError("the training must have a run in MLflow to evaluate it there, got none")
    if not store_uri.exists(tracking_uri):
        raise ValueError(
            f"tracking_uri must be the store of run {run_id}, got {without_secrets(tracking_uri)}, "
            "which does not exist"
        )
    return held_run(tracking_uri, run_id)


def held_run(tracking_uri: str, run_id: str) -> Run:
    """The run of a store that exists. Raises ValueError where the store does not hold it."""
    with _as_value_error(f"tracking_uri must hold the run {run_id}", tracking_uri):
        return MlflowClient(tracking_uri).get_run(run_id)


def write(
    tracking_uri: str,
    parent: Run,
    *,
    name: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    folder: Path,
) -> str:
    """Writes a run called `name` below `parent`, with the files of `folder`. Returns its id.

    Raises ValueError where MLflow does not take it.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _as_value_error("MLflow must take the evaluation", tracking_uri):
        client = MlflowClient(tracking_uri)
        tags = {"mlflow.parentRunId": parent.info.run_id, "psvit.role": "evaluation", **tags}
        run = client.create_run(parent.info.experiment_id, run_name=name, tags=tags)
        now = int(time.time() * 1000)
        client.log_batch(
            run.info.run_id, metrics=[Metric(n, value, now, 0) for n, value in metrics.items()]
        )
        client.log_artifacts(run.info.run_id, str(folder))
        client.set_terminated(run.info.run_id)
    run_id: str = run.info.run_id
    return run_id


@contextlib.contextmanager
def _as_value_error(rule: str, tracking_uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        reason = without_secrets(str(error)).partition("\n")[0]
        raise ValueError(f"{rule}, got {without_secrets(tracking_uri)}: {reason}") from None
