"""The results of a search as files, all made from its records: tables, the winner's recipe,
pictures, a page with all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import yaml

from psvit_ray.report import curves_picture, importance_picture, network_picture
from psvit_ray.report.html_page import HTML, page
from psvit_ray.report.pareto_picture import pareto_png, png
from psvit_ray.report.summary import side_by_side, summary
from psvit_ray.search.record import Record, best, ranking
from psvit_ray.search.rows import Row, spec_columns, table_csv, write_files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable

CAPTIONS = {
    "winner.png": "The winner: tokens and channels of each stage, and the layers that share an "
    "attention map.",
    "pareto.png": "Scores on the hold-out against cost.",
    "candidates.png": "Candidates with the supernet's weights, and the finalists trained on their "
    "own, against cost.",
    "generations.png": "Scores of the candidates by generation.",
    "curves.png": "Scores on the hold-out by epoch.",
    "importance.png": "How much each choice matters to the score: the share of its variance that "
    "the choice explains alone (functional ANOVA).",
    "traits.png": "What the best candidates chose, beside what all did.",
}
"""Caption of each picture, in the order of the page."""

__all__ = ["leaderboard_rows", "side_by_side", "summary", "write", "write_side_by_side"]


def write(records: Iterable[Record], folder: Folder, *, title: str, text: str) -> list[str]:
    """Writes `leaderboard.csv`, `leaderboard.json`, `pareto.png`, `curves.png`, `importance.png`,
    `report.html` and, if there is a winner, `best.yaml` and `winner.png`. Each file replaces an
    older one whole. Returns their paths. `text` is what a terminal shows: the page has it too.

    Raises OSError where they cannot be written.
    """
    records = list(records)
    importances = importance_picture.of_records(records)
    pictures = {
        "pareto.png": pareto_png({title: records}),
        "curves.png": png(curves_picture.picture(records, title=title)),
        "importance.png": png(importance_picture.picture(importances, title=title)),
    }
    rows = leaderboard_rows(records)
    files = winner_files(best(records), folder, title) | tables(rows) | pictures
    files[HTML] = page(title, text, captioned(files), {"Configurations": rows})
    return write_files(folder, files)


def winner_files(winner: Record | None, folder: Folder, title: str) -> dict[str, bytes]:
    """Content of `best.yaml` and `winner.png`. Without a winner, older ones are deleted."""
    if winner is None:
        for name in ("best.yaml", "winner.png"):
            folder.delete(name)
        return {}
    network = network_picture.picture(f"the winner of {title}", winner.configuration.spec)
    return {"best.yaml": best_yaml(winner, title).encode(), "winner.png": png(network)}


def captioned(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The pictures among the files of a report by their captions, in the order of these."""
    return {caption: files[name] for name, caption in CAPTIONS.items() if name in files}


def write_side_by_side(searches: Mapping[str, Iterable[Record]], folder: Folder) -> list[str]:
    """Writes one table and one picture of several searches. A rank is the rank within a
    configuration's own search."""
    by_name = {name: list(records) for name, records in searches.items()}
    table = [
        {"search": name, **row}
        for name, records in by_name.items()
        for row in leaderboard_rows(records)
    ]
    return write_files(folder, tables(table) | {"pareto.png": pareto_png(by_name)})


def leaderboard_rows(records: Iterable[Record]) -> list[Row]:
    """Table of all configurations, the best first. `rank` is None for those not trained in full,
    whose `status` and `reason` say why. The ranking metric comes first, on the hold-out
    after the last epoch, and beside it `commonest`, that of always the commonest class."""
    return [
        _row(rank if record.ranks else None, record)
        for rank, record in enumerate(ranking(records), start=1)
    ]


def _row(rank: int | None, record: Record) -> Row:
    spec = record.configuration.spec
    return {
        "rank": rank,
        f"holdout_{record.metric.name}": record.value,
        "commonest": record.commonest,
        **({} if record.metric.name == "top1" else {"holdout_top1": record.top1}),
        "gmacs": record.gmacs,
        "params_m": record.params_m,
        "kind": record.kind,
        "is_deit": record.is_deit,
        **spec_columns(spec),
        "overrides": " ".join(f"{name}={value}" for name, value in record.overrides.items()),
        "epochs": record.epochs_done,
        "seconds": round(record.seconds, 1),
        "status": record.status,
        "reason": record.reason,
        "spec_id": spec.spec_id,
        "key": record.key,
        "run_id": record.run_id,
    }


def best_yaml(winner: Record, title: str) -> str:
    """The recipe of the winner, which `psvit train --arch best.yaml` trains again."""
    configuration, metric = winner.configuration, winner.metric
    heading = (
        f"The best PSViT of the search {title}: {winner.pattern}",
        f"{metric.text(metric.value_of(winner.score))} {metric.title} on the hold-out after "
        f"{winner.epochs_done} epochs",
        f"{winner.gmacs:.4g} GMACs, {winner.params_m:.4g} M parameters",
        f"configuration {winner.key}, MLflow run {winner.run_id or '-'}",
        "psvit train --arch best.yaml",
    )
    content = {
        "spec": configuration.spec.model_dump(mode="json"),
        "train": configuration.train.model_dump(mode="json"),
    }
    comments = "".join(f"# {printable(line)}\n" for line in heading)
    return comments + yaml.safe_dump(content, sort_keys=False)


def tables(table: list[Row]) -> dict[str, bytes]:
    """Content of `leaderboard.csv` and `leaderboard.json`."""
    return {
        "leaderboard.csv": table_csv(table),
        "leaderboard.json": json.dumps(table, indent=1, allow_nan=False).encode(),
    }
