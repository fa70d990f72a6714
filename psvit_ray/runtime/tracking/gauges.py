"""The present state of a run as `ray_psvit_*` metrics in Ray's Prometheus. Results are in
MLflow."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from psvit_ray.runtime.cluster.ray_names import ray_name

IMAGES, LOSS, WAIT = "perf/img_per_s", "train/loss", "perf/data_wait"
DESCRIPTIONS = {
    "images_per_second": "Training images a second, of all workers.",
    "train_loss": "Of the newest epoch; the mean over the trials that run.",
    "data_wait_fraction": "Part of the training time in which steps waited for images.",
    "trials_running": "Configurations in training.",
    "trials_waiting": "Configurations that wait for hosts.",
}


class Gauges:
    """Prometheus gauges, tagged with the name of a search or training as `ray_name` writes it."""

    def __init__(self, name: str) -> None:
        self._gauges = {
            key: Gauge(f"psvit_{key}", description=text, tag_keys=("name",))
            for key, text in DESCRIPTIONS.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"name": ray_name(name)})

    def training(self, runs: Iterable[Mapping[str, float]]) -> None:
        """Sets the gauges of training from the newest metrics of each run that is under way."""
        now = list(runs)
        self._set("images_per_second", sum(metrics[IMAGES] for metrics in now))
        if now:
            self._set("train_loss", statistics.mean(metrics[LOSS] for metrics in now))
            self._set("data_wait_fraction", statistics.mean(metrics[WAIT] for metrics in now))

    def trials(self, *, running: int, waiting: int) -> None:
        """Sets the numbers of trials that run and that wait."""
        self._set("trials_running", running)
        self._set("trials_waiting", waiting)

    def _set(self, key: str, value: float) -> None:
        self._gauges[key].set(value)


class TrialGauges(tune.Callback):
    """Sets the gauges of a search, in the process that calls `Tuner.fit()`."""

    def __init__(self, name: str) -> None:
        self._gauges = Gauges(name)
        self._now: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore of its own, which is never used

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        if IMAGES in result:
            self._now[trial.trial_id] = result

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        number = Counter(trial.status for trial in trials)
        running = {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        self._now = {key: result for key, result in self._now.items() if key in running}
        self._gauges.training(self._now.values())
        self._gauges.trials(running=number[Trial.RUNNING], waiting=number[Trial.PENDING])
