"""Pictures of a network's mistakes and its confidence."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from psvit_ray.report.evaluation.metrics import (
    LabelledPredictions,
    calibration_error,
    confused_pairs,
    metrics,
    reliability,
)
from psvit_ray.report.pareto_picture import png
from psvit_ray.text.printable import printable

MAX_CLASSES_NAMED = 40
"""Largest number of classes whose names fit beside the cells."""
MAX_CLASSES_COUNTED = 25
"""Largest number of classes whose counts fit into the cells."""
MAX_PAIRS = 12
MAX_NAME_LENGTH = 24
COLOUR = "#0072B2"


def confusion_png(answers: LabelledPredictions, title: str) -> bytes:
    """Confusion matrix as PNG: a row for each label, in shares of its images, so that rare classes
    are seen. With few classes it has their names and counts, with many the most frequent mistakes
    beside it."""
    counts = answers.confusion()
    if not counts[:, -1].any():
        counts = counts[:, :-1]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(answers.class_names)
    side = min(4.5 + 0.32 * size, 12)
    dpi = 150 if size <= 300 else 300  # a cell of 1,000 classes is 2 or 3 pixels wide
    figure = Figure(figsize=(side + 3.4, side), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside = figure.subplots(1, 2, width_ratios=(side, 2.2))
    # Not in proportion: a mistake of 1 % is seen beside a diagonal of 90 %.
    scale = PowerNorm(0.5 if size <= MAX_CLASSES_NAMED else 0.3, 0, 100)
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
    _name_classes(axes, answers, counts.shape[1] > size)
    if size <= MAX_CLASSES_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 35 else "black"
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=7
                )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    figure.colorbar(image, ax=axes, label="% of the label's images", fraction=0.03, pad=0.01)
    beside.axis("off")
    beside.text(0, 1, _mistakes(answers), va="top", fontsize=8, transform=beside.transAxes)
    return png(figure)


def reliability_png(answers: LabelledPredictions, title: str) -> bytes:
    """Reliability diagram as PNG: accuracy against confidence, and the number of images by
    confidence."""
    figure = Figure(figsize=(5.5, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    if answers.readable.any():
        bins = reliability(answers)
        middle = [50 * (bin_.low + bin_.high) for bin_ in bins]
        width = 96 / len(bins)
        axes.bar(
            middle,
            [100 * bin_.accuracy for bin_ in bins],
            width,
            color=COLOUR,
            label="right, of the images of a bin",
        )
        axes.plot(
            [100 * bin_.confidence for bin_ in bins if bin_.count],
            [100 * bin_.accuracy for bin_ in bins if bin_.count],
            "o",
            color="black",
            markersize=4,
            label="at the mean probability of its images",
        )
        below.bar(middle, [bin_.count for bin_ in bins], width, color="grey")
        title += f"\nexpected calibration error {100 * calibration_error(bins):.2f} %"
    axes.plot([0, 100], [0, 100], "--", color="black", linewidth=1, label="as sure as right")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel("right, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    below.set_xlabel("probability of the prediction, %")
    below.set_ylabel("images")
    for panel in (axes, below):
        panel.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _name_classes(axes: Axes, answers: LabelledPredictions, unreadable: bool) -> None:
    size = len(answers.class_names)
    if size > MAX_CLASSES_NAMED:
        if unreadable:
            axes.set_xticks([*axes.get_xticks()[1:-1], size], None)
        axes.xaxis.set_major_formatter(
            lambda tick, _: "unreadable" if tick == size else f"{tick:g}"
        )
        return
    names = [short_name(name) for name in answers.class_names]
    axes.set_yticks(range(size), names, fontsize=7)
    columns = [*names, "(unreadable)"] if unreadable else names
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)


def _mistakes(answers: LabelledPredictions) -> str:
    numbers = metrics(answers)
    wrong = numbers["images"] - numbers["correct"]
    lines = [f"{numbers['images']:,} images, {wrong:,} wrong"]
    if numbers["unreadable"]:
        lines.append(f"of these {numbers['unreadable']:,} unreadable")
    pairs = confused_pairs(answers, MAX_PAIRS)
    if pairs:
        lines += ["", "most frequent mistakes:"]
    for label, prediction, count in pairs:
        lines += ["", f"{count:,}  {short_name(label)}", f"     as {short_name(prediction)}"]
    return "\n".join(lines)


def short_name(name: str) -> str:
    """The name of a class, cut where it has no room in a picture."""
    name = printable(name)
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"
