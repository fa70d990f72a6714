"""How well one score ranks as another, and the study of cheap trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.studies.rank_study_report import RankStudyData, Trainings, between_halves, write
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report import rank_correlation
from psvit_ray.report.rank_correlation import agreement, tau
from psvit_ray.search.oneshot.scores import Score, ScoreStore
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.command_line import job, parse
from tests.helpers.mlflow_store import put_store
from tests.helpers.records import spec_of, trained_record


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test alone looks at an interval."""
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 20)


def test_tau_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    truth = [1.0, 5.0, 2.0, 8.0, 3.0]
    same = agreement([x**3 for x in truth], truth)
    assert (same.tau.value, same.tau.low, same.tau.high) == pytest.approx((1.0, 1.0, 1.0))
    assert same.n == 5
    assert tau([-x for x in truth], truth) == pytest.approx(-1)
    # 10 pairs, of which only the first two things are the other way round.
    assert tau([2, 1, 3, 4, 5], [1, 2, 3, 4, 5]) == pytest.approx(0.8)


def test_the_interval_holds_the_tau_of_the_whole_population(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2_000)
    scores = truth + rng.normal(size=2_000)
    # Of two normal scores with correlation r, tau is 2 / pi arcsin r (Kruskal 1958).
    expected = 2 / np.pi * np.arcsin(1 / np.sqrt(2))
    assert tau(scores, truth) == pytest.approx(expected, abs=0.03)
    inside = 0
    for part in range(20):
        rows = slice(part * 40, part * 40 + 40)
        found = agreement(scores[rows], truth[rows], seed=part).tau
        inside += found.low <= expected <= found.high
    assert inside >= 16  # 95 % of 20 is 19; fewer than 16 in 1 of 400 cases


def test_what_does_not_differ_is_not_ranked() -> None:
    with pytest.raises(ValueError, match="scores must be three or more that differ, got 4"):
        agreement([1, 1, 1, 1], [1, 2, 3, 4])


def test_agreement_by_hand() -> None:
    truth = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    swapped = [1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 7.0, 6.0]
    found = agreement(swapped, truth)
    assert found.tau.value == pytest.approx((28 - 2 * 3) / 28)  # of 28 pairs 3 are turned round
    assert found.rho.value == pytest.approx(1 - 6 * 8 / (8 * 63))  # two are two places off
    assert found.top.value == 0.5  # the best two are 8 and 7 there, 8 and 7's places here
    same = agreement(truth, truth)
    for one in (same.tau, same.rho, same.top):
        assert (one.value, one.low, one.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.tau == agreement(swapped, truth).tau


def test_the_ceiling_is_what_one_half_of_the_seeds_says_of_the_other() -> None:
    truth = np.arange(6.0)
    same = np.stack([truth] * 4, axis=1)
    assert between_halves(same) == pytest.approx(1.0)
    # One of two seeds is the reverse of the other.
    assert between_halves(np.stack([truth, -truth], axis=1)) == pytest.approx(-1.0)
    assert between_halves(np.ones((6, 2))) is None


def test_the_better_half_is_ranked_by_itself() -> None:
    """The worse half is ranked rightly by the scores, the better half the other way round."""
    scratch = np.array([[1.0, 3.0], [4.0, 4.0], [90.0, 96.0], [94.0, 94.0], [95.0, 95.0]])
    scores = np.array([[1.0], [2.0], [9.0], [8.0], [7.0]])
    specs = [spec_of((1,) * depth) for depth in range(1, 6)]
    trainings = Trainings(specs, scratch, np.ones_like(scratch))
    study = RankStudyData(trainings, scores, -scores)
    assert trainings.between == pytest.approx(np.std([2, 4, 93, 94, 95], ddof=1))
    assert trainings.within == pytest.approx(
        np.sqrt((2 + 18) / 5)
    )  # the variances of 1, 3 and 90, 96
    half = study.better_half
    assert half.trainings.specs == specs[:1:-1]
    for one, expected in ((study, 0.4), (half, -1.0)):  # 7 of 10 pairs, none of 3
        found = one.agreements()
        for name in ("supernet 0, top-1", "all supernets, loss"):
            ranked = found[name]
            assert ranked
            assert ranked.tau.value == pytest.approx(expected)
        assert found["MACs"]
        assert found["MACs"].tau.value == pytest.approx(1.0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_study_trains_scores_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_store(tmp_path)
    line = (
        f"rank_study --storage {tmp_path} --name a --specs 8 --seeds 2 --supernet-seeds 2 "
        "--epochs 1 --warmup-epochs 0 --data-fraction 0.2 --supernet-epochs 1 --max-gmacs 0.0002"
    )
    assert job("rank_study").work(parse(line)) == 0
    found = json.loads((tmp_path / "a" / "ranks.json").read_text())
    assert (found["n"], found["seeds"]) == (8, 2)
    scratch = np.array([one["scratch"] for one in found["architectures"]])
    records = RecordStore(Folder(str(tmp_path / "a"))).all()
    assert sorted(record.top1 or 0.0 for record in records) == sorted(scratch.flatten())
    for seed in range(2):
        scores = ScoreStore(Folder(str(tmp_path / "a" / f"supernet-{seed}"))).all()
        assert {score.spec: score.top1 for score in scores} == {
            ArchSpec.model_validate(one["spec"]): one["supernet_top1"][seed]
            for one in found["architectures"]
        }
    assert found["agreement"]["MACs"]["n"] == 8
    assert "8 architectures (all), 2 seeds each" in capsys.readouterr().out
    before = {record.key: record for record in records}
    assert job("rank_study").work(parse(line + " --resume")) == 0
    assert {r.key: r for r in RecordStore(Folder(str(tmp_path / "a"))).all()} == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_trains_every_architecture_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_store(tmp_path)
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
        again = agreement(found[name]["scores"], found["in full"]["scores"])
        assert found[name]["tau"] == again.tau.model_dump()
    macs = found["MACs"]["scores"]
    assert macs == sorted(macs)
    assert len(set(macs)) > 4
    said = capsys.readouterr().out
    assert "8 architectures; the truth is their hold-out top-1, trained in full" in said


def test_a_study_of_one_seed_so_far_is_not_judged(tmp_path: Path) -> None:
    """A deviation between seeds is not known of one."""
    records = [trained_record(number, "1|1", 16 + number, 50.0 + number) for number in range(8)]
    scores = [Score(number=r.number, generation=0, spec=r.configuration.spec, loss=1.0, top1=50.0)
              for r in records]  # fmt: skip
    said = write([scores], records, Folder(str(tmp_path)))
    assert said.startswith("fewer than 6 architectures are trained with every seed")
    assert list(tmp_path.iterdir()) == []
