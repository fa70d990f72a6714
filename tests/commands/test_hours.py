"""A search with hours: what it decides, and that a resume decides the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from psvit_ray.commands.command_line import parse, read_recipe
from psvit_ray.commands.hours import planned
from psvit_ray.commands.options import TuneJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.session.session import check_resume, read_description, write_description
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import run_trials
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.time_plan import MAX_TRIALS
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import TrainConfig
from tests.helpers.ray_runs import configured, session

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_data(TrainConfig())


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' recipe with more epochs than fit into any hour."""
    path = tmp_path_factory.mktemp("recipe") / "long.yaml"
    sections = read_recipe("digits")
    path.write_text(yaml.safe_dump({**sections, "train": {**sections["train"], "epochs": 100_000}}))
    return path


def asked(storage: Path, options: str) -> TuneJob:
    return parse(TuneJob, [*f"--storage {storage} --name a".split(), *options.split()])


def test_hours_decide_the_length_of_trainings_and_a_resume_keeps_it(
    tmp_path: Path, source: Source, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, began = f"--recipe {recipe} --grace-epochs 3", time.monotonic()
    job = asked(tmp_path, f"{options} --max-hours 0.5")
    first = planned(job, source, begun=began)
    assert first.time_plan
    assert first.train.epochs == first.time_plan.epochs < job.train.epochs
    assert first.search.grace_epochs == 3, "what was given stays"
    assert first.search.num_trials == MAX_TRIALS
    assert f"at most {first.train.epochs} epochs each" in capsys.readouterr().out
    folder = Folder(str(tmp_path)) / "a"
    write_description(folder, first.identity)

    again = planned(asked(tmp_path, f"{options} --resume"), source, begun=began)
    assert (again.train, again.time_plan) == (first.train, first.time_plan)
    check_resume("must", folder, "a", read_description(folder), again.identity)
    assert capsys.readouterr().out == "", "nothing is measured again"


def test_hours_that_are_too_few_are_refused(tmp_path: Path, source: Source) -> None:
    with pytest.raises(ValueError, match=r"max_hours must be at least 0\.\d+ for 4 trainings of 5"):
        planned(asked(tmp_path, "--max-hours 1"), source, begun=time.monotonic() - 3575)
    assert [*tmp_path.iterdir()] == []


def test_without_hours_nothing_is_decided(tmp_path: Path, source: Source) -> None:
    job = asked(tmp_path, "--epochs 4")
    assert planned(job, source, begun=0.0) == job


@pytest.mark.parametrize(("trial_s", "epochs"), [(3_601.0, []), (1.0, [1, 2])])
def test_no_training_begins_that_would_not_end_in_time(
    tmp_path: Path, trial_s: float, epochs: list[int]
) -> None:
    with session(tmp_path) as given:
        result = run_trials(
            given,
            FixedProposals([configured(epochs=2)]),
            Trials(),
            num_trials=1,
            budget=TimeBudget(deadline=time.monotonic() + 3600),
            trial_s=trial_s,
        )
    assert [point.epoch for record in result.records for point in record.curve] == epochs
