"""A search whose MLflow is a server on PostgreSQL, as in cluster/mlflow, and is away for a minute.
Needs Debian's postgresql. `make cluster-test` runs it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.hosts import HEAD, Hosts, tracking_server
from tests.helpers.jobs import SEARCH_RECIPE, check_mlflow
from tests.helpers.processes import PATIENCE_S, wait_until

pytestmark = pytest.mark.cluster
AWAY_S = 60


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(1, cpus=4) as one:
        yield one


@pytest.fixture(scope="module")
def database(hosts: Hosts) -> Iterator[str]:
    """Reached by a socket that is a file, so from outside of the host too."""
    (programs,) = Path("/usr/lib/postgresql").glob("*/bin")
    as_its_user = ["runuser", "-u", "postgres", "--"]
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        shutil.chown(name, "postgres")
        make = [f"{programs}/initdb", f"--pgdata={name}/data", "--auth=trust", "--no-sync"]
        subprocess.run([*as_its_user, *make], check=True, capture_output=True)
        serve = [f"{programs}/postgres", "-D", f"{name}/data", "-k", name, "-h", ""]
        server = hosts.popen(HEAD, [*as_its_user, *serve])
        ready = [f"{programs}/pg_isready", "-h", name]
        wait_until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, server)
        yield f"postgresql+psycopg://postgres@/postgres?host={name}"
        server.kill()


def end_tracking_server(hosts: Hosts) -> None:
    for process in hosts.processes(HEAD):
        with suppress(psutil.Error):
            if {"mlflow", "mlflow.server.fastapi_app:app"} & {
                Path(word).name for word in process.cmdline()
            }:
                process.kill()


def test_a_search_loses_no_point_while_its_tracking_server_is_away(
    hosts: Hosts, database: str, tmp_path: Path
) -> None:
    address = tracking_server(hosts, tmp_path, database)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SEARCH_RECIPE))
    job = ["python", "jobs/tune_psvit.py", "--recipe", str(recipe), "--num-trials", "20"]
    size = ["--epochs", "40", "--reduction-factor", "0", "--max-concurrent", "4"]
    there = ["--storage", str(tmp_path / "out"), "--name", "a", "--tracking-uri", address]
    search = hosts.popen(HEAD, [*job, *size, *there])
    store = RecordStore(Folder(str(tmp_path / "out" / "a")))

    def epochs() -> int:
        return sum(record.epochs_done for record in store.all())

    wait_until(lambda: epochs() > 40, search)
    end_tracking_server(hosts)
    before, began = epochs(), time.monotonic()
    time.sleep(AWAY_S)
    away = (epochs() - before) / (time.monotonic() - began)
    assert tracking_server(hosts, tmp_path, database) == address
    assert search.poll() is None  # there is more to come
    before, began = epochs(), time.monotonic()
    said = search.communicate(timeout=PATIENCE_S)[0]
    there_again = (epochs() - before) / (time.monotonic() - began)
    print(f"epochs/s without the server: {away:.2f}, with it: {there_again:.2f}")
    assert search.returncode == 0, said
    assert "Traceback" not in said
    final = {record.key: record for record in store.all()}
    assert [record.epochs_done for record in final.values()] == [40] * 20
    check_mlflow(database, final)
