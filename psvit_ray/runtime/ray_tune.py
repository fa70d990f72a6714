"""A search in Ray Tune: proposals from `search/`, one Tune trial for each configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Protocol

import ray
import torch
from pydantic import Field
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from psvit_ray.arch.spec import Value
from psvit_ray.data.storage import Folder
from psvit_ray.runtime.cluster import WorkerResources, workers_that_fit
from psvit_ray.runtime.launch import Session
from psvit_ray.runtime.ray_train import CHECKPOINTS, WorkerTask, make_trainer
from psvit_ray.runtime.recorder import Learner, Recorder
from psvit_ray.runtime.tracking import Tracker
from psvit_ray.search.proposals import Proposal
from psvit_ray.search.record import Record
from psvit_ray.training import checkpoint
from psvit_ray.training.config import Number
from psvit_ray.training.engine import Diverged, Place, load_source, run

TOP1 = "holdout/top1"
MAX_ATTEMPTS = 3


class TrialTask(Value):
    """What a trial is told; crosses process boundaries as primitives."""

    key: str
    worker: WorkerTask
    storage: str
    """The search's folder."""
    num_workers: int
    resources_per_worker: dict[str, float]


def train_trial(raw_task: dict[str, Any]) -> None:
    """A Tune trial. One worker trains here, in a process that is used again by the next trial;
    several are a Ray Train run of their own, which this process drives."""
    task = TrialTask.model_validate(raw_task)
    if task.num_workers == 1:
        _train_here(task)
    else:
        _train_in_workers(task)


def _train_here(task: TrialTask) -> None:
    place = Place(torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
    torch.set_num_threads(int(task.resources_per_worker["CPU"]))
    kept = checkpoint.Kept(Folder(task.storage) / CHECKPOINTS / task.key)
    values: dict[str, Any] = {"epoch": 0, "step": 0}
    try:
        reports = run(
            task.worker.configuration,
            load_source(task.worker.configuration),
            place=place,
            start=kept.newest(),
            test=task.worker.test,
        )
        # Tune stops a trial by SystemExit out of `report`: the process lives on, loaders must not.
        with contextlib.closing(reports):  # type: ignore[type-var]
            for report in reports:
                if report.checkpoint_due:
                    kept.put(report.epoch, report.save)
                values = report.values()
                tune.report(values)
    except (Diverged, ValueError, torch.OutOfMemoryError) as error:
        # The configuration's own fault is a result. What Tune sees fail is infrastructure.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        tune.report({**values, TOP1: 0.0, "failed": reason})


def _train_in_workers(task: TrialTask) -> None:
    trainer = make_trainer(
        task.worker,
        storage=Folder(task.storage) / CHECKPOINTS,
        name=task.key,
        num_workers=task.num_workers,
        resources_per_worker=task.resources_per_worker,
        callbacks=[TuneReportCallback()],
    )
    trainer.fit()  # nothing may follow: where the trial is stopped, this does not return


class Proposals(Learner, Protocol):
    def ask(self) -> Proposal | None: ...


class _ProposalSearcher(Searcher):
    """Proposals, as Tune asks for them. Their outcome they learn from the recorder."""

    def __init__(
        self, proposals: Proposals, recorder: Recorder, template: dict[str, Any], *, test: bool
    ) -> None:
        super().__init__(metric=TOP1, mode="max")
        self._proposals, self._recorder = proposals, recorder
        self._template, self._test = template, test

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        proposal = self._proposals.ask()
        if proposal is None:
            return Searcher.FINISHED
        record = self._recorder.propose(trial_id, proposal)
        task = TrialTask(
            key=record.key,
            worker=WorkerTask(configuration=record.configuration, test=self._test),
            **self._template,
        )
        return task.model_dump(mode="json")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...  # a resume starts from the record

    def restore(self, checkpoint_path: str) -> None: ...


class Halving(Value):
    """Early stopping by ASHA (Li et al., arXiv 1810.05934)."""

    epochs: Number
    grace_epochs: Number
    reduction_factor: Annotated[int, Field(ge=2)]


class _Scheduler(AsyncHyperBandScheduler):
    """ASHA over epochs. DeiT baselines are trained to the end, so that the comparison is with all
    they can do; they do not set the bar at a rung either."""

    def __init__(self, halving: Halving, recorder: Recorder) -> None:
        super().__init__(
            time_attr="epoch",
            metric=TOP1,
            mode="max",
            max_t=halving.epochs,
            grace_period=min(halving.grace_epochs, halving.epochs),
            reduction_factor=halving.reduction_factor,
            stop_last_trials=False,
        )
        self._recorder = recorder
        self._refill(recorder.records)

    def _refill(self, records: Iterable[Record]) -> None:
        """What earlier drivers saw counts on. Tune has no call for it."""
        for record in records:
            if record.kind == "baseline":
                continue
            for point in record.curve:
                stand_in = _Finished(record.key)
                self._brackets[0].on_result(stand_in, point.epoch, point.metrics[TOP1])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        record = self._recorder.of(trial.trial_id)
        if record.kind == "baseline" or "failed" in result:
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


class _Stop(tune.Stopper):
    """Ends the search when its hours are over or a signal asks for it: trials end where they are,
    and a resume goes on from their checkpoints. A second signal ends the process at once."""

    def __init__(self, max_hours: float | None) -> None:
        self._deadline = time.monotonic() + 3600 * max_hours if max_hours else float("inf")
        self.signal: int | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.signal is not None or time.monotonic() > self._deadline

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, before[number])

        before: dict[int, Any] = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trials(Value):
    """How trials share the cluster."""

    workers_per_trial: Number = 1
    """Training workers of one configuration: 1 trains in the trial's own process, more are a Ray
    Train run."""
    max_concurrent: Number | None = None
    """Configurations in training at the same time; by default what the cluster may grow to."""
    resources: WorkerResources = WorkerResources()

    def concurrency(self) -> int:
        fit = workers_that_fit(self.resources.resolved()) // self.workers_per_trial
        return min(self.max_concurrent or fit, fit)


@dataclass(frozen=True)
class Outcome:
    records: list[Record]
    signal: int | None
    """That ended it early, if one did."""
    untracked: int
    """Configurations that MLflow did not take; they stand in the record."""


def run_trials(
    session: Session,
    proposals: Proposals,
    trials: Trials,
    *,
    num_trials: int,
    max_hours: float | None = None,
    halving: Halving | None = None,
    test: bool = False,
) -> Outcome:
    """Trains what is proposed until no more is. Everything that happens goes into the record."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own returns as if all were done
    tracker = Tracker(session.experiment)
    recorder = Recorder(
        session.store, tracker, proposals, records=session.records, num_trials=num_trials
    )
    scheduler = _Scheduler(halving, recorder) if halving else None
    resources = trials.resources.resolved()
    template = {
        "storage": session.folder.uri,
        "num_workers": trials.workers_per_trial,
        "resources_per_worker": resources,
    }
    # Of a nested run Tune places only the driver: it computes nothing, must leave its workers every
    # CPU, and stands on the head, which is the last host to go.
    asked = resources if trials.workers_per_trial == 1 else {"node:__internal_head__": 0.001}
    stop = _Stop(max_hours)
    tuner = tune.Tuner(
        tune.with_resources(train_trial, asked),
        tune_config=tune.TuneConfig(
            search_alg=_ProposalSearcher(proposals, recorder, template, test=test),
            scheduler=scheduler,
            num_samples=num_trials,
            max_concurrent_trials=trials.concurrency(),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=session.folder.uri,
            callbacks=[recorder],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS),
            verbose=0,
        ),
    )
    with stop.listening():
        tuner.fit()
    recorder.interrupt()
    untracked = tracker.close("KILLED" if stop.signal else "FINISHED")
    recorder.note_run_ids()
    return Outcome(recorder.records, stop.signal, untracked)
