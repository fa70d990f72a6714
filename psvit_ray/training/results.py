"""What a run reports, as values that cross process boundaries: an epoch, or its fatal fault.

Ray sees a flat mapping of metrics, of which its schedulers read `epoch` and `score`; the whole
value goes with it under the key `result`, as JSON because Tune flattens what is nested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from psvit_ray.arch.spec import Value

TOP1 = "holdout/top1"
"""Top-1 on the hold-out, in percent."""
SCORE = "score"
"""What a scheduler compares: the ranking metric, higher where it is better."""

MetricName = Literal["top1", "loss", "balanced_top1", "auroc", "f1"]


@dataclass(frozen=True)
class RankingMetric:
    """A measure on the hold-out that configurations are ranked by."""

    name: MetricName
    title: str
    """Name in tables and pictures."""
    unit: str = " %"
    sign: int = 1
    """-1 where lower is better."""
    worst: float = 0.0
    """Score that a configuration without a result stands for."""
    highest: float = 100.0
    """Score that none is above."""

    @property
    def key(self) -> str:
        """Name among a point's metrics."""
        return f"holdout/{self.name}"

    @property
    def label(self) -> str:
        """Title and unit, as the heading of a column."""
        return f"{self.title}{self.unit}"

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """The value among a point's metrics; None if it is not there, or no number."""
        value = metrics.get(self.key, math.nan)
        return value if math.isfinite(value) else None

    def score(self, value: float | None) -> float:
        """A number that is higher for the better value."""
        return self.worst if value is None else self.sign * value

    def value_of(self, score: float) -> float:
        """The value that has this score."""
        return self.sign * score

    def number(self, value: float) -> str:
        """The value with the digits that are shown, without its unit."""
        return f"{value:.2f}" if self.unit else f"{value:.4f}"

    def text(self, value: float) -> str:
        """The value with its unit."""
        return self.number(value) + self.unit

    def difference(self, value: float) -> str:
        """A difference of two values."""
        return self.number(value) + (" points" if self.unit else "")


RANKING: dict[MetricName, RankingMetric] = {
    metric.name: metric
    for metric in (
        RankingMetric("top1", "top-1"),
        # A loss of 10 is that of chance among 22,000 classes.
        RankingMetric("loss", "loss", unit="", sign=-1, worst=-10.0, highest=0.0),
        RankingMetric("balanced_top1", "balanced top-1"),
        RankingMetric("auroc", "AUROC"),
        RankingMetric("f1", "F1"),
    )
}


class Point(Value):
    """What one epoch measured. `step` counts optimizer updates."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    epoch: int
    step: int
    metrics: dict[str, float]


class EpochResult(Value):
    """The end of an epoch."""

    kind: Literal["epoch"] = "epoch"
    point: Point
    metric: MetricName = "top1"
    """Metric that the run is ranked by."""
    earlier: tuple[Point, ...] = ()
    """Epochs before it, in the first result after a start from a checkpoint."""
    test_top1: float | None = None
    """Top-1 on the test images in percent, where they were scored."""
    test_correct: str = ""
    """One character for each test image, `1` where it was classified rightly."""
    test_metrics: dict[str, float] = Field(default_factory=dict)
    """All measures on the test images, by name."""

    def to_metrics(self) -> dict[str, Any]:
        """The mapping for `ray.train.report` and `tune.report`."""
        return {
            "epoch": self.point.epoch,
            "step": self.point.step,
            **self.point.metrics,
            SCORE: RANKING[self.metric].score(RANKING[self.metric].value(self.point.metrics)),
            "result": self.model_dump_json(),
        }


class FailedResult(Value):
    """The fault that ended a run: it is not tried again."""

    kind: Literal["failed"] = "failed"
    epoch: int
    """Completed epochs."""
    step: int
    reason: str
    of_driver: bool = False
    """The fault is not the configuration's: the storage is full or the lease was lost, so that the
    next configuration would end the same way."""

    def to_metrics(self) -> dict[str, Any]:
        """The mapping for `ray.train.report` and `tune.report`, which ask for a score in every
        report."""
        result = self.model_dump_json()
        return {"epoch": self.epoch, "step": self.step, SCORE: 0.0, "result": result}


Result = EpochResult | FailedResult
_RESULT: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="kind")])


def result_of(metrics: Mapping[str, Any]) -> Result:
    """The value that a report to Ray carries. Raises ValueError where it has none."""
    return _RESULT.validate_json(metrics.get("result", ""))
