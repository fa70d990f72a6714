"""What a search amounts to, before it runs."""

from __future__ import annotations

import os

from psvit_ray.commands.options import TuneJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.search.oneshot.duration import oneshot_seconds
from psvit_ray.search.pace import data_size, measured, typical
from psvit_ray.search.time_plan import Pace, search_seconds
from psvit_ray.text.durations import duration


def describe(job: TuneJob, source: Source) -> str:
    """The size of the space, what is trained, and the time that it takes on this machine, from one
    configuration of median cost that is trained for a moment."""
    search, threads = job.search, max(1, int(job.trials.resources.cpus_per_worker))
    at_once = job.trials.max_concurrent or max(1, (os.cpu_count() or 1) // threads)
    (median,) = typical(search, job.train, 1)
    pace = measured(median, source, threads).model_copy(update={"at_once": at_once})
    whole, within = search.space.size(), search.space.size(search.limits)
    interval = "" if within.exact else f" (95 % interval {within.low:,} to {within.high:,})"
    return (
        f"space: {whole.count:,} architectures, {within.count:,}{interval} within the limits\n"
        f"{plan_lines(job, at_once)}\n"
        f"time: about {duration(expected_seconds(job, pace, source))} here, from "
        f"{1000 * pace.train_s:.3g} ms for an image, measured alone"
    )


def expected_seconds(job: TuneJob, pace: Pace, source: Source) -> float:
    """Seconds that the search of a job should take."""
    size = data_size(source, job.train)
    if job.strategy == "oneshot":
        return oneshot_seconds(pace, job.oneshot, job.search, job.train, size)
    return search_seconds(pace, job.search, job.train, size, trials=job.search.num_trials)


def plan_lines(job: TuneJob, at_once: int) -> str:
    """What the strategy of a job does, with `at_once` trials at a time."""
    search, oneshot = job.search, job.oneshot
    if job.strategy == "scratch":
        return f"trials: {search.num_trials}, {at_once} at a time, {job.train.epochs} epochs each"
    return (
        f"supernet: {oneshot.supernet_epochs} epochs with {oneshot.supernet_workers} workers\n"
        f"candidates: {oneshot.candidates}, scored by {at_once} at a time\n"
        f"finalists: {oneshot.finalists} and DeiT, {oneshot.finalist_seeds} seeds of each, "
        f"{at_once} at a time"
    )
