from __future__ import annotations

import gc
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

gc.disable()  # until all is imported: what a module makes stays, and is looked through in vain
torch.set_num_threads(1)  # two cores, and Ray's workers beside this process
process_guard.install()
# A head that was killed leaves its address here, and Ray's own helpers would ask that one.
RAY_ADDRESS_FILE = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
NOBODY = "127.0.0.1:1"
LONGEST = ("oneshot_job", "faults", "ranks", "ray_jobs", "ray_runs", "deployment")
"""Test files that take minutes, the longest first: none is to be begun when all others are done."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes because of what they use. With several workers, the
    longest go first, so that none is left with one of them in the end."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(process_guard.MARK)
    items.sort(key=lambda item: (_rank(item), not process_guard.may_start(item)))


def _rank(item: pytest.Item) -> int:
    name = item.path.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_finish() -> None:
    """Nothing of what was imported is looked through for garbage between tests."""
    gc.enable()
    gc.collect()
    gc.freeze()


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
