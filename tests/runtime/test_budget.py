"""When a search ends for what it has taken, and what it shows while it runs."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.session.signals import StopSignal
from psvit_ray.runtime.tracking.gauges import DESCRIPTIONS, Gauges
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import _Stop, run_trials
from psvit_ray.search.proposals import FixedProposals
from tests.helpers.ray_runs import configured, session


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_ends_when_its_hours_are_over_and_goes_on_with_more(tmp_path: Path) -> None:
    configuration = configured(epochs=6)

    def search(budget: TimeBudget, **launch: Any) -> Any:
        with session(tmp_path, **launch) as given:
            proposals = FixedProposals([configuration], given.records)
            return run_trials(given, proposals, Trials(), num_trials=1, budget=budget)

    (record,) = search(TimeBudget(deadline=time.monotonic())).records
    assert (record.status, record.reason) == ("interrupted", "its budget of hours was over")
    (record,) = search(TimeBudget(deadline=time.monotonic() + 3600), resume="must").records
    assert record.status == "completed"
    assert [point.epoch for point in record.curve] == [1, 2, 3, 4, 5, 6]


@dataclass
class Spent:
    hours_in_training: float
    storage_fault: str = ""
    lease_fault: str = ""


@pytest.mark.parametrize(
    ("hours", "gpus", "reason"),
    [(0.49, 2, ""), (0.51, 2, "its budget of GPU-hours was over"), (100, 0, "")],
)
def test_gpu_hours_are_hours_in_training_times_gpus(hours: float, gpus: int, reason: str) -> None:
    spent: Any = Spent(hours)
    assert _Stop(TimeBudget(gpu_hours=1.0), gpus, StopSignal(), spent).reason == reason


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_run_does_now_is_in_rays_prometheus() -> None:
    gauges = Gauges("this one")
    now = {"perf/img_per_s": 10.0, "train/loss": 0.5, "perf/data_wait": 0.25}
    gauges.training([now, {**now, "perf/img_per_s": 32.0, "train/loss": 1.0}])
    gauges.trials(running=2, waiting=3)
    expected = {
        "images_per_second": 42.0,
        "train_loss": 0.75,
        "data_wait_fraction": 0.25,
        "trials_running": 2.0,
        "trials_waiting": 3.0,
    }
    assert expected.keys() == DESCRIPTIONS.keys()
    (node,) = (node for node in ray.nodes() if node["Alive"])
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    patience = time.monotonic() + 120
    while found.keys() != expected.keys() and time.monotonic() < patience:
        time.sleep(0.5)
        text = urllib.request.urlopen(address).read().decode()
        lines = re.findall(r'^ray_psvit_(\w+)\{.*name="this one".*\} (\S+)$', text, re.M)
        found = {name: float(value) for name, value in lines}
    assert found == expected
