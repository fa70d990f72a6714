"""The record of a search: one JSON object for each configuration. Resume, report and MLflow are fed
from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import Value
from psvit_ray.storage import json_files
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.results import (
    RANKING,
    TOP1,
    FailedResult,
    Point,
    RankingMetric,
    Result,
)

Kind = Literal["baseline", "first", "proposal", "fixed", "supernet", "finalist", "finetuned"]
Status = Literal["pending", "running", "interrupted", "completed", "stopped", "failed"]
RECORDS = "record"
REMEDY = "restore it from a copy, or delete it to train its configuration again"
FINAL_STATUSES: tuple[Status, ...] = ("completed", "stopped", "failed")


class Record(Value):
    """One configuration of a search and what came of it.

    `completed` is trained in full and ranks; `stopped` was ended early by the scheduler; `failed`
    ended by its own fault; `pending`, `running` and `interrupted` go on when the search resumes.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    number: int
    kind: Kind
    params: dict[str, Parameter]
    configuration: Configuration
    status: Status = "pending"
    reason: str = ""
    curve: tuple[Point, ...] = ()
    seconds: float = 0.0
    run_id: str = ""
    data_digest: str = ""
    """Digest of the images of the data, as in `SplitFile.digest`."""
    test_top1: float | None = None
    test_correct: str = ""
    """String with one character for each test image: `1` where it was classified correctly."""
    test_metrics: dict[str, float] = Field(default_factory=dict)
    """All measures on the test images, by name."""

    @property
    def key(self) -> str:
        """Key of the configuration, which names its record, folder and run."""
        return self.configuration.key

    @property
    def pattern(self) -> str:
        return self.configuration.spec.pattern

    @property
    def is_deit(self) -> bool:
        """Whether the architecture is a DeiT, whoever proposed it."""
        return self.configuration.spec.is_deit

    @property
    def overrides(self) -> dict[str, Parameter]:
        """Parameters among `params` that are training settings."""
        return {n: v for n, v in self.params.items() if n in TrainConfig.model_fields}

    @property
    def macs(self) -> int:
        return count_macs(self.configuration.spec)

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return count_params(self.configuration.spec) / 1e6

    @property
    def epochs_done(self) -> int:
        """Number of epochs that were reported."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def top1(self) -> float | None:
        """Hold-out top-1 in percent after the last epoch, or None if none was reported, or no
        number.

        The best epoch would be a choice made on noise.
        """
        top1 = self.curve[-1].metrics.get(TOP1, math.nan) if self.curve else math.nan
        return top1 if math.isfinite(top1) else None

    @property
    def metric(self) -> RankingMetric:
        """The metric that the configuration is ranked by."""
        return RANKING[self.configuration.train.metric]

    @property
    def value(self) -> float | None:
        """The ranking metric after the last epoch, as `top1`."""
        return self.metric.value(self.curve[-1].metrics) if self.curve else None

    @property
    def score(self) -> float:
        """The ranking metric after the last epoch, higher where it is better."""
        return self.metric.score(self.value)

    def score_at(self, point: Point) -> float:
        """The score of an epoch."""
        return self.metric.score(self.metric.value(point.metrics))

    @property
    def error(self) -> float | None:
        """Standard error of `value`, by the number of hold-out images; None where it is not
        known."""
        return self.curve[-1].metrics.get(f"{self.metric.key}_error") if self.curve else None

    @property
    def commonest(self) -> float | None:
        """The ranking metric of always answering with the hold-out's commonest class; None where it
        is not known."""
        name = f"commonest/{self.metric.name}"
        return self.curve[-1].metrics.get(name) if self.curve else None

    @property
    def test_value(self) -> float | None:
        """The ranking metric on the test images; None where they were not scored."""
        if self.metric.name == "top1":
            return self.test_top1
        return self.test_metrics.get(f"test/{self.metric.name}")

    @property
    def ranks(self) -> bool:
        """Whether the record is ranked: only configurations that were trained in full are
        compared."""
        return self.status == "completed" and self.value is not None

    def reported(self, result: Result) -> Record:
        """The record with what a run reported added.

        A step that is known stays as it was: a run that goes on from a checkpoint may report it
        again.
        """
        if isinstance(result, FailedResult):
            return self.model_copy(update={"reason": result.reason})
        points = {point.step: point for point in self.curve}
        for point in (*result.earlier, result.point):
            points.setdefault(point.step, point)
        changes: dict[str, Any] = {"curve": tuple(points[step] for step in sorted(points))}
        if result.test_top1 is not None:
            changes |= {
                "test_top1": result.test_top1,
                "test_correct": result.test_correct,
                "test_metrics": result.test_metrics,
            }
        return self.model_copy(update=changes)


_RECORD = TypeAdapter(Record)


class RecordStore:
    """The records of one search, one file for each under `record/` of its folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder / RECORDS

    def put(self, record: Record) -> None:
        """Replaces the record of this configuration whole: a reader sees the old or the new.

        Raises OSError where it cannot be written.
        """
        try:
            self._folder.write(f"{record.key}.json", record.model_dump_json(indent=1).encode())
        except OSError as error:
            raise OSError(f"record cannot be written in {self._folder}: {error}") from error

    def all(self) -> list[Record]:
        """All records, in the order in which they were proposed.

        A copy beside the record that it was made of is left out. Raises ValueError, with its path,
        for a file that is no record.
        """
        names = [name for name in self._folder.names() if name.endswith(".json")]
        read = (
            (name, json_files.read_json(self._folder, name, _RECORD, "a record", REMEDY))
            for name in names
        )
        records = [
            record
            for name, record in read
            if record and (name == (own := f"{record.key}.json") or own not in names)
        ]
        return sorted(records, key=lambda record: record.number)


def ranking(records: Iterable[Record]) -> list[Record]:
    """Ranked records first, the best first, of equal ones that of fewer MACs; then the others, in
    the order of proposal."""

    def place(record: Record) -> tuple[Any, ...]:
        if record.ranks:
            return 0, -record.score, record.macs, record.key
        return 1, record.number, record.key

    return sorted(records, key=place)


def ranked_by(searches: Mapping[str, Iterable[Record]]) -> RankingMetric:
    """The metric that all these searches rank by; top-1 where there are no records. Raises
    ValueError where they rank by several, as these do not compare."""
    metrics = {name: record.metric for name, records in searches.items() for record in records}
    if len(set(metrics.values())) > 1:
        listed = ", ".join(f"{name!r} by {metric.name}" for name, metric in metrics.items())
        raise ValueError(f"searches must rank by the same metric to stand together, got {listed}")
    return next(iter(metrics.values()), RANKING["top1"])


def best(records: Iterable[Record], *, max_macs: float = math.inf) -> Record | None:
    """The best PSViT with at most `max_macs` multiply-accumulates; in a search of DeiTs alone, the
    best DeiT. None if none was trained in full yet."""
    records = list(records)
    only_deits = all(record.is_deit for record in records)
    return next(
        (
            record
            for record in ranking(records)
            if record.ranks and record.is_deit == only_deits and record.macs <= max_macs
        ),
        None,
    )


def best_deit(records: Iterable[Record], *, max_macs: float = math.inf) -> Record | None:
    """The best DeiT with at most `max_macs` multiply-accumulates, or None if none was trained in
    full yet."""
    return best((record for record in records if record.is_deit), max_macs=max_macs)


def pareto(records: Iterable[Record]) -> list[Record]:
    """The Pareto front of the ranked records: those that no other beats in score at no more
    MACs, by MACs up."""
    front: list[Record] = []
    # Among equal MACs the best comes first, and what follows must be better.
    for record in sorted(ranking(records), key=lambda record: record.macs):
        if record.ranks and (not front or record.score > front[-1].score):
            front.append(record)
    return front


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines that name what changed between two JSON values: `space.stages.0.depth: [2, 3] -> [2,
    4]`."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        pairs = [(str(name), old.get(name), new.get(name)) for name in names]
    elif _is_list_of_objects(old) and _is_list_of_objects(new) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [f"{path or 'value'}: {_text(old)} -> {_text(new)}"]
    return [
        line
        for name, a, b in pairs
        for line in differences(a, b, f"{path}.{name}" if path else name)
    ]


def _is_list_of_objects(value: Any) -> bool:
    """Whether a value is a list of objects, to be compared item by item; a list of plain values is
    one choice."""
    return isinstance(value, list) and any(isinstance(item, dict | list) for item in value)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
