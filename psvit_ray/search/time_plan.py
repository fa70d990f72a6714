"""What fits into the hours of a search: from what trials were measured to take, the epochs of a
configuration, the images it is trained on, and how many configurations that makes."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from psvit_ray.arch.spec import Value
from psvit_ray.search.config import SearchConfig
from psvit_ray.training.config import TrainConfig

FEWEST_EPOCHS = 5
"""Epochs below which a plan uses fewer images rather than fewer epochs: a learning rate that rises
and falls in fewer tells networks apart by how fast they begin."""
FRACTIONS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Parts of the training images that a plan may fall back to."""
FEWEST_TRIALS = 8
"""Configurations of a search on a part of the images."""
LONGEST_TRIAL = 0.1
"""Largest part of the hours that one whole training may take. A search starts none that may not end
in time, and so may leave up to this part unused."""
STEP = 0.95
"""Ratio of the epochs of a plan to those of the next longer one."""
MAX_TRIALS = 10_000
MAX_SIMULATED = 256  # trials: of more, the mean is the same
SIMULATIONS = 50


class Pace(Value):
    """What trials take, while as many run beside each other as will in the search."""

    start_s: float
    """Seconds from the start of a trial to its first step."""
    train_s: float
    """Seconds of a training step, divided by its images."""
    holdout_s: float
    """Seconds of evaluating one hold-out image."""
    at_once: int = 1
    """Trials that run at the same time."""


class DataSize(NamedTuple):
    """How much data a search has."""

    images: int
    """Training images, of which `TrainConfig.data_fraction` is used."""
    holdout: int
    """Hold-out images."""


class TimePlan(Value):
    """Lengths of the trainings of a search that has a number of hours."""

    epochs: int
    """Epochs of a whole training."""
    grace_epochs: int
    """Epochs that every configuration is trained before it may be stopped early."""
    data_fraction: float
    """Part of the training images that each configuration is trained on."""
    trials: int
    """Configurations that are expected to fit into the hours, DeiT baselines among them."""
    trial_s: float
    """Expected seconds of one whole training."""


def trial_seconds(pace: Pace, train: TrainConfig, size: DataSize, epochs: float) -> float:
    """Expected seconds of a trial of so many epochs, each over the part of the training images that
    `train` uses and over all hold-out images."""
    images = size.images * train.data_fraction
    return pace.start_s + epochs * (images * pace.train_s + size.holdout * pace.holdout_s)


def search_seconds(
    pace: Pace, search: SearchConfig, train: TrainConfig, size: DataSize, *, trials: int
) -> float:
    """Expected seconds of a search of `trials` configurations that stops weak ones early."""
    at_once = min(pace.at_once, trials)
    epochs = mean_epochs(search, train.epochs, trials=trials)
    mean = trial_seconds(pace, train, size, epochs)
    whole = trial_seconds(pace, train, size, train.epochs)
    # At the end, half of the places are empty for the time of a training.
    return trials * mean / at_once + whole * (at_once - 1) / (2 * at_once)


def mean_epochs(search: SearchConfig, epochs: int, *, trials: int) -> float:
    """Expected epochs of a configuration of a search with early stopping: the mean of simulated
    searches, whose configurations rank alike at all rungs and in random order. Baselines are never
    stopped."""
    factor, grace = search.reduction_factor, min(search.grace_epochs, epochs)
    baselines = min(search.baselines, trials)
    if not factor or trials == baselines:
        return float(epochs)
    rng, simulated = random.Random(0), min(trials - baselines, MAX_SIMULATED)
    stopped = fmean(
        fmean(simulated_asha([rng.random() for _ in range(simulated)], epochs, grace, factor))
        for _ in range(SIMULATIONS)
    )
    return (baselines * epochs + (trials - baselines) * stopped) / trials


def simulated_asha(qualities: Sequence[float], epochs: int, grace: int, factor: int) -> list[int]:
    """Epochs of the trials of a search that come one after the other, each of the same quality at
    all rungs. As in Ray Tune's AsyncHyperBandScheduler, one goes on from a rung if it is not below
    the (1 - 1/factor) quantile, interpolated, of those that were there before."""
    rungs: list[tuple[int, list[float]]] = []
    while grace <= epochs:
        rungs.append((grace, []))
        grace *= factor
    trained = []
    for quality in qualities:
        reached = epochs
        for rung, before in rungs:
            place = (len(before) - 1) * (1 - 1 / factor)
            below = math.floor(place)
            cutoff = -math.inf
            if before:
                low, high = before[below], before[min(below + 1, len(before) - 1)]
                cutoff = low + (high - low) * (place - below)
            bisect.insort(before, quality)
            if quality < cutoff:
                reached = rung
                break
        trained.append(reached)
    return trained


def plan(
    pace: Pace,
    search: SearchConfig,
    train: TrainConfig,
    size: DataSize,
    *,
    seconds: float,
    fixed: Collection[str] = (),
) -> TimePlan:
    """The longest trainings, up to the epochs of `train`, of which `search.num_trials` fit into the
    time. Where short ones are still too long, each sees a part of the images only.

    Args:
        seconds: Time for all trainings.
        fixed: Those of `epochs`, `grace_epochs` and `data_fraction` that stay as they are.

    Raises ValueError where the time is too short for any search, naming the hours that are not.
    """
    for epochs, data_fraction in _lengths(train, fixed):
        grace = search.grace_epochs
        if "grace_epochs" not in fixed:
            grace = max(1, round(grace * epochs / train.epochs))
        shorter_search = search.model_copy(update={"grace_epochs": grace})
        shorter = train.model_copy(update={"epochs": epochs, "data_fraction": data_fraction})
        whole = trial_seconds(pace, shorter, size, epochs)
        wanted = search.num_trials
        if data_fraction < train.data_fraction:
            wanted = min(wanted, FEWEST_TRIALS)
        needed = search_seconds(pace, shorter_search, shorter, size, trials=wanted)
        if needed <= seconds and whole <= LONGEST_TRIAL * seconds:
            break
    else:
        fewest = search.baselines + 2
        needed = search_seconds(pace, shorter_search, shorter, size, trials=fewest)
        if needed > seconds:
            raise ValueError(
                f"max_hours must be at least {math.ceil(needed / 36) / 100:.2f} for {fewest} "
                f"trainings of {epochs} epochs on {data_fraction:.0%} of the images, of which one "
                f"takes {whole:.0f} s, got {seconds / 3600:.3g}; give more hours, or train on "
                "smaller images (--img-size) or a smaller network (--size)"
            )
    trials = fitting_trials(pace, shorter_search, shorter, size, seconds=seconds)
    return TimePlan(
        epochs=epochs,
        grace_epochs=grace,
        data_fraction=data_fraction,
        trials=trials,
        trial_s=whole,
    )


def fitting_trials(
    pace: Pace, search: SearchConfig, train: TrainConfig, size: DataSize, *, seconds: float
) -> int:
    """The most configurations whose search is expected to end in the time."""

    def seconds_of(trials: int) -> float:
        return search_seconds(pace, search, train, size, trials=trials)

    return bisect.bisect_right(range(1, MAX_TRIALS + 1), seconds, key=seconds_of)


def _lengths(train: TrainConfig, fixed: Collection[str]) -> Iterator[tuple[int, float]]:
    """Epochs and parts of the images to choose from, the longest first."""
    epochs = train.epochs
    while "epochs" not in fixed and epochs > FEWEST_EPOCHS:
        yield epochs, train.data_fraction
        epochs = max(int(epochs * STEP), FEWEST_EPOCHS)
    for fraction in FRACTIONS[: 1 if "data_fraction" in fixed else None]:
        yield epochs, train.data_fraction * fraction
