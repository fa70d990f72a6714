"""The results of a search as a few lines for a terminal."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.search.record import Record, Status, best, best_deit, ranking
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets

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
        parts.append(aligned([_heading(unit), *lines]))
    parts += [_comparison_line(records), _next_steps(records, folder, tracking_uri)]
    return "\n\n".join(parts)


def side_by_side(searches: Mapping[str, Iterable[Record]]) -> str:
    """The best PSViT and the best DeiT of each search."""
    by_name = {name: list(records) for name, records in searches.items()}
    unit = MacsUnit.of([record for records in by_name.values() for record in records])
    lines = [["search", *_heading(unit)]]
    for name, records in by_name.items():
        ranked = [record for record in ranking(records) if record.ranks]
        winners = [record for record in (best(records), best_deit(records)) if record]
        lines += [[name, *_cells(ranked.index(record) + 1, record, unit)] for record in winners]
        if not winners:
            lines.append([name, *["-"] * len(_heading(unit))])
    return aligned(lines)


def count_statuses(records: Sequence[Record]) -> str:
    """Numbers of configurations trained in full, and of the others by status."""
    counts = Counter(record.status for record in records)
    parts = [f"{sum(record.ranks for record in records)} trained in full"]
    parts += [f"{counts[status]} {text}" for status, text in NOT_RANKED.items() if counts[status]]
    return ", ".join(parts)


def _heading(unit: MacsUnit) -> list[str]:
    return [
        "rank",
        "top-1 %",
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
        f"{record.top1:.2f}",
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


def _comparison_line(records: Sequence[Record]) -> str:
    winner, baseline = best(records), best_deit(records)
    if winner is None:
        return "No winner yet: no PSViT was trained in full."
    if winner.is_deit:
        return "A search of DeiTs alone."
    if baseline is None:
        return "No DeiT to compare with: none within the limits was trained in full."
    frugal = best(records, max_macs=baseline.macs) or winner
    errors = [100 - (record.top1 or 0.0) for record in (frugal, baseline)]
    return (
        f"Hold-out error: {errors[0]:.2f} % PSViT {frugal.pattern}, {errors[1]:.2f} % DeiT, at "
        f"{frugal.macs / baseline.macs:.2f} x its MACs. One seed each: compare over several."
    )


def _next_steps(records: Sequence[Record], folder: Folder, tracking_uri: str) -> str:
    storage, name = files.parent(folder)
    where = f"--storage {shlex.quote(str(storage))}"
    steps = [("All configurations", f"{folder / 'leaderboard.csv'}, pareto.png beside it")]
    if best(records):
        arch = shlex.quote(str(folder / "best.yaml"))
        steps += [
            ("Train the winner", f"psvit train --arch {arch} {where}"),
            ("Against DeiT", f"psvit compare --search {shlex.quote(name)} {where}"),
        ]
    steps.append(("MLflow", mlflow_command(tracking_uri)))
    return aligned([(f"{step}:", command) for step, command in steps])


def mlflow_command(tracking_uri: str) -> str:
    """Where to see the runs: a server's address, or the command that starts one."""
    shown = without_secrets(tracking_uri)
    is_server = shown.startswith(("http://", "https://"))
    return shown if is_server else f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
