"""How fast trials train on this cluster, measured before a search begins."""

from __future__ import annotations

from typing import Any

import ray

from psvit_ray.data.sources.image_source import Source
from psvit_ray.runtime.cluster.cluster import amounts_per_worker
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import trials_at_once
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.pace import mean_pace, measured, typical
from psvit_ray.search.time_plan import Pace
from psvit_ray.training.config import TrainConfig

MEASURED_TRIALS = 8  # at most: more would tell no more


def trial_pace(search: SearchConfig, train: TrainConfig, source: Source, trials: Trials) -> Pace:
    """Trains a few batches of typical configurations, with a trial's resources, as many at the same
    time as the search will. Workers of one trial share its images, and are taken to share its
    time."""
    resources, at_once = amounts_per_worker(trials.resources), trials_at_once(trials)
    threads, workers = int(resources["CPU"]), trials.workers_per_trial
    task: Any = ray.remote(measured).options(
        num_cpus=threads, num_gpus=resources.get("GPU", 0), max_retries=0
    )
    stored = ray.put(source)
    paces = ray.get(
        [
            task.remote(configuration, stored, threads)
            for configuration in typical(search, train, min(at_once * workers, MEASURED_TRIALS))
        ]
    )
    pace = mean_pace(paces, at_once)
    return pace.model_copy(
        update={"train_s": pace.train_s / workers, "holdout_s": pace.holdout_s / workers}
    )
