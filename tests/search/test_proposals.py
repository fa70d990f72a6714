"""What a search proposes: all of a small space, nothing over the limits, nothing twice."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from optuna.samplers import TPESampler
from pydantic import ValidationError

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.search.candidates import baselines, largest_spec
from psvit_ray.search.config import NOT_SEARCHED, Range, SearchConfig
from psvit_ray.search.proposals import FixedProposals, Proposal, Proposals
from psvit_ray.search.record import Point, Record, Status
from psvit_ray.training.config import Configuration, TrainConfig

TRAIN = TrainConfig()
IMAGES = {"img_size": 8, "in_chans": 1, "num_classes": 10}
STAGE = {"embed_dim": (16, 32), "head_dim": (16,), "mlp_ratio": (2.0,)}

TWELVE = SearchSpace.model_validate(
    {**IMAGES, "patch_size": (2,), "pooling": ("2d",), "stages": [{**STAGE, "depth": (1, 2)}] * 2}
    | {"stages": [{**STAGE, "depth": (1, 2)}, {**STAGE, "embed_dim": (32,), "depth": (1,)}]}
    | {"pooling": ("1d", "2d")}
)
MANY = SearchSpace.model_validate(
    {
        **IMAGES,
        "patch_size": (1, 2),
        "pooling": ("1d", "2d"),
        "pool_op": ("conv", "max", "avg"),
        "num_stages": (1, 2, 3),
        "stages": [{**STAGE, "depth": (1, 2, 3, 4)}] * 3,
    }
)


def all_of_twelve() -> set[ArchSpec]:
    """Written out by hand: pooling x width of the first stage x its groups."""
    return {
        ArchSpec(
            **IMAGES,
            patch_size=2,
            pooling=pooling,
            stages=(
                StageSpec(
                    embed_dim=dim, num_heads=dim // 16, hidden_dim=2 * dim, share_groups=groups
                ),
                StageSpec(embed_dim=32, num_heads=2, hidden_dim=64, share_groups=(1,)),
            ),
        )
        for pooling, dim, groups in itertools.product(("1d", "2d"), (16, 32), ((1,), (1, 1), (2,)))
    }


def config(space: SearchSpace = TWELVE, **fields: Any) -> SearchConfig:
    return SearchConfig(space=space, **{"num_trials": 100, "baselines": 0, **fields})


def drain(
    proposals: Proposals | FixedProposals, outcome: Callable[[Proposal], float | None]
) -> list[Proposal]:
    found = []
    while proposal := proposals.ask():
        found.append(proposal)
        proposals.tell(proposal.key, outcome(proposal))
    return found


def by_width(proposal: Proposal) -> float:
    """A made-up accuracy: cheaper is a little worse."""
    return 90 + 2 * math.log10(count_macs(proposal.configuration.spec)) / 10


def specs(proposals: Iterable[Proposal]) -> list[ArchSpec]:
    return [proposal.configuration.spec for proposal in proposals]


def record_of(proposal: Proposal, number: int, status: Status = "completed") -> Record:
    metrics = {"holdout/top1": by_width(proposal)}
    curve = () if status == "pending" else (Point(epoch=20, step=20, metrics=metrics),)
    return Record(
        number=number,
        kind=proposal.kind,
        params=proposal.params,
        configuration=proposal.configuration,
        status=status,
        curve=curve,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_space_is_used_up_exactly(seed: int) -> None:
    found = specs(drain(Proposals(config(search_seed=seed), TRAIN), by_width))
    assert len(found) == 12
    assert set(found) == all_of_twelve()


def test_a_space_with_choices_of_settings_is_used_up_exactly() -> None:
    choices = {"drop_path": (0.0, 0.1), "mixup": (0, 0.2, 0.4)}
    found = drain(Proposals(config(overrides=choices), TRAIN), by_width)
    seen = [(p.configuration.spec, p.configuration.train) for p in found]
    expected = {
        (spec, TRAIN.model_copy(update={"drop_path": drop_path, "mixup": mixup}))
        for spec, drop_path, mixup in itertools.product(
            all_of_twelve(), (0.0, 0.1), (0.0, 0.2, 0.4)
        )
    }
    assert len(seen) == len(set(map(repr, seen))) == 72
    assert set(map(repr, seen)) == set(map(repr, expected))


def test_under_limits_it_is_what_meets_them_that_is_used_up() -> None:
    costs = sorted(count_macs(spec) for spec in all_of_twelve())
    limited = config(max_gmacs=costs[6] / 1e9)
    expected = {spec for spec in all_of_twelve() if count_macs(spec) <= costs[6]}
    assert 0 < len(expected) < 12
    found = specs(drain(Proposals(limited, TRAIN), by_width))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_nothing_over_the_limits_and_nothing_twice_in_a_large_space() -> None:
    limits = {"max_gmacs": 0.0006, "max_params_m": 0.03}
    overrides = {"lr": Range(low=1e-3, high=1e-2, log=True)}
    searched = config(MANY, num_trials=60, baselines=3, overrides=overrides, **limits)
    found = drain(Proposals(searched, TRAIN), by_width)
    assert len({proposal.key for proposal in found}) == len(found) == 60
    assert max(count_macs(spec) for spec in specs(found)) <= 600_000
    assert max(count_params(spec) for spec in specs(found)) <= 30_000
    assert all(1e-3 <= p.configuration.train.lr <= 1e-2 for p in found)
    assert all(p.params["lr"] == float(f"{p.params['lr']:.3g}") for p in found)
    assert len({tuple(p.params) for p in found}) == 1, "every run has the same names"


def test_equal_seeds_propose_equally_and_others_do_not() -> None:
    def run(seed: int) -> list[str]:
        searched = config(MANY, num_trials=30, baselines=1, search_seed=seed)
        return [proposal.key for proposal in drain(Proposals(searched, TRAIN), by_width)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_resume_proposes_exactly_what_is_left() -> None:
    before = drain(Proposals(config(num_trials=5), TRAIN), by_width)
    ended: list[Status] = ["completed", "stopped", "failed", "completed", "pending"]
    records = [
        record_of(p, n, status) for n, (p, status) in enumerate(zip(before, ended, strict=True))
    ]
    after = drain(Proposals(config(), TRAIN, records), by_width)
    assert after[0] == before[4], "the unfinished goes on first, as it was"
    assert set(specs(after)) == all_of_twelve() - set(specs(before[:4]))
    assert len(after) == 8


def test_num_trials_counts_what_was_proposed_before_and_may_be_raised() -> None:
    whole = config(MANY, num_trials=9, baselines=2)
    before = drain(Proposals(whole, TRAIN), by_width)
    records = [record_of(proposal, n) for n, proposal in enumerate(before)]
    assert Proposals(whole, TRAIN, records).ask() is None
    more = whole.model_copy(update={"num_trials": 14})
    after = drain(Proposals(more, TRAIN, records), by_width)
    assert len(after) == 5
    assert not {p.key for p in after} & {p.key for p in before}
    assert {p.kind for p in after} == {"proposal"}, "baselines and first points were there already"


def test_what_failed_or_is_no_number_counts_as_worst_and_the_search_goes_on() -> None:
    outcomes = itertools.cycle([None, math.nan, 50.0, math.inf])
    proposals = Proposals(config(MANY, num_trials=30), TRAIN)
    assert len(drain(proposals, lambda _: next(outcomes))) == 30
    told = [trial.values[0] for trial in proposals._study.trials]
    assert set(told) == {0.0, 50.0}


def test_several_may_be_asked_for_before_the_first_is_told() -> None:
    proposals = Proposals(config(), TRAIN)
    asked = [proposal for proposal in (proposals.ask() for _ in range(15)) if proposal]
    assert set(specs(asked)) == all_of_twelve()
    assert len(asked) == 12
    for proposal in asked:
        proposals.tell(proposal.key, 50.0)
    assert proposals.ask() is None


def test_tpe_with_one_split_a_trial_proposes_what_optunas_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = {"lr": Range(low=1e-3, high=1e-2, log=True), "drop": (0.0, 0.1)}
    searched = config(MANY, num_trials=60, max_gmacs=0.001, overrides=overrides)

    def run() -> list[str]:
        """Four at a time; over the limits, failed and under way are among what TPE knows."""
        proposals = Proposals(searched, TRAIN)
        asked: list[Proposal] = []
        while proposal := proposals.ask():
            asked.append(proposal)
            if len(asked) >= 4:
                done = asked[len(asked) - 4]
                proposals.tell(done.key, None if len(asked) % 7 == 0 else by_width(done))
        return [proposal.key for proposal in asked]

    ours = run()
    monkeypatch.setattr("psvit_ray.search.proposals.OneSplitTPE", TPESampler)
    assert run() == ours


def test_tpe_learns_what_is_better() -> None:
    """Of three pool operators one is good: TPE must take it more often than chance does."""

    def outcome(proposal: Proposal) -> float:
        return 90.0 if proposal.configuration.spec.pool_op == "avg" else 10.0

    shares = []
    for seed in range(3):
        searched = config(MANY.model_copy(update={"num_stages": (2,)}), search_seed=seed)
        searched = searched.model_copy(update={"num_trials": 60})
        found = drain(Proposals(searched, TRAIN), outcome)[-40:]
        shares.append(sum(spec.pool_op == "avg" for spec in specs(found)) / 40)
    assert sum(shares) / 3 > 0.5, shares


@pytest.mark.parametrize("max_macs", [300_000, 600_000, 2_000_000, 5_000_000])
def test_baselines_are_the_costliest_deits_within_limits(max_macs: int) -> None:
    searched = config(MANY, max_gmacs=max_macs / 1e9, baselines=2, num_trials=2 + 1)
    first, second = specs(drain(Proposals(searched, TRAIN), by_width)[:2])
    affordable: dict[int, list[int]] = {1: [], 2: []}
    for patch, depth, dim in itertools.product((1, 2), range(1, 13), (16, 32)):
        stage = StageSpec(
            embed_dim=dim, num_heads=dim // 16, hidden_dim=2 * dim, share_groups=(1,) * depth
        )
        deit = ArchSpec(**IMAGES, patch_size=patch, pooling="1d", stages=(stage,))
        if count_macs(deit) <= max_macs:
            affordable[patch].append(count_macs(deit))
    best_of_patch = [max(costs) for costs in affordable.values() if costs]
    assert count_macs(first) == max(best_of_patch)
    if len(best_of_patch) == 2:
        assert {count_macs(first), count_macs(second)} == set(best_of_patch)
    for spec in (first, second):
        assert spec.pooling == "1d"
        assert set(spec.pattern) <= {"1", "-"}


def test_without_limits_a_baseline_costs_no_more_than_the_largest_of_the_space() -> None:
    most = max(count_macs(spec) for spec in all_of_twelve())
    assert count_macs(largest_spec(TWELVE)) == most
    (deit,) = baselines(TWELVE, config().limits, 1)
    deeper = deit.with_pattern(deit.pattern + "-1") if deit.depth < 3 else None
    assert count_macs(deit) <= most
    assert deeper is None or count_macs(deeper) > most


def test_a_baseline_of_the_space_itself_is_one_configuration() -> None:
    deits = MANY.unpooled().model_copy(update={"patch_size": (2,)})
    count = deits.size().count
    found = drain(Proposals(config(deits, baselines=2, num_trials=count + 9), TRAIN), by_width)
    assert [p.kind for p in found[:2]] == ["baseline", "baseline"]
    assert len({p.key for p in found}) == len(found) == count


def test_first_points_are_large_with_and_without_sharing() -> None:
    found = drain(Proposals(config(MANY, max_gmacs=0.002, num_trials=9), TRAIN), by_width)
    first = [p.configuration.spec for p in found if p.kind == "first"]
    assert {(spec.pooling, "2" in spec.pattern) for spec in first} == set(
        itertools.product(("1d", "2d"), (False, True))
    )
    assert min(count_macs(spec) for spec in first) > 1_600_000


def test_fixed_proposals_are_each_once_and_not_again_when_they_ended() -> None:
    configurations = [
        Configuration(spec=spec, train=TRAIN) for spec in sorted(all_of_twelve(), key=repr)[:3]
    ]
    found = drain(FixedProposals([*configurations, configurations[0]]), by_width)
    assert [p.configuration for p in found] == configurations
    records = [record_of(found[0], 0), record_of(found[1], 1, "pending")]
    left = drain(FixedProposals(configurations, records), by_width)
    assert [p.configuration for p in left] == configurations[1:]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"overrides": {"learning_rate": (0.1,)}}, "unknown field 'learning_rate'; nearest is"),
        ({"overrides": {"epochs": (5, 10)}}, "'epochs' cannot be searched"),
        ({"overrides": {"lr": (0.1, -1)}}, "'lr' must be greater than 0, got -1"),
        ({"overrides": {"lr": (0.1, 0.1)}}, "'lr' must be distinct"),
        ({"overrides": {"lr": ()}}, "'lr' must be distinct"),
        ({"overrides": {"shift": {"low": 0, "high": 2}}}, "'shift' must be a list of choices"),
        ({"overrides": {"lr": {"low": 2, "high": 1}}}, "low must be less than high"),
        ({"overrides": {"lr": {"low": 0, "high": 1, "log": True}}}, "low must be more than 0"),
        ({"reduction_factor": 1}, "reduction_factor must be 0 or at least 2, got 1"),
        ({"num_trial": 3}, "unknown field 'num_trial'; nearest is 'num_trials'"),
    ],
)
def test_wrong_configurations_are_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**fields)


def test_limits_that_nothing_meets_name_the_smallest_there_is() -> None:
    smallest = min(all_of_twelve(), key=count_macs)
    with pytest.raises(ValueError, match=r"meets max_gmacs=1e-06; the smallest") as raised:
        config(max_gmacs=1e-6).check(TRAIN)
    assert f"{count_macs(smallest) / 1e9:.4g} GMACs" in str(raised.value)


def test_settings_that_cannot_go_together_are_refused_before_anything_runs() -> None:
    searched = config(overrides={"lr": Range(low=1e-6, high=1e-2, log=True)})
    with pytest.raises(ValueError, match="min_lr must be at most lr=1e-06"):
        searched.check(TRAIN)


def test_settings_that_would_be_combined_without_end_are_refused_before_any_is() -> None:
    hundred = tuple(round(0.001 * number, 3) for number in range(1, 101))
    most = {"lr": hundred, "drop": hundred}
    assert sum(1 for _ in config(overrides=most)._corners()) == 100 * 100
    said = "must make at most 10,000 combinations, got 20,000; give fewer fields or choices$"
    with pytest.raises(ValidationError) as raised:
        config(overrides={**most, "clip_grad": Range(low=1, high=2)})
    assert re.search(said, raised.value.errors()[0]["msg"])
    floats = [
        name
        for name, field in TrainConfig.model_fields.items()
        if field.annotation is float and name not in NOT_SEARCHED
    ]
    assert len(floats) >= 14
    every = {name: Range(low=0.1, high=0.2) for name in floats}
    with pytest.raises(ValidationError, match=f"combinations, got {2 ** len(floats):,}; give"):
        config(overrides=every)
