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
from psvit_ray.training.results import RANKING, MetricName, RankingMetric

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
    balanced_top1: float | None = None
    """Hold-out mean recall of the classes in percent."""
    auroc: float | None = None
    """Hold-out AUROC in percent, of two classes."""
    f1: float | None = None
    """Hold-out F1 in percent."""
    metric: MetricName = "top1"
    """Measure by which the search ranks."""
    error: float | None = None
    """Standard error of that measure, by the number of hold-out images."""
    seconds: float = 0.0
    """Seconds that an actor took for the score."""
    latency_ms: float | None = None
    """Predicted latency in milliseconds, where the search has a latency table."""

    @property
    def value(self) -> float:
        """The measure by which the search ranks."""
        value: float = getattr(self, self.metric)
        return value

    @property
    def score(self) -> float:
        """The measure by which the search ranks, higher where it is better."""
        return RANKING[self.metric].score(self.value)

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
    """The scores, the best first: by the ranking metric, then by loss."""
    return sorted(scores, key=lambda score: (-score.score, score.loss, score.macs, score.number))


def ranking_metric(scores: Iterable[Score]) -> RankingMetric:
    """The metric by which these scores of one search rank."""
    return RANKING[next((score.metric for score in scores), "top1")]


@dataclass(frozen=True)
class Generation:
    """How far a search has come with a generation: values of its ranking metric, with the
    supernet's weights."""

    number: int
    scored: int
    """Number of candidates scored up to the end of this generation."""
    best: float
    best_so_far: float
    quartiles: tuple[float, float, float]
    """Quartiles of the generation's values; the second is the median."""


def generations(scores: Iterable[Score]) -> list[Generation]:
    """Statistics of each generation, in their order."""
    by_number: dict[int, list[Score]] = {}
    for score in scores:
        by_number.setdefault(score.generation, []).append(score)
    progress: list[Generation] = []
    scored, so_far = 0, None
    for number, members in sorted(by_number.items()):
        best = rank_scores(members)[0]
        if so_far is None or best.score > so_far.score:
            so_far = best
        scored += len(members)
        values = [score.value for score in members]
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        progress.append(Generation(number, scored, best.value, so_far.value, (low, middle, high)))
    return progress


def score_rows(scores: Iterable[Score]) -> list[Row]:
    """Table of all candidates, the best first. Measures are in percent, but for the loss, with the
    supernet's weights."""
    scores = list(scores)
    further = ("balanced_top1", "auroc", "f1")
    measured = [name for name in further if any(getattr(s, name) is not None for s in scores)]
    return [
        {
            "rank": rank,
            "number": score.number,
            "generation": score.generation,
            "top1": score.top1,
            "loss": score.loss,
            **{name: getattr(score, name) for name in measured},
            "gmacs": score.gmacs,
            "params_m": score.params_m,
            "latency_ms": score.latency_ms,
            **spec_columns(score.spec),
            "spec_id": score.spec.spec_id,
        }
        for rank, score in enumerate(rank_scores(scores), start=1)
    ]


def pareto_scores(scores: Iterable[Score]) -> list[Score]:
    """The Pareto front of the scores: those that no other beats at no more MACs, by MACs up."""
    front: list[Score] = []
    for score in sorted(rank_scores(scores), key=lambda score: score.macs):
        if not front or score.score > front[-1].score:
            front.append(score)
    return front
