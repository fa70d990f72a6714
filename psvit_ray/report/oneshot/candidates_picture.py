"""Picture of the candidates of a one-shot search, and of the trained finalists, against cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report.macs_unit import MacsUnit
from psvit_ray.report.pareto_picture import (
    COLOURS,
    DEIT_COLOUR,
    below_label,
    new_figure,
    score_floor,
    style_axes,
    style_cost_axis,
)
from psvit_ray.search.oneshot.finalists import Finalist
from psvit_ray.search.oneshot.scores import Score, pareto_scores, rank_scores, ranking_metric
from psvit_ray.search.record import Kind
from psvit_ray.training.results import RANKING

LABEL_OFFSETS = ((0, 1), (-0.8, 0.7), (0.8, 0.7), (-1, 0), (1, 0), (0, -1))
"""Places around a point where its number may stand, in widths and heights of the number."""
LATER_DARKER = ListedColormap(colormaps["viridis_r"](np.linspace(0.15, 1, 256)))
MARKERS = "D^vP*X<>"
STYLES: dict[Kind, tuple[str, str, str, float]] = {
    "finalist": ("PSViT from scratch", "o", COLOURS[0], -3.5),
    "finetuned": ("PSViT fine-tuned", "^", COLOURS[2], 3.5),
    "baseline": ("DeiT", "s", DEIT_COLOUR, 0.0),
}
"""Name, marker, colour, and offset in points of each kind, so that the kinds of one spec do not
hide each other."""


def picture(
    scores: Sequence[Score],
    finalists: Sequence[Finalist],
    marked: Mapping[str, ArchSpec],
    *,
    title: str,
) -> Figure:
    """Picture with every candidate's score with the supernet's weights below and, on an axis of its
    own above, that of the trained finalists and DeiT. A finalist's number is its rank as a
    candidate."""
    trained = [finalist for finalist in finalists if finalist.runs]
    unit = MacsUnit.of([*scores, *trained])
    ranks = {score.spec: rank for rank, score in enumerate(rank_scores(scores), start=1)}
    psvits = {finalist.spec for finalist in finalists if finalist.kind != "baseline"}
    chosen = [score for score in scores if score.spec in psvits]
    figure = new_figure(8, 9 if trained else 5.5)
    if trained:
        above, axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        _draw_trained(above, trained, unit)
        above.set_title("trained on their own, mean ± sd over seeds", loc="left", fontsize=9)
        style_axes(above, trained[0].runs[0].metric)
    else:
        axes = figure.add_subplot()
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    if scores:
        must = [s.score for s in scores if s.spec in {*psvits, *marked.values()}]
        _draw_scores(figure, axes, scores, unit, must)
        _draw_marks(axes, scores, marked, unit)
        _ring(axes, chosen, unit)
        heading = f"{len(scores):,} candidates with the supernet's weights"
        axes.set_title(heading, loc="left", fontsize=9)
    else:
        axes.text(0.5, 0.5, "no candidate is scored yet", ha="center", transform=axes.transAxes)
    if scores or trained:
        style_cost_axis(axes, [*scores, *trained], unit)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    axes.set_xlabel(f"{unit.name} of one image")
    style_axes(axes, ranking_metric(scores))
    figure.draw_without_rendering()  # lays it out: numbers are placed where there is room
    _write_ranks(axes, [(ranks[score.spec], unit.value(score), score.score) for score in chosen])
    if trained:
        best = {
            finalist.spec: finalist
            for finalist in reversed(trained)
            if finalist.spec in ranks and finalist.score
        }
        tops = [
            (ranks[spec], unit.value(finalist), _top(finalist)) for spec, finalist in best.items()
        ]
        _write_ranks(above, tops)
    return figure


def _top(finalist: Finalist) -> float:
    """Upper end of a finalist's error bar."""
    return finalist.score.mean + (finalist.score.sd or 0.0) if finalist.score else 0.0


def _draw_trained(axes: Axes, trained: Sequence[Finalist], unit: MacsUnit) -> None:
    for kind, (name, marker, colour, aside) in STYLES.items():
        of_kind = [finalist for finalist in trained if finalist.kind == kind]
        if not of_kind:
            continue
        means = [finalist.score for finalist in of_kind if finalist.score]
        axes.errorbar(
            [unit.value(finalist) for finalist in of_kind],
            [mean.mean for mean in means],
            yerr=[mean.sd or 0.0 for mean in means],
            fmt=marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            capsize=3,
            transform=offset_copy(
                axes.transData, fig=axes.get_figure(root=True), x=aside, units="points"
            ),
            label=f"{name}, {_seeds([mean.n for mean in means])}",
            zorder=3,
        )
        for finalist, mean in zip(
            of_kind, means, strict=True
        ):  # matplotlib omits what is moved aside
            ends = (mean.mean - (mean.sd or 0.0), mean.mean + (mean.sd or 0.0))
            axes.update_datalim([(unit.value(finalist), end) for end in ends])
    axes.margins(y=0.15)  # room for the numbers


def _seeds(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' * (high > 1)}"


def _draw_scores(
    figure: Figure, axes: Axes, scores: Sequence[Score], unit: MacsUnit, must: Sequence[float]
) -> None:
    floor = score_floor([score.score for score in scores], must)
    below = [score for score in scores if score.score < floor]
    inside = sorted((score for score in scores if score.score >= floor), key=lambda s: s.generation)
    dots = axes.scatter(
        [unit.value(score) for score in inside],
        [score.score for score in inside],
        c=[score.generation for score in inside],
        cmap=LATER_DARKER,
        s=14,
        alpha=0.5,
        linewidths=0,
    )
    if len({score.generation for score in inside}) > 1:
        bar = figure.colorbar(dots, ax=axes, label="generation", pad=0.01, fraction=0.04)
        bar.locator = MaxNLocator(integer=True)
    if below:
        axes.scatter(
            [unit.value(score) for score in below],
            [floor] * len(below),
            marker="v",
            s=14,
            color="grey",
            alpha=0.5,
            label=f"{len(below):,} {below_label(RANKING[below[0].metric], floor)}",
        )
    front = pareto_scores(inside)
    axes.plot(
        [unit.value(score) for score in front],
        [score.score for score in front],
        drawstyle="steps-post",
        color="black",
        linewidth=1,
        label="Pareto front",
    )


def _draw_marks(
    axes: Axes, scores: Iterable[Score], marked: Mapping[str, ArchSpec], unit: MacsUnit
) -> None:
    by_spec = {score.spec: score for score in scores}
    for number, (name, spec) in enumerate(marked.items()):
        if score := by_spec.get(spec):
            axes.scatter(
                [unit.value(score)],
                [score.score],
                marker=MARKERS[number % len(MARKERS)],
                s=60,
                color=DEIT_COLOUR if spec.is_deit else COLOURS[3],
                edgecolors="black",
                linewidths=0.8,
                zorder=4,
                label=f"{name}: {RANKING[score.metric].text(score.value)}",
            )


def _ring(axes: Axes, chosen: Sequence[Score], unit: MacsUnit) -> None:
    if chosen:
        axes.scatter(
            [unit.value(score) for score in chosen],
            [score.score for score in chosen],
            s=110,
            facecolors="none",
            edgecolors=COLOURS[0],
            linewidths=1.5,
            zorder=5,
            label="finalist, with its rank here",
        )


def _write_ranks(axes: Axes, points: Sequence[tuple[int, float, float]]) -> None:
    """Writes ranks at points (rank, x, y): around each point, where no other number stands and no
    other point is nearer; above it if there is no such place."""
    to_points = 72 / axes.figure.dpi
    places = {
        rank: tuple(axes.transData.transform((x, y)) * to_points) for rank, x, y in sorted(points)
    }
    taken: list[tuple[float, float]] = []
    for rank, x, y in sorted(points):
        width, height = 7.0 * len(str(rank)) + 11, 12.0
        others = [place for other, place in places.items() if other != rank]
        spots = [(a * width, b * height) for a, b in LABEL_OFFSETS]
        ends = [(places[rank][0] + aside, places[rank][1] + up) for aside, up in spots]
        free = [
            not any(abs(c - e[0]) < width and abs(d - e[1]) < height for c, d in taken)
            and not any(math.dist(e, other) < math.dist(e, places[rank]) for other in others)
            for e in ends
        ]
        chosen = free.index(True) if any(free) else 0
        taken.append(ends[chosen])
        axes.annotate(
            f"#{rank}",
            (x, y),
            xytext=spots[chosen],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=COLOURS[0],
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=6,
        )
