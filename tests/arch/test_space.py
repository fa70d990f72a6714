"""A search space against its own specs, all of them built and counted one by one."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from psvit_ray.arch import space as space_module
from psvit_ray.arch.census import Census, wilson_interval
from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.counting import compositions, draw_composition
from psvit_ray.arch.space import Limits, Parameter, SearchSpace, StageChoices
from psvit_ray.arch.spec import ArchSpec, StageSpec
from tests.helpers.spaces import SPACES, built, choices, space

every_space = pytest.mark.parametrize("name", SPACES)


BUILT = {name: built(given) for name, given in SPACES.items()}


def walked(given: SearchSpace) -> list[tuple[ArchSpec, dict[str, Parameter]]]:
    """Every sequence of decisions, and the spec where it ends."""
    ends: list[tuple[ArchSpec, dict[str, Parameter]]] = []
    pending: list[tuple[int, ...]] = [()]
    while pending:
        start = pending.pop()
        taken: list[int] = []
        widths: list[int] = []
        asked: dict[str, Parameter] = {}

        def choose(name: str, options: tuple[Parameter, ...]) -> Parameter:
            taken.append(start[len(taken)] if len(taken) < len(start) else 0)  # noqa: B023
            widths.append(len(options))  # noqa: B023
            assert name not in asked, "a decision is asked once"  # noqa: B023
            asked[name] = options[taken[-1]]  # noqa: B023
            return options[taken[-1]]  # noqa: B023

        ends.append((given.walk(choose), asked))
        for i in range(len(start), len(taken)):
            pending += [(*taken[:i], other) for other in range(1, widths[i])]
    return ends


@every_space
def test_each_spec_is_reached_by_one_sequence_of_decisions(name: str) -> None:
    ends = walked(SPACES[name])
    specs = {spec for spec, _ in ends}
    assert len(specs) == len(ends)
    assert specs == set(BUILT[name])


@every_space
def test_size_is_the_number_of_specs(name: str) -> None:
    size = SPACES[name].size()
    assert (size.count, size.low, size.high, size.exact) == (len(BUILT[name]),) * 3 + (True,)


def some_limits(specs: list[ArchSpec]) -> list[Limits]:
    macs, params = sorted(map(count_macs, specs)), sorted(map(count_params, specs))
    at = [0, len(specs) // 7, len(specs) // 2, 4 * len(specs) // 5, len(specs) - 1]
    limits = [Limits(max_macs=macs[0] - 1), Limits(max_params=params[0] - 1)]
    limits += [Limits(max_macs=macs[i]) for i in at] + [Limits(max_params=params[i]) for i in at]
    limits += [Limits(max_macs=macs[i] - 1) for i in at[2:]]
    return limits + [Limits(max_macs=macs[i], max_params=params[j]) for i in at for j in at]


@every_space
def test_size_under_limits_is_the_number_of_specs_that_meet_them(name: str) -> None:
    costs = [(count_macs(spec), count_params(spec)) for spec in BUILT[name]]
    for limits in some_limits(BUILT[name]):
        macs, params = limits.bounds
        fit = sum(m <= macs and p <= params for m, p in costs)
        size = SPACES[name].size(limits)
        assert size.exact
        assert size.count == fit, limits


THREE_STAGES = space(
    *[choices(depth=(2, 3, 4, 5, 6), embed_dim=(16, 24, 32), mlp_ratio=(2, 4))] * 3,
    patch_size=(1,),
    pooling=("2d", "1d"),
    pool_op=("max", "conv"),
)


def test_a_space_of_millions_is_counted_exactly_and_soon() -> None:
    # 2^(d-1) ways to part d layers; 6 pairs of width and ratio; 4 pairs of pooling and operator.
    assert THREE_STAGES.size().count == 4 * (6 * sum(2 ** (d - 1) for d in range(2, 7))) ** 3
    start = time.perf_counter()
    size = THREE_STAGES.size(Limits(max_macs=2_000_000, max_params=60_000))
    assert time.perf_counter() - start < 4
    assert size.exact
    # All specs fit where the dearest does, none where the cheapest does not.
    least_macs, least_params = THREE_STAGES.smallest()
    assert THREE_STAGES.size(Limits(max_macs=count_macs(least_macs) - 1)).count == 0
    assert THREE_STAGES.size(Limits(max_params=count_params(least_params))).count >= 1
    assert THREE_STAGES.size(Limits(max_macs=10**12)).count == THREE_STAGES.size().count


@pytest.mark.parametrize("name", ["one stage", "all kinds", "stages left out"])
def test_an_estimate_covers_the_exact_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Census, "MAX_WORK", 0)
    monkeypatch.setattr(Census, "DRAWS", 2_000)
    space_module._census.cache_clear()
    covered = []
    limits = some_limits(BUILT[name])
    for one in limits:
        size = SPACES[name].size(one)
        assert not size.exact
        assert size.low <= size.count <= size.high
        assert size.high - size.low <= 0.05 * len(BUILT[name]) + 2
        covered.append(size.low <= sum(map(one.allows, BUILT[name])) <= size.high)
    space_module._census.cache_clear()
    assert sum(covered) >= 0.9 * len(limits)


def test_an_estimate_of_millions_covers_the_exact_number(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [Limits(max_macs=n) for n in (1_000_000, 1_300_000, 2_000_000, 3_000_000)]
    exact = [THREE_STAGES.size(one) for one in limits]
    monkeypatch.setattr(Census, "MAX_WORK", 0)
    monkeypatch.setattr(Census, "DRAWS", 5_000)
    space_module._census.cache_clear()
    estimates = [THREE_STAGES.size(one) for one in limits]
    space_module._census.cache_clear()
    for known, estimate in zip(exact, estimates, strict=True):
        assert 0 < known.count < THREE_STAGES.size().count
        assert (known.exact, estimate.exact) == (True, False)
        assert estimate.low <= known.count <= estimate.high
        assert estimate.low < estimate.high


def test_wilson_intervals_are_the_published_ones() -> None:
    # Newcombe (1998), Statistics in Medicine 17: 857-872, table I, method 3 without correction.
    for hits, draws, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(hits, draws) == pytest.approx((low, high), abs=5e-5)


def chi_square(drawn: Counter[Any], expected: set[Any]) -> float:
    """In standard deviations from its mean, were all of `expected` equally likely."""
    assert set(drawn) <= expected
    mean = drawn.total() / len(expected)
    statistic = sum((drawn[one] - mean) ** 2 / mean for one in expected)
    degrees = len(expected) - 1
    return (statistic - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize("rejections", [0, 20])
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("one stage", Limits()),
        ("one stage", Limits(max_macs=380_000)),
        ("pairs at most", Limits(max_params=21_000)),
        ("all kinds", Limits(max_macs=70_000)),
        ("all kinds", Limits(max_macs=200_000, max_params=7_000)),
        ("stages left out", Limits(max_macs=170_000)),
    ],
)
def test_samples_are_uniform_over_the_specs_within_limits(
    name: str, limits: Limits, rejections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Census, "REJECTIONS", rejections)
    fit = {spec for spec in BUILT[name] if limits.allows(spec)}
    assert 10 < len(fit) < 400, len(fit)
    rng = random.Random(5)
    drawn = Counter(SPACES[name].sample(rng, limits) for _ in range(10 * len(fit)))
    assert abs(chi_square(drawn, fit)) < 3


def test_a_seed_gives_the_same_samples() -> None:
    limits = Limits(max_macs=1_300_000)
    first, second = (
        [THREE_STAGES.sample(rng, limits) for _ in range(20)]
        for rng in (random.Random(3), random.Random(3))
    )
    assert first == second
    assert len(set(first)) > 10


def test_samples_of_a_space_too_large_to_count_meet_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Census, "MAX_WORK", 0)
    monkeypatch.setattr(Census, "MAX_DRAWS", 10_000)
    space_module._census.cache_clear()
    limits, rng = Limits(max_macs=1_000_000), random.Random(0)
    assert all(limits.allows(THREE_STAGES.sample(rng, limits)) for _ in range(10))
    with pytest.raises(ValueError, match="met by none of 10,000 draws"):
        THREE_STAGES.sample(rng, Limits(max_macs=count_macs(THREE_STAGES.smallest()[0])))
    space_module._census.cache_clear()


def test_limits_that_nothing_meets_are_refused_with_the_smallest_that_exists() -> None:
    for given, specs in zip(SPACES.values(), BUILT.values(), strict=True):
        macs, params = given.smallest()
        assert {macs, params} <= set(specs)
        assert count_macs(macs) == min(map(count_macs, specs))
        assert count_params(params) == min(map(count_params, specs))
        for limits in (
            Limits(max_macs=count_macs(macs) - 1),
            Limits(max_params=count_params(params) - 1),
            Limits(max_macs=1, max_params=10**9),
        ):
            with pytest.raises(ValueError, match="no configuration of the space meets") as error:
                given.sample(random.Random(0), limits)
            for number in (*limits.bounds, count_macs(macs), count_params(params)):
                assert number == float("inf") or f"{number:,}" in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("largest", [1, 2, 3, 7])
@pytest.mark.parametrize("depth", [1, 2, 5, 7])
def test_compositions_are_as_many_as_there_are(depth: int, largest: int) -> None:
    for groups in range(1, depth + 1):
        sizes = itertools.product(range(1, largest + 1), repeat=groups)
        exist = {one for one in sizes if sum(one) == depth}
        assert compositions(depth, groups, largest) == len(exist)
        if exist:
            rng = random.Random(0)
            drawn = [draw_composition(rng, depth, groups, largest) for _ in range(40 * len(exist))]
            assert set(drawn) == exist
            assert len(exist) == 1 or abs(chi_square(Counter(drawn), exist)) < 4


@every_space
def test_a_spec_survives_its_flat_parameters(name: str) -> None:
    given, specs = SPACES[name], BUILT[name]
    names = list(given.encode(specs[0]))
    seen = set()
    for spec in specs:
        params = given.encode(spec)
        assert list(params) == names
        assert given.decode(params) == spec
        assert given.decode({**json.loads(json.dumps(params)), "lr": 0.1}) == spec
        assert all(type(value) in (int, float, str) for value in params.values())
        assert all(len(value) <= 10 for value in params.values() if isinstance(value, str))
        seen.add(tuple(params.items()))
    assert len(seen) == len(specs)


@every_space
def test_the_decisions_of_a_walk_are_among_its_flat_parameters(name: str) -> None:
    for spec, asked in walked(SPACES[name]):
        params = SPACES[name].encode(spec)
        assert asked.items() <= params.items()
        assert SPACES[name].decode(asked) == spec


def test_only_decisions_that_matter_are_asked() -> None:
    given = SPACES["all kinds"]
    asked = next(
        asked
        for spec, asked in walked(given)
        if spec.pattern == "2|1-1|2-1" and spec.pooling == "1d"
    )
    assert list(asked) == [
        "pooling",
        "patch_size",
        "num_stages",
        "pool_op",
        "stage1.depth",
        "stage1.embed_dim",
        "stage1.share2",
        "stage2.depth",
        "stage2.mlp_ratio",
        "stage2.share2",
        "stage3.depth",
        "stage3.share2",  # after which the pair is full: layer 3 is not asked
    ]
    one = next(asked for spec, asked in walked(given) if spec.pattern == "1")
    assert list(one) == [
        "pooling",
        "patch_size",
        "num_stages",
        "stage1.depth",
        "stage1.embed_dim",
    ]
    assert walked(SPACES["one spec"]) == [(BUILT["one spec"][0], {})]


def test_parameters_that_do_not_apply_are_zero_and_ignored() -> None:
    given = SPACES["all kinds"]
    one = next(spec for spec in BUILT["all kinds"] if spec.pattern == "1")
    params = given.encode(one)
    nothing = [name for name, value in params.items() if value == 0]
    assert "pool_op" in nothing
    assert "stage1.share2" in nothing
    assert {name for name in params if name.startswith(("stage2.", "stage3."))} < set(nothing)
    assert given.decode({**params, "stage2.depth": 99, "pool_op": "max"}) == one
    assert not [
        name
        for name in SPACES["nothing shared"].encode(BUILT["nothing shared"][0])
        if "share" in name
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1.depth": 7}, "stage1.depth must be one of 1, 2, got 7"),
        ({"pooling": "3d"}, "pooling must be one of 2d, 1d, got '3d'"),
        ({"stage1.mlp_ratio": 3.0}, "stage1.mlp_ratio must be one of 2.0, got 3.0"),
        ({"stage1.depth": 2, "stage1.share2": 2}, "stage1.share2 must be one of 0, 1, got 2"),
        ({"num_stages": None}, "num_stages is missing; it must be one of 2, 1, 3"),
    ],
)
def test_wrong_parameters_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    given = SPACES["all kinds"]
    params = {**given.encode(BUILT["all kinds"][0]), **change}
    params = {name: value for name, value in params.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        given.decode(params)
    with pytest.raises(ValueError, match="patch_size must be one of 1, 2, got 3"):
        given.walk(lambda name, options: 3 if name == "patch_size" else options[0])


@every_space
def test_a_space_contains_its_specs_and_no_near_miss(name: str) -> None:
    given, specs = SPACES[name], set(BUILT[name])
    assert all(map(given.contains, specs))
    spec = max(specs, key=lambda spec: (len(spec.stages), spec.depth, spec.spec_id))
    *others, last = spec.stages
    misses: list[dict[str, Any]] = [
        {"num_classes": 11},
        {"in_chans": 2},
        {"img_size": 16},
        {"layer_scale": not spec.layer_scale},
        {"patch_size": 4 if len(others) < 2 else 1},
        {"pooling": "1d" if spec.pooling == "2d" else "2d"},
        {"pool_op": "avg" if spec.pool_op != "avg" else "max"},
        {"stages": (*others, last.model_copy(update={"embed_dim": 48}))},
        {"stages": (*others, last.model_copy(update={"num_heads": last.embed_dim}))},
        {"stages": (*others, last.model_copy(update={"hidden_dim": last.hidden_dim + 1}))},
        {"stages": (*others, last.model_copy(update={"share_groups": (last.depth,)}))},
        {"stages": (*others, last.model_copy(update={"share_groups": (1,) * (last.depth + 1)}))},
        {"stages": (*others, last, last)} if len(others) < 2 else {"stages": (*others, others[0])},
    ]
    outside = 0
    for change in misses:
        other = ArchSpec.model_validate({**dict(spec), **change})
        assert given.contains(other) == (other in specs), change
        if other not in specs:
            outside += 1
            with pytest.raises(ValueError, match="is not in the space: ") as error:
                given.encode(other)
            assert "\n" not in str(error.value)
    assert outside >= 8


@every_space
def test_neighbours_are_other_specs_of_the_space_and_know_each_other(name: str) -> None:
    given, specs = SPACES[name], set(BUILT[name])
    beside = {spec: given.neighbours(spec) for spec in specs}
    params = {spec: set(given.encode(spec).items()) for spec in specs}
    for spec, others in beside.items():
        assert len(set(others)) == len(others)
        assert spec not in others
        assert set(others) <= specs
        assert all(spec in beside[other] for other in others)
        for other in others:
            if len(other.stages) == len(spec.stages):
                assert len(params[other] - params[spec]) == 1
    reached, pending = set(), [next(iter(specs))]
    while pending:
        if (spec := pending.pop()) not in reached:
            reached.add(spec)
            pending += beside[spec]
    assert reached == specs


def test_neighbours_split_and_join_groups_and_grow_by_a_layer() -> None:
    given = space(choices(depth=(3, 4), max_group=2))
    patterns = {
        pattern: {other.pattern for other in given.neighbours(spec)}
        for pattern, spec in {spec.pattern: spec for spec in built(given)}.items()
    }
    assert patterns["2-1"] == {"1-1-1", "2-1-1"}
    assert patterns["1-1-1"] == {"2-1", "1-2", "1-1-1-1"}
    assert patterns["2-2"] == {"1-1-2", "2-1-1"}


def test_unpooled_are_the_deits_of_the_same_choices() -> None:
    given = SPACES["all kinds"].unpooled()
    assert given.pooling == ("1d",)
    assert given.patch_size == (1, 2)
    (stage,) = given.stages
    assert stage.depth == tuple(range(1, 8))
    assert stage.embed_dim == (8, 16)
    assert stage.head_dim == (8,)
    assert stage.mlp_ratio == (1.5, 2.0, 3.0)
    specs = built(given)
    assert given.size().count == len(specs) == 2 * 7 * 2 * 3
    for spec in specs:
        assert (spec.pooling, len(spec.stages)) == ("1d", 1)
        assert spec.pattern == "-".join("1" * spec.depth)
    assert given.unpooled() == given


@pytest.mark.parametrize(
    ("stages", "head_dims", "ratios"),
    [
        # 12 divides not 32, 16 not 24: the largest that divides both and is no larger.
        (
            [choices(embed_dim=(24,), head_dim=(12,)), choices(embed_dim=(32,), head_dim=(16,))],
            (8,),
            (2.0,),
        ),
        # 2.5 x 15 and 1.2 x 16 are not whole.
        (
            [
                choices(embed_dim=(16,), mlp_ratio=(2.5,)),
                choices(embed_dim=(15,), head_dim=(5,), mlp_ratio=(1.2,)),
            ],
            (1,),
            (2.0,),
        ),
    ],
)
def test_unpooled_choices_fit_every_width(
    stages: list[StageChoices], head_dims: tuple[int, ...], ratios: tuple[float, ...]
) -> None:
    (stage,) = space(*stages).unpooled().stages
    assert (stage.head_dim, stage.mlp_ratio) == (head_dims, ratios)


@every_space
def test_a_space_survives_json(name: str) -> None:
    text = json.dumps(SPACES[name].model_dump(mode="json"))
    again = SearchSpace.model_validate(json.loads(text))
    assert again == SPACES[name]
    assert hash(again) == hash(SPACES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (2, 3)}, "every choice must divide img_size=8, got 3; nearest is 2"),
        ({"patch_size": (2, 2)}, "choices must be distinct, got 2, 2"),
        ({"patch_size": ()}, "at least 1 item"),
        ({"patch_size": (2.0,)}, "valid integer"),
        ({"patch_size": (True,)}, "valid integer"),
        ({"patch_size": (8,)}, "leaves 1 x 1 patches, enough for 1 stages in 2d, got num_stages=2"),
        ({"pooling": ("1d", "2d", "1d")}, "choices must be distinct, got 1d, 2d, 1d"),
        ({"pooling": ("3d",)}, "'1d' or '2d'"),
        ({"num_stages": (3,)}, "num_stages must be at most the 2 stages given, got 3"),
        ({"num_stages": (1, 1)}, "choices must be distinct, got 1, 1"),
        ({"num_stages": (0,)}, "greater than or equal to 1"),
        ({"layer_scale": 1}, "valid boolean"),
        ({"stages": ()}, "at least 1 item"),
        ({"width": 3}, "unknown field 'width'"),
    ],
)
def test_a_wrong_space_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        space(choices(), choices(), **change)
    assert all("\n" not in one["msg"] for one in error.value.errors())


@pytest.mark.parametrize("pooling", ["1d", "2d"])
@pytest.mark.parametrize("img_size", [1, 2, 3, 4, 5, 7, 8, 9])
def test_a_space_may_have_as_many_stages_as_its_specs(img_size: int, pooling: str) -> None:
    for num in range(1, 9):
        stages = (choices(),) * num
        alone = {"pooling": pooling, "img_size": img_size, "patch_size": 1}
        stack = (StageSpec(embed_dim=8, num_heads=1, hidden_dim=8, share_groups=(1,)),) * num
        try:
            ArchSpec.model_validate({**alone, "stages": stack})
        except ValidationError:
            with pytest.raises(ValidationError, match="use a smaller patch_size or fewer stages"):
                space(*stages, img_size=img_size, patch_size=(1,), pooling=(pooling,))
        else:
            space(*stages, img_size=img_size, patch_size=(1,), pooling=(pooling,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": (16, 24), "head_dim": (8, 16)}, "24 is not one of 16; nearest is 16 or 32"),
        ({"mlp_ratio": (2.03,)}, "16 \\* 2.03 is 32.48; nearest mlp_ratio is 2.0$"),
        ({"mlp_ratio": (0.01,)}, "nearest mlp_ratio is 0.0625$"),
        ({"mlp_ratio": (2.0, 2.00000000001)}, "choices must give distinct hidden widths"),
        ({"mlp_ratio": (2, 2.0)}, "choices must be distinct"),
        ({"mlp_ratio": (float("nan"),)}, "greater than 0|finite number"),
        ({"mlp_ratio": (float("inf"),)}, "finite number"),
        ({"mlp_ratio": (True,)}, "valid number"),
        ({"mlp_ratio": (-1,)}, "greater than 0"),
        ({"depth": (0,)}, "greater than or equal to 1"),
        ({"depth": (2.0,)}, "valid integer"),
        ({"depth": (True,)}, "valid integer"),
        ({"embed_dim": ()}, "at least 1 item"),
        ({"max_group": 0}, "greater than or equal to 1"),
        ({"depths": (2,)}, "unknown field 'depths'; nearest is 'depth'"),
    ],
)
def test_wrong_choices_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        choices(**change)
    messages = [one["msg"] for one in error.value.errors()]
    assert any(re.search(message, one) for one in messages), messages
    assert all("\n" not in one for one in messages)


def test_the_least_macs_and_the_least_parameters_may_be_two_specs() -> None:
    macs, params = SPACES["two patches"].smallest()
    assert (macs.patch_size, params.patch_size) == (4, 2)


def test_a_ratio_may_be_a_fraction_that_floats_only_near() -> None:
    assert choices(embed_dim=(110,), head_dim=(10,), mlp_ratio=(1.1,)).mlp_ratio == (1.1,)
    given = space(choices(embed_dim=(24,), mlp_ratio=(2.6666666666666665, 4)))
    assert {spec.stages[0].hidden_dim for spec, _ in walked(given)} == {64, 96}
    assert all(given.contains(spec) for spec, _ in walked(given))
