"""Picture of the ROC and precision-recall curves of two classes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psvit_ray.report.evaluation.binary_curves import (
    GRID,
    BinaryResult,
    Curve,
    ThresholdResult,
)
from psvit_ray.report.pareto_picture import COLOURS, DEIT_COLOUR, new_figure
from psvit_ray.text.printable import printable


def picture(result: BinaryResult, title: str) -> Figure:
    """Picture with both curves, their 95 % intervals, and where the threshold lies on them."""
    figure = new_figure(10, 5)
    left, right = figure.subplots(1, 2)
    name, at_threshold = printable(result.class_name), result.at_threshold
    recall = f"answered {name}, of the images of {name} (recall), %"
    _draw(left, result.roc, "area under the curve")
    left.plot([0, 100], [0, 100], "--", color="grey", linewidth=1, label="answers by chance")
    _mark(left, at_threshold.false_positive_rate, at_threshold.recall, at_threshold)
    left.set_xlabel(f"answered {name}, of the other images, %")
    left.set_ylabel(recall)
    _draw(right, result.precision_recall, "average precision")
    chance = 100 * result.frequency
    right.axhline(chance, linestyle="--", color="grey", linewidth=1, label="answers by chance")
    if at_threshold.precision is not None:
        _mark(right, at_threshold.recall, at_threshold.precision, at_threshold)
    right.set_xlabel(recall)
    right.set_ylabel(f"right, of the answers {name} (precision), %")
    for axes in (left, right):
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower right", fontsize=8.5)
    right.legend(loc="lower left", fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _draw(axes: Axes, curve: Curve, area: str) -> None:
    low, high = (100 * end for end in curve.area_interval)
    x, y = (100 * values for values in curve.line)
    label = f"{area} {100 * curve.area:.1f} % ({low:.1f} to {high:.1f})"
    axes.plot(x, y, color=COLOURS[0], label=label)
    axes.fill_between(
        100 * GRID,
        100 * curve.low,
        100 * curve.high,
        color=COLOURS[3],
        alpha=0.35,
        linewidth=0,
        label="95 % interval",
    )


def _mark(axes: Axes, x: float, y: float, result: ThresholdResult) -> None:
    label = f"from a probability of {result.threshold:g} on"
    axes.plot([100 * x], [100 * y], "o", color=DEIT_COLOUR, label=label, zorder=4)
