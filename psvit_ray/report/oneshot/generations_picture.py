"""Picture of a one-shot search's progress."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psvit_ray.report.pareto_picture import COLOURS, new_figure, style_axes
from psvit_ray.search.oneshot.scores import Generation
from psvit_ray.training.results import RankingMetric


def picture(generations: Sequence[Generation], *, title: str, metric: RankingMetric) -> Figure:
    """Picture of the ranking metric with the supernet's weights by generation."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    if generations:
        x = [generation.number for generation in generations]
        axes.fill_between(
            x,
            [metric.score(generation.quartiles[0]) for generation in generations],
            [metric.score(generation.quartiles[2]) for generation in generations],
            color=COLOURS[3],
            alpha=0.35,
            linewidth=0,
            label="middle half of a generation",
        )
        axes.plot(
            x,
            [metric.score(generation.quartiles[1]) for generation in generations],
            color=COLOURS[0],
            label="its median",
        )
        axes.plot(
            x,
            [metric.score(generation.best) for generation in generations],
            "o",
            color=COLOURS[1],
            label="its best",
        )
        axes.plot(
            x,
            [metric.score(generation.best_so_far) for generation in generations],
            drawstyle="steps-post",
            color="black",
            linewidth=1,
            label=f"best so far, {metric.text(generations[-1].best_so_far)} at the end",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "no candidate is scored yet", ha="center", transform=axes.transAxes)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("generation")
    style_axes(axes, metric)
    return figure
