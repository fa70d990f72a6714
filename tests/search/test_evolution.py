"""The proposals of a one-shot search, on a made-up objective."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from psvit_ray.arch.cost import Limits, count_macs
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.oneshot.evolution import CostLimits, Evolution

SPACE = SearchSpace.model_validate(
    {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": [2, 4],
        "pooling": ["1d", "2d"],
        "pool_op": ["conv", "max", "avg"],
        "num_stages": [2, 3],
        "stages": [
            {"depth": [1, 2, 3], "embed_dim": [16, 32], "head_dim": [8], "mlp_ratio": [2]},
            {"depth": [2, 3, 4], "embed_dim": [32, 48], "head_dim": [8], "mlp_ratio": [2]},
            {"depth": [1, 2], "embed_dim": [64], "head_dim": [8], "mlp_ratio": [2]},
        ],
    }
)
LIMITS = Limits(max_macs=6_000_000)


def evolution(**changes: Any) -> Evolution:
    return Evolution(
        **{
            "space": SPACE,
            "budget": CostLimits(LIMITS),
            "cost_of": count_macs,
            "population": 20,
            "seed": 0,
            **changes,
        }
    )


def top1(spec: ArchSpec) -> float:
    """Best where maps are shared in pairs, in 2d with max pooling."""
    groups = [size for stage in spec.stages for size in stage.share_groups]
    pairs = sum(size == 2 for size in groups) / len(groups)
    return 50 * pairs + 10 * (spec.pooling == "2d") + 10 * (spec.pool_op == "max") + spec.depth


def generations(
    search: Evolution, number: int, score: Callable[[ArchSpec], float] = top1
) -> list[list[ArchSpec]]:
    found = []
    for _ in range(number):
        found.append(search.ask(1_000))
        search.tell([score(spec) for spec in found[-1]])
    return found


@pytest.mark.parametrize("sampler", ["nsga2", "random"])
def test_nothing_is_proposed_twice_or_over_the_limits(sampler: str) -> None:
    assert 0.02 < SPACE.size(LIMITS).count / SPACE.size().count < 0.5
    found = [spec for each in generations(evolution(sampler=sampler), 10) for spec in each]
    assert len(found) == len(set(found)) == 200
    assert all(LIMITS.allows(spec) and SPACE.contains(spec) for spec in found)


def test_asked_again_from_the_beginning_it_proposes_the_same() -> None:
    assert generations(evolution(), 6) == generations(evolution(), 6)
    assert generations(evolution(seed=1), 2) != generations(evolution(), 2)
    first, second = generations(evolution(), 2, lambda spec: -top1(spec))
    same, other = generations(evolution(), 2)
    assert first == same
    assert second != other


def test_a_search_that_is_given_more_candidates_begins_alike() -> None:
    short, long = evolution(), evolution()
    generations(short, 3)
    generations(long, 3)
    assert short.ask(7) == long.ask(1_000)[:7]
    assert evolution().ask(7) == evolution().ask(1_000)[:7]


def test_it_finds_what_chance_does_not() -> None:
    best: dict[str, list[float]] = {"nsga2": [], "random": []}
    for sampler, found in best.items():
        for seed in range(3):
            proposed = generations(evolution(sampler=sampler, seed=seed), 15)
            found.append(max(top1(spec) for each in proposed for spec in each))
    assert statistics.mean(best["nsga2"]) > statistics.mean(best["random"]) + 3


def test_a_generation_is_spread_over_costs() -> None:
    """Top-1 is not all: the cheap ones that nothing beats at their cost stay parents."""
    *_, last = generations(evolution(), 15)
    macs = sorted(count_macs(spec) for spec in last)
    assert macs[-1] > 2 * macs[0]


def test_first_specs_come_first_if_they_are_within_the_budget() -> None:
    rng = random.Random(5)
    inside = [SPACE.sample(rng, LIMITS) for _ in range(3)]
    outside = next(s for s in iter(lambda: SPACE.sample(rng), None) if not LIMITS.allows(s))
    (first,) = generations(evolution(first=[*inside, outside, inside[0]]), 1)
    assert first[:3] == inside
    assert len(first) == 20
    assert outside not in first


def test_a_predicted_latency_is_a_limit_too() -> None:
    budget = CostLimits(LIMITS, latency_ms=lambda spec: 1.0 * spec.depth, max_latency_ms=5.0)
    found = [spec for each in generations(evolution(budget=budget), 5) for spec in each]
    assert len(found) == 100
    assert max(spec.depth for spec in found) == 5


def test_a_space_that_is_used_up_ends_the_search() -> None:
    stage = {"depth": [1, 2], "embed_dim": [16, 32], "head_dim": [8], "mlp_ratio": [2]}
    space = SearchSpace.model_validate(
        {"img_size": 8, "patch_size": [2], "pooling": ["2d"], "stages": [stage, stage]}
    )
    assert space.size().count == 36
    search = evolution(space=space, budget=CostLimits(Limits()))
    assert [len(each) for each in generations(search, 3)] == [20, 16, 0]


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValueError, match=r"population must be at most [\d,]+, the configur"):
        evolution(population=10**6)
    with pytest.raises(ValueError, match="no configuration of the space meets max_macs=10;"):
        evolution(budget=CostLimits(Limits(max_macs=10)))
    budget = CostLimits(LIMITS, latency_ms=lambda spec: 1.0 * spec.depth, max_latency_ms=0.5)
    with pytest.raises(ValueError, match=r"max_latency_ms must be met .* has 3 ms .* got 0\.5"):
        evolution(budget=budget)
