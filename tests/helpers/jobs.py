"""Jobs as processes of their own, as a user starts them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient

from psvit_ray.runtime.tracking.configuration_run import RUN_STATUS
from psvit_ray.search.record import Record
from tests.helpers.command_line import job, parse
from tests.helpers.mlflow_store import put_store
from tests.helpers.processes import PATIENCE_S, free_port
from tests.helpers.ray_runs import (
    TWO_EPOCHS,
)
from tests.helpers.training import SPEC

TRAIN_RECIPE = {
    "base": SPEC.model_dump(mode="json"),
    "train": {**TWO_EPOCHS, "model_ema_decay": 0.9},
}
ROOT = Path(__file__).parents[2]
SEARCH_RECIPE = {
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


def words_of_job(folder: Path, *flags: str) -> list[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TRAIN_RECIPE))
    recipe, storage = str(folder / "recipe.yaml"), str(folder / "out")
    words = ["jobs/train_psvit.py", "--recipe", recipe, "--storage", storage, "--name", "a"]
    return [*words, *flags]


def train_job(
    folder: Path, tracking_uri: str, *flags: str, within: Sequence[str] = (), **env: str
) -> subprocess.Popen[str]:
    """Started by the words `within`."""
    words = words_of_job(folder, "--tracking-uri", tracking_uri, *flags)
    return subprocess.Popen(
        [*within, sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def words_of_search(
    folder: Path, *flags: str, content: Mapping[str, Any] = SEARCH_RECIPE
) -> list[str]:
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    put_store(folder / "out")
    recipe, storage = str(folder / "small.yaml"), str(folder / "out")
    return ["--recipe", recipe, "--storage", storage, "--name", "a", *flags]


def tune_here(folder: Path, *flags: str, content: Mapping[str, Any] = SEARCH_RECIPE) -> int:
    """The search in this process and its Ray, which costs no new start of both. Returns the exit
    code."""
    line = shlex.join(["tune_psvit", *words_of_search(folder, *flags, content=content)])
    return int(job("tune_psvit").work(parse(line)))


def tune(
    folder: Path, *flags: str, content: Mapping[str, Any] = SEARCH_RECIPE
) -> subprocess.Popen[str]:
    words = words_of_search(folder, *flags, content=content)
    return subprocess.Popen(
        [sys.executable, "jobs/tune_psvit.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def check_mlflow(uri: str, final: dict[str, Record]) -> None:
    """One parent, one run a configuration, no point twice, none missing, nothing RUNNING."""
    client = MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "psvit/digits")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    roles = Counter(run.data.tags["psvit.role"] for run in runs)
    assert roles == {"search": 1, "configuration": len(final)}
    (parent,) = (run for run in runs if run.data.tags["psvit.role"] == "search")
    assert parent.info.status == "FINISHED"
    names = {frozenset(run.data.params) for run in runs if run is not parent}
    assert len(names) == 1
    for run in runs:
        if run is parent:
            continue
        record = final[run.data.tags["psvit.key"]]
        assert run.info.run_id == record.run_id
        assert run.info.status == RUN_STATUS[record.status]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for name in ("holdout/top1", "train/loss", "epoch"):
            points = client.get_metric_history(run.info.run_id, name)
            assert sorted(point.step for point in points) == [p.step for p in record.curve]


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
