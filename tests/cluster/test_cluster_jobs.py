"""Jobs on two hosts that stay well, and what is refused there. `make cluster-test` runs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.drawn import drawn_folder
from tests.helpers.hosts import HEAD, PORT, Hosts, tracking_server
from tests.helpers.jobs import SEARCH_RECIPE, words_of_job
from tests.helpers.noted_training import noted
from tests.helpers.processes import PATIENCE_S, wait_until
from tests.helpers.ray_runs import newest, record_of, undisturbed_by
from tests.helpers.training import assert_same_state

pytestmark = pytest.mark.cluster
# Process, and port where it has a fixed one; 0 is one that Ray chose.
ON_EVERY_HOST = {
    ("raylet", 0): "tasks, and objects, from host to host",
    ("ray::DashboardA", 0): "logs for the head, gauges for Prometheus",
    ("ray::DashboardA", 52365): "jobs, which the head may hand to any host",
    ("ray::RuntimeEnv", 0): "the raylet of the same host, which calls it by this address",
}
ON_THE_HEAD = {
    ("gcs_server", PORT): "what all hosts join, and ask what is where",
    ("python", 10001): "Ray Client, which Ray has no switch for",
    ("python", 44217): "the autoscaler's gauges for Prometheus",
    ("python", 44227): "the dashboard's gauges for Prometheus",
    ("python", 5000): "MLflow, for the drivers, which may stand on any host",
}
FIXED_PORTS = {port for _, port in ON_THE_HEAD} | {52365}
STATUS = "import sys; from tests.helpers.jobs import status; print(status(sys.argv[1]))"


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for another on each host."""
    return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def hosts(private: Path) -> Iterator[Hosts]:
    with Hosts(2, private=[private]) as both:
        yield both


@pytest.fixture(scope="module")
def mlflow(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking_server(hosts, tmp_path_factory.mktemp("mlflow"))


@pytest.mark.parametrize("own_name", ["", "127.0.0.1"])
def test_workers_on_two_hosts_train_as_two_on_one(
    hosts: Hosts, mlflow: str, tmp_path: Path, own_name: str
) -> None:
    """Also where each host's own name is that of its loopback, on which gloo waits in vain."""
    words = words_of_job(tmp_path, "--workers", "2", "--tracking-uri", mlflow)[1:]
    job = [sys.executable, "-m", "tests.helpers.noted_training", str(tmp_path / "steps"), *words]
    hosts.resolve(own_name_to=own_name)
    try:
        code, said = hosts.run(HEAD, job)
    finally:
        hosts.resolve()
    assert code == 0, said
    record = record_of(tmp_path / "out" / "a")
    alone = undisturbed_by(2, tmp_path / "group", record.configuration)
    assert_same_state(newest(tmp_path / "out" / "a" / CHECKPOINTS), alone)
    for host in hosts.numbers:
        taken = [one.step for one in noted(tmp_path / "steps") if one.host == hosts.name(host)]
        assert taken == list(range(1, alone.step + 1))


def test_a_link_cut_for_ten_seconds_costs_no_step(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    words = words_of_job(tmp_path, "--workers", "2", "--tracking-uri", mlflow)[1:]
    file = tmp_path / "steps"
    job = hosts.popen(
        HEAD, [sys.executable, "-m", "tests.helpers.noted_training", str(file), *words]
    )
    wait_until(lambda: len(noted(file)) > 10, job)
    hosts.cut(2)
    time.sleep(10)
    hosts.heal(2)
    said = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 0, said
    record = record_of(tmp_path / "out" / "a")
    for host in hosts.numbers:
        taken = [one.step for one in noted(file) if one.host == hosts.name(host)]
        assert taken == list(range(1, record.curve[-1].step + 1))


def answer(hosts: Hosts, host: int, url: str) -> int:
    """To one who has no token; 0 where nobody answers."""
    code, said = hosts.run(host, [sys.executable, "-c", STATUS, url])
    assert code == 0, said
    return int(said.split()[-1])


def test_a_search_of_four_is_submitted_on_the_head_with_the_token(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SEARCH_RECIPE))
    job = ["python", "jobs/tune_psvit.py", "--recipe", str(recipe), "--num-trials", "4"]
    flags = ["--epochs", "2", "--storage", str(tmp_path / "out"), "--name", "a"]
    before = hosts.bytes_sent(2)
    submitted = hosts.submit([*job, *flags, "--tracking-uri", mlflow])
    said = submitted.communicate(timeout=PATIENCE_S)[0]
    assert submitted.returncode == 0, said
    found = RecordStore(Folder(str(tmp_path / "out" / "a"))).all()
    assert [record.status in ("completed", "stopped") for record in found] == [True] * 4
    assert hosts.bytes_sent(2) > before
    assert answer(hosts, HEAD, f"{hosts.dashboard}/api/jobs/") == 401


@pytest.mark.usefixtures("mlflow")
def test_only_what_hosts_need_of_each_other_listens_to_others(hosts: Hosts) -> None:
    for host in hosts.numbers:
        wanted = {*ON_EVERY_HOST, *(ON_THE_HEAD if host == HEAD else ())}
        found = {
            (one.process, one.port if one.port in FIXED_PORTS else 0)
            for one in hosts.listening(host)
            if not one.address.removeprefix("[::ffff:").startswith("127.")
        }
        # Besides, what runs tasks and actors, as it answers those of other hosts.
        assert {one for one in found - wanted if not one[0].startswith("ray::")} == set()
        assert wanted <= found
    (agent,) = (one for one in hosts.listening(HEAD) if one.process == "ray::RuntimeEnv")
    head = f"http://{hosts.address(HEAD)}"
    assert answer(hosts, 2, f"{head}:{agent.port}") == 401
    assert answer(hosts, 2, f"{head}:52365/api/job_agent/jobs/") == 401
    assert answer(hosts, 2, f"{head}:8265") == 0


def refused(hosts: Hosts, folder: Path, *flags: str) -> str:
    job = [sys.executable, "jobs/train_psvit.py", "--name", "a", "--epochs", "1"]
    storage = ["--storage", str(folder), "--warmup-epochs", "0", "--batch-size", "8"]
    code, said = hosts.run(HEAD, [*job, *storage, *flags])
    assert code == 2, said
    return said.splitlines()[-1]


def test_storage_that_a_host_does_not_share_is_refused_and_the_host_named(
    hosts: Hosts, mlflow: str, private: Path
) -> None:
    said = refused(hosts, private / "out", "--tracking-uri", mlflow)
    assert said == (
        f"error: storage must be seen by every host, got the local path {private}/out; "
        f"{hosts.name(2)}: what another host wrote is not there; use a shared path or a URI such "
        "as s3://bucket/prefix"
    )
    assert not list((hosts.private(HEAD, private) / "out").rglob("*"))


def test_images_that_the_head_alone_has_are_refused_and_the_host_named(
    hosts: Hosts, mlflow: str, private: Path, tmp_path: Path
) -> None:
    drawn_folder(hosts.private(HEAD, private) / "images", classes=2, per_class=20, size=32)
    data = ["--data", str(private / "images"), "--tracking-uri", mlflow]
    said = refused(hosts, tmp_path / "out", *data)
    assert said.startswith(
        f"error: data must be seen by every host, got {private}/images, of which {hosts.name(2)} "
        f"cannot read {private}/images"
    )
    assert not list((tmp_path / "out").rglob("*"))


def test_a_sqlite_file_for_tracking_is_refused_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    said = refused(hosts, tmp_path / "out")
    assert said == (
        "error: tracking_uri must be a tracking server's on a cluster of 2 hosts, got "
        f"sqlite:///{tmp_path}/out/mlflow.db; add --tracking-uri http://HOST:5000"
    )
    assert not list((tmp_path / "out").rglob("*"))
