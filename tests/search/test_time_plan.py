"""What fits into the hours of a search."""

from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from psvit_ray.commands.command_line import read_recipe
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.pace import measured, typical
from psvit_ray.search.time_plan import (
    FEWEST_EPOCHS,
    LONGEST_TRIAL,
    STEP,
    DataSize,
    Pace,
    TimePlan,
    fitting_trials,
    mean_epochs,
    plan,
    search_seconds,
    simulated_asha,
)
from psvit_ray.training.config import TrainConfig

PACE = Pace(start_s=2.0, train_s=0.001, holdout_s=0.0004, at_once=2)
SIZE = DataSize(images=8_000, holdout=2_000)  # 8.8 s an epoch


@pytest.fixture(scope="module")
def search() -> SearchConfig:
    return SearchConfig.model_validate(read_recipe("digits")["search"])


@pytest.fixture
def train() -> TrainConfig:
    return TrainConfig(epochs=30)


@pytest.mark.parametrize(
    ("epochs", "grace", "factor"), [(30, 6, 3), (27, 1, 3), (50, 5, 2), (20, 7, 4), (3, 3, 3)]
)
def test_stopped_as_by_tune(epochs: int, grace: int, factor: int) -> None:
    """The simulated trials are trained for as many epochs as Ray Tune's own scheduler trains
    them."""
    rng = random.Random(epochs)
    qualities = [rng.random() for _ in range(60)]
    asha = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="top1",
        mode="max",
        max_t=epochs,
        grace_period=grace,
        reduction_factor=factor,
        stop_last_trials=False,
    )

    def trained(number: int) -> int:
        trial: Any = SimpleNamespace(trial_id=str(number))
        asha.on_trial_add(None, trial)  # type: ignore[arg-type]
        for epoch in range(1, epochs + 1):
            result = {"epoch": epoch, "top1": qualities[number]}
            if asha.on_trial_result(None, trial, result) == "STOP":  # type: ignore[arg-type]
                return epoch
        return epochs

    assert simulated_asha(qualities, epochs, grace, factor) == [*map(trained, range(60))]


def test_no_early_stopping_and_baselines(search: SearchConfig) -> None:
    never = search.model_copy(update={"reduction_factor": 0})
    assert mean_epochs(never, 30, trials=32) == 30
    all_baselines = search.model_copy(update={"baselines": 2})
    assert mean_epochs(all_baselines, 30, trials=2) == 30
    assert 6 < mean_epochs(search, 30, trials=32) < 20


def test_one_at_a_time(search: SearchConfig, train: TrainConfig) -> None:
    """With one place, a search without early stopping takes the sum of its trainings."""
    never = search.model_copy(update={"reduction_factor": 0})
    alone = PACE.model_copy(update={"at_once": 1})
    seconds = search_seconds(alone, never, train, SIZE, trials=5)
    assert seconds == pytest.approx(5 * (2.0 + 30 * 8.8))
    assert fitting_trials(alone, never, train, SIZE, seconds=seconds + 1) == 5
    assert fitting_trials(alone, never, train, SIZE, seconds=seconds - 1) == 4


@pytest.mark.parametrize("hours", [0.5, 1.0, 3.0, 24.0])
def test_the_plan_fits_and_nothing_longer_does(
    search: SearchConfig, train: TrainConfig, hours: float
) -> None:
    seconds = 3600 * hours
    made = plan(PACE, search, train, SIZE, seconds=seconds)
    assert needed(made, search, train, made.trials) <= seconds
    assert needed(made, search, train, made.trials + 1) > seconds
    assert made.trial_s <= LONGEST_TRIAL * seconds
    if made.data_fraction == 1:
        assert made.trials >= search.num_trials
    if made.epochs < train.epochs:
        epochs = math.ceil((made.epochs + 1) / STEP)
        longer = made.model_copy(update={"epochs": epochs, "data_fraction": 1.0})
        too_long = needed(longer, search, train, search.num_trials) > seconds
        assert too_long or 2.0 + longer.epochs * 8.8 > LONGEST_TRIAL * seconds


def needed(made: TimePlan, search: SearchConfig, train: TrainConfig, trials: int) -> float:
    """Expected seconds of a search of so many configurations of a plan."""
    return search_seconds(
        PACE,
        search.model_copy(update={"grace_epochs": made.grace_epochs}),
        train.model_copy(update={"epochs": made.epochs, "data_fraction": made.data_fraction}),
        SIZE,
        trials=trials,
    )


def test_many_hours_leave_the_trainings_as_they_are(
    search: SearchConfig, train: TrainConfig
) -> None:
    made = plan(PACE, search, train, SIZE, seconds=100 * 3600)
    assert (made.epochs, made.grace_epochs, made.data_fraction) == (30, search.grace_epochs, 1.0)
    assert made.trials > search.num_trials


def test_few_hours_take_epochs_first_and_images_then(
    search: SearchConfig, train: TrainConfig
) -> None:
    plans = [
        plan(PACE, search, train, SIZE, seconds=s)
        for s in (200, 400, 700, 1_000, 1_500, 2_000, 2_500, 3_000)
    ]
    for shorter, longer in itertools.pairwise(plans):
        assert (shorter.data_fraction, shorter.epochs) <= (longer.data_fraction, longer.epochs)
    assert {made.epochs for made in plans if made.data_fraction < 1} == {FEWEST_EPOCHS}
    assert len({made.epochs for made in plans}) > 4


def test_what_the_user_gave_stays(search: SearchConfig, train: TrainConfig) -> None:
    assert plan(PACE, search, train, SIZE, seconds=1200).epochs < 30
    kept = plan(PACE, search, train, SIZE, seconds=1200, fixed={"epochs", "grace_epochs"})
    assert (kept.epochs, kept.grace_epochs) == (30, search.grace_epochs)
    assert kept.data_fraction < 1
    with pytest.raises(ValueError, match="max_hours must be at least"):
        plan(PACE, search, train, SIZE, fixed={"epochs", "data_fraction"}, seconds=300)


def test_too_little_time_is_refused_with_what_is_enough(
    search: SearchConfig, train: TrainConfig
) -> None:
    with pytest.raises(ValueError, match=r"max_hours must be at least (?P<hours>[\d.]+) ") as told:
        plan(PACE, search, train, SIZE, seconds=10)
    enough = float(str(told.value).split()[5])
    assert plan(PACE, search, train, SIZE, seconds=3600 * enough).trials >= search.baselines + 2


def test_a_pace_is_measured_where_checkpoints_are_written_within_epochs(
    search: SearchConfig,
) -> None:
    train = TrainConfig(checkpoint_steps=1)
    (median,) = typical(search, train, 1)
    pace = measured(median, load_data(train), 1)
    assert pace.train_s > 0
    assert min(pace.start_s, pace.holdout_s) >= 0
