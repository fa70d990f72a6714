"""The record of a search: one JSON object a configuration, the truth that resume, report and
MLflow are fed from."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import Value
from psvit_ray.training.config import Configuration

Kind = Literal["baseline", "first", "proposal", "fixed"]
Status = Literal["pending", "running", "interrupted", "completed", "stopped", "failed"]


class Point(Value):
    """What one epoch reported. `step` counts optimizer updates."""

    epoch: int
    step: int
    metrics: dict[str, float]


class Record(Value):
    """One configuration of a search and what came of it.

    `completed` is trained in full and ranks; `stopped` was ended early by the scheduler; `failed`
    ended by its own fault; `pending`, `running` and `interrupted` go on when the search resumes.
    """

    number: int
    kind: Kind
    params: dict[str, Parameter]
    configuration: Configuration
    status: Status = "pending"
    reason: str = ""
    curve: tuple[Point, ...] = ()
    seconds: float = 0.0
    run_id: str = ""
    test_top1: float | None = None
    test_correct: str = ""
    """One character a test image, `1` where it was classified rightly."""

    @property
    def key(self) -> str:
        return self.configuration.key
