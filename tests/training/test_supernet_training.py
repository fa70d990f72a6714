"""A supernet under the engine: which specs a step trains, exact resume, workers that add up."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from psvit_ray.arch.cost import Limits, count_macs
from psvit_ray.arch.space import SearchSpace
from psvit_ray.data.sources.image_source import Source
from psvit_ray.search.oneshot.subnets import (
    HoldoutImages,
    SubnetScorer,
    load_supernet,
    read_holdout,
)
from psvit_ray.training.config import Configuration, PathConfig, SupernetConfig, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.paths import PathSampler
from psvit_ray.training.source import load_source
from psvit_ray.training.state import run_info
from tests.helpers.training import in_group, join_group

SPACE = SearchSpace.model_validate(
    {
        "img_size": 8,
        "in_chans": 1,
        "num_classes": 10,
        "patch_size": [2],
        "pooling": ["1d", "2d"],
        "stages": [
            {"depth": [1, 2], "embed_dim": [8, 16], "head_dim": [8], "mlp_ratio": [2]},
            {"depth": [1, 2], "embed_dim": [16, 24], "head_dim": [8], "mlp_ratio": [1]},
        ],
    }
)


def supernet_config(limits: Limits | None = None, **paths: Any) -> SupernetConfig:
    return SupernetConfig(space=SPACE, limits=limits or Limits(), paths=PathConfig(**paths))


def configuration(supernet: SupernetConfig | None = None, **train: Any) -> Configuration:
    supernet = supernet or supernet_config()
    return Configuration(
        spec=PathSampler(supernet, 0).largest, train=TrainConfig(**train), supernet=supernet
    )


def test_a_sandwich_is_the_largest_some_drawn_and_the_smallest() -> None:
    paths = PathSampler(supernet_config(drawn_paths=3), seed=0)
    everything = [paths.at(step) for step in range(100)]
    costs = {
        pooling: {count_macs(s) for step in everything for s in step if s.pooling == pooling}
        for pooling in ("1d", "2d")
    }
    for largest, drawn, _, _, smallest in everything:
        assert largest.pooling == drawn.pooling == smallest.pooling
        assert count_macs(largest) == max(costs[drawn.pooling])
        assert count_macs(smallest) == min(costs[drawn.pooling])


def test_paths_are_a_function_of_seed_and_step() -> None:
    first, second = (PathSampler(supernet_config(), seed=1) for _ in range(2))
    there = [first.at(step) for step in range(20)]
    assert [second.at(step) for step in reversed(range(20))] == there[::-1]
    assert len({tuple(step) for step in there}) > 15
    assert [PathSampler(supernet_config(), seed=2).at(step) for step in range(20)] != there


def test_single_paths_are_drawn_from_all_specs_alike() -> None:
    number = SPACE.size().count
    assert number == 72
    paths = PathSampler(supernet_config(paths="single", draw_evenly_over="specs"), seed=0)
    times = Counter(spec for step in range(50 * number) for spec in paths.at(step))
    # Chi squared of 71 degrees of freedom is below 122 but for one in ten thousand.
    assert sum((times[spec] - 50) ** 2 / 50 for spec in times) < 122
    assert len(times) == number


def test_families_that_share_no_weights_are_drawn_alike() -> None:
    """However few specs one of them has."""
    limits = Limits(max_macs=45_000)
    few, many = sorted(
        SearchSpace.model_validate({**dict(SPACE), "pooling": (pooling,)}).size(limits).count
        for pooling in SPACE.pooling
    )
    assert few < 0.8 * many
    paths = PathSampler(supernet_config(limits, paths="single"), seed=0)
    times = Counter(spec.pooling for step in range(1_000) for spec in paths.at(step))
    assert abs(times["1d"] - 500) < 4 * 16  # four deviations


def test_over_macs_cheap_specs_which_are_few_are_drawn_more_often() -> None:
    def cheapest_third(evenly_over: str) -> int:
        paths = PathSampler(supernet_config(paths="single", draw_evenly_over=evenly_over), seed=0)
        macs = [count_macs(spec) for step in range(500) for spec in paths.at(step)]
        least, most = min(macs), max(macs)
        return sum(one < least * (most / least) ** (1 / 3) for one in macs)

    assert cheapest_third("macs") > 1.5 * cheapest_third("specs")


def test_no_path_is_over_the_limits() -> None:
    limits = Limits(max_macs=60_000)
    assert 20 < SPACE.size(limits).count < 150
    paths = PathSampler(supernet_config(limits), seed=0)
    assert all(limits.allows(spec) for step in range(50) for spec in paths.at(step))


SHORT: dict[str, Any] = {
    "epochs": 2,
    "warmup_epochs": 0,
    "data_fraction": 0.2,
    "model_ema_decay": 0.9,
    "drop_path": 0.1,
    "micro_batch_size": 40,
    "checkpoint_steps": 3,
}


def test_resumed_anywhere_it_ends_as_the_undisturbed_run() -> None:
    one = configuration(**SHORT)
    source = load_source(one)
    saved = [report.checkpoint() for report in run_training(one, source)]
    assert [each.step for each in saved] == [3, 4, 6, 8]
    for start in saved[:-1]:
        *_, last = run_training(one, source, start=start)
        again = last.checkpoint()
        for name in ("model", "ema"):
            torch.testing.assert_close(
                getattr(again, name), getattr(saved[-1], name), rtol=0, atol=0
            )
        assert (
            again.curve[-1]["metrics"]["holdout/loss"]
            == (saved[-1].curve[-1]["metrics"]["holdout/loss"])
        )


FEW: dict[str, Any] = {"epochs": 1, "batch_size": 97, "clip_grad": 0.1, "data_fraction": 0.5}


def train_in_group(rank: int, world_size: int, folder: str, changes: dict[str, Any]) -> None:
    join_group(rank, world_size, folder)
    one = configuration(**FEW, **changes)
    *_, last = run_training(one, load_source(one))
    if rank == 0:
        torch.save((last.checkpoint().model, last.metrics), f"{folder}/workers")
    dist.destroy_process_group()


@pytest.mark.processes
@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_two_workers_take_the_steps_of_one(tmp_path: Path, compression: str) -> None:
    """Without DDP, which would wait for the weights that a step does not use."""
    one = configuration(**FEW)
    *_, alone = run_training(one, load_source(one))
    in_group(train_in_group, 2, str(tmp_path), {"grad_compression": compression})
    ours, metrics = torch.load(tmp_path / "workers")
    theirs = alone.checkpoint().model
    assert ours.keys() == theirs.keys()
    difference = torch.cat([(ours[n] - w).abs().flatten() for n, w in theirs.items()])
    if compression == "none":
        assert difference.median() < 1e-6
        assert metrics["train/loss"] == pytest.approx(alone.metrics["train/loss"], abs=1e-5)
    else:
        assert 0 < difference.median() < 1e-3


def test_what_a_supernet_cannot_be_given_is_refused() -> None:
    changes: dict[str, Any] = {"img_size": 16, "layer_decay": 0.9, "compile": True}
    for setting, got in changes.items():
        with pytest.raises(ValidationError, match=f"{setting} must be .* for a supernet, got"):
            configuration(**{setting: got})
    outside = configuration().spec.model_copy(update={"patch_size": 1})
    with pytest.raises(ValidationError, match="patch_size must be one of 2, got 1"):
        Configuration(spec=outside, supernet=supernet_config())


def test_a_supernet_has_a_key_of_its_own() -> None:
    ours = configuration()
    keys = {
        Configuration(spec=ours.spec).key,
        ours.key,
        configuration(supernet_config(paths="single")).key,
        configuration(supernet_config(Limits(max_macs=10**9))).key,
    }
    assert len(keys) == 4


def hashes(images: np.ndarray) -> set[str]:
    return {hashlib.sha256(image.tobytes()).hexdigest() for image in images}


def overlaps(source: Source, held_out: HoldoutImages) -> dict[str, int]:
    """Images that are where they must not be, by what they show. What candidates are scored on is
    what the actors hold."""
    sees = {
        name: hashes(read_holdout(table, run_info(configuration(), source).preprocessing).images)
        for name, table in (("train", source.train), ("test", source.test))
        if table
    }
    scored = hashes(held_out.images)
    return {
        "train and hold-out": len(sees["train"] & scored),
        "train and test": len(sees["train"] & sees["test"]),
        "hold-out and test": len(scored & sees["test"]),
    }


def test_no_image_is_trained_on_and_scored() -> None:
    """And the check finds one that is."""
    source = load_source(configuration())
    preprocessing = run_info(configuration(), source).preprocessing
    held_out = read_holdout(source.holdout, preprocessing)
    assert len(held_out.labels) == len(source.holdout)
    assert set(overlaps(source, held_out).values()) == {0}
    broken = replace(source, holdout=source.train.take(np.arange(5)))
    assert overlaps(source, read_holdout(broken.holdout, preprocessing))["train and hold-out"] == 5
    leaked = replace(source, test=source.holdout)
    assert overlaps(leaked, held_out)["hold-out and test"] == len(source.holdout)


def test_scores_in_memory_are_those_of_an_evaluation() -> None:
    one = configuration(epochs=1, warmup_epochs=0, data_fraction=0.1)
    source = load_source(one)
    *_, last = run_training(one, source)
    checkpoint = last.checkpoint()
    preprocessing = checkpoint.run.preprocessing
    held_out = read_holdout(source.holdout, preprocessing)
    subnets = SubnetScorer(checkpoint, held_out, device=torch.device("cpu"), batch_size=100)
    supernet = load_supernet(checkpoint)
    for spec in PathSampler(supernet_config(), 0).at(3):
        extracted = supernet.extract(spec)
        expected = evaluate(extracted, source.holdout, preprocessing, num_classes=10).measures
        measures = subnets.score(spec)
        assert measures.keys() == {"loss", "top1", "balanced_top1", "f1"}
        assert measures.pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-9)
        assert measures == expected
    assert last.metrics["holdout/top1"] == subnets.score(one.spec)["top1"].value
    unreadable = SubnetScorer(
        checkpoint,
        held_out._replace(unreadable=np.zeros(12, dtype=np.int64)),
        device=torch.device("cpu"),
    )
    right = round(subnets.score(one.spec)["top1"].value * 288 / 100)
    assert unreadable.score(one.spec)["top1"].value == pytest.approx(100 * right / 300)


def test_a_supernet_is_not_made_of_a_run_of_one_network() -> None:
    one = Configuration(
        spec=configuration().spec,
        train=TrainConfig(epochs=1, warmup_epochs=0, data_fraction=0.1),
    )
    *_, last = run_training(one, load_source(one))
    with pytest.raises(ValueError, match="checkpoint must be of a supernet, got one of"):
        load_supernet(last.checkpoint())
