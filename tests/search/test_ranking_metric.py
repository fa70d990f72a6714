"""One metric ranks everywhere: leaderboard, proposals, candidates, finalists, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psvit_ray.commands.command_line import parse
from psvit_ray.commands.options import TuneJob
from psvit_ray.report.comparison import pair
from psvit_ray.report.leaderboard import best_yaml, leaderboard_rows
from psvit_ray.report.summary import ranking_note, side_by_side, summary, tie_warning
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.description import write_description
from psvit_ray.search.oneshot.finalists import finalists, winner
from psvit_ray.search.oneshot.scores import Score, generations, pareto_scores, rank_scores
from psvit_ray.search.proposals import Proposals
from psvit_ray.search.record import Record, best, pareto, ranking
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import TrainConfig
from psvit_ray.training.results import RANKING, SCORE, EpochResult, MetricName, Point
from tests.helpers.command_line import Refused
from tests.helpers.records import DEIT, LARGE, MIDDLE, SMALL, record, score
from tests.helpers.spaces import SPACES

METRICS = {"top1": 95.0, "loss": 0.2, "balanced_top1": 50.0, "auroc": 60.0, "f1": 0.0}
"""Always the commonest class, or nearly."""


def measured(number: int, metric: MetricName, **changes: Any) -> Record:
    """A record that is ranked by `metric`, with the values of METRICS but for the changes."""
    fields = {name: changes.pop(name) for name in ("spec", "kind") if name in changes}
    made = record(number, (95.0,), **fields)
    train = made.configuration.train.model_copy(update={"metric": metric})
    values = METRICS | changes
    point = Point(
        epoch=1,
        step=10,
        metrics={f"holdout/{name}": value for name, value in values.items()}
        | {f"holdout/{metric}_error": 2.0, f"commonest/{metric}": METRICS[metric]},
    )
    configuration = made.configuration.model_copy(update={"train": train})
    return made.model_copy(update={"configuration": configuration, "curve": (point,)})


WINNER_BY: dict[MetricName, dict[str, float]] = {
    "top1": {"top1": 96.0},
    "loss": {"loss": 0.1},
    "balanced_top1": {"balanced_top1": 80.0},
    "auroc": {"auroc": 90.0},
    "f1": {"f1": 40.0},
}


@pytest.mark.parametrize("metric", list(WINNER_BY))
def test_each_metric_has_its_own_winner_everywhere(metric: MetricName) -> None:
    records = [
        measured(number, metric, **better) for number, better in enumerate(WINNER_BY.values())
    ]
    expected = list(WINNER_BY).index(metric)
    chosen = best(records)
    assert chosen
    assert chosen.number == ranking(records)[0].number == expected
    assert [r.number for r in pareto(records)] == [expected]
    value = WINNER_BY[metric][metric]
    assert chosen.value == value
    assert leaderboard_rows(records)[0][f"holdout_{metric}"] == value
    assert {row["commonest"] for row in leaderboard_rows(records)} == {METRICS[metric]}
    text = RANKING[metric].text(value)
    assert f"{text} {RANKING[metric].title}" in best_yaml(chosen, "a")
    deit = measured(9, metric, spec=DEIT)
    assert pair([*records, deit], [deit], max_macs=1e12)["PSViT"] == chosen
    trained = [r.model_copy(update={"kind": "finalist"}) for r in records]
    of_specs = [
        r.model_copy(
            update={
                "configuration": r.configuration.model_copy(update={"spec": spec}),
                "kind": "finalist",
            }
        )
        for r, spec in zip([trained[expected], trained[expected - 1]], [MIDDLE, SMALL], strict=True)
    ]
    assert finalists(of_specs)[0].spec == MIDDLE
    assert winner(of_specs) == of_specs[0]


@pytest.mark.parametrize("metric", list(WINNER_BY))
def test_schedulers_see_a_score_that_is_higher_for_the_better(metric: MetricName) -> None:
    scores = [
        EpochResult(point=measured(0, metric, **changes).curve[-1], metric=metric).to_metrics()
        for changes in (dict[str, float](), WINNER_BY[metric])
    ]
    assert scores[0][SCORE] < scores[1][SCORE]


@pytest.mark.parametrize("metric", list(WINNER_BY))
def test_candidates_rank_by_the_metric(metric: MetricName) -> None:
    candidates = [
        Score(
            number=number,
            generation=number,
            spec=spec,
            metric=metric,
            **(METRICS | (WINNER_BY[metric] if spec == MIDDLE else {})),
        )
        for number, spec in enumerate((SMALL, MIDDLE, LARGE))
    ]
    assert rank_scores(candidates)[0].spec == MIDDLE
    assert [one.spec for one in pareto_scores(candidates)] == [SMALL, MIDDLE]
    value = WINNER_BY[metric][metric]
    assert [g.best_so_far for g in generations(candidates)] == [METRICS[metric], value, value]


def test_a_loss_goes_down_in_the_proposals_study() -> None:
    """TPE, told of losses, has the smallest among its best trials."""
    config = SearchConfig(space=SPACES["all kinds"], num_trials=6, baselines=0)
    proposals = Proposals(config, TrainConfig(metric="loss"))
    losses: dict[str, float] = {}
    while proposal := proposals.ask():
        losses[proposal.key] = 1.0 + len(losses)
        proposals.tell(proposal.key, RANKING["loss"].score(losses[proposal.key]))
    values = [trial.values[0] for trial in proposals._study.best_trials]
    assert max(values) == -min(losses.values())
    assert RANKING["loss"].worst < -max(losses.values())


def test_the_commonest_class_and_a_tie_are_told() -> None:
    records = [measured(0, "balanced_top1", balanced_top1=71.0), measured(1, "balanced_top1")]
    folder = Folder("/nowhere/a")
    text = summary(records, folder, "sqlite:///a.db")
    assert "balanced top-1 %" in text
    assert "Always the commonest as answer: 50.00 % hold-out balanced top-1." in text
    assert "does not tell" not in text
    close = [records[0], measured(1, "balanced_top1", balanced_top1=69.5)]
    assert (
        "Warning: the hold-out does not tell the best two apart: their balanced top-1 differs by "
        "1.50 points, its standard error is 2.00 points."
    ) in summary(close, folder, "sqlite:///a.db")
    assert tie_warning(RANKING["loss"], [0.2, 0.25], 0.01) == ""
    assert "differs by 0.0500, its standard error is 0.1000" in tie_warning(
        RANKING["loss"], [0.2, 0.25], 0.1
    )


def test_the_head_line_tells_what_ranks_and_the_commonest_class() -> None:
    labels = np.repeat([0, 1], [95, 5])
    assert ranking_note("top1", labels, ("fine", "defect")) == (
        "ranked by top-1 on the 100 images of the hold-out, on which always 'fine' as answer has "
        "95.00 %"
    )
    assert ranking_note("f1", labels, ("fine", "defect")).endswith(
        "always 'fine' as answer has 0.00 %"
    )
    assert "the classes' frequencies as answer has 0.1985" in ranking_note(
        "loss", labels, ("fine", "defect")
    )


def test_searches_by_different_metrics_do_not_stand_side_by_side() -> None:
    searches = {"a": [measured(0, "top1")], "b": [measured(1, "auroc")]}
    with pytest.raises(ValueError, match="same metric to stand together, got 'a' by top1, 'b' by"):
        side_by_side(searches)


def test_a_record_without_the_metric_does_not_rank() -> None:
    old = record(0, (90.0,))
    configuration = old.configuration
    train = configuration.train.model_copy(update={"metric": "auroc"})
    changed = old.model_copy(
        update={"configuration": configuration.model_copy(update={"train": train})}
    )
    assert old.ranks
    assert not changed.ranks
    assert changed.value is None


def test_a_score_of_before_is_one_by_top1(tmp_path: Path) -> None:
    old = score(0, 70.0)
    assert (old.value, old.score, old.metric) == (70.0, 70.0, "top1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--metric auc",
            "invalid choice 'auc' for argument '--metric'. Expected one of ('top1', 'loss', "
            "'balanced_top1', 'auroc', 'f1').",
        ),
        (
            "--metric auroc",
            "metric must be top1, balanced_top1, f1 or loss with the 10 classes of data 'digits', "
            "got 'auroc', which is for two",
        ),
        (
            "--metric loss --name a --resume",
            "resume must not change what 'a' is: train.metric: top1 -> loss",
        ),
    ],
)
def test_a_metric_that_cannot_rank_is_one_line(
    refused: Refused, tmp_path: Path, options: str, message: str
) -> None:
    storage = Folder.at(str(tmp_path / "out"))
    job = parse(TuneJob, ["--recipe", "digits", "--storage", str(storage), "--name", "a"])
    write_description(storage / "a", job.identity)
    assert refused(f"tune_psvit --recipe digits --storage {storage} {options}") == message
