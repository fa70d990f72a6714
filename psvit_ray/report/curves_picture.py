"""Picture of the scores of all configurations of a search by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psvit_ray.report.pareto_picture import (
    COLOURS,
    DEIT_COLOUR,
    new_figure,
    score_floor,
    style_axes,
)
from psvit_ray.search.record import Record, best, best_deit, ranked_by

STOPPED_COLOUR = "0.6"
FAILED_COLOUR = "#CC3311"


def picture(records: Sequence[Record], *, title: str) -> Figure:
    """Picture with a line for each configuration that reported an epoch. A cross ends the line of
    one that was not trained in full, at the lower edge where it lies below; the best PSViT and the
    best DeiT have wide lines."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    shown = [record for record in records if _scores(record)]
    marked = {
        record.key: name
        for name, record in (("best PSViT", best(shown)), ("best DeiT", best_deit(shown)))
        if record
    }
    if shown:
        # Not down to the first epochs, which would press all others against the top.
        ends, everything = [_scores(r)[-1] for r in shown], [s for r in shown for s in _scores(r)]
        floor = score_floor(ends, [record.score for record in shown if record.key in marked])
        bottom, top = max(floor - (max(ends) - floor), min(everything)), max(everything)
        margin = 0.05 * (top - bottom) or 1.0
        axes.set_ylim(bottom - margin, top + margin)
        for record in sorted(shown, key=lambda record: (record.ranks, record.key in marked)):
            _draw(axes, record, marked.get(record.key, ""), bottom)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "no epoch is reported yet", ha="center", transform=axes.transAxes)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    style_axes(axes, ranked_by({title: shown}))
    return figure


def _scores(record: Record) -> list[float]:
    """Finite scores by epoch."""
    return [score for _, score in _points(record)]


def _points(record: Record) -> list[tuple[int, float]]:
    """Epochs whose metrics are numbers, and their scores."""
    return [
        (point.epoch, record.score_at(point))
        for point in record.curve
        if math.isfinite(point.metrics.get(record.metric.key, math.nan))
    ]


def _draw(axes: Axes, record: Record, mark: str, bottom: float) -> None:
    known = axes.get_legend_handles_labels()[1]
    kind = "DeiT" if record.is_deit else "PSViT"
    colour, label = (DEIT_COLOUR if record.is_deit else COLOURS[0]), f"{kind}, trained in full"
    if record.status == "failed":
        colour, label = FAILED_COLOUR, "failed"
    elif record.status != "completed":
        colour, label = (
            STOPPED_COLOUR,
            "stopped early" if record.status == "stopped" else "not done",
        )
    if mark:
        label = f"{mark}: {record.metric.text(record.metric.value_of(record.score))}"
    points = _points(record)
    axes.plot(
        *zip(*points, strict=True),
        color=colour,
        linewidth=2.5 if mark else 1,
        alpha=1 if mark else 0.6,
        label=None if label in known else label,
        gid=record.key,
        zorder=4 if mark else 3,
    )
    if not record.ranks:
        epoch, score = points[-1]
        axes.plot(epoch, max(score, bottom), "x", color=colour, markersize=5, alpha=0.8, zorder=3)
