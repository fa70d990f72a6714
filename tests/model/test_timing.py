"""The table of latencies: parts that cover a space, and sums of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from psvit_ray.arch.latency import Conditions, LatencyTable, MeasuredNetwork
from psvit_ray.arch.parts import cover, parts
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.commands.command_line import read_recipe
from psvit_ray.model import strategies, timing
from psvit_ray.model.layers import choose_strategy
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.strategies import StrategyTiming, check_strategies
from psvit_ray.model.timing import measure_table, torch_device, tried_on
from tests.helpers.command_line import Refused, job, parse
from tests.helpers.spaces import SPACES, built, choices, space

QUICK = Conditions(batch_size=1, rounds=1, times=1)
DIGITS = SearchSpace.model_validate(read_recipe("digits")["search"]["space"])
LARGER = SearchSpace.model_validate(
    {
        "img_size": 32,
        "patch_size": (2, 4),
        "pooling": ("1d", "2d"),
        "pool_op": ("avg", "conv"),
        "num_stages": (3, 1, 2),
        "stages": [
            {"depth": depth, "embed_dim": dims, "head_dim": (8, 16), "mlp_ratio": (2, 3)}
            for depth, dims in (((2, 4), (32, 48)), ((6, 1), (48, 64, 96)), ((5,), (64,)))
        ],
    }
)


def spec(pooling: str, *stages: tuple[int, tuple[int, ...]], **fields: Any) -> ArchSpec:
    """Of `(embed_dim, share_groups)` of each stage, on 12 x 12 images in patches of 4."""
    return ArchSpec.model_validate(
        {
            "img_size": 12,
            "patch_size": 4,
            "in_chans": 1,
            "num_classes": 10,
            "pooling": pooling,
            "stages": tuple(
                StageSpec(embed_dim=dim, num_heads=2, hidden_dim=2 * dim, share_groups=groups)
                for dim, groups in stages
            ),
            **fields,
        }
    )


def table(ms: dict[str, float], **fields: Any) -> LatencyTable:
    return LatencyTable.model_validate(
        {
            "conditions": QUICK,
            "device_name": "a device",
            "threads": 1,
            "torch_version": "2",
            "img_size": 12,
            "in_chans": 1,
            "num_classes": 10,
            "layer_scale": False,
            "ms": ms,
            **fields,
        }
    )


@pytest.mark.parametrize("op", ["conv", "max", "avg"])
def test_a_2d_network_takes_the_sum_of_its_parts(op: str) -> None:
    ms = {
        "embed 2d patch=4 dim=8": 1.0,
        "group 2d tokens=9 dim=8 heads=2 hidden=16 layers=1": 20.0,
        "group 2d tokens=9 dim=8 heads=2 hidden=16 layers=2": 300.0,
        f"pool 2d {op} tokens=9 dim=8 out=16": 4_000.0,
        "group 2d tokens=4 dim=16 heads=2 hidden=32 layers=1": 50_000.0,
        "head 2d tokens=4 dim=16": 600_000.0,
    }
    given = spec("2d", (8, (1, 2, 1)), (16, (1,)), pool_op=op)
    assert table(ms).predict(given) == 1 + 20 + 300 + 20 + 4_000 + 50_000 + 600_000


@pytest.mark.parametrize("op", ["conv", "max", "avg"])
def test_a_1d_network_takes_the_sum_of_its_parts(op: str) -> None:
    """9 patch tokens, then 5, then 3; a class token stands beside them in groups and head."""
    ms = {
        "embed 1d patch=4 dim=8": 1.0,
        "group 1d tokens=10 dim=8 heads=2 hidden=16 layers=2": 20.0,
        f"pool 1d {op} tokens=10 dim=8 out=8": 300.0,
        "group 1d tokens=6 dim=8 heads=2 hidden=16 layers=1": 4_000.0,
        f"pool 1d {op} tokens=6 dim=8 out=16": 50_000.0,
        "group 1d tokens=4 dim=16 heads=2 hidden=32 layers=3": 600_000.0,
        "head 1d tokens=4 dim=16": 7_000_000.0,
    }
    given = spec("1d", (8, (2,)), (8, (1, 1)), (16, (3,)), pool_op=op)
    assert table(ms).predict(given) == 7_658_321


def test_a_table_says_what_it_does_not_have() -> None:
    given = spec("2d", (8, (1,)))
    ms = dict.fromkeys(parts(given), 1.0)
    assert table(ms).predict(given) == 3
    with pytest.raises(
        ValueError,
        match=r"no part 'group 2d tokens=9 dim=8 heads=2 hidden=16 layers=2', which spec 2-1 has",
    ):
        table(ms).predict(spec("2d", (8, (2, 1))))
    for field, value in (("img_size", 24), ("in_chans", 3), ("num_classes", 2)):
        with pytest.raises(ValueError, match=f"{field}=[0-9]+, got a spec with {value}"):
            table(ms).predict(spec("2d", (8, (1,)), **{field: value}))
    with pytest.raises(ValueError, match="layer_scale=False, got a spec with True"):
        table(ms).predict(spec("2d", (8, (1,)), layer_scale=True))


def test_json_gives_the_same_table() -> None:
    given = spec("1d", (8, (2, 1)), (16, (1,)))
    unseen = (MeasuredNetwork(spec=given, predicted=1 / 3, measured=0.1),)
    one = table({part: 1 / (3 + i) for i, part in enumerate(parts(given))}, unseen=unseen)
    again = LatencyTable.model_validate_json(one.model_dump_json())
    assert again == one
    assert again.predict(given) == one.predict(given)


def test_the_error_is_that_of_the_median_network_in_percent_of_what_was_measured() -> None:
    given = spec("2d", (8, (1,)))
    pairs = ((2.0, 1.0), (0.7, 1.0), (10.5, 10.0))
    unseen = tuple(MeasuredNetwork(spec=given, predicted=p, measured=m) for p, m in pairs)
    assert [one.error for one in unseen] == pytest.approx([100, -30, 5])
    assert table({}, unseen=unseen).median_error == pytest.approx(30)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("times", [1, 3])
def test_a_cover_has_every_part_that_a_spec_of_the_space_has_and_no_other(
    name: str, times: int
) -> None:
    every = built(SPACES[name])
    covering = cover(SPACES[name], times)
    assert set(covering) <= set(every)
    known = {part for one in every for part in parts(one)}
    counts = [sum(part in parts(one) for one in covering) for part in known]
    assert {part for one in covering for part in parts(one)} == known
    assert min(counts) == times
    assert len(covering) <= times * len(known)  # each was drawn for a part


def test_a_part_that_no_other_leads_to_is_covered_whatever_the_chance() -> None:
    """Of the coarse grid's first stage only the embedding is not in the fine grid's second too."""
    alike = choices(depth=(1,), embed_dim=(8, 16))
    given = space(alike, alike, alike, patch_size=(1, 2))
    known = {part for one in built(given) for part in parts(one)}
    for seed in range(40):
        assert {part for one in cover(given, seed=seed) for part in parts(one)} == known


@pytest.mark.parametrize("given", [DIGITS, LARGER])
def test_every_spec_drawn_from_a_space_can_be_predicted(given: SearchSpace) -> None:
    ms = dict.fromkeys((part for one in cover(given) for part in parts(one)), 1.0)
    frame = {name: getattr(given, name) for name in ("img_size", "in_chans", "num_classes")}
    rng, kinds = random.Random(0), set()
    for _ in range(200):
        drawn = given.sample(rng)
        kinds.add(drawn.pooling)
        assert table(ms, **frame).predict(drawn) == len(parts(drawn))
    assert kinds == {"1d", "2d"}


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_pieces_one_after_the_other_are_the_network(pooling: str) -> None:
    given = spec(pooling, (8, (1, 2)), (16, (3,)), (8, (1, 1)), layer_scale=True)
    model = PSViT(given).eval()
    images = x = torch.randn(2, 1, 12, 12)
    pieces = model.pieces()
    for piece in pieces:
        x = piece(x)
    assert torch.equal(x, model(images))
    assert len(pieces) == len(parts(given))


def test_parts_are_named_as_the_pieces_that_run() -> None:
    """What goes into each piece and what comes out, by the names."""
    for given in (
        spec("1d", (8, (2,)), (16, (1,)), pool_op="max"),
        spec("2d", (8, (2,)), (16, (1,))),
    ):
        x = torch.randn(2, 1, 12, 12)
        for name, piece in zip(parts(given), PSViT(given).pieces(), strict=True):
            sizes = dict(word.split("=") for word in name.split()[2:] if "=" in word)
            before, x = x.shape, piece(x)
            if name.startswith("embed"):
                assert x.shape[2] == int(sizes["dim"])
            else:
                assert before[1:] == (int(sizes["tokens"]), int(sizes["dim"]))
            if name.startswith("pool"):
                assert x.shape[2] == int(sizes["out"])


def test_measured_is_what_the_clock_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = "thread_time" if torch.get_num_threads() == 1 else "perf_counter"
    monkeypatch.setattr(timing.time, clock, lambda: float(next(ticks)))
    given = SPACES["all kinds"]
    one = measure_table(given, QUICK)
    assert set(one.ms) == {part for spec in built(given) for part in parts(spec)}
    assert set(one.ms.values()) == {1000.0}
    assert one.threads == torch.get_num_threads()
    drawn = given.sample(random.Random(0))
    tried = tried_on(one, [drawn])
    # A whole network is timed by two looks at the clock.
    assert tried.unseen == (
        MeasuredNetwork(spec=drawn, predicted=1000.0 * len(parts(drawn)), measured=1000.0),
    )


def test_the_fastest_pass_of_a_moment_counts_and_of_moments_the_median(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One piece: two warm-up passes, then two; at three moments.
    seconds = iter([1, 1, 5, 2, 1, 1, 3, 8, 1, 1, 7, 7])
    monkeypatch.setattr(timing, "time_pieces", lambda pieces, x: [float(next(seconds))])
    conditions = Conditions(batch_size=1, rounds=2, times=3)
    assert timing.time_networks([spec("2d", (8, (1,)))], conditions) == [3.0]


def test_parts_are_timed_in_the_fastest_whole_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = iter([[0, 0, 0], [0, 0, 0], [1, 9, 9], [4, 5, 6]])
    monkeypatch.setattr(timing, "time_pieces", lambda pieces, x: next(passes))
    one = measure_table(SPACES["one spec"], Conditions(batch_size=1, rounds=2, times=1))
    names = parts(SPACES["one spec"].sample(random.Random(0)))
    assert one.ms == dict(zip(names, [4, 5, 6], strict=True))


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"this host has \(cpu\), got 'cuda'"):
        measure_table(SPACES["one spec"], Conditions(device="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"\(cpu, cuda, cuda:0, cuda:1\), got 'cuda:2'"):
        _ = torch_device(Conditions(device="cuda:2"))
    assert torch_device(Conditions(device="cuda:1")) == torch.device("cuda:1")


def test_the_rule_is_judged_where_layers_of_the_specs_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Explicit, then fused: two rounds that warm up, then three.
    ms = itertools.cycle([99, 1, 99, 1, 3, 1, 1, 1, 2, 1])

    def timed(works: list[Callable[[Tensor], Tensor]], x: Tensor) -> list[float]:
        (work,) = works
        assert work(x).shape == x.shape
        return [float(next(ms))]

    monkeypatch.setattr(strategies, "time_pieces", timed)
    specs = [
        spec("2d", (8, (1, 2)), (16, (1,))),
        spec("2d", (24, (1, 3))),
        spec("2d", (16, (2,))),
        spec("1d", (8, (2,))),
    ]
    judged = check_strategies(specs, Conditions(batch_size=1, rounds=3, times=1))
    cases = [(one.num_tokens, one.stage.depth, one.stage.embed_dim) for one in judged[::2]]
    assert cases == [
        (4, 1, 16),
        (9, 1, 8),
        (9, 1, 24),
        (9, 2, 8),
        (9, 2, 16),
        (9, 3, 24),
        (10, 2, 8),
    ]
    assert [one.gradients for one in judged] == [False, True] * len(cases)
    for one in judged:
        chosen = choose_strategy(
            "cpu", torch.float32, one.num_tokens, one.stage.depth, gradients=one.gradients
        )
        assert one.chosen == chosen
        assert one.ratio == (2 if chosen == "explicit" else 0.5)


def test_the_job_lists_where_the_rule_is_slower_by_more_than_a_tenth() -> None:
    stage = StageSpec(embed_dim=48, num_heads=3, hidden_dim=96, share_groups=(2,))
    judged = [
        StrategyTiming(num_tokens=n, stage=stage, gradients=n > 49, chosen="fused", ratio=ratio)
        for n, ratio in ((16, 0.5), (49, 1.09), (64, 1.11), (196, 2.5))
    ]
    said = job("latency").report_of_rule(judged).splitlines()
    assert "in 2 of 4 cases; where not:" in said[0]
    assert [line.split() for line in said[3:]] == [
        ["196", "2", "48", "3", "96", "training", "fused", "150"],
        ["64", "2", "48", "3", "96", "training", "fused", "11"],
    ]
    assert job("latency").report_of_rule(judged[:2]).endswith("in 2 of 2 cases")


def write_recipe(path: Path, **stage: list[int]) -> SearchSpace:
    """A space of two stages on digits."""
    stages = [{"head_dim": [16], "mlp_ratio": [2], **stage}] * 2
    fields = {"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": [2], "pooling": ["2d"]}
    recipe = {"search": {"space": {**fields, "stages": stages}}}
    path.write_text(yaml.safe_dump(recipe))
    return SearchSpace.model_validate(recipe["search"]["space"])


def test_what_cannot_be_measured_is_one_line(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    said = "device must be one that this host has (cpu), got 'cuda'"
    assert refused("latency --out a.json --device cuda") == said
    assert refused("latency --out a.json --unseen 19") == "unseen must be at least 20, got 19"
    assert refused("latency") == "--out must be given"
    (tmp_path / "a.json").write_text("{}")
    assert refused("latency --out a.json").endswith("a.json, which exists")
    write_recipe(tmp_path / "small.yaml", depth=[1, 2], embed_dim=[16])
    told = refused("latency --recipe small.yaml --out b.json")
    assert told.startswith("unseen must be at most ")
    assert told.endswith("got 24")


def test_the_job_writes_a_table_tried_on_networks_that_it_was_not_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    given = write_recipe(tmp_path / "small.yaml", depth=[1, 2, 3], embed_dim=[16, 32])
    line = f"latency --recipe {tmp_path}/small.yaml --out {out} --rounds 1 --times 1 --no-rule"
    assert job("latency").work(parse(line)) == 0
    said = capsys.readouterr().out
    one = LatencyTable.model_validate_json(out.read_text())
    covering = set(cover(given))
    assert len({tried.spec for tried in one.unseen}) == 24
    for tried in one.unseen:
        assert given.contains(tried.spec)
        assert tried.spec not in covering
        assert tried.predicted == one.predict(tried.spec)
    assert f"{len(one.ms)} parts, measured in {len(covering)} networks: batches of 32" in said
    assert f"median error {one.median_error:.1f} %" in said
