"""Curves of two classes and the sheet of mistakes show what was answered, with how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from psvit_ray.export.inference import ScoredBatch
from psvit_ray.report.evaluation import evaluation_files, mistakes_picture, roc_picture
from psvit_ray.report.evaluation.binary_curves import (
    GRID,
    BinaryResult,
    at_threshold,
    binary_result,
)
from psvit_ray.report.evaluation.metrics import LabelledPredictions, metrics


def answered(
    labels: np.ndarray, logits: np.ndarray, names: tuple[str, ...], bad: tuple[int, ...] = ()
) -> LabelledPredictions:
    readable = np.setdiff1d(np.arange(len(labels)), bad)
    batch = ScoredBatch(
        torch.as_tensor(readable),
        torch.as_tensor(logits[readable]),
        tuple((index, "cut") for index in bad),
    )
    return LabelledPredictions.of([batch], labels, names)


def two_classes(
    number: int = 300, bad: tuple[int, ...] = (), seed: int = 0, rare: int = 1
) -> LabelledPredictions:
    """A fifth of the images is of class `rare`, whose logit is higher by 1.5 on average."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(number) < 0.2, rare, 1 - rare)
    logits = rng.normal(size=(number, 2))
    logits[np.arange(number), labels] += 1.5
    return answered(labels, logits, ("ok", "flaw"), bad)


def result_of(answers: LabelledPredictions, threshold: float | None = None) -> BinaryResult:
    result = binary_result(answers, threshold)
    assert result
    return result


@pytest.mark.parametrize("rare", [0, 1])
@pytest.mark.parametrize("bad", [(), (3, 50, 77)])
def test_the_area_is_how_often_a_flaw_has_the_higher_score(rare: int, bad: tuple[int, ...]) -> None:
    answers = two_classes(bad=bad, rare=rare)
    result = result_of(answers)
    assert result.class_name == ("ok", "flaw")[rare]
    flaw = answers.labels == rare
    logits = answers.margins * (1 if rare else -1)
    logits[list(bad)] = np.where(flaw[list(bad)], -math.inf, math.inf)
    pairs = logits[flaw][:, None] - logits[~flaw][None, :]
    assert result.roc.area == pytest.approx((pairs > 0).mean())
    assert 100 * result.roc.area == pytest.approx(metrics(answers)["auroc"])
    assert result.frequency == flaw.mean()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 1 - 1e-12])
def test_a_threshold_gives_the_precision_and_recall_that_are_counted(threshold: float) -> None:
    answers = two_classes(bad=(0, 1, 2, 3, 4))
    probabilities = 1 / (1 + np.exp(-answers.margins))
    flaw = answers.labels == 1
    answer = probabilities >= threshold
    answer[:5] = ~flaw[:5]  # as wrong as can be
    result = at_threshold(answers, 1, threshold)
    assert result.recall == (answer & flaw).sum() / flaw.sum()
    assert result.precision == (answer & flaw).sum() / answer.sum()
    assert result.false_positive_rate == (answer & ~flaw).sum() / (~flaw).sum()
    for value, interval in (
        (result.recall, result.recall_interval),
        (result.precision, result.precision_interval),
    ):
        assert interval is not None
        assert value is not None
        assert interval[0] <= value <= interval[1]


def test_without_an_answer_there_is_no_precision() -> None:
    result = at_threshold(two_classes(), 1, 1 - 1e-12)
    assert (result.precision, result.precision_interval, result.recall) == (None, None, 0.0)


def test_the_curves_are_scikit_learns() -> None:
    labels = np.repeat([0, 1], [200, 50])
    tied = np.random.default_rng(0).integers(0, 8, 250) + 2.0 * labels  # many scores are equal
    answers = answered(labels, np.stack([np.zeros(250), tied], axis=1), ("ok", "flaw"))
    result = result_of(answers)
    rates, recalls, _ = roc_curve(labels, tied, drop_intermediate=False)
    assert np.allclose(result.roc.line, [rates, recalls])
    assert result.roc.area == pytest.approx(roc_auc_score(labels, tied))
    precisions, recalls, _ = precision_recall_curve(labels, tied)
    theirs = np.stack([recalls[-2::-1], precisions[-2::-1]])  # its last point is of no score
    assert np.allclose(np.stack(result.precision_recall.line)[:, 1:], theirs)
    area = average_precision_score(labels, tied)
    assert result.precision_recall.area == pytest.approx(area)


def test_the_intervals_cover_the_true_values_as_often_as_they_say() -> None:
    """Over 40 samples of 400 images. The margins of both classes are normal, 3 apart, with a
    variance of 2: see `two_classes`."""
    area = norm.cdf(3 / 2)
    at = 20  # a false positive rate of 0.2
    recall = norm.cdf(3 / math.sqrt(2) - norm.ppf(0.8))
    results = [result_of(two_classes(400, seed=seed)) for seed in range(40)]
    curves = [result.roc for result in results]
    inside = [curve.area_interval[0] <= area <= curve.area_interval[1] for curve in curves]
    assert sum(inside) >= 34
    assert sum(curve.low[at] <= recall <= curve.high[at] for curve in curves) >= 34
    many = result_of(two_classes(50_000, seed=99)).precision_recall
    small = [result.precision_recall.area_interval for result in results]
    assert sum(low <= many.area <= high for low, high in small) >= 34


def test_only_two_classes_that_both_have_images_have_curves() -> None:
    labels = np.array([0, 1, 2, 1])
    logits = np.eye(3)[labels]
    assert binary_result(answered(labels, logits, ("a", "b", "c")), None) is None
    ones = np.ones(4, dtype=int)
    assert binary_result(answered(ones, logits[:, :2], ("a", "b")), None) is None
    nothing = answered(np.array([0, 1]), logits[:2, :2], ("a", "b"), bad=(0, 1))
    assert binary_result(nothing, None) is None


def test_the_picture_shows_curves_bands_and_threshold() -> None:
    result = result_of(two_classes(), 0.25)
    left, right = roc_picture.picture(result, "mine").axes
    for axes, curve, (x, y) in (
        (left, result.roc, (result.at_threshold.false_positive_rate, result.at_threshold.recall)),
        (
            right,
            result.precision_recall,
            (result.at_threshold.recall, result.at_threshold.precision),
        ),
    ):
        assert np.allclose(
            np.asarray(axes.lines[0].get_xydata()), 100 * np.stack(curve.line, axis=1)
        )
        (band,) = axes.collections
        outline = band.get_paths()[0].vertices
        assert {tuple(point) for point in np.asarray(outline).round(6).tolist()} >= {
            (round(100 * at, 6), round(100 * end, 6))
            for at, low, high in zip(GRID, curve.low, curve.high, strict=True)
            for end in (low, high)
        }
        (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert np.allclose(np.asarray(dot.get_xydata()), [[100 * x, 100 * (y or 0.0)]])
        assert dot.get_label() == "from a probability of 0.25 on"


def test_the_summary_and_the_numbers_name_the_rarer_class() -> None:
    answers = two_classes()
    result = result_of(answers, 0.25)
    said = evaluation_files.summary(answers, result)
    precision, recall = 100 * (result.at_threshold.precision or 0), 100 * result.at_threshold.recall
    assert f"flaw from a probability of 0.25 on: precision {precision:.2f} % (" in said
    assert f"recall {recall:.2f} % (" in said
    commonest = 100 * (answers.labels == 0).mean()
    assert f"always the commonest class: top-1 {commonest:.2f} %, balanced top-1 50.00 %" in said
    assert "AUROC" not in evaluation_files.summary(answers, None)


def confused() -> LabelledPredictions:
    """Class 0 is taken for 1 twice and for 2 once, class 2 for 0 three times; two are right."""
    labels = np.array([0, 0, 0, 2, 2, 2, 1, 0])
    logits = np.zeros((8, 3))
    for row, (prediction, logit) in enumerate(
        [(1, 1.0), (1, 3.0), (2, 1.0), (0, 2.0), (0, 5.0), (0, 3.0), (1, 1.0), (0, 9.0)]
    ):
        logits[row, prediction] = logit
    return answered(labels, logits, ("zero", "one", "two"))


def test_the_sheet_has_the_surest_images_of_the_most_frequent_mistakes() -> None:
    rows = mistakes_picture.mistakes(confused())
    assert [(row.label, row.prediction, row.count, row.images) for row in rows] == [
        (2, 0, 3, [4, 5, 3]),
        (0, 1, 2, [1, 0]),
        (0, 2, 1, [2]),
    ]
    drawn = mistakes_picture.picture(confused(), picture_of, "mine")
    shown = [
        [int(np.asarray(image.get_array())[0, 0]) for image in axes.images] for axes in drawn.axes
    ]
    assert [value for images in shown for value in images] == [4, 5, 3, 1, 0, 2]
    assert {"two\nas zero\n3 images", "zero\nas one\n2 images", "99 %"} <= texts(drawn)


def picture_of(index: int) -> Image.Image:
    return Image.new("L", (400, 300), index)


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def test_a_sheet_without_mistakes_says_so() -> None:
    labels = np.array([0, 1])
    drawn = mistakes_picture.picture(answered(labels, 9 * np.eye(2), ("a", "b")), picture_of, "a")
    assert "no image is taken for one of another class" in texts(drawn)
