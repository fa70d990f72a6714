"""Accuracy against cost, as a picture."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from psvit_ray.report.macs_unit import Costed, MacsUnit
from psvit_ray.report.summary import count_statuses
from psvit_ray.search.record import Record, best, best_deit, pareto, ranked_by
from psvit_ray.training.results import RankingMetric

COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000")  # told apart by the colour-blind
DEIT_COLOUR = "#D55E00"
LOG_SCALE_FROM = 4  # from this ratio of costs on, the axis is logarithmic


def pareto_png(searches: Mapping[str, Sequence[Record]]) -> bytes:
    """`picture` as PNG."""
    return png(picture(searches))


def picture(searches: Mapping[str, Sequence[Record]]) -> Figure:
    """Picture of all configurations trained in full in one search, or in several: PSViTs, DeiTs,
    and the Pareto front. The best are ringed; those stopped early stand faint where they
    stopped."""
    figure = new_figure(8, 5.5)
    axes = figure.add_subplot()
    ranked = {name: [r for r in records if r.ranks] for name, records in searches.items()}
    stopped = {name: [r for r in records if _stopped(r)] for name, records in searches.items()}
    shown = [record for records in ranked.values() for record in records]
    drawn = [*shown, *(record for records in stopped.values() for record in records)]
    unit = MacsUnit.of(drawn)
    metric = ranked_by(searches)
    must = [record.score for record in [best(shown), best_deit(shown)] if record]
    floor = score_floor([record.score for record in shown], must)
    for number, (name, records) in enumerate(ranked.items()):
        search = name if len(ranked) > 1 else ""
        colour = COLOURS[number % len(COLOURS)]
        _draw_stopped(axes, stopped[name], unit, floor if shown else -math.inf, colour)
        _draw(axes, records, unit, floor, colour, search)
    if drawn:
        style_cost_axis(axes, drawn, unit)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    else:
        axes.text(
            0.5, 0.5, "nothing was trained in full yet", ha="center", transform=axes.transAxes
        )
    axes.set_title(_title(searches), loc="left", fontsize=11)
    axes.set_xlabel(f"{unit.name} of one image")
    style_axes(axes, metric)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, metric: RankingMetric) -> None:
    """Sets label, ticks, grid and spines of an axis of scores: better is higher, and a loss is
    named as it is."""
    axes.set_ylabel(f"hold-out {metric.title}" + (f",{metric.unit}" if metric.unit else ""))
    axes.yaxis.set_major_formatter(
        FuncFormatter(
            lambda score, _: f"{metric.value_of(score):g}" if score <= metric.highest else ""
        )
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    image = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar in the name of a class
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in other scripts
        figure.savefig(image, format="png")
    return image.getvalue()


def score_floor(scores: Sequence[float], must: Iterable[float] = ()) -> float:
    """Lowest score with a place of its own in the picture: a few configurations that learned
    nothing would press all others against the top. It is at most the lowest of `must`."""
    if not scores:
        return 0.0
    floor = max(scores) - 3 * (max(scores) - median(scores))
    return min([floor if max(scores) > median(scores) else min(scores), *must])


def below_label(metric: RankingMetric, floor: float) -> str:
    """Label of what is drawn at the floor, as it has no place of its own."""
    return f"{'below' if metric.sign > 0 else 'above'} {metric.value_of(floor):.3g}{metric.unit}"


def _stopped(record: Record) -> bool:
    """Whether a record was stopped early, after an epoch that was measured."""
    return record.status == "stopped" and record.value is not None


def _draw_stopped(
    axes: Axes, stopped: Sequence[Record], unit: MacsUnit, floor: float, colour: str
) -> None:
    """Draws configurations that were stopped early, faint."""
    for is_deit, is_below in itertools.product((False, True), repeat=2):
        drawn = [r for r in stopped if (r.is_deit, r.score < floor) == (is_deit, is_below)]
        if drawn:
            x, y = _points(drawn, unit)
            label = f"stopped early, {below_label(drawn[0].metric, floor)}"
            axes.scatter(
                x,
                [floor] * len(x) if is_below else y,
                marker="v" if is_below else "s" if is_deit else "o",
                s=22,
                facecolors="none",
                edgecolors=DEIT_COLOUR if is_deit else colour,
                alpha=0.4,
                label=_new_label(axes, label if is_below else "stopped early, where it stopped"),
                gid="stopped",
            )


def _draw(
    axes: Axes, ranked: Sequence[Record], unit: MacsUnit, floor: float, colour: str, search: str
) -> None:
    """Draws the configurations of a search. `search` is empty where there is only one, which can be
    described at more length."""
    front = [record for record in pareto(ranked) if record.score >= floor]
    if len(front) > 1:
        x, y = _points(front, unit)
        label = _new_label(axes, "Pareto front")
        axes.plot(x, y, drawstyle="steps-post", color=colour, alpha=0.5, linewidth=1.2, label=label)
    for is_deit, marker, fill, size in ((False, "o", colour, 45), (True, "s", DEIT_COLOUR, 50)):
        edge = colour if is_deit and search else "white"
        style: dict[str, Any] = {"color": fill, "edgecolors": edge, "linewidths": 0.8, "zorder": 3}
        of_kind = [record for record in ranked if record.is_deit == is_deit]
        inside = [record for record in of_kind if record.score >= floor]
        below = [record for record in of_kind if record.score < floor]
        if inside:
            label = _new_label(axes, "DeiT" if is_deit else search or "PSViT")
            axes.scatter(*_points(inside, unit), marker=marker, s=size, label=label, **style)
        if below:
            x, _ = _points(below, unit)
            label = _new_label(axes, below_label(below[0].metric, floor))
            style["alpha"] = 0.4
            axes.scatter(x, [floor] * len(x), marker="v", s=30, label=label, **style)
    winner, deit = best(ranked), best_deit(ranked)
    if winner and winner is not deit:
        _mark(axes, winner, unit, "" if search else "best PSViT", colour, above=True)
    if deit:
        _mark(axes, deit, unit, "" if search else "best DeiT", DEIT_COLOUR, above=False)


def _new_label(axes: Axes, label: str) -> str | None:
    """The label, or None if the legend has it already."""
    return None if label in axes.get_legend_handles_labels()[1] else label


def _points(records: Sequence[Record], unit: MacsUnit) -> tuple[list[float], list[float]]:
    return [unit.value(record) for record in records], [record.score for record in records]


def _mark(
    axes: Axes, record: Record, unit: MacsUnit, name: str, colour: str, *, above: bool
) -> None:
    spec = record.configuration.spec
    architecture = record.pattern if len(record.pattern) <= 24 else f"{spec.depth} layers"
    cost = f"{unit.value(record):.3g} {unit.name}"
    x, y = unit.value(record), record.score
    value = record.metric.text(record.metric.value_of(y))
    axes.scatter(
        [x],
        [y],
        marker="o",
        s=150,
        facecolors="none",
        edgecolors=colour,
        linewidths=1.5,
        zorder=4,
        label=f"{name}: {value}, {architecture}, patch {spec.patch_size}, {cost}" if name else None,
    )
    axes.annotate(
        value,
        (x, y),
        xytext=(0, 10 if above else -10),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=10,
        fontweight="bold",
        color=colour,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=5,
    )


def style_cost_axis(axes: Axes, shown: Iterable[Costed], unit: MacsUnit) -> None:
    """Scales the axis of costs, logarithmically where they differ by more than a factor of 4."""
    costs = [unit.value(item) for item in shown]
    if max(costs) > LOG_SCALE_FROM * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.15)  # room for the labels


def _title(searches: Mapping[str, Sequence[Record]]) -> str:
    records = [record for several in searches.values() for record in several]
    return f"{', '.join(searches)}: {count_statuses(records)}"
