"""How many workers a training has, as configuration."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from psvit_ray.text.messages import short_repr


class WorkerRange(NamedTuple):
    """Smallest and largest number of workers: fewer train where a host is lost, more where one
    comes."""

    min_workers: int
    max_workers: int

    @classmethod
    def of(cls, text: str) -> Self:
        """The range that the text `N` or `MIN:MAX` describes, below 100,000. Raises ValueError for
        other text."""
        match = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
        min_workers = int(match[1]) if match else 0
        max_workers = int(match[2] or min_workers) if match else 0
        if not 1 <= min_workers <= max_workers:
            raise ValueError(
                "workers must be a number or MIN:MAX, from 1 and in this order, got "
                f"{short_repr(text)}"
            )
        return cls(min_workers, max_workers)

    @property
    def elastic(self) -> bool:
        return self.min_workers < self.max_workers
