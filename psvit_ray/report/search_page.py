"""What the page of a search in MLflow says: its description in Markdown, and its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from psvit_ray.arch.census import wilson_interval
from psvit_ray.report.summary import comparison_line, count_statuses, winner_steps
from psvit_ray.search.record import FINAL_STATUSES, Record, best_deit
from psvit_ray.storage.folder import Folder
from psvit_ray.text import markdown

RESULTS = (".csv", ".html", ".png", ".yaml", ".parquet")
"""Endings of the files that a search leaves for people."""


def begun(folder: Folder, links: Mapping[str, str]) -> str:
    """The description of a search that is under way."""
    return f"{_links(links)}\n\nUnder way in {markdown.code(folder)}."


def ended(
    records: Sequence[Record],
    winner: Record | None,
    folder: Folder,
    links: Mapping[str, str],
    *,
    holdout_size: int,
    tracking_uri: str,
) -> str:
    """The description of a search: winner, DeiT, their intervals, and commands that go on.

    Args:
        holdout_size: Number of images that the ranking metric is measured on.
    """
    parts = [_links(links)]
    for name, record in (("Winner", winner), ("Best DeiT", best_deit(records))):
        if record and record.value is not None:
            parts.append(f"**{name}**: {_result(record, record.value, holdout_size)}")
    parts += [
        markdown.text(comparison_line(records)),
        f"{len(records)} configurations: {count_statuses(records)}. To see those trained in full "
        "alone, add ``and tags.`psvit.status` = 'completed'`` to the filter of the table.",
    ]
    if winner:
        steps = winner_steps(winner, folder, tracking_uri)
        parts.append("\n".join(f"- {step}: {markdown.code(command)}" for step, command in steps))
    return "\n\n".join(part for part in parts if part)


def metrics(records: Sequence[Record], winner: Record | None) -> dict[str, float]:
    """Figures of the whole search."""
    counts = Counter(record.status for record in records)
    figures = {f"search/{status}": float(counts[status]) for status in FINAL_STATUSES}
    figures["search/hours_in_training"] = sum(record.seconds for record in records) / 3600
    for name, record in (("winner", winner), ("deit", best_deit(records))):
        if record and record.value is not None:
            measure = record.metric.name
            figures |= {
                f"{name}/holdout_{measure}": record.value,
                f"{name}/mmacs": record.macs / 1e6,
                f"{name}/params_m": record.params_m,
            }
            if record.test_value is not None:
                figures[f"{name}/test_{measure}"] = record.test_value
    return figures


def result_files(folder: Folder) -> list[str]:
    """Names of the tables, pictures and recipes that a search left."""
    return [name for name in folder.names() if name.endswith(RESULTS)]


def _links(links: Mapping[str, str]) -> str:
    return " · ".join(f"[{name}]({address})" for name, address in links.items())


def _result(record: Record, value: float, holdout_size: int) -> str:
    metric = record.metric
    return (
        f"{markdown.code(record.pattern)}, {metric.title} {metric.text(value)} on "
        f"{holdout_size:,} hold-out images{_interval(record, value, holdout_size)}, "
        f"{record.macs / 1e6:.3f} MMACs, {record.params_m:.3f} M parameters"
    )


def _interval(record: Record, value: float, holdout_size: int) -> str:
    """The 95 % interval of the ranking metric, by the number of hold-out images."""
    metric = record.metric
    if metric.name == "top1":
        low, high = wilson_interval(round(value / 100 * holdout_size), holdout_size)
        low, high = 100 * low, 100 * high
    elif record.error is not None:
        low, high = value - 1.96 * record.error, value + 1.96 * record.error
    else:
        return ""
    return f" (95 % interval {metric.number(low)} to {metric.number(high)})"
