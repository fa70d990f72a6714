"""Time and GPU-hours that a search may use."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

from psvit_ray.search.config import SearchConfig


@dataclass(frozen=True)
class TimeBudget:
    """Time and GPU-hours that a driver may still use; a resume has a new one."""

    deadline: float = math.inf
    """Moment of time.monotonic() at which this driver ends its work."""
    gpu_hours: float = math.inf
    """GPU-hours left for all drivers of the search together. Without GPUs they do not run out."""

    @classmethod
    def of(
        cls, search: SearchConfig, begun: float | None = None, *, kept_s: float = 0.0
    ) -> TimeBudget:
        """The budget of a search whose hours began at the moment `begun` of time.monotonic(), by
        default now, and whose last `kept_s` seconds are kept for what follows the trainings."""
        hours, gpu_hours = search.max_hours, search.max_gpu_hours
        begun = time.monotonic() if begun is None else begun
        return cls(
            deadline=begun + 3600 * hours - kept_s if hours else math.inf,
            gpu_hours=gpu_hours or math.inf,
        )

    def without(self, gpu_seconds: float) -> TimeBudget:
        """The budget after `gpu_seconds` more are used."""
        return dataclasses.replace(self, gpu_hours=self.gpu_hours - gpu_seconds / 3600)

    def until(self, gpus: float) -> float:
        """The moment of time.monotonic() when the budget is used up by `gpus` GPUs from now on."""
        return min(self.deadline, time.monotonic() + 3600 * self.hours(gpus))

    def hours(self, gpus: float) -> float:
        """Hours for which `gpus` GPUs may be in use."""
        return self.gpu_hours / gpus if gpus else math.inf


UNLIMITED = TimeBudget()
