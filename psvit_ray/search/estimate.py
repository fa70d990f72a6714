"""What a search amounts to, before it runs."""

from __future__ import annotations

import os
import random

from psvit_ray.arch.cost import count_macs
from psvit_ray.search.config import SearchConfig
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import load_source, run

DRAWS = 101
BATCHES = 10


def describe(search: SearchConfig, train: TrainConfig, *, concurrency: int | None) -> str:
    """The size of the space, and hours by training one configuration of median cost for a moment,
    here and alone. Early stopping makes it less, a busy machine more."""
    concurrency = concurrency or os.cpu_count() or 1
    rng = random.Random(search.search_seed)
    drawn = sorted((search.space.sample(rng, search.limits) for _ in range(DRAWS)), key=count_macs)
    seconds = _seconds_of_a_run(Configuration(spec=drawn[DRAWS // 2], train=train))
    hours = search.num_trials * seconds / concurrency / 3600
    whole, within = search.space.size(), search.space.size(search.limits)
    interval = "" if within.exact else f" (95 % interval {within.low:,} to {within.high:,})"
    return (
        f"space: {whole.count:,} architectures, {within.count:,}{interval} within the limits\n"
        f"trials: {search.num_trials}, {concurrency} at a time, {train.epochs} epochs each\n"
        f"time: about {hours:.2f} h, from {seconds:.1f} s measured for one of median cost"
    )


def _seconds_of_a_run(configuration: Configuration) -> float:
    """Of the second of two epochs on a few batches, times what a whole run is."""
    train = configuration.train
    images = len(load_source(configuration).train)
    part = min(1.0, BATCHES * train.batch_size / images)
    few = train.model_copy(
        update={"data_fraction": train.data_fraction * part, "epochs": 2, "warmup_epochs": 0}
    )
    short = Configuration(spec=configuration.spec, train=few)
    *_, last = run(short, load_source(short))
    return train.epochs * images / last.metrics["perf/img_per_s"]
