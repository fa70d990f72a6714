"""Records made from Tune's reports: written to the storage first, then passed to MLflow, to the
proposals and to the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.train.control_channel import ControlChannel
from psvit_ray.search.proposals import Proposal
from psvit_ray.search.record import FINAL_STATUSES, Record, RecordStore, Status, ranking
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.text.durations import duration, time_left
from psvit_ray.training.results import FailedResult, result_of


class ResultListener(Protocol):
    def tell(self, key: str, score: float | None) -> None: ...


class Recorder(tune.Callback):
    """The only writer of a search's records. It lives in the process that calls `Tuner.fit()`,
    where every report arrives, also those of trials that are stopped."""

    def __init__(
        self,
        store: RecordStore,
        tracker: Tracker,
        learner: ResultListener,
        channel: ControlChannel,
        *,
        records: Iterable[Record] = (),
        num_trials: int | None,
        deadline: float = math.inf,
        data_digest: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        self._store, self._tracker, self._learner = store, tracker, learner
        self._records = {record.key: record for record in records}
        self._channel = channel
        self._data_digest = data_digest
        self._num_trials, self._deadline, self._say = num_trials, deadline, say
        self._key_of: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._stopped_early: set[str] = set()
        self._start = time.monotonic()
        self._ended_here = 0
        self.storage_fault = ""
        """Error of a checkpoint that could not be written, which is no trial's own fault; empty
        without one."""
        self.lease_fault = ""
        """Why nothing is written any more, once another driver has the name; empty before."""
        for record in self._records.values():
            tracker.put(record)  # what an outage or a kill kept from the store

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore of its own, which is never used

    @property
    def records(self) -> list[Record]:
        return sorted(self._records.values(), key=lambda record: record.number)

    @property
    def hours_in_training(self) -> float:
        """Hours in training of all configurations together, under earlier drivers too."""
        reported = sum(record.seconds for record in self._records.values())
        now = time.monotonic()
        return (reported + sum(now - began for began in self._began.values())) / 3600

    @property
    def longest_training_s(self) -> float:
        """Seconds of the longest training that went to its end, under earlier drivers too."""
        completed = (r.seconds for r in self._records.values() if r.status == "completed")
        return max(completed, default=0.0)

    def of(self, trial_id: str) -> Record:
        """The record of a trial."""
        return self._records[self._key_of[trial_id]]

    def propose(self, trial_id: str, proposal: Proposal) -> Record:
        """Records a proposal as the configuration of a trial; a known configuration keeps its
        record."""
        key = proposal.configuration.key
        record = self._records.get(key) or Record(
            number=len(self._records),
            kind=proposal.kind,
            params=proposal.params,
            configuration=proposal.configuration,
            data_digest=self._data_digest,
        )
        self._key_of[trial_id] = key
        self._put(record)
        return record

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._began[trial.trial_id] = time.monotonic()
        self._update(trial, self.of(trial.trial_id), status="running", reason="")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        for note in self._channel.new_notes():
            self._say(note)
        reported = result_of(result)
        if isinstance(reported, FailedResult) and reported.of_driver:
            self.storage_fault = reported.reason
            self._say(self.storage_fault)
            return
        trial.run_metadata.num_failures = 0  # attempts are limited only while nothing comes of them
        self._update(trial, self.of(trial.trial_id).reported(reported))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        record = self.of(trial.trial_id)
        if record.reason:
            self._finish(trial, "failed", record.reason)
        elif record.epochs_done == record.configuration.train.epochs:
            self._finish(trial, "completed", "")
        elif trial.trial_id in self._stopped_early:
            self._finish(trial, "stopped", f"behind the others after {record.epochs_done} epochs")
        # else the whole search is ending: `interrupt` says so

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._finish(trial, "failed", f"gave up after its workers died: {trial.error_file or ''}")

    def stop_early(self, trial_id: str) -> None:
        """Notes that the scheduler stops this trial before its last epoch."""
        self._stopped_early.add(trial_id)

    def interrupt(self, reason: str) -> None:
        """Marks configurations that have not ended as interrupted: a resume goes on with them."""
        for record in self.records:
            if record.status in ("pending", "running"):
                changes = {"status": "interrupted", "reason": reason}
                self._put(record.model_copy(update=changes))

    def note_run_ids(self) -> None:
        """Adds the ids of MLflow's runs to records that were written before the tracker opened the
        runs."""
        for record in self.records:
            if (run_id := self._tracker.run_id(record.key)) != record.run_id and run_id:
                self._records[record.key] = record.model_copy(update={"run_id": run_id})
                self._store.put(self._records[record.key])

    def _finish(self, trial: Trial, status: Status, reason: str) -> None:
        record = self._update(trial, self.of(trial.trial_id), status=status, reason=reason)
        self._began.pop(trial.trial_id, None)
        score = record.score if status in ("completed", "stopped") else None
        self._learner.tell(record.key, score)
        self._ended_here += 1
        self._say(self._line(record))

    def _update(self, trial: Trial, record: Record, **changes: Any) -> Record:
        now = time.monotonic()
        if began := self._began.get(trial.trial_id):
            changes["seconds"] = record.seconds + now - began
            self._began[trial.trial_id] = now
        changes["run_id"] = self._tracker.run_id(record.key) or record.run_id
        return self._put(record.model_copy(update=changes))

    def _put(self, record: Record) -> Record:
        self._records[record.key] = record
        try:
            self._store.put(record)
        except LeaseLost as error:  # the search ends in order
            self.lease_fault = str(error)
            return record
        self._tracker.put(record)
        return record

    def _line(self, record: Record) -> str:
        """A line about a configuration that ended, the best so far and the time left."""
        ended = sum(r.status in FINAL_STATUSES for r in self.records)
        if self._num_trials is None:  # as many as the hours allow
            count, left = f"{ended}", f"{duration(self._deadline - time.monotonic())} left"
        else:
            count, left = (
                f"{ended}/{self._num_trials}",
                time_left(
                    time.monotonic() - self._start,
                    done=self._ended_here,
                    remaining=max(self._num_trials - ended, 0),
                ),
            )
        metric = record.metric
        value = "-" if record.value is None else metric.number(record.value)
        leader = ranking(self.records)[0]
        best = metric.number(leader.value) if leader.ranks and leader.value is not None else "-"
        return (
            f"[{count}] {record.configuration.spec.pattern:<16} "
            f"{record.gmacs * 1000:8.3f} MMACs  {metric.title} {value:>6}  {record.status:<9} "
            f"| best {best} | {left}"
        )
