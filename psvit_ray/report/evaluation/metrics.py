"""Metrics of a network on labelled images: exact counts, and what is computed from them.

Shapes: N images, K classes. An image that cannot be read counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from psvit_ray.arch.census import wilson_interval
from psvit_ray.export.inference import ScoredBatch, top_classes
from psvit_ray.export.measures import (
    UNREADABLE,
    commonest_measures,
    confusion_matrix,
    measures,
)

NUM_BINS = 15
Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class LabelledPredictions:
    """The predictions of a network for each image, in the order of the table. Where an image cannot
    be read the prediction is UNREADABLE and the numbers are NaN."""

    class_names: tuple[str, ...]
    labels: np.ndarray
    """(N,) int64."""
    predictions: np.ndarray
    """(N,) int64."""
    confidences: np.ndarray
    """Probability of the prediction, (N,)."""
    label_probabilities: np.ndarray
    """(N,)."""
    losses: np.ndarray
    """Cross-entropy, (N,)."""
    ranks: np.ndarray
    """Number of classes that are likelier than the label, (N,): 0 for a correct prediction."""
    bad: tuple[tuple[int, str], ...]
    """Index and reason of each image that cannot be read."""
    margins: np.ndarray
    """Logit of the second of two classes minus that of the first, (N,); NaN with more classes."""

    @classmethod
    def of(
        cls, scored: Iterable[ScoredBatch], labels: np.ndarray, class_names: tuple[str, ...]
    ) -> LabelledPredictions:
        """The evaluation of scored batches; `labels`, (N,), are indices of `class_names`."""
        numbers = {
            name: np.full(len(labels), math.nan)
            for name in ("confidences", "label_probabilities", "losses", "ranks", "margins")
        }
        predictions = np.full(len(labels), UNREADABLE)
        bad: list[tuple[int, str]] = []
        for indices, logits, unreadable in scored:
            bad += unreadable
            logits = logits.double()
            label = torch.as_tensor(labels)[indices]
            best = top_classes(logits, logits.shape[1])
            rows = indices.numpy()
            predictions[rows] = best.classes[:, 0]
            numbers["confidences"][rows] = best.probabilities[:, 0]
            numbers["losses"][rows] = F.cross_entropy(logits, label, reduction="none")
            place = (best.classes == label[:, None]).int().argmax(dim=1, keepdim=True)
            numbers["ranks"][rows] = place[:, 0]
            if logits.shape[1] == 2:
                numbers["margins"][rows] = logits[:, 1] - logits[:, 0]
            numbers["label_probabilities"][rows] = best.probabilities.gather(1, place)[:, 0]
        return cls(class_names, labels, predictions, **numbers, bad=tuple(sorted(bad)))

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool."""
        return self.predictions != UNREADABLE

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.predictions == self.labels

    def top_k(self, k: int) -> float:
        """Top-k accuracy in percent of all images."""
        right = (self.ranks < k).sum()  # NaN, of an unreadable one, is not less
        return 100 * int(right) / len(self.labels)

    def confusion(self) -> np.ndarray:
        """Confusion matrix, (K, K + 1) counts: a row for each label, a column for each prediction,
        and a last one for images that cannot be read."""
        return confusion_matrix(self.labels, self.predictions, len(self.class_names))


def metrics(answers: LabelledPredictions) -> dict[str, Any]:
    """Metrics by name, None where one is undefined: top-1 and top-5 in percent of all images, the
    measures of `psvit_ray.export.measures` and their 95 % intervals, loss and calibration error
    over the images that can be read. `commonest` has the measures of answering always with the
    commonest class."""
    readable, size = int(answers.readable.sum()), len(answers.class_names)
    measured = measures(answers.labels, answers.predictions, size, answers.margins)
    intervals = {
        f"{name}_interval": (max(value - Z * error, 0.0), min(value + Z * error, 100.0))
        for name, (value, error) in measured.items()
    }
    correct = int(answers.correct.sum())
    low, high = wilson_interval(correct, len(answers.labels))
    intervals["top1_interval"] = 100 * low, 100 * high  # also where none or all are right
    return {
        "images": len(answers.labels),
        "unreadable": len(answers.labels) - readable,
        "correct": correct,
        "top1": answers.top_k(1),
        "top5": answers.top_k(5) if len(answers.class_names) >= 5 else None,
        "loss": float(answers.losses[answers.readable].mean()) if readable else None,
        "ece": calibration_error(reliability(answers)) if readable else None,
        **{name: measure.value for name, measure in measured.items() if name != "top1"},
        **intervals,
        "commonest": commonest_measures(answers.labels, size),
    }


@dataclass(frozen=True)
class ReliabilityBin:
    """Images with a confidence above `low` and up to `high`. Means are NaN where there are none."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


def reliability(answers: LabelledPredictions, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Bins of equal width over the confidences of images that can be read."""
    confidences = answers.confidences[answers.readable]
    correct = answers.correct[answers.readable]
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(place, correct, num_bins) / counts
        confidence = np.bincount(place, confidences, num_bins) / counts
    return [
        ReliabilityBin(
            float(edges[i]),
            float(edges[i + 1]),
            int(counts[i]),
            float(accuracy[i]),
            float(confidence[i]),
        )
        for i in range(num_bins)
    ]


def calibration_error(bins: Iterable[ReliabilityBin]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), in 0 to 1: how far accuracy
    is from confidence, as the mean over bins by their number of images."""
    filled = [bin_ for bin_ in bins if bin_.count]
    gaps = sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in filled)
    return gaps / sum(bin_.count for bin_ in filled)


ClassRow = dict[str, Any]


def per_class(answers: LabelledPredictions) -> list[ClassRow]:
    """Table of the classes, in percent. Precision is None for a class that was never predicted,
    recall for one that has no images."""
    confusion = answers.confusion()
    rows = []
    for number, name in enumerate(answers.class_names):
        support, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
        correct = int(confusion[number, number])
        mistaken = confusion[number].copy()
        mistaken[number] = 0
        mistaken_for = int(mistaken[:-1].argmax()) if mistaken[:-1].any() else None
        rows.append(
            {
                "class": name,
                "support": support,
                "predicted": predicted,
                "correct": correct,
                "precision": 100 * correct / predicted if predicted else None,
                "recall": 100 * correct / support if support else None,
                "mostly_mistaken_for": answers.class_names[mistaken_for]
                if mistaken_for is not None
                else None,
            }
        )
    return rows


def hardest(answers: LabelledPredictions, count: int) -> np.ndarray:
    """Indices of the `count` images with the highest loss, the highest first."""
    order = np.argsort(-answers.losses, kind="stable")  # NaN, of an unreadable one, comes last
    return order[: min(count, int(answers.readable.sum()))]


def confused_pairs(answers: LabelledPredictions, count: int) -> list[tuple[str, str, int]]:
    """Names of label and prediction, and count, of the `count` most frequent mistakes."""
    names = answers.class_names
    return [(names[a], names[b], number) for a, b, number in confused_classes(answers, count)]


def confused_classes(answers: LabelledPredictions, count: int) -> list[tuple[int, int, int]]:
    """Label, prediction and count of the `count` most frequent mistakes."""
    counts = answers.confusion()[:, :-1].copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:count]
    return [
        (int(label), int(prediction), int(counts[label, prediction]))
        for label, prediction in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[label, prediction]
    ]
