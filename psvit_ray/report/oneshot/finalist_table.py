"""The finalists of a one-shot search over their seeds, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psvit_ray.arch.cost import count_params
from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.report.summary import aligned
from psvit_ray.search.oneshot.finalists import Finalist, SeedMean
from psvit_ray.search.oneshot.scores import Score, rank_scores, ranking_metric
from psvit_ray.search.rows import Row, spec_columns
from psvit_ray.training.results import RankingMetric


def finalist_rows(finalists: Iterable[Finalist], scores: Iterable[Score]) -> list[Row]:
    """Table of the finalists. Columns of the ranking metric end with its name: on the hold-out, on
    the test images, and `shared`, with the supernet's weights. `rank` and `number` are those as a
    candidate, or None for a spec without a score, such as DeiT."""
    scores = list(scores)
    name = ranking_metric(scores).name
    places = {score.spec: (rank, score) for rank, score in enumerate(rank_scores(scores), start=1)}
    table = []
    for finalist in finalists:
        rank, score = places.get(finalist.spec, (None, None))
        table.append(
            {
                "how": finalist.how,
                "seeds": len(finalist.runs),
                "missing": finalist.missing,
                **_columns(f"holdout_{name}", finalist.value),
                **_columns(f"test_{name}", finalist.test_value),
                "test_seeds": finalist.test_value.n if finalist.test_value else 0,
                "gmacs": finalist.macs / 1e9,
                "params_m": count_params(finalist.spec) / 1e6,
                "rank": rank,
                "number": score.number if score else None,
                f"shared_{name}": score.value if score else None,
                **spec_columns(finalist.spec),
                "epochs": finalist.epochs,
                "seconds_per_run": round(finalist.seconds.mean, 1) if finalist.seconds else None,
                "spec_id": finalist.spec.spec_id,
            }
        )
    return table


def _text(metric: RankingMetric, mean: SeedMean | None) -> str:
    if mean is None:
        return "-"
    return metric.number(mean.mean) + ("" if mean.sd is None else f" ± {metric.number(mean.sd)}")


def _shared(metric: RankingMetric, row: Row) -> str:
    if row["rank"] is None:
        return "-"
    return f"{metric.number(row[f'shared_{metric.name}'])} (#{row['rank']})"


def _columns(name: str, mean: SeedMean | None) -> Row:
    return {name: mean.mean if mean else None, f"{name}_sd": mean.sd if mean else None}


def table(finalists: Sequence[Finalist], scores: Iterable[Score]) -> str:
    """Table for a terminal: the columns of `finalist_rows` that fit."""
    unit = MacsUnit.of(finalists)
    scores = list(scores)
    metric = ranking_metric(scores)
    heading = ["how", "seeds", f"hold-out {metric.label}", f"test {metric.label}", unit.name]
    heading += ["M params", "shared (rank)", "patch", "pattern", "epochs", "s each"]
    lines = [heading]
    for finalist, row in zip(finalists, finalist_rows(finalists, scores), strict=True):
        lines.append(
            [
                finalist.how,
                str(row["seeds"]),
                _text(metric, finalist.value),
                _text(metric, finalist.test_value),
                f"{unit.value(finalist):#.3g}",
                f"{row['params_m']:#.3g}",
                _shared(metric, row),
                str(row["patch_size"]),
                row["pattern"],
                str(row["epochs"] or "-"),
                "-" if finalist.seconds is None else f"{finalist.seconds.mean:.0f}",
            ]
        )
    return aligned(lines)
