"""A simulated search is a search but for its trainings, and its checks find what they are for."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.studies import simulate_search
from jobs.studies.simulate_search import (
    DriverEnd,
    DriverRun,
    Sample,
    SimulateSearch,
    drive,
    find_faults,
)
from psvit_ray.commands import command_line
from psvit_ray.search.record import FINAL_STATUSES, RecordStore
from psvit_ray.storage.folder import Folder


class Said(list[Any]):
    """A connection of which both ends are here."""

    send = list.append


def driven_here(folder: Path, num_trials: int, *, resumes: bool) -> DriverRun:
    flags = f"--num-trials {num_trials} --slots 2 --epoch-s 0.01 --epochs 4 --grace-epochs 2"
    job = command_line.parse(SimulateSearch, flags.split())
    said: Any = Said()
    began = time.monotonic()
    drive(job, str(folder), resumes, said)
    samples = [one for one in said if isinstance(one, Sample)]
    (end,) = (one for one in said if isinstance(one, DriverEnd))
    return DriverRun(began, samples, end)


@pytest.mark.usefixtures("ray_cluster")
def test_a_simulated_search_that_was_cut_off_goes_on_and_what_is_amiss_is_found(
    tmp_path: Path,
) -> None:
    first = driven_here(tmp_path, 5, resumes=False)
    assert (first.samples[-1].ended, first.samples[-1].new) == (5, 5)
    assert find_faults(str(tmp_path), 5) == []

    # As if the driver had been killed after two epochs of what was trained in full.
    store = RecordStore(Folder(str(tmp_path)) / simulate_search.NAME)
    whole = next(record for record in store.all() if record.status == "completed")
    assert [point.epoch for point in whole.curve] == [1, 2, 3, 4]
    store.put(whole.model_copy(update={"status": "running", "curve": whole.curve[:2]}))
    second = driven_here(tmp_path, 8, resumes=True)
    assert second.samples[0].new == 0  # that one goes first
    assert (second.samples[-1].ended, second.samples[-1].new) == (8, 3)
    (again,) = (record for record in store.all() if record.key == whole.key)
    assert (again.status, again.curve) == ("completed", whole.curve)
    assert all(record.status in FINAL_STATUSES for record in store.all())
    assert find_faults(str(tmp_path), 8) == []

    assert [row[:2] for row in simulate_search.growth(first, second, 8)[1:]][-1] == ["second", "8"]
    stored = dict(simulate_search.store_facts(str(tmp_path)))
    assert stored["record, files"] == "8"
    assert dict(simulate_search.driver_facts(first, second))["MLflow did not take"] == "0"

    (tmp_path / simulate_search.NAME / "record" / f"{whole.key}.json").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(
            "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan "
            "FROM metrics WHERE key = 'train/loss' LIMIT 2"
        )
    assert find_faults(str(tmp_path), 8) == [
        "ended configurations: 7 instead of 8",
        "configurations of distinct numbers: 7 instead of 8",
        f"epochs in MLflow: {sum(len(r.curve) for r in store.all()) + 4} instead of "
        f"{sum(len(r.curve) for r in store.all())}",
        "points that MLflow has twice: 2 instead of 0",
    ]
