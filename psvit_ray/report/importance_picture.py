"""How much each choice of a search matters to the score: optuna's functional ANOVA, and a
picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from matplotlib.figure import Figure
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report.pareto_picture import COLOURS, new_figure
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.search.record import Record

MIN_CONFIGURATIONS = 10
"""Number of configurations below which importances are noise."""
FEW_CONFIGURATIONS = 100
LOG_CHOICE_FROM = 10  # ratio of a choice's largest and smallest number, as of a learning rate
Choices = Mapping[str, Parameter]


@dataclass(frozen=True)
class Importances:
    """Share of the scores' variance that each choice explains alone, the largest first; none where
    too few configurations compare."""

    shares: dict[str, float]
    configurations: int
    """Number of configurations that are compared."""
    epoch: int | None = None
    """Epoch after which they are compared; None where that is not by an epoch of their own."""


def choices(spec: ArchSpec) -> dict[str, Parameter]:
    """What was chosen about an architecture, each in one number or word. `pooling place` is the
    mean share of the first stage's tokens that a layer has: the earlier and the more often tokens
    are pooled, the less."""

    def mean(values: Iterable[float]) -> float:
        pairs = zip(values, spec.stages, strict=True)
        return sum(value * stage.depth for value, stage in pairs) / spec.depth

    borrowing = spec.depth - sum(len(stage.share_groups) for stage in spec.stages)
    return {
        "pooling, 1d or 2d": spec.pooling,
        "pooling place": mean(tokens / spec.num_tokens[0] for tokens in spec.num_tokens),
        "pooling operator": spec.pool_op if len(spec.stages) > 1 else "none",
        "sharing": borrowing / spec.depth,
        "layers": spec.depth,
        "widths": mean(stage.embed_dim for stage in spec.stages),
        "width of a head": mean(stage.embed_dim / stage.num_heads for stage in spec.stages),
        "MLP ratio": mean(stage.hidden_dim / stage.embed_dim for stage in spec.stages),
        "patch size": spec.patch_size,
    }


def of_records(records: Iterable[Record]) -> Importances:
    """Importances of what the PSViTs of a search chose, searched settings among it. They compare
    after the last epoch that all have in common: most were stopped early."""
    ended = [
        record
        for record in records
        if record.status in ("completed", "stopped") and record.curve and not record.is_deit
    ]
    epoch = min((record.epochs_done for record in ended), default=0)
    compared = [
        (choices(record.configuration.spec) | record.overrides, record.score_at(point))
        for record in ended
        for point in record.curve
        if point.epoch == epoch
    ]
    shares = importances([chosen for chosen, _ in compared], [score for _, score in compared])
    return Importances(shares, len(compared), epoch)


def of_scores(scores: Iterable[Score]) -> Importances:
    """Importances of what the candidates of a one-shot search chose."""
    scores = [score for score in scores if not score.spec.is_deit]
    shares = importances([choices(s.spec) for s in scores], [s.score for s in scores])
    return Importances(shares, len(scores))


def importances(chosen: Sequence[Choices], scores: Sequence[float]) -> dict[str, float]:
    """Share of the variance of `scores` that each choice explains alone, summing to 1, the largest
    first (Hutter et al. 2014, optuna's `FanovaImportanceEvaluator`). Without choices that are the
    same in all; empty where too few compare, or all scores are equal."""
    rows = [(row, score) for row, score in zip(chosen, scores, strict=True) if math.isfinite(score)]
    if len(rows) < MIN_CONFIGURATIONS or len({score for _, score in rows}) == 1:
        return {}
    names = [name for name in rows[0][0] if len({row[name] for row, _ in rows}) > 1]
    if not names:
        return {}
    distributions = {name: _distribution([row[name] for row, _ in rows]) for name in names}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(
            params={name: row[name] for name in names}, distributions=distributions, value=score
        )
        for row, score in rows
    )
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in shares.items()}


def _distribution(values: Sequence[Parameter]) -> BaseDistribution:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or any(isinstance(value, bool) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = float(min(numbers)), float(max(numbers))
    return FloatDistribution(low, high, log=low > 0 and high / low >= LOG_CHOICE_FROM)


def picture(result: Importances, *, title: str) -> Figure:
    """Picture with a bar for each choice."""
    shares = result.shares
    figure = new_figure(7, 1.6 + 0.34 * max(len(shares), 3))
    axes = figure.add_subplot()
    if shares:
        bars = axes.barh(list(shares), [100 * s for s in shares.values()], color=COLOURS[0])
        axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(0, 112 * max(shares.values()))
        after = "" if result.epoch is None else f" after epoch {result.epoch}"
        few = "; so few are a hint only" if result.configurations < FEW_CONFIGURATIONS else ""
        title += f"\n{result.configurations:,} configurations{after}{few}"
    else:
        message = f"not told from fewer than {MIN_CONFIGURATIONS} configurations that differ"
        axes.text(0.5, 0.5, message, ha="center", transform=axes.transAxes)
        axes.set_yticks([])
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("share of the scores' variance that a choice explains alone, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
