"""The unit that makes the MACs of a table or a picture readable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Costed(Protocol):
    """Something with a cost: a record, a score."""

    @property
    def macs(self) -> int: ...


@dataclass(frozen=True)
class MacsUnit:
    """A unit of multiply-accumulates."""

    name: str
    macs: float
    """MACs of one unit."""

    @classmethod
    def of(cls, costed: Iterable[Costed]) -> MacsUnit:
        """The unit for these costs: GMACs, as in papers, or MMACs where all networks are tiny."""
        largest = max((item.macs for item in costed), default=0)
        return cls("GMACs", 1e9) if largest >= 1e8 else cls("MMACs", 1e6)

    def value(self, item: Costed) -> float:
        """The cost in this unit."""
        return item.macs / self.macs
