"""The length of a search that has hours: decided by what its trials are measured to take."""

from __future__ import annotations

import time
from pathlib import Path

from psvit_ray.commands.options import TuneJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.session.session import read_description, resolve_folder
from psvit_ray.runtime.tune.trial_pace import trial_pace
from psvit_ray.search.pace import data_size
from psvit_ray.search.time_plan import Pace, TimePlan, plan
from psvit_ray.text.durations import duration

ENDING_S = 30.0
"""Seconds that are kept for tables, pictures and MLflow after the last training."""


def planned(job: TuneJob, source: Source, *, begun: float) -> TuneJob:
    """The job with trainings that fit into its hours, of which those since the moment `begun` of
    time.monotonic() are used. A resume has the plan that its search began with.

    Raises ValueError where the hours are too few for any search.
    """
    storage, name = resolve_folder(job.launch, default_name=Path(job.recipe).stem)
    job = job.model_copy(update={"launch": job.launch.model_copy(update={"name": name})})
    if description := read_description(storage / name):
        stored = description.identity.get("time_plan")
        return job.planned(TimePlan.model_validate(stored)) if stored else job
    if not job.search.max_hours or job.strategy != "scratch":
        return job
    print("measuring how long trainings take")
    cluster.join(verbose=job.launch.verbose)
    per_worker = cluster.amounts_per_worker(job.trials.resources)
    cluster.check_workers(job.trials.workers_per_trial, per_worker)
    pace = trial_pace(job.search, job.train, source, job.trials)
    left_s = 3600 * job.search.max_hours - (time.monotonic() - begun) - ENDING_S
    made = plan(
        pace,
        job.search,
        job.train,
        data_size(source, job.train),
        seconds=left_s,
        fixed=job.given,
    )
    print(described(made, pace, job, left_s))
    return job.planned(made)


def described(plan: TimePlan, pace: Pace, job: TuneJob, seconds: float) -> str:
    """Lines that say what was measured, what was decided by it, and which options decide
    otherwise."""
    images = "all images" if plan.data_fraction == 1 else f"{plan.data_fraction:.0%} of the images"
    return (
        f"measured: {1000 * pace.train_s:.3g} ms for a training image, {pace.at_once} trainings at "
        f"a time\n"
        f"in {duration(seconds)}: about {plan.trials} configurations, at most {plan.epochs} epochs "
        f"each (the recipe has {job.train.epochs}), {plan.grace_epochs} before one is stopped, on "
        f"{images}; --epochs, --grace-epochs, --data-fraction and --num-trials decide otherwise"
    )
