"""The results of a search as a few lines for a terminal."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from psvit_ray.export.measures import commonest_measures
from psvit_ray.report.html_page import HTML
from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.search.record import Record, Status, best, best_deit, ranked_by, ranking
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.results import RANKING, MetricName, RankingMetric

MAX_ROWS = 10
NOT_RANKED: dict[Status, str] = {
    "stopped": "stopped early",
    "failed": "failed",
    "interrupted": "to be resumed",
    "running": "running",
    "pending": "waiting",
}


def summary(records: Iterable[Record], folder: Folder, tracking_uri: str) -> str:
    """The best configurations, DeiT beside them, and the commands for what comes next."""
    records = list(records)
    parts = [f"{len(records)} configurations: {count_statuses(records)}"]
    ranked = [record for record in ranking(records) if record.ranks]
    if ranked:
        shown = list(enumerate(ranked, start=1))[:MAX_ROWS]
        baseline = best_deit(records)
        if baseline and all(record is not baseline for _, record in shown):
            shown.append((ranked.index(baseline) + 1, baseline))
        unit = MacsUnit.of(records)
        lines = [_cells(rank, record, unit) for rank, record in shown]
        parts.append(aligned([_heading(unit, ranked[0].metric), *lines]))
        values = [record.value for record in ranked[:2] if record.value is not None]
        error = max(record.error or 0.0 for record in ranked[:2])
        notes = commonest_line(ranked), tie_warning(ranked[0].metric, values, error)
        parts += [note for note in notes if note]
    parts += [comparison_line(records), _next_steps(records, folder, tracking_uri)]
    return "\n\n".join(parts)


def side_by_side(searches: Mapping[str, Iterable[Record]]) -> str:
    """The best PSViT and the best DeiT of each search."""
    by_name = {name: list(records) for name, records in searches.items()}
    unit = MacsUnit.of([record for records in by_name.values() for record in records])
    heading = _heading(unit, ranked_by(by_name))
    lines = [["search", *heading]]
    for name, records in by_name.items():
        ranked = [record for record in ranking(records) if record.ranks]
        winners = [record for record in (best(records), best_deit(records)) if record]
        lines += [[name, *_cells(ranked.index(record) + 1, record, unit)] for record in winners]
        if not winners:
            lines.append([name, *["-"] * len(heading)])
    return aligned(lines)


def count_statuses(records: Sequence[Record]) -> str:
    """Numbers of configurations trained in full, and of the others by status."""
    counts = Counter(record.status for record in records)
    parts = [f"{sum(record.ranks for record in records)} trained in full"]
    parts += [f"{counts[status]} {text}" for status, text in NOT_RANKED.items() if counts[status]]
    return ", ".join(parts)


def ranking_note(metric_name: MetricName, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """What a search ranks by, and what always the commonest class of the hold-out, of which
    `labels` (N,) are the classes, comes to."""
    metric = RANKING[metric_name]
    value = metric.text(commonest_measures(labels, len(class_names))[metric.name])
    answer = f"always {class_names[int(np.bincount(labels).argmax())]!r}"
    if metric.name == "loss":
        answer = "the classes' frequencies"
    return (
        f"ranked by {metric.title} on the {len(labels):,} images of the hold-out, on which "
        f"{answer} as answer has {value}"
    )


def commonest_line(records: Sequence[Record]) -> str:
    """What is reached by answering always with the commonest class, beside which scores stand;
    empty where it is not known."""
    known = [(r.metric, r.commonest) for r in records if r.commonest is not None]
    if not known:
        return ""
    metric, value = known[0]
    answer = "With the classes' frequencies" if metric.name == "loss" else "Always the commonest"
    return f"{answer} as answer: {metric.text(value)} hold-out {metric.title}."


def tie_warning(metric: RankingMetric, best_two: Sequence[float], error: float) -> str:
    """A warning where the best two values differ by no more than the hold-out's standard error, or
    an empty string. `error` is 0 where it is not known, as in records of older versions."""
    if len(best_two) < 2 or not error or abs(best_two[0] - best_two[1]) > error:
        return ""
    gap = metric.difference(abs(best_two[0] - best_two[1]))
    return (
        f"Warning: the hold-out does not tell the best two apart: their {metric.title} differs by "
        f"{gap}, its standard error is {metric.difference(error)}. A larger --holdout, or more "
        "seeds, tell more."
    )


def _heading(unit: MacsUnit, metric: RankingMetric) -> list[str]:
    return [
        "rank",
        metric.label,
        unit.name,
        "M params",
        "kind",
        "pattern",
        "patch",
        "widths",
        "searched",
    ]


def _cells(rank: int, record: Record, unit: MacsUnit) -> list[str]:
    spec = record.configuration.spec
    return [
        str(rank),
        "-" if record.value is None else record.metric.number(record.value),
        f"{unit.value(record):#.3g}",
        f"{record.params_m:#.3g}",
        "DeiT" if record.is_deit else f"PSViT-{spec.pooling.upper()}",
        spec.pattern,
        str(spec.patch_size),
        "|".join(str(stage.embed_dim) for stage in spec.stages),
        " ".join(f"{name}={value}" for name, value in record.overrides.items()),
    ]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as aligned columns: numbers to the right, text to the left. Characters that a
    terminal would act on are written out."""
    lines = [[printable(cell) for cell in line] for line in lines]
    columns = list(zip(*lines, strict=True))
    width = [max(map(display_width, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            " " * (n - display_width(cell)) + cell
            if to_right
            else cell + " " * (n - display_width(cell))
            for cell, n, to_right in zip(line, width, right, strict=True)
        ).rstrip()
        for line in lines
    )


def display_width(text: str) -> int:
    """Number of a terminal's columns that a text takes: two for a letter of East Asia."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit() or cell in ("", "-")


def comparison_line(records: Sequence[Record]) -> str:
    """The winner's result beside DeiT's."""
    winner, baseline = best(records), best_deit(records)
    if winner is None:
        return "No winner yet: no PSViT was trained in full."
    if winner.is_deit:
        return "A search of DeiTs alone."
    if baseline is None:
        return "No DeiT to compare with: none within the limits was trained in full."
    frugal = best(records, max_macs=baseline.macs) or winner
    metric = winner.metric
    values = [metric.value_of(record.score) for record in (frugal, baseline)]
    name = metric.title
    if metric.name == "top1":  # near 100 %, errors say more
        name, values = "error", [100 - value for value in values]
    psvit, deit = map(metric.text, values)
    return (
        f"Hold-out {name}: {psvit} PSViT {frugal.pattern}, {deit} DeiT, at "
        f"{frugal.macs / baseline.macs:.2f} x its MACs. One seed each: compare over several."
    )


def _next_steps(records: Sequence[Record], folder: Folder, tracking_uri: str) -> str:
    steps = [
        ("Report", str(folder / HTML)),
        ("All configurations", str(folder / "leaderboard.csv")),
    ]
    if winner := best(records):
        steps += winner_steps(winner, folder, tracking_uri)
    steps.append(("MLflow", mlflow_command(tracking_uri)))
    return aligned([(f"{step}:", command) for step, command in steps])


def winner_steps(winner: Record, folder: Folder, tracking_uri: str) -> list[tuple[str, str]]:
    """Commands for the winner of the search in `folder`, in their order, each with what it is for.
    Each leaves beside the search what the next one takes."""
    storage, name = files.parent(folder)
    trained, model = f"{name}-winner", storage / f"{name}-model"
    data = without_secrets(winner.configuration.train.data)
    place = {"--storage": str(storage)}
    if without_secrets(tracking_uri) == tracking_uri and not tracking_uri.endswith(
        f"{storage}/mlflow.db"
    ):
        place["--tracking-uri"] = tracking_uri
    on_data = {"--model": str(model), "--data": data}
    run, arch = str(storage / trained), str(folder / "best.yaml")
    evaluation, answers = storage / f"{name}-evaluation", storage / f"{name}-predictions.csv"
    steps = [
        ("Train the winner", command("train", {"--arch": arch, "--name": trained} | place)),
        ("Against DeiT", command("compare", {"--search": name} | place)),
        ("Make it a model", command("export", {"--run": run, "--out": str(model)})),
        ("Score the model", command("evaluate", {**on_data, "--out": str(evaluation)})),
    ]
    if "/" in data and not data.startswith("torchvision"):
        steps.append(("Classify images", command("predict", {**on_data, "--out": str(answers)})))
    return steps


def command(name: str, flags: Mapping[str, str]) -> str:
    """A command of this package, as it is typed into a shell."""
    return shlex.join(["psvit", name, *(word for flag in flags.items() for word in flag)])


def mlflow_command(tracking_uri: str) -> str:
    """Where to see the runs: a server's address, or the command that starts one."""
    shown = without_secrets(tracking_uri)
    is_server = shown.startswith(("http://", "https://"))
    return shown if is_server else f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
