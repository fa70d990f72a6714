"""What a one-shot search trains before and after it scores, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.latency import Conditions, LatencyTable
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.model.timing import measure_table
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.duration import candidates_per_s
from psvit_ray.search.oneshot.plan import (
    best_scored_specs,
    check_oneshot,
    finalist_configurations,
    holdout_size_warning,
    large_specs,
    make_evolution,
    read_latency_table,
    standard_error,
    supernet_configuration,
)
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.training.config import TrainConfig

STAGE: dict[str, Any] = {"depth": [1, 2], "embed_dim": [8], "head_dim": [8], "mlp_ratio": [2]}
SPACE = SearchSpace.model_validate(
    {
        **{"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": [2]},
        **{"pooling": ["1d", "2d"], "stages": [STAGE, STAGE]},
    }
)
SEARCH = SearchConfig(space=SPACE, baselines=1)
TRAIN = TrainConfig(epochs=10, lr=0.004, seed=5, compile=True)


def test_a_supernet_trains_as_the_recipe_says_for_its_own_epochs() -> None:
    made = supernet_configuration(OneshotConfig(supernet_epochs=3), SEARCH, TRAIN)
    assert made.supernet
    assert made.supernet.space == SPACE
    changed = {"epochs": 3, "warmup_epochs": 1.5, "compile": False}
    assert made.train == TrainConfig.model_validate({**dict(TRAIN), **changed})
    assert count_macs(made.spec) == max(count_macs(spec) for spec in large_specs(SEARCH))


def test_finalists_are_trained_in_both_ways_with_the_same_seeds_beside_deit() -> None:
    specs = large_specs(SEARCH)[:2]
    inherited = {spec: f"/inherited/{spec.spec_id}" for spec in specs}
    config = OneshotConfig(finalists=2, finalist_seeds=3)
    trainings, kinds = finalist_configurations(config, SEARCH, TRAIN, specs, inherited)
    assert len(trainings) == len(kinds) == 3 * (1 + 2 + 2)
    for kind in ("baseline", "finalist", "finetuned"):
        mine = [one for one in trainings if kinds[one.key] == kind]
        assert {one.train.seed for one in mine} == {5, 6, 7}
        assert all(one.spec.is_deit == (kind == "baseline") for one in mine)
        for one in mine:
            expected: dict[str, Any] = {"seed": one.train.seed}
            if kind == "finetuned":
                expected |= {"init": inherited[one.spec], "lr": 0.001}
            assert one.train == TrainConfig.model_validate({**dict(TRAIN), **expected})
    # Seed by seed, so that what is there at any time compares.
    assert [one.train.seed for one in trainings] == [5] * 5 + [6] * 5 + [7] * 5
    without = config.model_copy(update={"finetune_epochs": 0})
    _, kinds = finalist_configurations(without, SEARCH, TRAIN, specs, {})
    assert sorted(kinds.values()) == ["baseline"] * 3 + ["finalist"] * 6


def test_the_best_specs_are_those_of_best_top1_then_least_loss() -> None:
    specs = large_specs(SEARCH)
    scores = [
        Score(number=n, generation=0, spec=spec, loss=loss, top1=top1)
        for n, (spec, loss, top1) in enumerate(
            zip(specs, (0.3, 0.2, 0.1, 0.4), (90.0, 90.0, 80.0, 95.0), strict=False)
        )
    ]
    order = sorted(range(len(scores)), key=lambda n: (-scores[n].top1, scores[n].loss))
    assert best_scored_specs(scores, 2) == [specs[n] for n in order[:2]]


def test_a_small_holdout_is_warned_of_with_its_standard_error() -> None:
    assert standard_error(900) == pytest.approx(1.0)
    assert (
        "288 images: a top-1 near 90 % has a standard error of 1.8 points"
        in holdout_size_warning(288)
    )
    assert holdout_size_warning(1_000) == ""


def table_file(path: Path, space: SearchSpace = SPACE, batch_size: int = 1) -> LatencyTable:
    table = measure_table(space, Conditions(batch_size=batch_size, rounds=1, times=1))
    path.write_text(table.model_dump_json())
    return table


def test_a_latency_table_is_that_of_the_space_and_of_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = table_file(path)
    config = OneshotConfig(latency_table=str(path), max_latency_ms=1e3, population=4)
    assert read_latency_table(config, SEARCH) == table
    check_oneshot(config, SEARCH, TRAIN)
    with pytest.raises(ValueError, match=r"max_latency_ms must be met by .* got 1e-06"):
        check_oneshot(config.model_copy(update={"max_latency_ms": 1e-6}), SEARCH, TRAIN)
    with pytest.raises(ValueError, match=r"latency_batch_size must be 1, as in .*, got 8"):
        read_latency_table(config.model_copy(update={"latency_batch_size": 8}), SEARCH)
    stage = STAGE | {"embed_dim": [8, 16]}
    wider = SearchSpace.model_validate({**dict(SPACE), "stages": (stage, stage)})
    with pytest.raises(ValueError, match="the latency table has no part"):
        read_latency_table(config, SearchConfig(space=wider))
    for content in ("{}", "[" * 5_000):
        path.write_text(content)
        said = rf"^latency_table must be a file of psvit latency, got {path}: [^\n]+$"
        with pytest.raises(ValueError, match=said):
            read_latency_table(config, SEARCH)


def test_what_evolution_keeps_low_is_what_was_asked(tmp_path: Path) -> None:
    def latency(spec: ArchSpec) -> float:
        return float(spec.depth)

    config = OneshotConfig(cost="latency", max_latency_ms=3.0, population=4, candidates=20)
    evolution = make_evolution(config, SEARCH, latency)
    found: list[ArchSpec] = []
    while specs := evolution.ask(20 - len(found)):
        found += specs
        evolution.tell([50.0] * len(specs))
    assert {spec.depth for spec in found} == {2, 3}


def test_many_actors_wait_for_the_driver_or_for_the_generation_to_end() -> None:
    driver = {"asking_s": 0.01, "proposing_s": 0.02}
    alone = candidates_per_s(1, 50, candidate_s=1, **driver)
    assert alone == pytest.approx(50 / (50 + 1))
    assert candidates_per_s(50, 50, candidate_s=1, **driver) == pytest.approx(50 / (1 + 1))
    assert candidates_per_s(500, 50, candidate_s=1, **driver) == pytest.approx(50 / (1 + 1))
    # Beyond, all that is left is the driver's own time.
    assert candidates_per_s(500, 5_000, candidate_s=1, **driver) == pytest.approx(1 / 0.03)
