"""The main job as a user runs it: killed, interrupted, resumed, and submitted to a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
RECIPE = {
    "train": {"epochs": 5, "warmup_epochs": 1, "data_fraction": 0.6},
    "search": {
        "num_trials": 7,
        "baselines": 1,
        "grace_epochs": 2,
        "overrides": {"lr": {"low": 0.001, "high": 0.01, "log": True}},
        "space": {
            **{"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": [2]},
            **{"pooling": ["1d", "2d"], "num_stages": [2]},
            "stages": [{"depth": [1, 2], "embed_dim": [16, 32], "head_dim": [16], "mlp_ratio": [2]}]
            * 2,
        },
    },
}


def tune(folder: Path, *flags: str, content: Mapping[str, Any] = RECIPE) -> subprocess.Popen[str]:
    recipe = folder / "small.yaml"
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "jobs/tune_psvit.py", "--recipe", str(recipe)]
    return subprocess.Popen(
        [*command, "--storage", str(folder / "out"), "--name", "a", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def records(folder: Path) -> list[Record]:
    return RecordStore(Folder(str(folder / "out" / "a"))).all()


def ended(folder: Path) -> dict[str, Record]:
    done = ("completed", "stopped", "failed")
    return {record.key: record for record in records(folder) if record.status in done}


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + PATIENCE_S
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_a_search_killed_and_interrupted_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    killed = tune(tmp_path)
    wait_until(lambda: len(ended(tmp_path)) >= 2, killed)
    killed.kill()
    killed.communicate()
    first = ended(tmp_path)

    interrupted = tune(tmp_path, "--resume")
    wait_until(lambda: len(ended(tmp_path)) >= len(first) + 2, interrupted)
    interrupted.send_signal(signal.SIGINT)
    said = interrupted.communicate(timeout=PATIENCE_S)[0]
    assert interrupted.returncode == 130, said
    second = ended(tmp_path)
    assert len(second) < 7
    leaderboard = json.loads((tmp_path / "out" / "a" / "leaderboard.json").read_text())
    assert {row["key"] for row in leaderboard if row["status"] in ("completed", "stopped")} == {
        *second
    }

    last = tune(tmp_path, "--resume")
    said = last.communicate(timeout=PATIENCE_S)[0]
    assert last.returncode == 0, said
    final = ended(tmp_path)
    assert len(final) == len(records(tmp_path)) == 7
    for earlier in (first, second):
        for key, record in earlier.items():
            after = final[key]
            assert after.model_copy(update={"run_id": ""}) == record.model_copy(
                update={"run_id": ""}
            )
    for record in final.values():
        epochs = [point.epoch for point in record.curve]
        assert epochs == list(range(1, len(epochs) + 1))
    check_mlflow(f"sqlite:///{tmp_path}/out/mlflow.db", final)


def check_mlflow(uri: str, final: dict[str, Record]) -> None:
    """One parent, one run a configuration, no point twice, none missing, nothing RUNNING."""
    client = MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "psvit/digits")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    roles = Counter(run.data.tags["psvit.role"] for run in runs)
    assert roles == {"search": 1, "configuration": len(final)}
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs)
    (parent,) = (run for run in runs if run.data.tags["psvit.role"] == "search")
    names = {frozenset(run.data.params) for run in runs if run is not parent}
    assert len(names) == 1
    for run in runs:
        if run is parent:
            continue
        record = final[run.data.tags["psvit.key"]]
        assert run.info.run_id == record.run_id
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for name in ("holdout/top1", "train/loss", "epoch"):
            points = client.get_metric_history(run.info.run_id, name)
            assert sorted(point.step for point in points) == [p.step for p in record.curve]


def test_best_yaml_and_the_report_come_from_the_record_alone(tmp_path: Path) -> None:
    search = tune(tmp_path, "--num-trials", "3", "--epochs", "2", "--max-concurrent", "1")
    said = search.communicate(timeout=PATIENCE_S)[0]
    assert search.returncode == 0, said
    assert f"--arch {tmp_path / 'out' / 'a' / 'best.yaml'}" in said
    folder = tmp_path / "out" / "a"
    tables = ("leaderboard.csv", "leaderboard.json", "best.yaml")
    before = {name: (folder / name).read_bytes() for name in tables}
    for name in (*tables, "pareto.png"):
        (folder / name).unlink()
    report = [sys.executable, "jobs/report.py", "--storage", str(tmp_path / "out"), "--name", "a"]
    subprocess.run(report, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    assert {name: (folder / name).read_bytes() for name in tables} == before
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def free_port() -> int:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        return int(given.getsockname()[1])


@contextmanager
def head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head of our own, ended with its children; gives its dashboard's address."""
    ports = {
        name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")
    }
    ray = str(Path(sys.executable).parent / "ray")
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"]
        + ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        + [f"--{name}={port}" for name, port in ports.items()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        patience = time.monotonic() + PATIENCE_S
        while status(f"{address}/api/gcs_healthz") != 200:
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.5)
        yield address
    finally:
        top = psutil.Process(process.pid)
        ours = [top, *top.children(recursive=True)]
        for one in ours:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)


def status(url: str, **headers: str) -> int:
    try:
        request = urllib.request.Request(url, headers=headers)
        return int(urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_submitted_search_needs_the_token_and_writes_to_its_storage(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2
    variables: dict[str, Any] = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
    }
    variables.pop("RAY_ADDRESS", None)
    storage = tmp_path / "out"
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    job = ["python", "jobs/tune_psvit.py", "--recipe", str(recipe), "--num-trials", "3"]
    with head(Path(f"/tmp/psvit{os.getpid()}"), variables) as address:
        assert status(f"{address}/api/jobs/") == 401
        assert status(f"{address}/api/jobs/", Authorization=f"Bearer {token}") == 200

        def submit(*flags: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["ray", "job", "submit", "--address", address, "--working-dir", "."]
                + ["--", *job, *flags],
                cwd=ROOT,
                env=variables,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )

        done = submit("--epochs", "2", "--storage", str(storage), "--name", "submitted")
        assert done.returncode == 0, done.stdout + done.stderr
        relative = submit()
    assert "storage must be an absolute path or a URI in a submitted job" in relative.stdout
    assert relative.returncode != 0
    found = RecordStore(Folder(str(storage / "submitted"))).all()
    assert [record.status in ("completed", "stopped") for record in found] == [True] * 3
    assert (storage / "submitted" / "best.yaml").exists()


@pytest.fixture(autouse=True)
def _no_inherited_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
