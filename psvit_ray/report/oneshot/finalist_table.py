"""The finalists of a one-shot search over their seeds, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psvit_ray.arch.cost import count_params
from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.report.summary import aligned
from psvit_ray.search.oneshot.finalists import Finalist, SeedMean
from psvit_ray.search.oneshot.scores import Score, rank_scores
from psvit_ray.search.rows import Row, spec_columns


def finalist_rows(finalists: Iterable[Finalist], scores: Iterable[Score]) -> list[Row]:
    """Table of the finalists. `shared_top1` is with the supernet's weights; `rank` and `number` are
    those as a candidate, or None for a spec without a score, such as DeiT."""
    places = {score.spec: (rank, score) for rank, score in enumerate(rank_scores(scores), start=1)}
    table = []
    for finalist in finalists:
        rank, score = places.get(finalist.spec, (None, None))
        table.append(
            {
                "how": finalist.how,
                "seeds": len(finalist.runs),
                "missing": finalist.missing,
                **_columns("holdout_top1", finalist.top1),
                **_columns("test_top1", finalist.test_top1),
                "test_seeds": finalist.test_top1.n if finalist.test_top1 else 0,
                "gmacs": finalist.macs / 1e9,
                "params_m": count_params(finalist.spec) / 1e6,
                "rank": rank,
                "number": score.number if score else None,
                "shared_top1": score.top1 if score else None,
                **spec_columns(finalist.spec),
                "epochs": finalist.epochs,
                "seconds_per_run": round(finalist.seconds.mean, 1) if finalist.seconds else None,
                "spec_id": finalist.spec.spec_id,
            }
        )
    return table


def _columns(name: str, mean: SeedMean | None) -> Row:
    return {name: mean.mean if mean else None, f"{name}_sd": mean.sd if mean else None}


def table(finalists: Sequence[Finalist], scores: Iterable[Score]) -> str:
    """Table for a terminal: the columns of `finalist_rows` that fit."""
    unit = MacsUnit.of(finalists)
    heading = ["how", "seeds", "hold-out %", "test %", unit.name, "M params"]
    heading += ["shared % (rank)", "patch", "pattern", "epochs", "s each"]
    lines = [heading]
    for finalist, row in zip(finalists, finalist_rows(finalists, scores), strict=True):
        lines.append(
            [
                finalist.how,
                str(row["seeds"]),
                str(finalist.top1 or "-"),
                str(finalist.test_top1 or "-"),
                f"{unit.value(finalist):#.3g}",
                f"{row['params_m']:#.3g}",
                "-" if row["rank"] is None else f"{row['shared_top1']:.2f} (#{row['rank']})",
                str(row["patch_size"]),
                row["pattern"],
                str(row["epochs"] or "-"),
                "-" if finalist.seconds is None else f"{finalist.seconds.mean:.0f}",
            ]
        )
    return aligned(lines)
