"""The results of a one-shot search, as files and as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report import curves_picture, importance_picture, leaderboard
from psvit_ray.report.html_page import HTML, page
from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.report.oneshot import (
    candidates_picture,
    finalist_table,
    generations_picture,
    traits,
    traits_picture,
)
from psvit_ray.report.pareto_picture import png
from psvit_ray.report.summary import (
    aligned,
    commonest_line,
    count_statuses,
    mlflow_command,
    tie_warning,
    winner_steps,
)
from psvit_ray.search.oneshot.finalists import HOW, finalist_records, finalists, winner
from psvit_ray.search.oneshot.plan import standard_error
from psvit_ray.search.oneshot.scores import (
    Score,
    generations,
    rank_scores,
    ranking_metric,
    score_rows,
)
from psvit_ray.search.record import Record
from psvit_ray.search.rows import table_csv, write_files
from psvit_ray.storage.folder import Folder

MAX_CANDIDATES = 200
"""Number of candidates on the page; `candidates.csv` has all."""


def write(
    scores: Sequence[Score],
    records: Iterable[Record],
    folder: Folder,
    *,
    title: str,
    text: str,
    marked: Mapping[str, ArchSpec] | None = None,
) -> list[str]:
    """Writes `candidates.csv` and `.png`, `generations.png`, `traits.csv` and `.png`,
    `importance.png`, `finalists.csv`, `curves.png` and the leaderboard of the finalists,
    `report.html` and, if there is a winner, `best.yaml` and `winner.png`. Each file replaces an
    older one whole. Returns their paths. `text` is what a terminal shows: the page has it too.
    Specs of `marked` that were scored are named in the picture.

    Raises OSError where they cannot be written.
    """
    records = list(records)
    best_finalists, chosen = finalists(records), traits.trait_choices(scores)
    best = f"{title}: the best {len(traits.best_scores(scores))} of {len(scores):,} candidates"
    pictures = {
        "candidates.png": candidates_picture.picture(
            scores, best_finalists, marked or {}, title=title
        ),
        "generations.png": generations_picture.picture(
            generations(scores), title=title, metric=ranking_metric(scores)
        ),
        "traits.png": traits_picture.picture(chosen, title=best if chosen else title),
        "curves.png": curves_picture.picture(finalist_records(records), title=title),
        "importance.png": importance_picture.picture(
            importance_picture.of_scores(scores), title=title
        ),
    }
    files = leaderboard.winner_files(winner(records), folder, title)
    files |= leaderboard.tables(leaderboard.leaderboard_rows(records)) | tables(scores, records)
    files |= {name: png(figure) for name, figure in pictures.items()}
    rows = {
        "Finalists": finalist_table.finalist_rows(best_finalists, scores),
        "Best candidates": score_rows(scores)[:MAX_CANDIDATES],
    }
    files[HTML] = page(title, text, leaderboard.captioned(files), rows)
    return write_files(folder, files)


def tables(scores: Sequence[Score], records: Iterable[Record]) -> dict[str, bytes]:
    """Content of `candidates.csv`, `traits.csv` and `finalists.csv`."""
    best_finalists = finalists(records)
    return {
        "candidates.csv": table_csv(score_rows(scores)),
        "traits.csv": table_csv(traits.trait_rows(traits.trait_choices(scores)), first="trait"),
        "finalists.csv": table_csv(
            finalist_table.finalist_rows(best_finalists, scores), first="how"
        ),
    }


def summary(
    scores: Sequence[Score],
    records: Iterable[Record],
    folder: Folder,
    tracking_uri: str,
    *,
    supernet_seconds: float,
    holdout_size: int,
) -> str:
    """Text about the scores and their standard error, the finalists beside DeiT, the seconds of
    each phase, and the files."""
    trained = finalist_records(records)
    parts = [_scored(scores, holdout_size)]
    if trained:
        missing = sum(not record.ranks for record in trained)
        lacking = f"; missing below: {missing}" if missing else ""
        parts.append(f"{len(trained)} trainings of finalists: {count_statuses(trained)}{lacking}")
        parts.append(finalist_table.table(finalists(trained), scores))
        parts += [line for line in (commonest_line(trained), _tie(trained)) if line]
    parts.append(_winner(trained))
    seconds = {
        "supernet": supernet_seconds,
        "scoring": sum(score.seconds for score in scores),
        "retraining": sum(record.seconds for record in trained),
    }
    files = [
        ("Report", str(folder / HTML)),
        ("Compute", _shares(seconds)),
        ("Candidates", str(folder / "candidates.csv")),
        ("Traits", _traits(scores, folder)),
        ("Finalists", str(folder / "finalists.csv")),
        *(winner_steps(best, folder, tracking_uri) if (best := winner(trained)) else []),
        ("MLflow", mlflow_command(tracking_uri)),
    ]
    return "\n\n".join([*parts, aligned([(f"{name}:", text) for name, text in files])])


def _scored(scores: Sequence[Score], holdout_size: int) -> str:
    if not scores:
        return "No candidate is scored yet."
    best, metric = rank_scores(scores)[0], ranking_metric(scores)
    error = standard_error(holdout_size, best.top1) if best.error is None else best.error
    near = sum(score.score >= best.score - error for score in scores)
    last = max(score.generation for score in scores)
    unit = MacsUnit.of(scores)
    return (
        f"{len(scores):,} candidates up to generation {last} scored with the supernet's weights\n"
        f"Best: {metric.text(best.value)} hold-out {metric.title}, {best.spec.pattern}, "
        f"patch {best.spec.patch_size}, {unit.value(best):#.3g} {unit.name}\n"
        f"Its standard error: {metric.difference(error)} on {holdout_size:,} images; candidates "
        f"that lie within one, with itself: {near:,}"
    )


def _winner(trained: Sequence[Record]) -> str:
    record = winner(trained)
    if record is None:
        return "No winner yet: no PSViT was trained in full."
    how = HOW[record.kind]
    assert record.value is not None
    return (
        f"The winner: {record.pattern} {how}, seed {record.configuration.train.seed}, "
        f"{record.metric.text(record.value)} hold-out {record.metric.title}: the median of its "
        "seeds"
    )


def _tie(trained: Sequence[Record]) -> str:
    """A warning where the hold-out does not tell the best two finalists apart."""
    best_two = [finalist for finalist in finalists(trained) if finalist.value][:2]
    return tie_warning(
        trained[0].metric,
        [finalist.value.mean for finalist in best_two if finalist.value],
        max((run.error or 0.0 for finalist in best_two for run in finalist.runs), default=0.0),
    )


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{name} {s:,.0f} s ({100 * s / total:.0f} %)" for name, s in seconds.items())


def _traits(scores: Sequence[Score], folder: Folder) -> str:
    if len(scores) < traits.MIN_CANDIDATES:
        return f"not told from fewer than {traits.MIN_CANDIDATES} candidates"
    return str(folder / "traits.csv")
