"""What a one-shot search came to, but for times."""

from __future__ import annotations

from typing import Any

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder


def outcome(record: Record) -> tuple[Any, ...]:
    """What a training came to, but for times."""
    losses = [point.metrics["holdout/loss"] for point in record.curve]
    return record.kind, record.status, record.top1, losses, record.test_correct


def timeless(scores: list[Score]) -> list[Score]:
    return [score.model_copy(update={"seconds": 0.0}) for score in scores]


def by_spec(folder: Folder) -> dict[ArchSpec, list[tuple[Any, ...]]]:
    """Outcomes in the order in which they were proposed. Keys of those that inherit differ, as
    their folders do."""
    outcomes: dict[ArchSpec, list[tuple[Any, ...]]] = {}
    for record in RecordStore(folder).all():
        outcomes.setdefault(record.configuration.spec, []).append(outcome(record))
    return outcomes
