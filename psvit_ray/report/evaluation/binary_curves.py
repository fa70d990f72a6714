"""ROC and precision-recall of two classes, with confidence intervals.

The positive class is the rarer one. An image that cannot be read is as wrong as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from psvit_ray.arch.census import wilson_interval
from psvit_ray.export.measures import rarer_class
from psvit_ray.report.evaluation.metrics import LabelledPredictions, metrics

USUAL_THRESHOLD = 0.5
RESAMPLES = 200
GRID = np.linspace(0, 1, 101)
Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
Line = tuple[np.ndarray, np.ndarray]
"""Coordinates x, going up, and y of a line, in 0 to 1."""


@dataclass(frozen=True)
class Curve:
    """A curve in 0 to 1, its area, and 95 % intervals, by drawing the images again."""

    line: Line
    area: float
    area_interval: Interval
    low: np.ndarray
    """Lower ends of the intervals of y at `GRID`, (101,)."""
    high: np.ndarray


@dataclass(frozen=True)
class ThresholdResult:
    """What comes of answering with the positive class from a probability on. Precision is None
    where no image is as probable."""

    threshold: float
    precision: float | None
    precision_interval: Interval | None
    recall: float
    recall_interval: Interval
    false_positive_rate: float


@dataclass(frozen=True)
class BinaryResult:
    """Both curves of two classes, and what a threshold gives."""

    class_name: str
    """Name of the positive class."""
    frequency: float
    """Share of the images that are of the positive class."""
    roc: Curve
    precision_recall: Curve
    at_threshold: ThresholdResult


def binary_result(answers: LabelledPredictions, threshold: float | None) -> BinaryResult | None:
    """The curves of two classes; None with more classes, without images of both, or without one
    that can be read."""
    if len(answers.class_names) != 2 or not answers.readable.any():
        return None
    counts = np.bincount(answers.labels, minlength=2)
    if not counts.all():
        return None
    positive = rarer_class(counts)
    return BinaryResult(
        answers.class_names[positive],
        float(counts[positive] / counts.sum()),
        roc(answers, positive),
        precision_recall(answers, positive),
        at_threshold(answers, positive, threshold or USUAL_THRESHOLD),
    )


def roc(answers: LabelledPredictions, positive: int) -> Curve:
    """The ROC curve: recall (y) against the false positive rate (x). The interval of its area is
    that of `metrics`."""

    def line(hits: np.ndarray, others: np.ndarray) -> Line:
        return np.append(0, others / others[-1]), np.append(0, hits / hits[-1])

    low, high = metrics(answers)["auroc_interval"]
    curve = _curve(answers, positive, line, lambda x, y: np.trapezoid(y, x))
    return replace(curve, area_interval=(low / 100, high / 100))


def precision_recall(answers: LabelledPredictions, positive: int) -> Curve:
    """Precision (y) against recall (x). The area is the average precision: not interpolated."""

    def line(hits: np.ndarray, others: np.ndarray) -> Line:
        precision = hits / np.maximum(hits + others, 1)
        return np.append(0, hits / hits[-1]), np.append(precision[0], precision)

    return _curve(answers, positive, line, lambda x, y: np.diff(x) @ y[1:])


def at_threshold(answers: LabelledPredictions, positive: int, threshold: float) -> ThresholdResult:
    """Precision and recall of answering with class `positive` from the probability `threshold`,
    above 0 and below 1, on; with Wilson's intervals."""
    truth, scores = _truth_and_scores(answers, positive)
    answered = scores >= math.log(threshold / (1 - threshold))
    hits, number = int((answered & truth).sum()), int(answered.sum())
    return ThresholdResult(
        threshold,
        hits / number if number else None,
        wilson_interval(hits, number) if number else None,
        hits / int(truth.sum()),
        wilson_interval(hits, int(truth.sum())),
        float((answered & ~truth).sum() / (~truth).sum()),
    )


def _truth_and_scores(answers: LabelledPredictions, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is of the positive class, (N,) bool, and its logit, (N,)."""
    truth = answers.labels == positive
    logits = answers.margins if positive == 1 else -answers.margins
    return truth, np.where(answers.readable, logits, np.where(truth, -math.inf, math.inf))


def _curve(
    answers: LabelledPredictions,
    positive: int,
    line: Callable[[np.ndarray, np.ndarray], Line],
    area: Callable[[np.ndarray, np.ndarray], float],
) -> Curve:
    """The curve that `line` makes of the numbers of positive images and of others with at least
    each score, the highest first. Images are sorted once: to draw some again is to weigh them."""
    truth, scores = _truth_and_scores(answers, positive)
    order = np.argsort(-scores, kind="stable")
    truth, scores = truth[order], scores[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores

    def weighed(weights: np.ndarray) -> Line:
        return line(np.cumsum(weights * truth)[last], np.cumsum(weights * ~truth)[last])

    rng = np.random.default_rng(0)
    heights, areas = [], []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(len(truth), size=len(truth)), minlength=len(truth))
        if not 0 < weights @ truth < len(truth):
            continue  # images of one class have no curve
        resampled = weighed(weights)
        heights.append(np.interp(GRID, *resampled))
        areas.append(area(*resampled))
    low, high = np.percentile(heights, [2.5, 97.5], axis=0)
    area_low, area_high = np.percentile(areas, [2.5, 97.5]).tolist()
    whole = weighed(np.ones(len(truth), dtype=np.int64))
    return Curve(whole, float(area(*whole)), (area_low, area_high), low, high)
