"""How fast trials train, measured on a few batches."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.tables import StoredTable
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.time_plan import DataSize, Pace
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution

DRAWS = 101
BATCHES = (2, 8, 32)
"""Batches of an epoch that is timed: more, until an epoch takes ENOUGH_S."""
ENOUGH_S = 2.0


def measured(configuration: Configuration, source: Source, threads: int) -> Pace:
    """The pace of one training, in this process, on a GPU where the process has one: from the
    second of two epochs on a few batches, as the first has what happens once."""
    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    execution = Execution(torch.device("cuda" if on_gpu else "cpu"), accelerated=on_gpu)
    changes = {"epochs": 2, "warmup_epochs": 0.0}
    no_checkpoints = {"checkpoint_every": 0, "checkpoint_steps": 0, "checkpoint_minutes": 0.0}
    train = configuration.train.model_copy(update=changes | no_checkpoints)
    for batches in BATCHES:
        few = replace(
            source,
            train=_some(source.train, batches * train.batch_size),
            holdout=_some(source.holdout, batches * train.batch_size),
        )
        ended = [time.perf_counter()]
        for report in run_training(
            configuration.model_copy(update={"train": train}), few, execution=execution
        ):
            ended.append(time.perf_counter())
            train_s = 1 / report.metrics["perf/img_per_s"]
        first_s, second_s = np.diff(ended)
        if second_s >= ENOUGH_S:
            break
    return Pace(
        start_s=max(first_s - second_s, 0.0),
        train_s=train_s,
        holdout_s=max(second_s - len(few.train) * train_s, 0.0) / len(few.holdout),
    )


def mean_pace(paces: Sequence[Pace], at_once: int) -> Pace:
    """The mean of what trials took that ran at the same time."""
    return Pace(
        start_s=fmean(pace.start_s for pace in paces),
        train_s=fmean(pace.train_s for pace in paces),
        holdout_s=fmean(pace.holdout_s for pace in paces),
        at_once=at_once,
    )


def typical(search: SearchConfig, train: TrainConfig, count: int) -> list[Configuration]:
    """Configurations whose mean cost is about that of the space: the middles of `count` equal
    parts of drawn architectures in the order of their MACs."""
    rng = random.Random(search.search_seed)
    drawn = sorted((search.space.sample(rng, search.limits) for _ in range(DRAWS)), key=count_macs)
    specs: list[ArchSpec] = [drawn[int((number + 0.5) * DRAWS / count)] for number in range(count)]
    return [Configuration(spec=spec, train=train) for spec in specs]


def data_size(source: Source, train: TrainConfig) -> DataSize:
    """The size of data of which `source` has the part that `train` uses."""
    return DataSize(round(len(source.train) / train.data_fraction), len(source.holdout))


def _some(table: StoredTable, count: int) -> StoredTable:
    """At most `count` images, of any classes."""
    chosen = np.random.default_rng(0).permutation(len(table))[:count]
    return table.take(np.sort(chosen))
