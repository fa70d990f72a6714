"""Scores of specs with a supernet's weights: the record of a one-shot search, one file for each
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
    """Score of a spec on the hold-out, with weights that it shares with all others. `number` counts
    candidates in the order in which they were proposed."""

    number: int
    generation: int
    spec: ArchSpec
    loss: float
    top1: float
    """Hold-out top-1 in percent."""
    seconds: float = 0.0
    """Seconds that an actor took for the score."""
    latency_ms: float | None = None
    """Predicted latency in milliseconds, where the search has a latency table."""

    @property
    def macs(self) -> int:
        return count_macs(self.spec)

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return count_params(self.spec) / 1e6


class ScoreStore:
    """The scores of a search, under `candidates/` of its folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder / "candidates"

    def put(self, generation: int, scores: Iterable[Score]) -> None:
        """Replaces the file of a generation whole. Raises OSError where that fails."""
        content = _SCORES.dump_json(sorted(scores, key=lambda score: score.number), indent=1)
        self._folder.write(f"generation-{generation:03d}.json", content)

    def all(self) -> list[Score]:
        """All scores, in the order of their numbers. Raises ValueError for a file that has no
        scores."""
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
    """The scores, the best first: by top-1, then by loss."""
    return sorted(scores, key=lambda score: (-score.top1, score.loss, score.macs, score.number))


@dataclass(frozen=True)
class Generation:
    """How far a search has come with a generation: top-1 in percent, with the supernet's
    weights."""

    number: int
    scored: int
    """Number of candidates scored up to the end of this generation."""
    best: float
    best_so_far: float
    quartiles: tuple[float, float, float]
    """Quartiles of the generation's top-1; the second is the median."""


def generations(scores: Iterable[Score]) -> list[Generation]:
    """Statistics of each generation, in their order."""
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
    """Table of all candidates, the best first. Top-1 is in percent, with the supernet's weights."""
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
    """The Pareto front of the scores: those that no other beats in top-1 at no more MACs, by MACs
    up."""
    front: list[Score] = []
    for score in sorted(rank_scores(scores), key=lambda score: score.macs):
        if not front or score.top1 > front[-1].top1:
            front.append(score)
    return front
