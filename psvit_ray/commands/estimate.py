"""What a search amounts to, before it runs."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np

from psvit_ray.arch.cost import count_macs
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.source import load_source

DRAWS = 101
BATCHES = 10


def describe(
    search: SearchConfig,
    train: TrainConfig,
    oneshot: OneshotConfig | None = None,
    *,
    concurrency: int | None,
) -> str:
    """The size of the space, and hours by training one configuration of median cost for a moment,
    here and alone. Early stopping makes it less, a busy machine more. `oneshot` where that is the
    strategy."""
    concurrency = concurrency or os.cpu_count() or 1
    rng = random.Random(search.search_seed)
    drawn = sorted((search.space.sample(rng, search.limits) for _ in range(DRAWS)), key=count_macs)
    seconds = _seconds_of_a_run(Configuration(spec=drawn[DRAWS // 2], train=train))
    whole, within = search.space.size(), search.space.size(search.limits)
    interval = "" if within.exact else f" (95 % interval {within.low:,} to {within.high:,})"
    return (
        f"space: {whole.count:,} architectures, {within.count:,}{interval} within the limits\n"
        f"{_plan(search, train, oneshot, concurrency)}\n"
        f"time: about {_runs(search, train, oneshot, concurrency) * seconds / 3600:.2f} h, from "
        f"{seconds:.1f} s measured for one of median cost"
    )


def candidates_per_s(
    actors: int, population: int, *, candidate_s: float, asking_s: float, proposing_s: float
) -> float:
    """Candidates that a one-shot search scores in a second. Generations are synchronous: an actor
    scores a candidate in `candidate_s`; the driver proposes candidates one after the other, each in
    `proposing_s`, and hands each out and records its score in `asking_s` (all in seconds)."""
    turns = -(-population // actors)
    generation_s = max(turns * candidate_s, population * asking_s) + population * proposing_s
    return population / generation_s


def _plan(
    search: SearchConfig, train: TrainConfig, oneshot: OneshotConfig | None, concurrency: int
) -> str:
    if oneshot is None:
        return f"trials: {search.num_trials}, {concurrency} at a time, {train.epochs} epochs each"
    return (
        f"supernet: {oneshot.supernet_epochs} epochs with {oneshot.supernet_workers} workers\n"
        f"candidates: {oneshot.candidates}, scored by {concurrency} at a time\n"
        f"finalists: {oneshot.finalists} and DeiT, {oneshot.finalist_seeds} seeds of each, "
        f"{concurrency} at a time"
    )


def _runs(
    search: SearchConfig, train: TrainConfig, oneshot: OneshotConfig | None, concurrency: int
) -> float:
    """Trainings of median cost, one after the other, that take as long as the search."""
    if oneshot is None:
        return search.num_trials / concurrency
    paths = oneshot.paths.drawn_paths + 2 if oneshot.paths.paths == "sandwich" else 1
    supernet = paths * oneshot.supernet_epochs / train.epochs / oneshot.supernet_workers
    # A forward pass of a part of the images, where an epoch is three of the rest.
    of_an_epoch = train.holdout / (1 - train.holdout) / train.data_fraction / 3
    scoring = oneshot.candidates * of_an_epoch / train.epochs / concurrency
    tuned = 1.0 if oneshot.finetune_epochs is None else oneshot.finetune_epochs / train.epochs
    trainings = oneshot.finalist_seeds * (search.baselines + oneshot.finalists * (1 + tuned))
    return supernet + scoring + trainings / concurrency


def _seconds_of_a_run(configuration: Configuration) -> float:
    """Seconds of a whole run, from the second of two epochs on a few batches."""
    train, source = configuration.train, load_source(configuration)
    images = len(source.train)
    # Of any classes: there may be more than so many images.
    drawn = np.random.default_rng(0).permutation(images)[: BATCHES * train.batch_size]
    few = replace(source, train=source.train.take(np.sort(drawn)))
    twice = train.model_copy(update={"epochs": 2, "warmup_epochs": 0})
    *_, last = run_training(Configuration(spec=configuration.spec, train=twice), few)
    return train.epochs * images / last.metrics["perf/img_per_s"]
