"""Measures of a classifier on labelled images, with their standard errors.

All are computed from the labels, the predictions and, for the AUROC, a score of each image: what
several workers predicted is put together first, so that their number changes nothing.

Shapes: N images, K classes. An image that cannot be read counts as wrong.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

UNREADABLE = -1
"""Prediction for an image that cannot be read."""


class Measure(NamedTuple):
    """A measure of a classifier on a sample of images."""

    value: float
    error: float
    """Standard error of the value, as of a sample of images (delta method)."""


def measures(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, margins: np.ndarray | None = None
) -> dict[str, Measure]:
    """Measures by name, in percent: `top1`, `balanced_top1` (mean recall of the classes that have
    images), `f1` (with two classes that of the rarer one, else the mean over the classes), and with
    two classes `auroc`, if both have images.

    Args:
        labels: Class of each image, (N,) int64.
        predictions: Predicted class of each image, (N,) int64, or UNREADABLE.
        margins: With two classes the logit of the second minus that of the first, (N,).
    """
    confusion = confusion_matrix(labels, predictions, num_classes)
    values = {
        "top1": _top1(confusion),
        "balanced_top1": _balanced_top1(confusion),
        "f1": _f1(confusion),
    }
    if num_classes == 2 and margins is not None and 0 < labels.sum() < len(labels):
        # An image that cannot be read is as wrong as can be.
        worst = np.where(labels == 1, -math.inf, math.inf)
        values["auroc"] = _auroc(labels == 1, np.where(predictions == UNREADABLE, worst, margins))
    return {name: Measure(100 * value, 100 * error) for name, (value, error) in values.items()}


def commonest_measures(labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """The measures, in percent, of answering every image with the commonest class; and the `loss`
    of answering with the frequencies of the classes."""
    counts = np.bincount(labels, minlength=num_classes)
    predictions = np.full(len(labels), counts.argmax())
    values = measures(labels, predictions, num_classes, np.zeros(len(labels)))
    shares = counts[counts > 0] / len(labels)
    return {name: measure.value for name, measure in values.items()} | {
        "loss": float(-(shares * np.log(shares)).sum())
    }


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix, (K, K + 1) counts: a row for each label, a column for each prediction, and
    a last one for images that cannot be read."""
    columns = np.where(predictions == UNREADABLE, num_classes, predictions)
    cells = np.bincount(
        labels * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1)
    )
    return cells.reshape(num_classes, num_classes + 1)


def rarer_class(counts: np.ndarray) -> int:
    """The rarer one of two classes, of which `counts` are the images; of equally frequent ones the
    second."""
    return int(counts[1] <= counts[0])


def _top1(confusion: np.ndarray) -> Measure:
    share = int(confusion.diagonal().sum()) / int(confusion.sum())
    return Measure(share, math.sqrt(share * (1 - share) / confusion.sum()))


def _balanced_top1(confusion: np.ndarray) -> Measure:
    sizes = confusion.sum(axis=1)
    there = sizes > 0
    recalls = confusion.diagonal()[there] / sizes[there]
    variances = recalls * (1 - recalls) / sizes[there]
    return Measure(float(recalls.mean()), math.sqrt(variances.sum()) / len(recalls))


def _f1(confusion: np.ndarray) -> Measure:
    """F1 of the rarer of two classes, or its mean over the classes that are labels or predicted."""
    images = confusion.sum()
    hits = confusion.diagonal() / images
    sizes = (confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0)) / images
    counted = sizes > 0
    if len(confusion) == 2:
        counted &= np.arange(2) == rarer_class(confusion.sum(axis=1))
    if not counted.any():
        return Measure(0.0, 0.0)
    weights = counted / counted.sum()
    sizes = np.where(counted, sizes, 1)
    scores = 2 * hits / sizes
    # The derivative by the share of each cell: every image of a row or a column makes its class
    # larger, and one on the diagonal is a hit.
    growth = weights * scores / sizes
    slopes = -growth[:, None] - np.append(growth, 0)[None, :]
    np.fill_diagonal(slopes, slopes.diagonal() + 2 * weights / sizes)
    shares = confusion / images
    variance = (shares * slopes**2).sum() - (shares * slopes).sum() ** 2
    return Measure(float(weights @ scores), math.sqrt(max(variance, 0.0) / images))


def _auroc(positive: np.ndarray, scores: np.ndarray) -> Measure:
    """Area under the ROC curve: how often an image of the second class has the higher score than
    one of the first. The error is that of DeLong et al. 1988."""
    if np.isnan(scores).any():
        return Measure(math.nan, math.nan)
    ranks = rankdata(scores)
    sizes = positive.sum(), (~positive).sum()
    # For each image the share of the other class that it is on the right side of.
    above = (ranks[positive] - rankdata(scores[positive])) / sizes[1]
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / sizes[0]
    return Measure(float(above.mean()), math.sqrt(above.var() / sizes[0] + below.var() / sizes[1]))
