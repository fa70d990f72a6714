from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")

import pytest
import torch

from tests.helpers import process_guard
from tests.helpers.command_line import refused as refused
from tests.helpers.command_line import run as run

torch.set_num_threads(1)  # two cores, and Ray's workers beside this process
process_guard.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes because of what they use. With several workers, those
    with the longest tests go first, so that none is left with one of them in the end."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(process_guard.MARK)
    items.sort(key=lambda item: not process_guard.may_start(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    allowed = process_guard.may_start(item)
    with nullcontext() if allowed else process_guard.forbidden(item.nodeid):
        return (yield)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that need one; two CPUs, whatever the machine has."""
    import ray

    from psvit_ray.runtime.cluster import cluster

    # A head that was killed leaves its address here, and Ray's own helpers would ask that one.
    dead = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
    dead.parent.mkdir(exist_ok=True)
    dead.write_text("127.0.0.1:1")
    os.environ.update(cluster.LOCAL_SETTINGS)
    cluster.start_ray(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()
    dead.unlink(missing_ok=True)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """256 MiB more than this process has: what takes all that there is raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
