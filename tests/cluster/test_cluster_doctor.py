"""The doctor on two hosts: a healthy pair, and one fault at a time, on the host that has it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from psvit_ray.runtime.doctor import host_checks
from tests.helpers.doctor import CHECKS
from tests.helpers.hosts import HEAD, ROOT, Hosts
from tests.helpers.jobs import head

pytestmark = pytest.mark.cluster
OTHER = 2
PATIENCE_S = 240
LARGE = "--batch-size=1024"  # of digits; half a second of computing, beside which sums are nothing


class Pair(NamedTuple):
    hosts: Hosts
    own: Path
    """Each host has its own under this name."""
    mlflow: str

    @property
    def packages(self) -> Path:
        """First on the path of the other host alone."""
        return self.hosts.private(OTHER, self.own) / "packages"


class Said(NamedTuple):
    code: int
    table: list[str]
    failures: list[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    own = tmp_path_factory.mktemp("own")
    path = {"PYTHONPATH": f"{own}/packages:{ROOT}"}
    with Hosts(2, private=[own], variables=path) as hosts:
        store = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
        at = f"{hosts.address(HEAD)}"
        server = hosts.popen(
            HEAD,
            ["mlflow", "server", f"--backend-store-uri={store}", f"--host={at}", "--port=5000"]
            + ["--workers=1"],
        )
        reached = ["curl", "-sf", "-o/dev/null", f"http://{at}:5000/health"]
        patience = time.monotonic() + PATIENCE_S
        while hosts.run(HEAD, reached)[0]:
            assert server.poll() is None, server.communicate()[0]
            assert time.monotonic() < patience
        yield Pair(hosts, own, f"http://{at}:5000")
        server.kill()


def examined(pair: Pair, *flags: str) -> Said:
    given = {"--tracking-uri": pair.mlflow} | dict(flag.split("=", 1) for flag in flags)
    words = [f"{flag}={value}" for flag, value in given.items()]
    code, said = pair.hosts.run(HEAD, ["python", "jobs/doctor.py", *words])
    table, _, below = said[said.index("host ") :].partition("\n\n")
    failures = [] if below.startswith("all well") else below.splitlines()
    return Said(code, table.splitlines(), failures)


def test_a_healthy_pair_is_well(pair: Pair, tmp_path: Path) -> None:
    began = time.monotonic()
    said = examined(pair, f"--storage={tmp_path}/out", LARGE)
    print(f"\n{time.monotonic() - began:.0f} s", *said.table, sep="\n")
    assert said.failures == []
    assert said.code == 0
    assert said.table[0].split() == ["host", *CHECKS]
    assert [row.split()[0] for row in said.table[1:]] == [pair.hosts.name(n) for n in (1, 2)]
    rows = [re.split(r"  +", row) for row in said.table]
    for row in rows[1:]:
        cells = dict(zip(rows[0], row, strict=True))
        fixed = {name: cells[name] for name in ("versions", "storage", "data", "mlflow", "gpu")}
        assert fixed == {
            **{"versions": "equal", "storage": "shared", "data": "read"},
            **{"mlflow": "reached", "gpu": "none"},
        }
        assert re.fullmatch(r"\S+ Mbit/s, \d+% of a step", cells["network"])
    assert [row[-1] for row in rows[1:]] == ["asked for", "-"]  # the head has the dashboard
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_a_host_does_not_share_is_named(pair: Pair) -> None:
    storage = pair.hosts.private(HEAD, pair.own) / "out"
    storage.mkdir()
    said = examined(pair, f"--storage={pair.own}/out", LARGE)
    here, other = (pair.hosts.name(host) for host in (HEAD, OTHER))
    assert said.code == 1
    assert said.failures == [
        f"{other}: storage: {pair.own}/out is not that of {here}: what one writes, the other lacks;"
        " mount the same there on all hosts, or use a URI such as s3://bucket/prefix"
    ]
    assert list(storage.iterdir()) == []
    assert not (pair.hosts.private(OTHER, pair.own) / "out").exists()


def test_an_mlflow_server_that_is_down_is_named(pair: Pair, tmp_path: Path) -> None:
    down = pair.mlflow.replace("5000", "5001")
    said = examined(pair, f"--storage={tmp_path}", f"--tracking-uri={down}", LARGE)
    assert said.code == 1
    assert said.failures == [
        f"{pair.hosts.name(1)}, {pair.hosts.name(2)}: mlflow: tracking_uri must answer, got {down}:"
        " ConnectionError; start the server, let this host reach its port, or correct"
        " --tracking-uri"
    ]


def test_sqlite_on_two_hosts_is_named(pair: Pair, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    said = examined(pair, f"--storage={tmp_path}", f"--tracking-uri={uri}", LARGE)
    assert said.code == 1
    (failure,) = said.failures
    assert failure.startswith(
        f"{pair.hosts.name(HEAD)}: mlflow: tracking_uri must be a tracking server's on a cluster of"
        f" 2 hosts, got {uri}"
    )


def test_a_host_with_another_version_is_named(pair: Pair, tmp_path: Path) -> None:
    about = pair.packages / "timm-0.9.2.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.9.2\n")
    try:
        said = examined(pair, f"--storage={tmp_path}", LARGE)
    finally:
        about.unlink()
        about.parent.rmdir()
    assert said.code == 1
    mine = metadata.version("timm")
    assert said.failures == [
        f"{pair.hosts.name(OTHER)}: versions: timm 0.9.2 ({mine} on {pair.hosts.name(HEAD)});"
        " give all hosts one image, or the same packages; see PYTHONPATH there"
    ]


def test_a_throttled_link_is_named(pair: Pair, tmp_path: Path) -> None:
    pair.hosts.throttle(OTHER, "5mbit")
    try:
        said = examined(pair, f"--storage={tmp_path}", "--batch-size=64")
    finally:
        pair.hosts.unthrottle(OTHER)
    assert said.code == 1
    (failure,) = said.failures
    found = re.fullmatch(
        rf"{pair.hosts.name(1)}, {pair.hosts.name(2)}: network: (\S+) Mbit/s: (\d+)% of a step is"
        r" communication, .*; fewer, larger batches.*, or a faster link",
        failure,
    )
    assert found, failure
    assert 1 < float(found[1]) < 5.5
    assert int(found[2]) > 50


def test_a_dashboard_that_asks_for_no_token_is_named() -> None:
    open_to_all = dict(os.environ) | {"RAY_AUTH_MODE": "disabled"}
    with head(Path(f"/tmp/psvit{os.getpid()}"), open_to_all) as address:
        url = address.removeprefix("http://")
        said = host_checks.token(url)
    assert said[:2] == (
        False,
        f"who asks {url}/api/jobs/ without a token gets HTTP 200: anybody may run code here",
    )
    assert host_checks.token(url).message == f"the dashboard at {url} does not say: ConnectionError"
