from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")

import pytest
import torch

torch.set_num_threads(1)  # two cores, and Ray's workers beside this process


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that need one; two CPUs, whatever the machine has."""
    import ray

    from psvit_ray.runtime import cluster

    os.environ.update(cluster.LOCAL_SETTINGS)
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()
