"""The unit in which the MACs of a table or a picture are readable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psvit_ray.search.record import Record


@dataclass(frozen=True)
class MacsUnit:
    name: str
    macs: float
    """MACs of one unit."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> MacsUnit:
        """GMACs, as papers say, but for networks of tiny images."""
        most = max((record.macs for record in records), default=0)
        return cls("GMACs", 1e9) if most >= 1e8 else cls("MMACs", 1e6)

    def value(self, record: Record) -> float:
        return record.macs / self.macs
