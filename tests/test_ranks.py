"""How well one score ranks as another, and the study of cheap trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from psvit_ray.report.ranks import rank_correlation
from tests.test_cli import job, parse


def test_tau_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    truth = [1.0, 5.0, 2.0, 8.0, 3.0]
    same = rank_correlation([x**3 for x in truth], truth)
    assert (same.tau, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))
    assert same.n == 5
    assert rank_correlation([-x for x in truth], truth).tau == pytest.approx(-1)
    # 10 pairs, of which only the first two things are the other way round.
    assert rank_correlation([2, 1, 3, 4, 5], [1, 2, 3, 4, 5]).tau == pytest.approx(0.8)


def test_the_interval_holds_the_tau_of_the_whole_population() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2_000)
    scores = truth + rng.normal(size=2_000)
    # Of two normal scores with correlation r, tau is 2 / pi arcsin r (Kruskal 1958).
    expected = 2 / np.pi * np.arcsin(1 / np.sqrt(2))
    assert rank_correlation(scores, truth).tau == pytest.approx(expected, abs=0.03)
    inside = 0
    for part in range(20):
        rows = slice(part * 40, part * 40 + 40)
        found = rank_correlation(scores[rows], truth[rows], seed=part)
        inside += found.low <= expected <= found.high
    assert inside >= 16  # 95 % of 20 is 19; fewer than 16 in 1 of 400 cases


def test_what_does_not_differ_is_not_ranked() -> None:
    with pytest.raises(ValueError, match="scores must be three or more that differ, got 4"):
        rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_trains_every_architecture_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = parse(
        f"proxy_study --storage {tmp_path} --name a --specs 8 --epochs 2 --warmup-epochs 1 "
        "--data-fraction 0.3 --proxy-epochs 1 --max-gmacs 0.0002"
    )
    assert job("proxy_study").work(study) == 0
    found = json.loads((tmp_path / "a" / "proxies.json").read_text())
    assert found["n"] == 8
    names = ["in full, another seed", "1 epochs", "MACs", "parameters"]
    assert [name for name in found if name not in ("n", "in full")] == names
    for name in names:
        again = rank_correlation(found[name]["scores"], found["in full"]["scores"])
        assert found[name]["tau"] == again.tau
    macs = found["MACs"]["scores"]
    assert macs == sorted(macs)
    assert len(set(macs)) > 4
    said = capsys.readouterr().out
    assert "8 architectures; the truth is their hold-out top-1, trained in full" in said
