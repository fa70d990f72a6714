"""The finalists of a one-shot search after their own trainings, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.record import Kind, Record

HOW: dict[Kind, str] = {"finalist": "from scratch", "finetuned": "fine-tuned", "baseline": "DeiT"}


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds, with its standard deviation."""

    n: int
    mean: float
    sd: float | None
    """Standard deviation of the sample (n - 1), or None for a single value."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> SeedMean | None:
        """The mean of the values that are not None, or None where there are none."""
        numbers = [value for value in values if value is not None]
        if not numbers:
            return None
        sd = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(len(numbers), statistics.mean(numbers), sd)


@dataclass(frozen=True)
class Finalist:
    """A spec, trained in one way with several seeds. Measures are those after the last epoch."""

    spec: ArchSpec
    kind: Kind
    runs: tuple[Record, ...]
    """Records trained in full, the best last."""
    missing: int
    """Number of runs that are not trained in full."""

    @property
    def how(self) -> str:
        """Name of the way in which the spec is trained."""
        return HOW[self.kind]

    @property
    def macs(self) -> int:
        return count_macs(self.spec)

    @property
    def value(self) -> SeedMean | None:
        """The ranking metric on the hold-out over the seeds."""
        return SeedMean.of(run.value for run in self.runs)

    @property
    def score(self) -> SeedMean | None:
        """The ranking metric on the hold-out over the seeds, higher where it is better."""
        return SeedMean.of(run.score for run in self.runs)

    @property
    def test_value(self) -> SeedMean | None:
        """The ranking metric on the test images over the seeds; None where no seed is tested."""
        return SeedMean.of(run.test_value for run in self.runs)

    @property
    def seconds(self) -> SeedMean | None:
        """Seconds of one training, over the seeds."""
        return SeedMean.of(run.seconds for run in self.runs)

    @property
    def epochs(self) -> int | None:
        """Epochs of the longest run."""
        return max((run.epochs_done for run in self.runs), default=None)


def finalist_records(records: Iterable[Record]) -> list[Record]:
    """The records of finalists and DeiTs among all that a search trains."""
    return [record for record in records if record.kind in HOW]


def finalists(records: Iterable[Record]) -> list[Finalist]:
    """The finalists, the best first: by the mean of the ranking metric, and by fewer MACs where it
    is equal."""
    groups: dict[tuple[ArchSpec, Kind], list[Record]] = {}
    for record in finalist_records(records):
        groups.setdefault((record.configuration.spec, record.kind), []).append(record)
    results = []
    for (spec, kind), runs in groups.items():
        full = [run for run in runs if run.ranks]
        full.sort(key=lambda run: (run.score, run.configuration.train.seed))
        results.append(Finalist(spec, kind, tuple(full), len(runs) - len(full)))
    return sorted(results, key=_rank_key)


def _rank_key(finalist: Finalist) -> tuple[float, int, int, str]:
    score = finalist.score.mean if finalist.score else -math.inf
    return -score, finalist.macs, list(HOW).index(finalist.kind), finalist.spec.spec_id


def winner(records: Iterable[Record]) -> Record | None:
    """The run of the best PSViT that is the median of its seeds (the lower of two), or None if no
    PSViT was trained in full yet.

    The best seed would be a choice made on noise. Only the hold-out is looked at.
    """
    for finalist in finalists(records):
        if finalist.runs and not finalist.spec.is_deit:
            return finalist.runs[(len(finalist.runs) - 1) // 2]
    return None
