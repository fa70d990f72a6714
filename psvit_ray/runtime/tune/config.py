"""How the trials of a search share the cluster, as configuration."""

from __future__ import annotations

from psvit_ray.arch.spec import Value
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.training.config import NumWorkers, PositiveCount


class Trials(Value):
    """How the trials of a search share the cluster."""

    workers_per_trial: NumWorkers = 1
    """Training workers of each configuration: 1 trains in the trial's own process, more are a Ray
    Train run."""
    max_concurrent: PositiveCount | None = None
    """Largest number of configurations in training at the same time; by default what the cluster
    may grow to."""
    resources: WorkerResources = WorkerResources()
