"""Scoring of the candidates of a one-shot search by actors on every host."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources.image_source import Source
from psvit_ray.runtime.cluster.cluster import amounts_per_worker
from psvit_ray.runtime.oneshot.subnet_actors import SubnetActors
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.session.signals import catch_stop_signals
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import trials_at_once
from psvit_ray.search.oneshot.scores import Score, ScoreStore, rank_scores
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.results import RANKING, MetricName

PUT_EVERY_S = 0.5


@dataclass(frozen=True)
class ScoringResult:
    """Scores so far, and why scoring ended."""

    scores: list[Score]
    signal: int | None
    """Number of the signal that ended scoring early, or None."""
    reason: str
    """Why scoring ended early; empty if it did not."""


class SpecProposals(Protocol):
    """Proposals of specs, generation by generation."""

    def ask(self, max_specs: int) -> list[ArchSpec]:
        """The next generation, of at most `max_specs` specs; empty where nothing is left to
        score."""

    def tell(self, scores: Sequence[float]) -> None:
        """Takes the score, higher where it is better, of each spec of the generation that was asked
        for."""


def score_candidates(
    session: Session,
    proposed: SpecProposals,
    checkpoint: Callable[[], Checkpoint],
    source: Source,
    trials: Trials,
    *,
    candidates: int,
    metric: MetricName = "top1",
    latency_ms: Callable[[ArchSpec], float] | None = None,
    deadline: float = math.inf,
) -> ScoringResult:
    """Asks for generations from the first on, and scores the specs that have no score yet, until a
    signal or the deadline.

    Args:
        checkpoint: Reads the supernet's checkpoint, where there is something to score.
        candidates: Number of specs to score in all.
        metric: Measure by which the search ranks.
        latency_ms: Predicted latency of a spec, in milliseconds.
        deadline: Moment of time.monotonic() at which scoring ends.
    """
    store = ScoreStore(session.folder)
    known = {score.spec: score for score in store.all()}
    scores: list[Score] = []
    reason = ""
    tracker = Tracker(session.experiment, session.fence)
    with contextlib.ExitStack() as stack:
        stop_signal = stack.enter_context(catch_stop_signals(deadline))
        actors: SubnetActors | None = None
        while len(scores) < candidates:
            if reason := stop_signal.reason:
                break
            specs = proposed.ask(candidates - len(scores))
            if not specs:
                break
            generation = scores[-1].generation + 1 if scores else 0
            numbers = {spec: len(scores) + i for i, spec in enumerate(specs)}
            by_spec = {spec: known[spec] for spec in specs if spec in known}
            if missing := [spec for spec in specs if spec not in known]:
                if actors is None:
                    actors = _actors(checkpoint(), source, trials)
                    stack.callback(actors.close)
                put_at = time.monotonic() + PUT_EVERY_S
                for spec, measures, seconds in actors.scores(missing):
                    by_spec[spec] = Score(
                        number=numbers[spec],
                        generation=generation,
                        spec=spec,
                        **{name: measure.value for name, measure in measures.items()},
                        metric=metric,
                        error=measures[metric].error,
                        seconds=seconds,
                        latency_ms=latency_ms(spec) if latency_ms else None,
                    )
                    if stop_signal.reason:
                        break
                    if time.monotonic() > put_at:
                        store.put(generation, by_spec.values())
                        put_at = time.monotonic() + PUT_EVERY_S
                store.put(generation, by_spec.values())
            scores += by_spec.values()
            if len(by_spec) == len(specs):
                proposed.tell([by_spec[spec].score for spec in specs])
                tracker.put_scores(scores)
                best = rank_scores(scores)[0]
                print(
                    f"[{len(scores)}/{candidates}] generation {generation}: best so far "
                    f"{RANKING[metric].text(best.value)} with shared weights, "
                    f"{best.spec.pattern}, "
                    f"{best.gmacs:.4g} GMACs",
                    flush=True,
                )
    tracker.close("interrupted" if stop_signal.number else "completed")
    return ScoringResult(sorted(scores, key=lambda score: score.number), stop_signal.number, reason)


def _actors(checkpoint: Checkpoint, source: Source, trials: Trials) -> SubnetActors:
    return SubnetActors(
        checkpoint,
        source,
        number=trials_at_once(trials),
        resources_per_worker=amounts_per_worker(trials.resources),
        wait_minutes=trials.resources.wait_minutes,
    )
