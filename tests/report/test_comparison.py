"""The winner against DeiT: who is compared, and the interval of their errors."""

from __future__ import annotations

import numpy as np
import pytest

from psvit_ray.report.comparison import error_ratio, error_ratio_interval, pair
from tests.helpers.records import trained_record


def test_the_best_psvit_at_no_more_macs_than_the_best_deit_is_compared() -> None:
    deits = [trained_record(0, "1-1", 16, 90.0), trained_record(1, "1-1", 32, 95.0)]
    light, heavy = trained_record(2, "1|1", 16, 96.0), trained_record(3, "2-2|2-2", 64, 99.0)
    assert heavy.macs > deits[1].macs > light.macs
    assert pair([light, heavy, *deits], deits) == {"PSViT": light, "DeiT": deits[1]}
    with pytest.raises(ValueError, match="no PSViT trained in full with at most"):
        pair([heavy], deits)
    assert pair([light, heavy], deits, max_macs=heavy.macs) == {"PSViT": heavy, "DeiT": deits[1]}
    with pytest.raises(ValueError, match="no DeiT that was trained in full with at most"):
        pair([light], deits, max_macs=deits[0].macs - 1)
    with pytest.raises(ValueError, match="no DeiT that was trained in full"):
        pair([light], [light])


def test_the_interval_is_exact_where_nothing_varies() -> None:
    theirs = np.ones((3, 40), dtype=bool)
    theirs[:, :20] = False
    assert error_ratio_interval(theirs, theirs) == (1.0, 1.0)
    never_wrong = np.ones_like(theirs)
    assert error_ratio_interval(never_wrong, theirs) == (0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_few_test_images_have_no_ratio_or_one_without_a_bound() -> None:
    """Of four images and two seeds; one image in four is in no draw in 0.3 of them."""
    never = np.ones((2, 4), dtype=bool)
    once, twice = never.copy(), never.copy()
    once[:, 0], twice[:, :2] = False, False
    assert error_ratio(once, never) is None
    assert error_ratio(never, never) is None
    assert error_ratio(never, once) == {"mean": 0.0, "low": 0.0, "high": 1.0}
    assert error_ratio(twice, once) == {"mean": 2.0, "low": 1.0, "high": None}


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(40):
        hard = rng.random(200) < 0.5  # what is hard is hard for both
        ours = rng.random((5, 200)) > np.where(hard, 0.2, 0.02)
        theirs = rng.random((5, 200)) > np.where(hard, 0.4, 0.04)
        low, high = error_ratio_interval(ours, theirs, seed=trial, resamples=500)
        covered.append(low <= 0.5 <= high)
    assert 34 <= sum(covered) <= 40
