"""The report of a one-shot search says what scores and records say, and no more."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib import image
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report import leaderboard
from psvit_ray.report.oneshot import (
    candidates_picture,
    generations_picture,
    oneshot_files,
    traits,
    traits_picture,
)
from psvit_ray.search.oneshot.finalists import finalists, winner
from psvit_ray.search.oneshot.plan import standard_error
from psvit_ray.search.oneshot.scores import Generation, Score, generations
from psvit_ray.search.record import Kind, Record, Status
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.results import RANKING
from tests.helpers.records import DEIT, LARGE, MIDDLE, SMALL, record, score, spec_of

TRACKING = "sqlite:////tmp/mlflow.db"
FILES = [
    "candidates.csv",
    "candidates.png",
    "curves.png",
    "finalists.csv",
    "generations.png",
    "importance.png",
    "leaderboard.csv",
    "leaderboard.json",
    "report.html",
    "traits.csv",
    "traits.png",
]


SCORES = [
    score(0, 60.0, spec=SMALL),
    score(1, 70.0, spec=MIDDLE, latency_ms=1.5),
    score(2, 72.5, spec=LARGE, generation=1, loss=0.75),
    score(3, 70.0, spec=spec_of((3,), (2,), dim=16), generation=1, loss=0.5),
]


def seeds(kind: Kind, spec: ArchSpec, *top1: float, **fields: Any) -> list[Record]:
    """A training for each, with seeds from 0 on; NaN is one that failed midway."""
    init = "/exported" if kind == "finetuned" else ""
    found = []
    for seed, value in enumerate(top1):
        status: Status = "failed" if math.isnan(value) else "completed"
        curve = (99.0,) if status == "failed" else (50.0, value)
        one = record(seed, curve, kind=kind, spec=spec, status=status, seconds=10.0 + seed)
        train = TrainConfig(seed=seed, init=init)
        changes = {"configuration": Configuration(spec=spec, train=train), **fields}
        found.append(one.model_copy(update=changes))
    return found


RECORDS = [
    *seeds("finalist", LARGE, 90.0, 94.0, 92.0),
    *seeds("finetuned", LARGE, 91.0, math.nan),
    *seeds("finalist", MIDDLE, 93.0, 89.0),
    *seeds("baseline", DEIT, 88.0, 87.0, 86.0, test_top1=85.5),
    *seeds("finetuned", SMALL, math.nan),
    record(9, (99.0,), kind="supernet", spec=LARGE),
]


def table(name: str, scores: Sequence[Score], records: Sequence[Record]) -> list[dict[str, str]]:
    content = oneshot_files.tables(scores, records)[name]
    return list(csv.DictReader(io.StringIO(content.decode())))


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def test_every_candidate_stands_in_the_table_the_best_first() -> None:
    lines = table("candidates.csv", SCORES, [])
    best_first = [SCORES[2], SCORES[3], SCORES[1], SCORES[0]]  # among equals by loss
    for rank, (line, one) in enumerate(zip(lines, best_first, strict=True), start=1):
        as_trained = leaderboard.leaderboard_rows([record(0, (1.0,), spec=one.spec)])[0]
        expected = {
            "rank": rank,
            "number": one.number,
            "generation": one.generation,
            "top1": one.top1,
            "loss": one.loss,
            "latency_ms": "" if one.latency_ms is None else one.latency_ms,
            **{name: as_trained[name] for name in line if name in as_trained and name != "rank"},
        }
        assert line == {name: str(value) for name, value in expected.items()}
    assert {"gmacs", "params_m", "pattern", "pool_op", "embed_dims", "spec_id"} <= set(lines[0])


def test_finalists_are_compared_by_means_over_seeds() -> None:
    lines = table("finalists.csv", SCORES, RECORDS)
    columns = ["how", "pattern", "seeds", "missing", "holdout_top1", "holdout_top1_sd"]
    columns += ["test_top1", "test_top1_sd", "test_seeds", "rank", "shared_top1", "seconds_per_run"]
    sd2 = str(math.sqrt(8.0))  # of 93 and 89
    assert [[line[name] for name in columns] for line in lines] == [
        ["from scratch", "1-2|2", "3", "0", "92.0", "2.0", "", "", "0", "1", "72.5", "11.0"],
        ["from scratch", "1-1|2", "2", "0", "91.0", sd2, "", "", "0", "3", "70.0", "10.5"],
        ["fine-tuned", "1-2|2", "1", "1", "91.0", "", "", "", "0", "1", "72.5", "10.0"],
        ["DeiT", "1-1-1-1", "3", "0", "87.0", "1.0", "85.5", "0.0", "3", "", "", "11.0"],
        ["fine-tuned", "1|2", "0", "1", "", "", "", "", "0", "4", "60.0", ""],
    ]


@pytest.mark.parametrize(
    ("top1", "median"), [((90.0,), 0), ((90.0, 94.0, 92.0), 2), ((93.0, 96.0, 91.0, 94.0), 0)]
)
def test_the_winner_is_the_median_seed_the_lower_of_two(top1: Sequence[float], median: int) -> None:
    runs = seeds("finalist", LARGE, *top1)
    assert winner(runs) == runs[median]
    assert winner(runs[::-1]) == runs[median]


def test_the_winner_is_of_the_best_mean_and_of_a_psvit() -> None:
    scratch = seeds("finalist", LARGE, 92.0, 90.0)
    tuned = seeds("finetuned", LARGE, 92.0, 91.0)
    lucky = seeds("finalist", MIDDLE, 80.0, 99.0)
    failed = seeds("finalist", SMALL, math.nan)
    deit = seeds("baseline", DEIT, 99.0)
    supernet = [record(9, (99.0,), kind="supernet", spec=LARGE)]
    others = [*lucky, *failed, *deit, *supernet]
    assert winner([*scratch, *tuned, *others]) == tuned[1]
    assert winner([*scratch, *others]) == scratch[1]
    assert winner([*failed, *deit, *supernet]) is None
    assert winner([]) is None


def test_among_equal_means_the_winner_has_fewer_macs() -> None:
    costly, light = seeds("finalist", LARGE, 91.0), seeds("finetuned", MIDDLE, 90.0, 92.0)
    assert costly[0].macs > light[0].macs
    assert winner([*costly, *light]) == light[0]
    assert winner([*light, *costly]) == light[0]


def test_test_scores_choose_nothing() -> None:
    chosen = winner(RECORDS)
    assert chosen == RECORDS[2]
    for turn in (1, -1):
        tested = [
            one.model_copy(update={"test_top1": 50.0 + turn * number})
            for number, one in enumerate(RECORDS)
        ]
        again = winner(tested)
        assert again
        assert again.key == chosen.key
        order = [(one.spec, one.kind) for one in finalists(tested)]
        assert order == [(one.spec, one.kind) for one in finalists(RECORDS)]


def forty() -> list[Score]:
    """The best tenth are four in 2d, of which three share a map in the first stage's second layer;
    of all forty 10 are in 2d, and 8 of the 20 that have such a layer share in it."""
    two_layers = [spec_of((2,), (1,))] * 3 + [spec_of((1, 1), (1,))]
    others = [spec_of((1, 1), (1,))] * 6
    flat = [spec_of((2,), (1,), pooling="1d")] * 5 + [spec_of((1, 1), (1,), pooling="1d")] * 5
    one_layer = [spec_of((1,), (1,), pooling="1d")] * 20
    specs = [*two_layers, *others, *flat, *one_layer]
    return [score(number, 90.0 - number, spec=spec) for number, spec in enumerate(specs)]


def test_traits_are_counted_among_the_best_and_among_all() -> None:
    lines = table("traits.csv", forty(), [])
    counts = {
        (line["trait"], line["choice"]): [
            float(line[name]) for name in ("top", "top_of", "all", "all_of", "lift")
        ]
        for line in lines
    }
    assert counts == {
        ("pooling", "1d"): [0, 4, 30, 40, 0.0],
        ("pooling", "2d"): [4, 4, 10, 40, 4.0],
        ("stage1.depth", "1"): [0, 4, 20, 40, 0.0],
        ("stage1.depth", "2"): [4, 4, 20, 40, 2.0],
        ("stage1.share2", "0"): [1, 4, 12, 20, 0.25 / 0.6],
        ("stage1.share2", "1"): [3, 4, 8, 20, 0.75 / 0.4],
        ("stage2.tokens", "16"): [4, 4, 10, 40, 4.0],
        ("stage2.tokens", "32"): [0, 4, 30, 40, 0.0],
    }, "what all have alike, as patch size and widths, is no choice"
    pooled = next(line for line in lines if line["choice"] == "2d")
    # Wilson's interval of n of n is from n / (n + z^2) to 1.
    assert float(pooled["top_low"]) == pytest.approx(100 * 4 / (4 + 1.959964**2))
    assert float(pooled["top_high"]) == pytest.approx(100)
    assert (float(pooled["top_percent"]), float(pooled["all_percent"])) == (100, 25)


def test_a_spec_has_the_traits_of_its_layers() -> None:
    assert traits.traits(spec_of((1, 2), (3,))) == {
        **{"pooling": "2d", "patch_size": 1, "num_stages": 2, "pool_op": "conv"},
        **{"stage1.depth": 3, "stage1.embed_dim": 32, "stage1.head_dim": 16},
        **{"stage1.mlp_ratio": 2.0, "stage1.tokens": 64, "stage1.share2": 0, "stage1.share3": 1},
        **{"stage2.depth": 3, "stage2.embed_dim": 32, "stage2.head_dim": 16},
        **{"stage2.mlp_ratio": 2.0, "stage2.tokens": 16, "stage2.share2": 1, "stage2.share3": 1},
    }
    assert "pool_op" not in traits.traits(DEIT), "nothing is pooled"


def test_a_trait_that_none_of_the_best_has_is_not_compared() -> None:
    specs = [spec_of((1,))] * 2 + [spec_of((1,), (1,)), spec_of((1,), (2,))] * 9
    found = traits.trait_choices([score(n, 90.0 - n, spec=spec) for n, spec in enumerate(specs)])
    depth = [one for one in found if one.trait == "stage2.depth"]
    assert [(one.choice, one.top_of, one.all, one.all_of) for one in depth] == [
        (1, 0, 9, 18),
        (2, 0, 9, 18),
    ]
    assert all(one.lift is one.top_share is one.interval is None for one in depth)
    assert traits.trait_rows(depth)[0]["lift"] is None
    assert {"depth", "1", "2"} <= texts(traits_picture.picture(found, title="a"))


def test_traits_are_not_told_from_few_candidates() -> None:
    few = forty()[10:29]
    assert table("traits.csv", few, []) == []
    assert len(traits.trait_choices(forty()[10:30])) > 0
    assert any("fewer than 20" in text for text in texts(traits_picture.picture([], title="a")))
    assert "not told from fewer than 20 candidates" in summary(few, [])


def test_generations_have_their_best_and_quartiles() -> None:
    top1 = {0: [10.0, 20.0, 30.0, 40.0, 50.0], 2: [45.0, 35.0], 3: [60.0]}
    found = generations(
        [score(0, value, generation=n) for n, values in top1.items() for value in values]
    )
    assert found == [
        Generation(0, scored=5, best=50.0, best_so_far=50.0, quartiles=(20.0, 30.0, 40.0)),
        Generation(2, scored=7, best=45.0, best_so_far=50.0, quartiles=(37.5, 40.0, 42.5)),
        Generation(3, scored=8, best=60.0, best_so_far=60.0, quartiles=(60.0, 60.0, 60.0)),
    ]
    drawn = generations_picture.picture(found, title="mine", metric=RANKING["top1"])
    assert {"mine", "generation", "its median", "best so far, 60.00 % at the end"} <= texts(drawn)


def summary(scores: Sequence[Score], records: Sequence[Record], **changes: Any) -> str:
    given = {"supernet_seconds": 600.0, "holdout_size": 900}
    folder = Folder("s3://me:secret@bucket/mine")
    return oneshot_files.summary(scores, records, folder, TRACKING, **{**given, **changes})


def test_the_summary_says_how_sure_the_best_is() -> None:
    assert standard_error(900, 90.0) == pytest.approx(1.0)
    near = [score(n, top1) for n, top1 in enumerate([90.0, 89.5, 89.0, 88.9, 20.0])]
    said = summary(near, [])
    assert "5 candidates" in said
    assert "Best: 90.00 % hold-out top-1, 1|2, patch 1" in said
    assert "1.00 points on 900 images; candidates that lie within one, with itself: 3" in said
    assert "No winner yet" in said


def test_the_summary_shows_finalists_what_is_missing_and_where_time_went() -> None:
    said = summary(SCORES, RECORDS)
    assert "11 trainings of finalists: 9 trained in full, 2 failed; missing below: 2" in said
    rows = [line for line in said.splitlines() if line.startswith(("from", "fine", "DeiT"))]
    assert [" ".join(line.split()) for line in rows][::3] == [
        f"from scratch 3 92.00 ± 2.00 - {LARGE_COSTS} 72.50 (#1) 1 1-2|2 2 11",
        f"DeiT 3 87.00 ± 1.00 85.50 ± 0.00 {DEIT_COSTS} - 1 1-1-1-1 2 11",
    ]
    assert "The winner: 1-2|2 from scratch, seed 2, 92.00 % hold-out top-1" in said
    retraining = sum(one.seconds for one in RECORDS[:11])
    assert retraining == 33 + 21 + 21 + 33 + 10
    scored = [score.model_copy(update={"seconds": 29.5}) for score in SCORES]
    said = summary(scored, RECORDS, supernet_seconds=236.0)
    assert "supernet 236 s (50 %), scoring 118 s (25 %), retraining 118 s (25 %)" in said
    assert f"mlflow ui --backend-store-uri {TRACKING}" in said
    assert "s3://bucket/mine/finalists.csv" in said
    assert "secret" not in said


def costs(spec: ArchSpec) -> str:
    one = record(0, spec=spec)
    return f"{one.macs / 1e6:#.3g} {one.params_m:#.3g}"


LARGE_COSTS, DEIT_COSTS = costs(LARGE), costs(DEIT)


def test_the_picture_tells_what_was_trained_from_what_was_scored() -> None:
    found = finalists(RECORDS)
    marked = {"hand-made": SCORES[3].spec, "unknown": spec_of((4,))}
    drawn = candidates_picture.picture(SCORES, found, marked, title="mine")
    above, below, _ = drawn.axes
    assert {
        "mine",
        "4 candidates with the supernet's weights",
        "PSViT from scratch, 2 to 3 seeds",
        "PSViT fine-tuned, 1 seed",
        "DeiT, 3 seeds",
        "Pareto front",
        "hand-made: 70.00 %",
        "finalist, with its rank here",
        "MMACs of one image",
    } <= texts(drawn)
    assert not any("unknown" in text for text in texts(drawn))
    bars = {
        str(one.get_label()): one for one in above.containers if isinstance(one, ErrorbarContainer)
    }
    line, _, (spread,) = bars["PSViT from scratch, 2 to 3 seeds"].lines
    assert line is not None
    mega = [one.macs / 1e6 for one in (found[0], found[1])]
    assert np.allclose(line.get_xydata(), [(mega[0], 92.0), (mega[1], 91.0)])
    ends = [segment[:, 1].tolist() for segment in spread.get_segments()]
    assert np.allclose(ends, [(90.0, 94.0), (91 - math.sqrt(8), 91 + math.sqrt(8))])
    low, high = above.get_ylim()
    assert low < 86.0, "DeiT and its deviation are inside"
    assert high > 94.0
    (front,) = [one for one in below.lines if one.get_label() == "Pareto front"]
    assert SCORES[3].macs > SCORES[1].macs, "as good as the other, at more MACs"
    by_cost = [SCORES[0], SCORES[1], SCORES[2]]
    assert np.allclose(front.get_xydata(), [(one.macs / 1e6, one.top1) for one in by_cost])
    assert numbers(below) == {"#1", "#3", "#4"}
    assert numbers(above) == {"#1", "#3"}, "of those that were trained in full"


def numbers(axes: Any) -> set[str]:
    return {one.get_text() for one in axes.texts if isinstance(one, Annotation)}


def test_a_number_stands_nearer_to_its_own_point_than_to_any_other() -> None:
    specs = [spec_of((2, 1), (n,), dim=16) for n in (1, 2, 3, 4)]
    scores = [score(n, 70.0 + 0.1 * n, spec=spec) for n, spec in enumerate(specs)]
    scores += [score(9, 40.0, spec=spec_of((1,), dim=64)), score(10, 45.0, spec=SMALL)]
    records = [one for spec in specs for one in seeds("finalist", spec, math.nan)]
    drawn = candidates_picture.picture(scores, finalists(records), {}, title="a")
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    places = axes.transData.transform([(one.macs / 1e6, one.top1) for one in scores[3::-1]])
    labels = [one for one in axes.texts if isinstance(one, Annotation)]
    assert [label.get_text() for label in labels] == ["#1", "#2", "#3", "#4"]
    for rank, label in enumerate(labels):
        extent = label.get_window_extent()
        middle = np.array([extent.x0 + extent.x1, extent.y0 + extent.y1]) / 2
        assert np.linalg.norm(places - middle, axis=1).argmin() == rank


@pytest.mark.parametrize(
    ("scores", "records"),
    [([], []), ([], RECORDS), ([score(0, 0.0)], RECORDS[4:5]), (forty(), RECORDS)],
)
def test_a_report_is_written_of_whatever_there_is(
    scores: list[Score], records: list[Record], tmp_path: Path
) -> None:
    folder = Folder.at(str(tmp_path))
    where = oneshot_files.write(
        scores, records, folder, title="a $ b $", text="said", marked={"small": SMALL}
    )
    best = winner(records)
    files = sorted([*FILES, *(["best.yaml", "winner.png"] if best else [])])
    assert sorted(where) == [str(folder / name) for name in files]
    assert folder.names() == files
    if best:
        content = yaml.safe_load((tmp_path / "best.yaml").read_text())
        assert ArchSpec.model_validate(content["spec"]) == best.configuration.spec
    for name, content in oneshot_files.tables(scores, records).items():
        assert (tmp_path / name).read_bytes() == content
    for name in files:
        if name.endswith(".png"):
            pixels = image.imread(tmp_path / name)
            assert pixels.shape[0] > 300
            assert pixels.min() < 0.5, "something is drawn"
    assert summary(scores, records, supernet_seconds=0.0)
