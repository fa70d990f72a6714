"""Measures of a classifier: those of scikit-learn, errors as a bootstrap has them, images that
cannot be read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.dummy import DummyClassifier

from psvit_ray.export.measures import UNREADABLE, commonest_measures, measures, rarer_class

Sample = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def drawn(seed: int, num_classes: int, number: int = 400, evenness: float = 0.5) -> Sample:
    """Labels of unequal classes, predictions, and with two classes scores, many of them tied."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(num_classes, evenness))
    labels = rng.choice(num_classes, number, p=shares)
    if num_classes == 2:
        labels[:2] = 0, 1
        margins = np.round(rng.normal(size=number) + labels, 1)
        return labels, (margins > rng.normal()).astype(np.int64), margins
    right = rng.random(number) < 0.6
    return labels, np.where(right, labels, rng.integers(num_classes, size=number)), None


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("num_classes", [2, 3, 12])
@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_scikit_learn(seed: int, num_classes: int) -> None:
    labels, predictions, margins = drawn(seed, num_classes)
    expected = {
        "top1": sklearn_metrics.accuracy_score(labels, predictions),
        "balanced_top1": sklearn_metrics.balanced_accuracy_score(labels, predictions),
    }
    if margins is None:
        expected["f1"] = sklearn_metrics.f1_score(
            labels, predictions, average="macro", zero_division=0
        )
    else:
        rarer = rarer_class(np.bincount(labels))
        expected["f1"] = sklearn_metrics.f1_score(labels, predictions, pos_label=rarer)
        expected["auroc"] = sklearn_metrics.roc_auc_score(labels, margins)
    values = measures(labels, predictions, num_classes, margins)
    assert {name: measure.value for name, measure in values.items()} == pytest.approx(
        {name: 100 * value for name, value in expected.items()}, abs=1e-9
    )


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_standard_error_is_the_deviation_over_samples_drawn_again(num_classes: int) -> None:
    labels, predictions, margins = drawn(3, num_classes, 600, evenness=20.0)
    rng, values = np.random.default_rng(0), []
    for _ in range(2_000):
        rows = rng.integers(len(labels), size=len(labels))
        sample = labels[rows], predictions[rows], num_classes
        values.append(measures(*sample, None if margins is None else margins[rows]))
    for name, measure in measures(labels, predictions, num_classes, margins).items():
        deviation = np.std([value[name].value for value in values])
        assert measure.error == pytest.approx(deviation, rel=0.06), name
        assert measure.error > 0


def test_the_error_of_top1_is_that_of_a_proportion() -> None:
    labels, predictions, _ = drawn(0, 3)
    share = np.mean(labels == predictions)
    error = measures(labels, predictions, 3)["top1"].error
    assert error == pytest.approx(100 * math.sqrt(share * (1 - share) / 400))


def test_an_image_that_cannot_be_read_is_as_wrong_as_can_be() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    margins = np.array([-2.0, -1.0, 0.0, 1.0, 0.0])
    predictions = np.array([0, 0, UNREADABLE, 1, UNREADABLE])
    values = measures(labels, predictions, 2, margins)
    assert values["top1"].value == pytest.approx(60)
    assert values["balanced_top1"].value == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert values["f1"].value == pytest.approx(100 * 2 * 1 / (1 + 2))
    # Of six pairs, only those of the two readable images of the first class with the fourth.
    assert values["auroc"].value == pytest.approx(100 * 2 / 6)


def test_a_measure_without_both_classes_is_left_out() -> None:
    labels = np.zeros(4, dtype=np.int64)
    values = measures(labels, np.array([0, 0, 1, 0]), 2, np.array([-1.0, -1.0, 1.0, -1.0]))
    assert values.keys() == {"top1", "balanced_top1", "f1"}
    assert (values["balanced_top1"].value, values["f1"].value) == (75.0, 0.0)


def test_a_score_that_is_no_number_makes_an_auroc_that_is_none() -> None:
    values = measures(np.array([0, 1]), np.array([0, 1]), 2, np.array([math.nan, 1.0]))
    assert math.isnan(values["auroc"].value)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_commonest_class_is_scikit_learns_dummy(num_classes: int) -> None:
    labels, _, _ = drawn(1, num_classes)
    nothing = np.zeros((len(labels), 1))
    answers = DummyClassifier(strategy="most_frequent").fit(nothing, labels).predict(nothing)
    shares = DummyClassifier(strategy="prior").fit(nothing, labels).predict_proba(nothing)
    average: dict[str, Any] = {"average": "macro"}
    if num_classes == 2:
        average = {"pos_label": rarer_class(np.bincount(labels))}
    expected = {
        "loss": sklearn_metrics.log_loss(labels, shares),
        "top1": 100 * sklearn_metrics.accuracy_score(labels, answers),
        "balanced_top1": 100 * sklearn_metrics.balanced_accuracy_score(labels, answers),
        "f1": 100 * sklearn_metrics.f1_score(labels, answers, zero_division=0, **average),
    }
    if num_classes == 2:
        expected["auroc"] = 50.0
    assert commonest_measures(labels, num_classes) == pytest.approx(expected)
