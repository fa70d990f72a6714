"""What a search may take before it ends."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

from psvit_ray.search.config import SearchConfig


@dataclass(frozen=True)
class TimeBudget:
    """A resume goes on with another."""

    deadline: float = math.inf
    """Of this driver: a moment of time.monotonic()."""
    gpu_hours: float = math.inf
    """Of GPUs given to its work, by all drivers of the search. Without GPUs there is no end to
    it."""

    @classmethod
    def of(cls, search: SearchConfig) -> TimeBudget:
        """Its hours begin now."""
        hours, gpu_hours = search.max_hours, search.max_gpu_hours
        return cls(
            deadline=time.monotonic() + 3600 * hours if hours else math.inf,
            gpu_hours=gpu_hours or math.inf,
        )

    def without(self, gpu_seconds: float) -> TimeBudget:
        """What is left when so much is spent."""
        return dataclasses.replace(self, gpu_hours=self.gpu_hours - gpu_seconds / 3600)

    def until(self, gpus: float) -> float:
        """The moment when so many GPUs, in use from now on, have come to its end."""
        return min(self.deadline, time.monotonic() + 3600 * self.hours(gpus))

    def hours(self, gpus: float) -> float:
        """For which so many GPUs may be in use."""
        return self.gpu_hours / gpus if gpus else math.inf


UNLIMITED = TimeBudget()
