"""The main job as a user runs it: killed, interrupted, resumed, and submitted to a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.command_line import job, parse
from tests.helpers.jobs import ROOT, SEARCH_RECIPE, check_mlflow, head, status, tune, tune_here
from tests.helpers.processes import PATIENCE_S, wait_until


def records(folder: Path) -> list[Record]:
    return RecordStore(Folder(str(folder / "out" / "a"))).all()


def ended(folder: Path) -> dict[str, Record]:
    done = ("completed", "stopped", "failed")
    return {record.key: record for record in records(folder) if record.status in done}


@pytest.mark.usefixtures("ray_cluster")
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

    assert tune_here(tmp_path, "--resume") == 0
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


@pytest.mark.usefixtures("ray_cluster")
def test_best_yaml_and_the_report_come_from_the_record_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--num-trials", "3", "--epochs", "2", "--max-concurrent", "1")
    assert tune_here(tmp_path, *flags) == 0
    assert f"--arch {tmp_path / 'out' / 'a' / 'best.yaml'}" in capsys.readouterr().out
    folder = tmp_path / "out" / "a"
    tables = ("leaderboard.csv", "leaderboard.json", "best.yaml")
    before = {name: (folder / name).read_bytes() for name in tables}
    for name in (*tables, "pareto.png"):
        (folder / name).unlink()
    assert job("report").work(parse(f"report --storage {tmp_path}/out --name a")) == 0
    assert {name: (folder / name).read_bytes() for name in tables} == before
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.processes
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
    recipe.write_text(yaml.safe_dump(SEARCH_RECIPE))
    search = ["python", "jobs/tune_psvit.py", "--recipe", str(recipe), "--num-trials", "3"]
    with head(Path(f"/tmp/psvit{os.getpid()}"), variables) as address:
        assert status(f"{address}/api/jobs/") == 401
        assert status(f"{address}/api/jobs/", Authorization=f"Bearer {token}") == 200

        def submit(*flags: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["ray", "job", "submit", "--address", address, "--working-dir", "."]
                + ["--", *search, *flags],
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
