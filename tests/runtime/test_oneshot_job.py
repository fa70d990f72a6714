"""A one-shot search as a user runs it: killed in each phase, and with actors that die."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient

from psvit_ray.export import model_folder
from psvit_ray.runtime.oneshot.candidate_scoring import score_candidates
from psvit_ray.runtime.oneshot.subnet_actors import SubnetActors
from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.search.oneshot.evolution import FixedSpecs
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.oneshot.subnets import load_supernet
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration, SupernetConfig, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.paths import PathSampler
from psvit_ray.training.source import load_source
from tests.helpers import jobs
from tests.helpers.command_line import job, parse
from tests.helpers.mlflow_store import put_store
from tests.helpers.oneshot import by_spec, timeless
from tests.helpers.processes import wait_until
from tests.helpers.ray_runs import session

ROOT = Path(__file__).parents[2]
SPACE: dict[str, Any] = {
    **{"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": [2]},
    **{"pooling": ["1d", "2d"], "num_stages": [2]},
    "stages": [{"depth": [1, 2], "embed_dim": [16, 32], "head_dim": [16], "mlp_ratio": [2]}] * 2,
}
RECIPE = {
    "train": {"epochs": 2, "warmup_epochs": 0, "data_fraction": 0.3},
    "search": {"baselines": 1, "space": SPACE},
}
FLAGS = (
    *("--strategy", "oneshot", "--supernet-epochs", "6", "--candidates", "60"),
    *("--population", "12", "--finalists", "2", "--finalist-seeds", "2"),
)


def tune(folder: Path, *flags: str) -> subprocess.Popen[str]:
    return jobs.tune(folder, *FLAGS, *flags, content=RECIPE)


def found(folder: Path) -> Folder:
    return Folder(str(folder / "out" / "a"))


def kill_when(condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    wait_until(condition, driver)
    driver.kill()
    driver.communicate()


@pytest.mark.usefixtures("ray_cluster")
def test_killed_in_each_phase_it_ends_as_the_undisturbed_search(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "killed").mkdir()
    assert jobs.tune_here(tmp_path / "undisturbed", *FLAGS, content=RECIPE) == 0

    ours = found(tmp_path / "killed")
    supernet, scores, records = RecordStore(ours / "supernet"), ScoreStore(ours), RecordStore(ours)
    kill_when(
        lambda: any(record.epochs_done >= 2 for record in supernet.all()), tune(tmp_path / "killed")
    )
    kill_when(lambda: len(scores.all()) >= 15, tune(tmp_path / "killed", "--resume"))
    scored_before = scores.all()
    assert len(scored_before) < 60
    kill_when(
        lambda: sum(record.ranks for record in records.all()) >= 3,
        tune(tmp_path / "killed", "--resume"),
    )
    trained_before = [record for record in records.all() if record.ranks]
    assert len(trained_before) < 10
    assert jobs.tune_here(tmp_path / "killed", "--resume", *FLAGS, content=RECIPE) == 0

    theirs = found(tmp_path / "undisturbed")
    assert timeless(scores.all()) == timeless(ScoreStore(theirs).all())
    assert [score.number for score in scores.all()] == list(range(60))
    assert scores.all()[: len(scored_before)] == scored_before
    outcomes = [by_spec(folder) for folder in (ours, theirs)]
    assert outcomes[0] == outcomes[1]
    after = {record.key: record for record in records.all()}
    for record in trained_before:
        assert after[record.key].curve == record.curve
    assert sum(map(len, outcomes[0].values())) == 2 * (1 + 2 * 2)  # a DeiT, two in two ways
    exported = [
        model_folder.load_model_folder((folder / "model").uri).model.state_dict()
        for folder in (ours, theirs)
    ]
    assert all((exported[0][name] == weight).all() for name, weight in exported[1].items())

    store = MlflowClient(f"sqlite:///{tmp_path}/killed/out/mlflow.db")
    experiment = store.get_experiment_by_name("psvit/digits")
    assert experiment
    runs = store.search_runs([experiment.experiment_id])
    assert {one.info.status for one in runs} == {"FINISHED"}
    # The search, its supernet and what was trained; candidates have no run of their own.
    assert len(runs) == 1 + 1 + 10
    (parent,) = (one for one in runs if one.data.tags["psvit.role"] == "search")
    history = store.get_metric_history(parent.info.run_id, "candidates/scored")
    assert [(point.step, point.value) for point in history] == [
        (generation, 12 * (generation + 1)) for generation in range(5)
    ]
    assert "candidates.csv" in {file.path for file in store.list_artifacts(parent.info.run_id)}


@pytest.mark.usefixtures("ray_cluster")
def test_its_hours_are_those_of_all_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_store(tmp_path)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    line = f"tune_psvit --recipe {recipe} --storage {tmp_path} --name a {' '.join(FLAGS)}"
    folder = Folder(str(tmp_path / "a"))

    def search(flags: str) -> str:
        assert job("tune_psvit").work(parse(f"{line} {flags}")) == 0
        return capsys.readouterr().err

    reason = "its budget of hours was over"
    assert f"{reason} before the first step" in search("--max-hours 1e-9")
    (supernet,) = RecordStore(folder / "supernet").all()
    assert supernet.status == "interrupted"
    assert ScoreStore(folder).all() == []
    assert reason not in search("--resume --max-hours 1 --candidates 12 --finalists 1")
    assert len(ScoreStore(folder).all()) == 12
    assert {record.status for record in RecordStore(folder).all()} == {"completed"}


@pytest.mark.usefixtures("ray_cluster")
def test_no_actor_is_started_for_scores_when_hours_are_over(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    configuration = checkpoint.run.configuration

    def not_asked_for() -> Checkpoint:
        raise AssertionError

    with session(tmp_path) as given:
        scored = score_candidates(
            given,
            FixedSpecs([configuration.spec]),
            not_asked_for,
            load_source(configuration),
            Trials(),
            candidates=1,
            deadline=time.monotonic(),
        )
    assert (scored.scores, scored.signal) == ([], None)
    assert scored.reason == "its budget of hours was over"


@pytest.mark.parametrize(
    ("gpus", "seconds"), [(0, math.inf), (1, 3600 * 3), (4, 3600 * 0.75)], ids=str
)
def test_gpu_hours_end_sooner_with_more_gpus(gpus: float, seconds: float) -> None:
    budget = TimeBudget(gpu_hours=5).without(2 * 3600)
    assert budget.until(gpus) - time.monotonic() == pytest.approx(seconds, abs=1)
    sooner = TimeBudget(deadline=time.monotonic() + 60, gpu_hours=5)
    assert sooner.until(gpus) == sooner.deadline


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = SupernetConfig.model_validate({"space": SPACE})
    train = TrainConfig(epochs=1, warmup_epochs=0, data_fraction=0.2)
    one = Configuration(spec=PathSampler(config, 0).largest, train=train, supernet=config)
    *_, last = run_training(one, load_source(one))
    return last.checkpoint()


def test_scores_are_those_of_the_extracted_networks_though_actors_die(
    ray_cluster: None, checkpoint: Checkpoint
) -> None:
    """Both actors are killed in the middle: each spec is scored once all the same."""
    configuration = checkpoint.run.configuration
    assert configuration.supernet
    paths = PathSampler(configuration.supernet, 0)
    specs = list(dict.fromkeys(spec for step in range(40) for spec in paths.at(step)))[:30]
    source = load_source(configuration)
    actors = SubnetActors(
        checkpoint, source, number=2, resources_per_worker={"CPU": 1.0}, wait_minutes=1.0
    )
    scored = []
    for number, score in enumerate(actors.scores(specs)):
        scored.append(score)
        if number == 5:
            for member in actors.members:
                ray.kill(member.actor, no_restart=False)
    actors.close()
    assert sorted(spec.spec_id for spec, *_ in scored) == sorted(spec.spec_id for spec in specs)
    supernet = load_supernet(checkpoint)
    for spec, measures, _ in scored:
        network, preprocessing = supernet.extract(spec), checkpoint.run.preprocessing
        expected = evaluate(network, source.holdout, preprocessing, num_classes=10)
        assert measures["top1"] == expected.measures["top1"]
        assert measures["loss"].value == pytest.approx(expected.loss, abs=1e-6)
