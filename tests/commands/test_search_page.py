"""The page of a search in MLflow is there from its start, and tells it at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from psvit_ray.commands.search_page import RECIPE, SearchPage
from psvit_ray.commands.winner_model import publish
from psvit_ray.data.sources.load_data import DriverData
from psvit_ray.export import model_folder
from psvit_ray.report import leaderboard
from psvit_ray.runtime.session.lease import Lease
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.tracking import parent_run, store_uri
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.text import markdown
from psvit_ray.training.checkpoint import CheckpointManager
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import load_source
from tests.helpers.command_line import parse
from tests.helpers.networks import DIGITS_SPECS, trained
from tests.helpers.records import DEIT, record

pytestmark = pytest.mark.processes  # git is asked for the commit


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    folder = Folder(str(tmp_path)) / "a"
    experiment = parent_run.Experiment(
        tracking_uri=store_uri.resolve_uri(None, Folder(str(tmp_path))),
        name=parent_run.experiment_name("/data/photos"),
        search_id="1" * 32,
        run_name="a",
        data="/data/photos",
        data_digest="0123",
    )
    with Lease(folder) as fence:
        folder = fence.over(folder.uri)
        yield Session(
            name="a",
            folder=folder,
            store=RecordStore(folder),
            records=[],
            fence=fence,
            data=DriverData(digest="0123", splits=folder.uri),
            experiment=experiment,
        )


def test_a_search_is_told_by_its_page(session: Session, tmp_path: Path) -> None:
    job = parse("tune_psvit --recipe digits --num-trials 4 --max-hours 2")
    source = load_source(Configuration(spec=job.search.space.smallest()[0], train=job.train))
    client, folder = MlflowClient(session.experiment.tracking_uri), session.folder
    page = SearchPage(job, session, source)
    found = client.get_experiment_by_name("psvit/photos")
    assert found
    (run,) = client.search_runs([found.experiment_id])
    assert "Under way" in run.data.tags["mlflow.note.content"]
    assert run.data.params["sampler"] == "TPE"
    assert int(run.data.params["space_size"]) == job.search.space.size(job.search.limits).count
    assert run.data.metrics == {"budget/configurations": 4.0, "budget/hours": 2.0}
    recipe = client.download_artifacts(run.info.run_id, RECIPE, str(tmp_path))
    given = yaml.safe_load(Path(recipe).read_text())
    assert given["search"]["num_trials"] == 4

    records = [
        record(0, [50.0, 60.0], spec=DEIT, kind="baseline"),
        record(1, [70.0]),
        record(2, [90.0], status="stopped"),
    ]
    leaderboard.write(records, folder, title="a", text="text")
    printed = page.finish(records)
    run = client.get_run(run.info.run_id)

    experiment_id = found.experiment_id
    table = (
        f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    )
    assert f"Table of all configurations:  {table}" in printed
    note = run.data.tags["mlflow.note.content"]
    assert f"[Table of all configurations]({table}" in note
    winner, holdout = markdown.code("2-1|2"), len(source.holdout)
    assert (
        f"**Winner**: {winner}, top-1 70.00 % on {holdout} hold-out images (95 % interval " in note
    )
    assert "**Best DeiT**: `1-1-1-1`, top-1 60.00 % on " in note
    assert f"`psvit train --arch {tmp_path}/a/best.yaml " in note
    metrics = run.data.metrics
    assert (metrics["winner/holdout_top1"], metrics["deit/holdout_top1"]) == (70.0, 60.0)
    assert (metrics["search/completed"], metrics["search/stopped"]) == (2, 1)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files >= {RECIPE, "leaderboard.csv", "pareto.png", "best.yaml", "report.html"}


def test_the_winner_is_a_model_of_its_run_once(session: Session, tmp_path: Path) -> None:
    *_, checkpoint = trained(DIGITS_SPECS["2d"])
    configuration = checkpoint.run.configuration
    winner = record(1, [70.0]).model_copy(update={"configuration": configuration})
    assert publish(session, winner, "")[0].startswith("The winner is no model yet: it has no ")
    with closing(CheckpointManager(session.folder / CHECKPOINTS / winner.key)) as checkpoints:
        checkpoints.put(checkpoint).result()
    tracker = Tracker(session.experiment)
    tracker.put(winner)
    assert tracker.close("completed") == 0
    winner = winner.model_copy(update={"run_id": tracker.run_id(winner.key)})

    model = f"The winner as a model: {tmp_path}/a/model"
    assert publish(session, winner, "") == [model]
    exported = model_folder.load_model_folder(tmp_path / "a" / "model")
    assert exported.config.spec == configuration.spec
    assert publish(session, winner, "photos") == [model, "registered: photos, version 1"]
    assert publish(session, winner, "photos") == [model]
    client = MlflowClient(session.experiment.tracking_uri)
    (version,) = client.search_model_versions("name = 'photos'")
    assert version.run_id == winner.run_id
    (logged,) = client.search_logged_models([client.get_run(winner.run_id).info.experiment_id])
    assert logged.source_run_id == winner.run_id
