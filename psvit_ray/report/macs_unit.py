"""The unit in which the MACs of a table or a picture are readable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Costed(Protocol):
    """A record, a score: what has a spec."""

    @property
    def macs(self) -> int: ...


@dataclass(frozen=True)
class MacsUnit:
    name: str
    macs: float
    """MACs of one unit."""

    @classmethod
    def of(cls, costed: Iterable[Costed]) -> MacsUnit:
        """GMACs, as papers say, but for networks of tiny images."""
        largest = max((item.macs for item in costed), default=0)
        return cls("GMACs", 1e9) if largest >= 1e8 else cls("MMACs", 1e6)

    def value(self, item: Costed) -> float:
        return item.macs / self.macs
