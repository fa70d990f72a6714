"""What workers ask of a cluster, as configuration."""

from __future__ import annotations

from psvit_ray.arch.spec import Value
from psvit_ray.training.config import NonNegativeCount, PositiveCount, PositiveNumber


class WorkerResources(Value):
    """Resources that each training worker asks of Ray."""

    cpus_per_worker: PositiveCount = 1
    """CPUs of each worker, which computes with as many threads."""
    gpus_per_worker: NonNegativeCount | None = None
    """GPUs of each worker; by default 1 where the cluster has any, or may grow to have any."""
    wait_minutes: PositiveNumber = 30.0
    """Minutes to wait for hosts with room for the workers, at the start or after a loss."""
