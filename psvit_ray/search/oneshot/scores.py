"""What a supernet's weights make of each spec: the record of a one-shot search, a file for each
generation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.search.rows import Row, spec_columns
from psvit_ray.storage import json_files
from psvit_ray.storage.folder import Folder

REMEDY = "restore it from a copy, or delete it to score its candidates again"


class Score(Value):
    """Of a spec on the hold-out, with weights that it shares with all others. `number` counts
    candidates in the order in which they were proposed."""

    number: int
    generation: int
    spec: ArchSpec
    loss: float
    top1: float
    """In percent."""
    seconds: float = 0.0
    """That an actor took for it."""
    latency_ms: float | None = None
    """As predicted, where the search has a table."""

    @property
    def macs(self) -> int:
        return count_macs(self.spec)

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9

    @property
    def params_m(self) -> float:
        return count_params(self.spec) / 1e6


class ScoreStore:
    """Under `candidates/` of a search's folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder / "candidates"

    def put(self, generation: int, scores: Iterable[Score]) -> None:
        """Replaces what is there of a generation whole. Raises OSError where that fails."""
        content = _SCORES.dump_json(sorted(scores, key=lambda score: score.number), indent=1)
        self._folder.write(f"generation-{generation:03d}.json", content)

    def all(self) -> list[Score]:
        """In the order of their numbers. Raises ValueError for a file that has no scores."""
        return sorted(self._read(), key=lambda score: score.number)

    def _read(self) -> Iterator[Score]:
        for name in self._folder.names():
            if re.fullmatch(r"generation-\d{3,}\.json", name):
                yield from (
                    json_files.read_json(self._folder, name, _SCORES, "a list of scores", REMEDY)
                    or ()
                )


_SCORES = TypeAdapter(list[Score])


def rank_scores(scores: Iterable[Score]) -> list[Score]:
    """The best first: by top-1, among equals by loss."""
    return sorted(scores, key=lambda score: (-score.top1, score.loss, score.macs, score.number))


@dataclass(frozen=True)
class Generation:
    """Top-1 in percent, with the supernet's weights."""

    number: int
    scored: int
    """Candidates up to its end."""
    best: float
    best_so_far: float
    quartiles: tuple[float, float, float]
    """The median is the second."""


def generations(scores: Iterable[Score]) -> list[Generation]:
    by_number: dict[int, list[float]] = {}
    for score in scores:
        by_number.setdefault(score.generation, []).append(score.top1)
    progress: list[Generation] = []
    scored, so_far = 0, 0.0
    for number, top1 in sorted(by_number.items()):
        scored, so_far = scored + len(top1), max(so_far, *top1)
        low, middle, high = np.quantile(top1, [0.25, 0.5, 0.75]).tolist()
        progress.append(Generation(number, scored, max(top1), so_far, (low, middle, high)))
    return progress


def score_rows(scores: Iterable[Score]) -> list[Row]:
    """Every candidate, the best first. Top-1 is in percent, with the supernet's weights."""
    return [
        {
            "rank": rank,
            "number": score.number,
            "generation": score.generation,
            "top1": score.top1,
            "loss": score.loss,
            "gmacs": score.gmacs,
            "params_m": score.params_m,
            "latency_ms": score.latency_ms,
            **spec_columns(score.spec),
            "spec_id": score.spec.spec_id,
        }
        for rank, score in enumerate(rank_scores(scores), start=1)
    ]


def pareto_scores(scores: Iterable[Score]) -> list[Score]:
    """Those that no other beats in top-1 at no more MACs: by MACs up."""
    front: list[Score] = []
    for score in sorted(rank_scores(scores), key=lambda score: score.macs):
        if not front or score.top1 > front[-1].top1:
            front.append(score)
    return front
