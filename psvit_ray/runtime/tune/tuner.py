"""A search in Ray Tune: one Tune trial for each configuration that `search` proposes."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from psvit_ray.data import quarantine
from psvit_ray.data.sources.image_source import Source
from psvit_ray.runtime.cluster.cluster import amounts_per_worker, workers_that_fit
from psvit_ray.runtime.cluster.host_calls import HEAD
from psvit_ray.runtime.cluster.ray_names import ray_name
from psvit_ray.runtime.session.budget import UNLIMITED, TimeBudget
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import Session, exit_code, open_session
from psvit_ray.runtime.session.signals import StopSignal, catch_stop_signals
from psvit_ray.runtime.tracking.gauges import TrialGauges
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.control_channel import ControlChannel
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.runtime.train.worker import RunTask
from psvit_ray.runtime.tune.asha import Asha, AshaConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.recorder import Recorder, ResultListener
from psvit_ray.runtime.tune.trial import train_trial
from psvit_ray.search.proposals import FixedProposals, Proposal
from psvit_ray.search.record import Record
from psvit_ray.training.config import Configuration
from psvit_ray.training.results import SCORE

QUARANTINES = "quarantine"  # of each trial: a file has one writer at a time
MAX_ATTEMPTS = 3


class ProposalSource(ResultListener, Protocol):
    def ask(self) -> Proposal | None: ...


class _ProposalSearcher(Searcher):
    """Hands proposals to Tune. They get the results from the recorder."""

    def __init__(
        self,
        proposals: ProposalSource,
        recorder: Recorder,
        task_of: Callable[[Configuration], RunTask],
        last_start: Callable[[], float],
    ) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._proposals, self._recorder, self._task_of = proposals, recorder, task_of
        self._last_start = last_start

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        if time.monotonic() > self._last_start():
            return Searcher.FINISHED
        proposal = self._proposals.ask()
        if proposal is None:
            return Searcher.FINISHED
        record = self._recorder.propose(trial_id, proposal)
        return self._task_of(record.configuration).model_dump(mode="json")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...  # a resume starts from the record

    def restore(self, checkpoint_path: str) -> None: ...


class _Stop(tune.Stopper):
    """Ends the search when its hours are over, a signal asks for it, or the storage fails: trials
    end where they are, and a resume goes on from their checkpoints."""

    def __init__(
        self, budget: TimeBudget, gpus_per_trial: float, stop_signal: StopSignal, recorder: Recorder
    ):
        self._trial_hours = budget.hours(gpus_per_trial)
        self._stop_signal, self._recorder = stop_signal, recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why to stop; empty until there is a reason."""
        recorder = self._recorder
        if reason := self._stop_signal.reason or recorder.storage_fault or recorder.lease_fault:
            return reason
        over = self._recorder.hours_in_training > self._trial_hours
        return "its budget of GPU-hours was over" if over else ""


def trials_at_once(trials: Trials) -> int:
    """How many trials run at the same time: as many as were asked for, if they fit the cluster."""
    fit = workers_that_fit(amounts_per_worker(trials.resources)) // trials.workers_per_trial
    return min(trials.max_concurrent or fit, fit)


@dataclass(frozen=True)
class TrialsResult:
    """Records of a search, and why it ended."""

    records: list[Record]
    signal: int | None
    """Number of the signal that ended the search early, or None."""
    untracked: int
    """Number of configurations that MLflow did not take; they stand in the record."""
    storage_fault: str = ""
    """Error of the storage that ended the search early; else empty."""

    @property
    def exit_code(self) -> int:
        return 1 if self.storage_fault else exit_code(self.signal)


def _task(
    session: Session, trials: Trials, channel: str, test: bool, configuration: Configuration
) -> RunTask:
    """The task of a configuration's trial."""
    return RunTask(
        configuration=configuration,
        data=session.data,
        checkpoints=(session.folder / CHECKPOINTS / configuration.key).uri,
        quarantine=(session.folder / QUARANTINES / configuration.key).uri,
        channel=channel,
        fence=session.fence,
        test=test,
        workers=WorkerRange(trials.workers_per_trial, trials.workers_per_trial),
        resources_per_worker=amounts_per_worker(trials.resources),
        wait_minutes=trials.resources.wait_minutes,
    )


def run_trials(
    session: Session,
    proposals: ProposalSource,
    trials: Trials,
    *,
    num_trials: int,
    budget: TimeBudget = UNLIMITED,
    trial_s: float | None = None,
    halving: AshaConfig | None = None,
    test: bool = False,
    trainable: Callable[[dict[str, Any]], None] = train_trial,
) -> TrialsResult:
    """Trains proposed configurations until there are no more, and records everything that happens.

    Args:
        num_trials: Largest number of trials to start.
        trial_s: Expected seconds of a whole training: none begins that would not end before the
            deadline of the budget. By default trainings begin until then.
        trainable: Function that runs in the process of each trial: it takes a RunTask, as
            primitives, and reports `EpochResult.to_metrics()` to Tune.

    Raises LeaseLost, once the trials have ended, where another driver took the name.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own returns as if all were done
    # Else Tune asks for hosts one trial after the other. `max_concurrent_trials` bounds it.
    concurrency = trials_at_once(trials)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrency)
    tracker = Tracker(session.experiment, session.fence)
    resources = amounts_per_worker(trials.resources)
    channel = uuid.uuid4().hex
    recorder = Recorder(
        session.store,
        tracker,
        proposals,
        ControlChannel(channel),
        records=session.records,
        num_trials=num_trials if trial_s is None else None,
        deadline=budget.deadline,
        data_digest=session.data.digest,
    )
    task_of = functools.partial(_task, session, trials, channel, test)
    # Of a nested run Tune places only the driver: it computes nothing, must leave its workers every
    # CPU, and stands on the head, which is the last host to go.
    trial_resources = resources if trials.workers_per_trial == 1 else {HEAD: 0.001}
    with (
        tempfile.TemporaryDirectory() as scratch,
        catch_stop_signals(budget.deadline) as stop_signal,
    ):
        gpus = resources.get("GPU", 0) * trials.workers_per_trial
        stop = _Stop(budget, gpus, stop_signal, recorder)

        def last_start() -> float:
            if trial_s is None:
                return math.inf
            return budget.deadline - max(trial_s, recorder.longest_training_s)

        tuner = tune.Tuner(
            tune.with_resources(trainable, trial_resources),
            tune_config=tune.TuneConfig(
                search_alg=_ProposalSearcher(proposals, recorder, task_of, last_start),
                scheduler=Asha(halving, recorder) if halving else None,
                num_samples=num_trials,
                max_concurrent_trials=concurrency,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            # What Tune itself notes of a search, nothing goes on from: it is of this host, and for
            # this once.
            run_config=tune.RunConfig(
                name=ray_name(session.name),
                storage_path=scratch,
                callbacks=[recorder, TrialGauges(session.name)],
                stop=stop,
                failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS),
                verbose=0,
            ),
        )
        tuner.fit()
    session.fence.check()
    recorder.interrupt(stop.reason)
    for key in (session.folder / QUARANTINES).names():
        quarantine.add_to_quarantine(
            session.folder, quarantine.read_quarantine(session.folder / QUARANTINES / key)
        )
    untracked = tracker.close("interrupted" if stop_signal.number else "completed")
    recorder.note_run_ids()
    return TrialsResult(recorder.records, stop_signal.number, untracked, recorder.storage_fault)


@contextlib.contextmanager
def train_each(
    launch: SessionConfig,
    groups: Mapping[str, Sequence[Configuration]],
    source: Source,
    trials: Trials,
    *,
    default_name: str,
    test: bool = False,
) -> Iterator[tuple[Session, TrialsResult]]:
    """Trains each configuration once, under a name of their own: a resume must be of the same ones.
    The name is held until the caller has written its results.

    The groups, all of one length, are trained in turns, so that one that is cut off leaves as many
    of each. Raises ValueError as `open_session`.
    """
    configurations = [
        configuration for turn in zip(*groups.values(), strict=True) for configuration in turn
    ]
    with open_session(
        launch,
        default_name=default_name,
        identity={
            configuration.key: configuration.model_dump(mode="json")
            for configuration in configurations
        },
        source=source,
        num_workers=trials.workers_per_trial,
        resources=trials.resources,
        role="comparison",
    ) as session:
        yield (
            session,
            run_trials(
                session,
                FixedProposals(configurations, session.records),
                trials,
                num_trials=len(configurations),
                test=test,
            ),
        )
