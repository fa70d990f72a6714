"""How long a one-shot search takes."""

from __future__ import annotations

from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.time_plan import DataSize, Pace, trial_seconds
from psvit_ray.training.config import TrainConfig


def oneshot_seconds(
    pace: Pace,
    oneshot: OneshotConfig,
    search: SearchConfig,
    train: TrainConfig,
    size: DataSize,
) -> float:
    """Expected seconds of all phases of a one-shot search.

    Args:
        pace: What the training of one architecture takes: a step of the supernet trains several.
    """
    images, holdout = size.images * train.data_fraction, size.holdout
    paths = oneshot.paths.drawn_paths + 2 if oneshot.paths.paths == "sandwich" else 1
    epoch_s = images * pace.train_s * paths / oneshot.supernet_workers + holdout * pace.holdout_s
    supernet_s = pace.start_s + oneshot.supernet_epochs * epoch_s
    scoring_s = oneshot.candidates * holdout * pace.holdout_s / pace.at_once
    scratch_s = trial_seconds(pace, train, size, train.epochs)
    tuning_epochs = train.epochs if oneshot.finetune_epochs is None else oneshot.finetune_epochs
    tuning_s = trial_seconds(pace, train, size, tuning_epochs)
    finalists_s = oneshot.finalists * (scratch_s + (tuning_s if tuning_epochs else 0))
    trainings_s = oneshot.finalist_seeds * (search.baselines * scratch_s + finalists_s)
    return supernet_s + scoring_s + trainings_s / pace.at_once


def candidates_per_s(
    actors: int, population: int, *, candidate_s: float, asking_s: float, proposing_s: float
) -> float:
    """Candidates that a one-shot search scores in a second. Generations are synchronous: an actor
    scores a candidate in `candidate_s`; the driver proposes candidates one after the other, each in
    `proposing_s`, and hands each out and records its score in `asking_s` (all in seconds)."""
    turns = -(-population // actors)
    generation_s = max(turns * candidate_s, population * asking_s) + population * proposing_s
    return population / generation_s
