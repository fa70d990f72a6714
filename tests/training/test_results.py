"""What a run reports comes back from Ray as the value that it was."""

from __future__ import annotations

import math

import pytest
from ray.tune.utils import flatten_dict

from psvit_ray.training.results import TOP1, EpochResult, FailedResult, Point, Result, result_of

POINT = Point(epoch=2, step=40, metrics={TOP1: 51.0416666666666, "train/loss": math.inf})


@pytest.mark.parametrize(
    "result",
    [
        EpochResult(point=POINT),
        EpochResult(
            point=POINT,
            earlier=(Point(epoch=1, step=20, metrics={TOP1: 1 / 3}),),
            test_top1=50.0,
            test_correct="01",
        ),
        FailedResult(epoch=1, step=30, reason="a loss that is no number"),
        FailedResult(epoch=0, step=0, reason="the disk is full", of_driver=True),
    ],
)
def test_a_result_is_the_same_after_tune_has_flattened_it(result: Result) -> None:
    assert result_of(flatten_dict(result.to_metrics())) == result


def test_schedulers_read_the_epoch_and_the_ranking_metric() -> None:
    metrics = EpochResult(point=POINT).to_metrics()
    assert (metrics["epoch"], metrics[TOP1]) == (2, 51.0416666666666)


def test_a_report_without_a_result_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        result_of({"epoch": 1})
