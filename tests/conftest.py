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
# A head that was killed leaves its address here, and Ray's own helpers would ask that one.
RAY_ADDRESS_FILE = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
NOBODY = "127.0.0.1:1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes because of what they use. With several workers, those
    with the longest tests go first, so that none is left with one of them in the end."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(process_guard.MARK)
        if process_guard.may_start(item):  # shown, to be listed: Ray's are not known yet
            item.add_marker(pytest.mark.filterwarnings("default"))
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

    RAY_ADDRESS_FILE.parent.mkdir(exist_ok=True)
    RAY_ADDRESS_FILE.write_text(NOBODY)
    os.environ.update(cluster.LOCAL_SETTINGS)
    cluster.start_ray(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that has started all others takes the address away."""
    written = RAY_ADDRESS_FILE.read_text() if RAY_ADDRESS_FILE.exists() else ""
    if written == NOBODY and not hasattr(config, "workerinput"):
        RAY_ADDRESS_FILE.unlink()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """256 MiB more than this process has: what takes all that there is raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
