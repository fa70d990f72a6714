"""Sheet of the images of the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from psvit_ray.report.evaluation.evaluation_picture import short_name
from psvit_ray.report.evaluation.metrics import LabelledPredictions, confused_classes
from psvit_ray.report.pareto_picture import new_figure

MAX_PAIRS, MAX_IMAGES = 8, 10
"""Rows and columns of the sheet."""
SIDE = 160
"""Longer side of an image on the sheet, in pixels."""


@dataclass(frozen=True)
class Mistake:
    """Images of one class that were taken for another."""

    label: int
    prediction: int
    count: int
    """Number of such images."""
    images: list[int]
    """Indices of the surest of them, the surest first."""


def mistakes(answers: LabelledPredictions) -> list[Mistake]:
    """The most frequent mistakes, the most frequent first."""
    frequent = []
    for label, prediction, count in confused_classes(answers, MAX_PAIRS):
        members = np.flatnonzero((answers.labels == label) & (answers.predictions == prediction))
        order = np.argsort(-answers.confidences[members], kind="stable")[:MAX_IMAGES]
        frequent.append(Mistake(label, prediction, count, members[order].tolist()))
    return frequent


def picture(
    answers: LabelledPredictions, image_of: Callable[[int], Image.Image], title: str
) -> Figure:
    """Picture with a row for each of the most frequent mistakes; below each image stands the
    probability of the wrong answer. `image_of` gives an image by its index."""
    rows = mistakes(answers)
    columns = max([len(row.images) for row in rows], default=1)
    figure = new_figure(2.2 + 1.1 * max(columns, 5), 0.6 + 1.35 * max(len(rows), 1))
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    if not rows:
        figure.text(0.5, 0.5, "no image is taken for one of another class", ha="center")
        return figure
    panels = figure.subplots(
        len(rows), columns + 1, squeeze=False, width_ratios=[1.6] + [1] * columns
    )
    for axes in panels.flat:
        axes.axis("off")
    for mistake, (first, *others) in zip(rows, panels, strict=True):
        label, prediction = (
            short_name(answers.class_names[n]) for n in (mistake.label, mistake.prediction)
        )
        text = f"{label}\nas {prediction}\n{mistake.count:,} images"
        first.text(0, 0.5, text, va="center", fontsize=9, transform=first.transAxes)
        for axes, index in zip(others, mistake.images, strict=False):
            image = image_of(index)
            image.thumbnail((SIDE, SIDE))
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{100 * answers.confidences[index]:.0f} %", fontsize=8, y=-0.22)
    return figure
