"""What workers ask of a cluster, as configuration."""

from __future__ import annotations

from psvit_ray.arch.spec import Value
from psvit_ray.training.config import NonNegativeCount, PositiveCount, PositiveNumber


class WorkerResources(Value):
    """What one training worker asks of Ray."""

    cpus_per_worker: PositiveCount = 1
    """CPUs of a worker; it computes with as many threads."""
    gpus_per_worker: NonNegativeCount | None = None
    """GPUs of a worker. By default 1 where the cluster has, or may grow to, any."""
    wait_minutes: PositiveNumber = 30.0
    """How long to wait for hosts with a place for the workers, at the start or after a loss."""
