"""Early stopping of the trials of a search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from psvit_ray.arch.spec import Value
from psvit_ray.runtime.tune.recorder import Recorder
from psvit_ray.search.record import Record
from psvit_ray.training.config import Epochs
from psvit_ray.training.results import SCORE, FailedResult, result_of


class AshaConfig(Value):
    """Settings of early stopping by ASHA (Li et al., arXiv 1810.05934)."""

    epochs: Epochs
    grace_epochs: Epochs
    reduction_factor: Annotated[int, Field(ge=2)]


class Asha(AsyncHyperBandScheduler):
    """ASHA over epochs. DeiT baselines are trained to the end, so that the comparison is with their
    best, and they do not set the bar at a rung either."""

    def __init__(self, halving: AshaConfig, recorder: Recorder) -> None:
        super().__init__(
            time_attr="epoch",
            metric=SCORE,
            mode="max",
            max_t=halving.epochs,
            grace_period=min(halving.grace_epochs, halving.epochs),
            reduction_factor=halving.reduction_factor,
            stop_last_trials=False,
        )
        self._recorder = recorder
        self._refill(recorder.records)

    def _refill(self, records: Iterable[Record]) -> None:
        """Fills the rungs with the results of earlier drivers. Tune has no call for it."""
        for record in records:
            if record.kind == "baseline":
                continue
            for point in record.curve:
                stand_in: Any = _Finished(record.key)
                self._brackets[0].on_result(stand_in, point.epoch, record.score_at(point))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        record = self._recorder.of(trial.trial_id)
        if record.kind == "baseline" or isinstance(result_of(result), FailedResult):
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self._recorder.stop_early(trial.trial_id)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._trial_info.pop(trial.trial_id, None)


class _Finished:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
