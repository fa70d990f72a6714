"""The pictures of a search show what its records say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch, Polygon
from matplotlib.text import Text

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report import (
    curves_picture,
    importance_picture,
    network_picture,
    pareto_picture,
)
from psvit_ray.report.importance_picture import Importances
from psvit_ray.search.record import Record
from tests.helpers.records import DEIT, PSVIT, record, score, spec_of

STOPPED = [
    record(2, (70.0, 91.5), status="stopped"),
    record(3, (96.0,), spec=DEIT, status="stopped"),
    record(4, (10.0,), status="stopped"),
    record(5, (math.nan,), status="stopped"),
]
FULL = [
    record(0, (80.0, 90.0), spec=DEIT, kind="baseline"),
    record(1, (85.0, 97.25)),
    record(6, (84.0, 96.25), spec=spec_of((1,), (3,), dim=16)),
]
OTHERS = [record(7, (50.0,), status="failed"), record(8, status="pending")]


def in_mega(records: list[Record]) -> set[tuple[float, float]]:
    return {(r.macs / 1e6, r.top1) for r in records if r.top1 is not None}


def points(axes: Axes, gid: str | None) -> set[tuple[float, float]]:
    return {
        (x, y)
        for each in axes.collections
        if each.get_gid() == gid
        for x, y in np.asarray(each.get_offsets()).tolist()
    }


def test_stopped_trials_stand_faint_where_they_stopped_and_are_no_part_of_the_front() -> None:
    drawn = pareto_picture.picture({"a": [*FULL, *STOPPED, *OTHERS]})
    (axes,) = drawn.axes
    floor = 90.0  # of the best DeiT
    assert points(axes, "stopped") == in_mega(STOPPED[:2]) | {(STOPPED[2].macs / 1e6, floor)}
    assert points(axes, None) == in_mega(FULL)
    assert all(each.get_alpha() == 0.4 for each in axes.collections if each.get_gid())
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    by_cost = sorted(in_mega([FULL[1], FULL[2]]))
    assert np.allclose(np.asarray(front.get_xydata()), by_cost)
    assert axes.get_title(loc="left") == (
        "a: 3 trained in full, 4 stopped early, 1 failed, 1 waiting"
    )


def test_a_search_with_only_stopped_trials_shows_them() -> None:
    (axes,) = pareto_picture.picture({"a": STOPPED}).axes
    assert points(axes, "stopped") == in_mega(STOPPED)


def test_every_configuration_has_its_curve_and_a_cross_where_it_ended_early() -> None:
    drawn = curves_picture.picture([*FULL, *STOPPED, *OTHERS], title="a")
    (axes,) = drawn.axes
    curves = {
        str(line.get_gid()): [tuple(p) for p in np.asarray(line.get_xydata()).tolist()]
        for line in axes.lines
        if line.get_linestyle() == "-"
    }
    expected = [r for r in [*FULL, *STOPPED, *OTHERS] if r.top1 is not None]
    assert curves == {
        r.key: [(p.epoch, p.metrics["holdout/top1"]) for p in r.curve] for r in expected
    }
    crosses = {
        tuple(p)
        for line in axes.lines
        if line.get_marker() == "x"
        for p in np.asarray(line.get_xydata()).tolist()
    }
    bottom = min(y for _, y in crosses)
    assert crosses == {(2, 91.5), (1, 96.0), (1, bottom)}, "two lie below the lower edge"
    assert axes.get_ylim()[0] < bottom < 90.0
    wide = {line.get_gid() for line in axes.lines if line.get_linewidth() == 2.5}
    assert wide == {FULL[0].key, FULL[1].key}


def test_choices_are_numbers_of_the_whole_network() -> None:
    chosen = importance_picture.choices(spec_of((2, 1), (2,)))
    assert chosen["pooling place"] == pytest.approx((3 * 1 + 2 * 0.25) / 5)
    assert chosen["sharing"] == pytest.approx(2 / 5)
    assert (chosen["layers"], chosen["widths"], chosen["width of a head"]) == (5, 32.0, 16.0)
    assert chosen["pooling operator"] == "conv"
    assert importance_picture.choices(DEIT)["pooling operator"] == "none"
    assert importance_picture.choices(DEIT)["pooling place"] == 1.0


def searched(number: int, lr: float, top1: float, *later: float, spec: ArchSpec = PSVIT) -> Record:
    """A record with this top-1 after two epochs."""
    trial = record(number, (0.0, top1, *later), spec=spec, status="stopped")
    return trial.model_copy(update={"params": {**trial.params, "lr": lr}})


def test_the_choice_that_decides_is_the_important_one() -> None:
    """The learning rate decides, the sharing does not; DeiTs and failures are left out."""
    rng = np.random.default_rng(0)
    specs = [PSVIT, spec_of((1, 1, 1), (1, 1))]
    rates = 10 ** rng.uniform(-4, -2, 40)
    records = [
        searched(n, float(lr), 70 + 10 * math.log10(lr), spec=specs[n % 2])
        for n, lr in enumerate(rates)
    ]
    longer = searched(40, 0.01, 50.0, 0.0)  # its third epoch does not compare
    noise = [record(50 + n, (float(n),), spec=DEIT) for n in range(20)]
    noise += [record(80 + n, (float(n),), status="failed") for n in range(20)]
    found = importance_picture.of_records([*records, longer, *noise])
    assert (found.configurations, found.epoch) == (41, 2)
    assert list(found.shares) == ["lr", "sharing"], "all else is alike"
    assert found.shares["lr"] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)


def test_importances_are_not_told_from_few_or_equal_configurations() -> None:
    few = [searched(n, 10.0**-n, float(n)) for n in range(1, 10)]
    assert importance_picture.of_records(few).shares == {}
    assert importance_picture.of_records([*few, searched(10, 1e-9, 10.0)]).shares == {"lr": 1.0}
    equal = [searched(n, 10.0**-n, 50.0) for n in range(1, 20)]
    assert importance_picture.of_records(equal).shares == {}
    assert importance_picture.of_records([]) == Importances({}, 0, 0)


def test_importances_of_a_one_shot_search_are_those_of_its_candidates() -> None:
    specs = [spec_of((size,), dim=dim) for size in (1, 2, 3) for dim in (16, 32, 64, 128)]
    scores = [score(n, 10.0 * spec.depth, spec=spec) for n, spec in enumerate(specs)]
    found = importance_picture.of_scores(scores)
    assert (found.configurations, found.epoch) == (12, None)
    assert found.shares["widths"] < 0.05
    assert found.shares["layers"] + found.shares["sharing"] > 0.9


def test_bars_are_the_importances() -> None:
    shares = {"lr": 0.75, "sharing": 0.25}
    (axes,) = importance_picture.picture(Importances(shares, 30, 4), title="a").axes
    assert [bar.get_width() for bar in axes.patches] == [75.0, 25.0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr", "sharing"]
    assert "30 configurations after epoch 4" in axes.get_title(loc="left")


@pytest.mark.parametrize("spec", [PSVIT, DEIT, spec_of((1, 3), (1,), (2, 2), pooling="1d")])
def test_a_network_is_drawn_layer_by_layer(spec: ArchSpec) -> None:
    drawn = network_picture.picture("mine", spec)
    (axes,) = drawn.axes
    layers = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    colours = [to_hex(patch.get_facecolor()).upper() for patch in layers]
    expected = [
        network_picture.FOLLOWER if place else network_picture.LEADER
        for stage in spec.stages
        for size in stage.share_groups
        for place in range(size)
    ]
    assert colours == expected
    assert sum(isinstance(patch, Polygon) for patch in axes.patches) == len(spec.stages) - 1
    texts = {text.get_text() for text in drawn.findobj(Text)}
    for number, (stage, tokens) in enumerate(zip(spec.stages, spec.num_tokens, strict=True)):
        side = round(tokens**0.5)
        grid = f"{side} x {side}" if spec.pooling == "2d" else f"{tokens}"
        assert f"stage {number + 1}\n{grid} tokens\n{stage.embed_dim} channels" in texts
    (title,) = [text for text in texts if text.startswith("mine, pattern ")]
    assert spec.pattern in title
