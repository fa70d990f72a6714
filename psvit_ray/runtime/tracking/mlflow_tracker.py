"""Runs in MLflow: one parent run for a search, one child for each configuration.

The runs are written from the record by one thread of one process. It is given whole records, and
writes what the store lacks of them: so an outage loses nothing, a resume writes no point twice, and
only the newest state of a configuration ever waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from mlflow.entities import Metric, Param, Run, RunTag

from psvit_ray.runtime.tracking.configuration_run import (
    KIND,
    RUN_STATUS,
    STATUS,
    costs,
    has_ended,
    run_name,
    run_params,
    status_name,
)
from psvit_ray.runtime.tracking.parent_run import Experiment, ParentRun, brief, source_tags
from psvit_ray.search.oneshot.scores import Score, generations, ranking_metric, score_rows
from psvit_ray.search.record import FINAL_STATUSES, Record, Status
from psvit_ray.search.rows import table_csv
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Guard
from psvit_ray.text.printable import printable
from psvit_ray.training.results import Point

RETRY_S = 5.0
FLUSH_S = 60.0
CANDIDATES = "candidates"
MAX_REASON = 1000  # MLflow refuses a tag that is much longer
POINTS = 50  # of a batch: MLflow takes 1,000 metrics, of which an epoch has some ten
logger = logging.getLogger(__name__)


class Tracker:
    """Writes records to MLflow in a thread of its own. Closing it waits for what is still to be
    written, a minute at most."""

    def __init__(self, experiment: Experiment, guard: Guard | None = None) -> None:
        """`guard` is checked before each call; once it says that the runs belong to another driver,
        the thread ends and leaves them as they are."""
        self._parent, self._search_id = ParentRun(experiment, guard), experiment.search_id
        self._run_ids: dict[str, str] = {}
        self._steps: dict[str, set[int]] = {}
        self._statuses: dict[str, str] = {}
        self._without_costs: set[str] = set()
        self._ended: set[str] = set()
        self._best: dict[int, float] = {}
        self._waiting: OrderedDict[str, Record | tuple[Score, ...]] = OrderedDict()
        self._changed = threading.Condition()
        self._parent_status = ""
        self._closing = False
        self._give_up = float("inf")
        self._thread = threading.Thread(target=self._write_all, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queues a record to be written; returns at once."""
        with self._changed:
            self._waiting[record.key] = record
            self._changed.notify()

    def put_scores(self, scores: Iterable[Score]) -> None:
        """Queues the scores of a one-shot search; returns at once.

        Thousands of runs would drown the others: scores are points on the parent run, one for each
        generation, and a table there.
        """
        with self._changed:
            self._waiting[CANDIDATES] = tuple(scores)
            self._changed.notify()

    def run_id(self, key: str) -> str:
        """Id of the run of a configuration in MLflow; empty until it is opened."""
        return self._run_ids.get(key, "")

    def close(self, status: Status) -> int:
        """Ends the parent run with `status`. Returns how many configurations could not be written:
        they stand in the record, and a resume writes them."""
        with self._changed:
            self._closing, self._parent_status = True, RUN_STATUS[status]
            self._give_up = time.monotonic() + FLUSH_S
            self._changed.notify()
        self._thread.join(FLUSH_S + 30)
        return len(self._waiting)

    def _write_all(self) -> None:
        failed = False
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                key, waiting = next(iter(self._waiting.items()), ("", None))
            try:
                self._parent.open()
                if waiting is None:
                    self._parent.client.set_terminated(self._parent.run_id, self._parent_status)
                    return
                if isinstance(waiting, Record):
                    self._write(waiting)
                else:
                    self._write_scores(waiting)
                with self._changed:
                    if self._waiting[key] is waiting:
                        del self._waiting[key]
                failed = False
            except LeaseLost:
                return  # the runs are another driver's
            except Exception as error:  # whatever it is: no trial may be lost by it
                if not failed:
                    logger.warning("MLflow did not take a record, trying again: %s", brief(error))
                failed = True
                if time.monotonic() > self._give_up:
                    with contextlib.suppress(Exception):
                        self._parent.open()
                        self._parent.client.set_terminated(self._parent.run_id, self._parent_status)
                    return
                self._distrust(key)
                time.sleep(1 if self._closing else RETRY_S)

    def _distrust(self, key: str) -> None:
        """Forgets, after a failure, what is known of the store: it is asked again what it has, and
        whether the runs are still there. The other records go first, in case the fault lies in this
        one."""
        self._parent.forget()
        if key:
            self._run_ids.pop(key, None)
            self._steps.pop(key, None)
            self._statuses.pop(key, None)
            self._without_costs.discard(key)
            self._best.clear()
            with self._changed:
                self._waiting.move_to_end(key)

    def _write(self, record: Record) -> None:
        key = record.key
        if key not in self._run_ids:
            run = self._open(record)
            self._run_ids[key], self._statuses[key] = run.info.run_id, run.info.status
            if has_ended(run.info.status, run.data.tags, record):
                self._write_best(record)
                return
        run_id = self._run_ids[key]
        if key not in self._steps:
            history = self._parent.client.get_metric_history(run_id, "epoch")
            self._steps[key] = {metric.step for metric in history}
        steps = self._steps[key]

        now = int(time.time() * 1000)
        tags = [
            RunTag(STATUS, status_name(record.status)),
            RunTag("psvit.reason", printable(record.reason)[:MAX_REASON]),
        ]
        lacking = [point for point in record.curve if point.step not in steps]
        for first in range(0, max(len(lacking), 1), POINTS):
            points = lacking[first : first + POINTS]
            metrics = [
                Metric(name, value, now, point.step)
                for point in points
                for name, value in _in_order(point, record.metric.key).items()
            ]
            if key in self._without_costs and (points or record.status in FINAL_STATUSES):
                metrics += [Metric(name, value, now, 0) for name, value in costs(record).items()]
            self._parent.client.log_batch(run_id, metrics=metrics, tags=tags)
            if metrics:
                self._without_costs.discard(key)
            steps.update(point.step for point in points)
        if record.status in RUN_STATUS:
            self._end(record, now)
            self._write_best(record)
        elif self._statuses[key] != "RUNNING":
            self._parent.client.update_run(run_id, status="RUNNING", name=run_name(record))
        self._statuses[key] = RUN_STATUS.get(record.status, "RUNNING")

    def _write_best(self, record: Record) -> None:
        """Adds a point to the best result so far of the search, over the configurations that have
        ended."""
        ends = record.status in FINAL_STATUSES and record.kind != "supernet"
        if not (self._parent.is_search and ends and record.key not in self._ended):
            return
        parent, metric = self._parent, record.metric
        name = f"search/best_{metric.name}"
        if not self._best:
            history = parent.client.get_metric_history(parent.run_id, name)
            self._best = {point.step: metric.score(point.value) for point in history}
        scores = [*self._best.values(), *([record.score] if record.ranks else [])]
        step = len(self._ended) + 1
        if scores and step > max(self._best, default=0):
            best, now = max(scores), int(time.time() * 1000)
            parent.client.log_metric(parent.run_id, name, metric.value_of(best), now, step)
            self._best[step] = best
        self._ended.add(record.key)

    def _write_scores(self, scores: Sequence[Score]) -> None:
        if CANDIDATES not in self._steps:
            history = self._parent.client.get_metric_history(
                self._parent.run_id, "candidates/scored"
            )
            self._steps[CANDIDATES] = {metric.step for metric in history}
        now = int(time.time() * 1000)
        name = ranking_metric(scores).name
        for generation in generations(scores):
            if generation.number not in self._steps[CANDIDATES]:
                values = {
                    "candidates/scored": float(generation.scored),
                    f"candidates/best_{name}": generation.best_so_far,
                    f"candidates/generation_best_{name}": generation.best,
                    f"candidates/generation_median_{name}": generation.quartiles[1],
                }
                points = [
                    Metric(name, value, now, generation.number) for name, value in values.items()
                ]
                self._parent.client.log_batch(self._parent.run_id, points)
                self._steps[CANDIDATES].add(generation.number)
        table = table_csv(score_rows(scores)).decode()
        self._parent.client.log_text(self._parent.run_id, table, f"{CANDIDATES}.csv")

    def _open(self, record: Record) -> Run:
        """The run of a configuration: a resume finds the run that is there, and adds what the store
        did not take when it was opened."""
        spec, train = record.configuration.spec, record.configuration.train
        tags = {"psvit.search_id": self._search_id, "psvit.key": record.key}
        run = self._parent.find(" and ".join(f"tags.`{n}` = '{v}'" for n, v in tags.items()))
        if run is None:
            tags |= source_tags() | {
                "mlflow.parentRunId": self._parent.run_id,
                "psvit.role": "configuration",
                KIND: record.kind,
                "psvit.spec_id": spec.spec_id,
                "psvit.pattern": spec.pattern,
                "psvit.seed": str(train.seed),
                "psvit.data": train.data,
            }
            run = self._parent.client.create_run(
                self._parent.experiment_id, run_name=run_name(record), tags=tags
            )
        self._parent.note_data(run)
        fresh = [Param(n, v) for n, v in run_params(record).items() if n not in run.data.params]
        if fresh:
            self._parent.client.log_batch(run.info.run_id, params=fresh)
        if not costs(record).keys() <= run.data.metrics.keys():
            self._without_costs.add(record.key)
        return run

    def _end(self, record: Record, now: int) -> None:
        """Ends the run of a configuration; changes nothing of one that has ended so already."""
        run = self._parent.client.get_run(self._run_ids[record.key])
        parent, run_id = self._parent, run.info.run_id
        if record.test_top1 is not None:
            tested = record.test_metrics | {"test/top1": record.test_top1}
            lacking = [
                Metric(name, value, now, record.curve[-1].step)
                for name, value in tested.items()
                if run.data.metrics.get(name) != value
            ]
            if lacking:
                parent.client.log_batch(run_id, metrics=lacking)
        if run.info.run_name != run_name(record):
            parent.client.update_run(run_id, name=run_name(record))
        if run.info.status != RUN_STATUS[record.status]:
            parent.client.set_terminated(run_id, RUN_STATUS[record.status])


def _in_order(point: Point, first: str) -> dict[str, float]:
    """The metrics of an epoch, `first` before the others: MLflow's page that compares runs opens on
    the one that was written first."""
    metrics = point.metrics | {"epoch": float(point.epoch)}
    return dict(sorted(metrics.items(), key=lambda item: item[0] != first))
