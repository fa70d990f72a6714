"""What a run reports, as values that cross process boundaries: an epoch, or its fatal fault.

Ray sees a flat mapping of metrics, of which its schedulers read `epoch` and `holdout/top1`; the
whole value goes with it under the key `result`, as JSON because Tune flattens what is nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from psvit_ray.arch.spec import Value

TOP1 = "holdout/top1"
"""The metric that ranks, in percent."""


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
    earlier: tuple[Point, ...] = ()
    """Epochs before it, in the first result after a start from a checkpoint."""
    test_top1: float | None = None
    """Top-1 on the test images in percent, where they were scored."""
    test_correct: str = ""
    """One character for each test image, `1` where it was classified rightly."""

    def to_metrics(self) -> dict[str, Any]:
        """The mapping for `ray.train.report` and `tune.report`."""
        return {
            "epoch": self.point.epoch,
            "step": self.point.step,
            **self.point.metrics,
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
        """The mapping for `ray.train.report` and `tune.report`, which ask for the ranking metric
        in every report."""
        result = self.model_dump_json()
        return {"epoch": self.epoch, "step": self.step, TOP1: 0.0, "result": result}


Result = EpochResult | FailedResult
_RESULT: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="kind")])


def result_of(metrics: Mapping[str, Any]) -> Result:
    """The value that a report to Ray carries. Raises ValueError where it has none."""
    return _RESULT.validate_json(metrics.get("result", ""))
