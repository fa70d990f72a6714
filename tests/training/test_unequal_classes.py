"""Training on classes of unequal size: weights in the loss, balanced draws, ranking metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loading.loader import GlobalBatchSampler
from psvit_ray.data.sources.image_source import Source
from psvit_ray.export.measures import commonest_measures
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import CheckpointManager
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.loss import ClassWeights, base_loss, make_mixing, weighted_sum
from psvit_ray.training.results import RANKING, SCORE, MetricName
from psvit_ray.training.source import check_fits, load_source
from tests.helpers.training import SPEC, assert_same_state, in_group, join_group

LABELS = np.repeat([0, 1, 3], [60, 30, 10])
"""Four classes, of which the third has no images."""


def weights_for(**train: Any) -> ClassWeights:
    config = TrainConfig(class_weights="balanced", **train)
    weights = ClassWeights.of(config, LABELS, 4)
    assert weights
    return weights


def logits(number: int = 6) -> Tensor:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(0))


# Weights in the loss


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=LABELS)
    weights = weights_for().weights
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[2] == 0
    assert weights[LABELS].mean() == pytest.approx(1.0)
    assert ClassWeights.of(TrainConfig(), LABELS, 4) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_images_loss_has_the_weight_of_its_label(smoothing: float) -> None:
    weights = weights_for(smoothing=smoothing)
    labels = torch.tensor([0, 1, 3, 0, 3, 1])
    losses = F.cross_entropy(logits(), labels, reduction="none", label_smoothing=smoothing)
    loss = base_loss(TrainConfig(smoothing=smoothing), weights)(logits(), labels)
    torch.testing.assert_close(loss, (weights.weights[labels] * losses).sum())
    torch.testing.assert_close(weights.of_images(labels), weights.weights[labels])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_images_loss_is_that_of_its_labels_in_their_parts(smoothing: float) -> None:
    """Mixup's loss is linear in the two labels (Zhang et al., arXiv 1710.09412)."""
    config = TrainConfig(class_weights="balanced", mixup=0.8, smoothing=smoothing)
    mixing, weights = make_mixing(config, 4), weights_for(smoothing=smoothing)
    assert mixing
    labels = torch.tensor([0, 1, 3, 0, 3, 1])
    _, targets = mixing(torch.zeros(6, 1, 2, 2), labels, seed=5)
    # With labels 0 and 1 the first pixel tells how much of each image is the other one's.
    images, _ = mixing(torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 2).clone(), labels, 5)
    partner = labels.flip(0)
    part = (images[:, 0, 0, 0] - torch.arange(5.0, -1.0, -1.0)) / torch.arange(-5.0, 6.0, 2.0)
    single = [
        F.cross_entropy(logits(), y, reduction="none", label_smoothing=smoothing)
        * weights.weights[y]
        for y in (labels, partner)
    ]
    expected = (part * single[0] + (1 - part) * single[1]).sum()
    loss = base_loss(config, weights)(logits(), targets)
    assert 0.05 < part.mean() < 0.95
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        weights.of_images(targets),
        part * weights.weights[labels] + (1 - part) * weights.weights[partner],
    )


def test_binary_losses_and_distilled_ones_have_the_weight_of_their_image() -> None:
    weights = weights_for(smoothing=0.0)
    labels = torch.tensor([0, 1, 3, 0, 3, 1])
    config = TrainConfig(bce_loss=True, smoothing=0.0)
    single = torch.stack(
        [base_loss(config)(logits()[i : i + 1], labels[i : i + 1]) for i in range(6)]
    )
    loss = base_loss(config, weights)(logits(), labels)
    torch.testing.assert_close(loss, (weights.weights[labels] * single).sum())
    torch.testing.assert_close(weighted_sum(single, weights.of_images(labels)), loss)
    torch.testing.assert_close(weighted_sum(single, None), single.sum())


def test_a_weight_is_that_of_as_many_copies() -> None:
    """Two classes, 3 : 1: weights of 2/3 and 2 are the images of the rarer one three times over, at
    two thirds."""
    weights = ClassWeights.of(TrainConfig(class_weights="balanced"), np.array([0, 0, 0, 1]), 2)
    labels, outputs = torch.tensor([0, 0, 0, 1]), logits(4)[:, :2]
    copies = [0, 1, 2, 3, 3, 3]
    loss = base_loss(TrainConfig(), weights)(outputs, labels)
    copied = base_loss(TrainConfig())(outputs[copies], labels[copies])
    torch.testing.assert_close(loss, 2 / 3 * copied)


# Balanced draws


def draws(epoch: int, *, first_step: int = 0, **options: Any) -> np.ndarray:
    sampler = GlobalBatchSampler(100, 8, **{"seed": 1, "balanced": LABELS, **options})
    sampler.set_position(epoch, first_step)
    return np.concatenate(list(sampler))


@pytest.mark.parametrize("blocks", [None, np.arange(100) // 7])
def test_every_class_is_drawn_equally_often(blocks: np.ndarray | None) -> None:
    options: dict[str, Any] = {"blocks": blocks, "window": 30}
    for epoch in (1, 2, 7):
        counts = np.bincount(LABELS[draws(epoch, **options)[:, 0]], minlength=4)
        assert counts.sum() == 100
        assert set(counts[[0, 1, 3]]) == {33, 34}
    # In 9 epochs a class has 300 draws: so many rounds of its images, each image as often.
    images = np.concatenate([draws(epoch, **options)[:, 0] for epoch in range(1, 10)])
    counts = np.bincount(images, minlength=100)
    for label, rounds in ((0, 5), (1, 10), (3, 30)):
        assert set(counts[label == LABELS]) == {rounds}


@pytest.mark.parametrize("blocks", [None, np.arange(100) // 7])
def test_balanced_draws_are_a_function_of_seed_epoch_and_step(blocks: np.ndarray | None) -> None:
    options: dict[str, Any] = {"blocks": blocks, "window": 30}
    assert np.array_equal(draws(3, **options), draws(3, **options))
    for other in (draws(3, seed=2, **options), draws(4, **options)):
        assert not np.array_equal(draws(3, **options)[:, 0], other[:, 0])
    seeds = np.concatenate([draws(epoch, **options)[:, 1] for epoch in range(1, 8)])
    assert len(np.unique(seeds)) == 700  # an image that comes again is augmented differently
    rest = draws(3, first_step=5, **options)
    assert np.array_equal(rest, draws(3, **options)[40:])
    for world_size in (2, 3):
        shares = [
            draws(3, rank=rank, world_size=world_size, **options) for rank in range(world_size)
        ]
        together = sorted(map(tuple, np.concatenate(shares)))
        assert together == sorted(map(tuple, draws(3, **options)))


# Runs


def unequal(**train: Any) -> tuple[Configuration, Source]:
    """Digits, of which 1 to 9 are rare, as two classes: is it a zero?"""
    spec = ArchSpec.model_validate({**dict(SPEC), "num_classes": 2})
    configuration = Configuration(spec=spec, train=TrainConfig(**train))
    as_digits = configuration.train.model_copy(update={"metric": "top1"})
    digits = load_source(Configuration(spec=SPEC, train=as_digits))
    tables = {name: two_classes(getattr(digits, name)) for name in ("train", "holdout", "test")}
    return configuration, replace(digits, class_names=("other", "zero"), **tables)


def two_classes(table: Any) -> Any:
    return replace(table, labels=(table.labels == 0).astype(np.int64))


@pytest.mark.parametrize(
    "balance",
    [{"class_weights": "balanced", "mixup": 0.3}, {"sampler": "balanced", "hflip": 0.5}],
)
def test_a_balanced_run_resumed_anywhere_ends_as_the_undisturbed_run(
    balance: dict[str, Any],
) -> None:
    configuration, source = unequal(
        epochs=2, batch_size=48, data_fraction=0.4, checkpoint_steps=4, **balance
    )
    saved = [report.checkpoint() for report in run_training(configuration, source)]
    assert len(saved) == 6
    for start in saved[:-1]:
        *_, last = run_training(configuration, source, start=start)
        assert_same_state(last.checkpoint(), saved[-1])
    plain, _ = unequal(epochs=2, batch_size=48, data_fraction=0.4)
    *_, other = run_training(plain, source)
    assert not torch.equal(other.checkpoint().model["head.weight"], saved[-1].model["head.weight"])


def train_in_group(rank: int, world_size: int, folder: str, balance: dict[str, Any]) -> None:
    join_group(rank, world_size, folder)
    configuration, source = unequal(epochs=1, batch_size=97, clip_grad=0.38, **balance)
    execution = Execution(prepare_model=DistributedDataParallel)
    *_, last = run_training(configuration, source, execution=execution)
    if rank == 0:
        torch.save((last.checkpoint().model, last.metrics), f"{folder}/workers")
    torch.distributed.destroy_process_group()


@pytest.mark.processes
@pytest.mark.parametrize("balance", [{"class_weights": "balanced"}, {"sampler": "balanced"}])
def test_a_balanced_run_takes_the_same_steps_on_two_workers(
    tmp_path: Path, balance: dict[str, Any]
) -> None:
    configuration, source = unequal(epochs=1, batch_size=97, clip_grad=0.38, **balance)
    *_, alone = run_training(configuration, source)
    in_group(train_in_group, 2, str(tmp_path), balance)
    model, metrics = torch.load(tmp_path / "workers")
    expected = alone.checkpoint().model
    difference = torch.cat([(model[n] - w).abs().flatten() for n, w in expected.items()])
    assert difference.median() < 1e-6
    for name in ("train/loss", "holdout/loss", "holdout/auroc"):
        assert metrics[name] == pytest.approx(alone.metrics[name], abs=1e-3)


def test_an_epoch_has_every_measure_and_beside_it_the_commonest_class() -> None:
    configuration, source = unequal(
        epochs=1, data_fraction=0.3, metric="auroc", class_weights="balanced"
    )
    *_, last = run_training(configuration, source, test=True)
    assert {name for name in last.metrics if name.startswith(("holdout", "commonest"))} == {
        *(f"holdout/{name}" for name in RANKING),
        *("holdout/auroc_error", "commonest/auroc"),
    }
    assert last.metrics["commonest/auroc"] == 50.0
    zeros = np.mean(source.holdout.labels)
    commonest = commonest_measures(source.holdout.labels, 2)
    assert commonest["top1"] == pytest.approx(100 * (1 - zeros))
    result = last.result()
    assert result.to_metrics()[SCORE] == last.metrics["holdout/auroc"] == last.score
    assert set(result.test_metrics) == {f"test/{name}" for name in RANKING}
    assert result.test_metrics["test/top1"] == result.test_top1


@pytest.mark.parametrize("metric", ["top1", "loss", "balanced_top1"])
def test_the_best_checkpoint_is_that_of_the_metric(tmp_path: Path, metric: MetricName) -> None:
    configuration, source = unequal(
        epochs=4, lr=0.006, batch_size=32, data_fraction=0.4, sampler="balanced", metric=metric
    )
    kept = CheckpointManager(Folder(str(tmp_path)), keep=6)
    values = {}
    for report in run_training(configuration, source):
        kept.put(report.checkpoint(), score=report.score)
        values[report.epoch] = report.metrics[f"holdout/{metric}"]
    kept.close()
    best = kept.best()
    assert best
    choose = min if metric == "loss" else max
    assert values[best.epoch] == choose(values.values())
    assert len(set(values.values())) > 1


def test_auroc_is_for_two_classes_that_are_both_held_out() -> None:
    configuration, source = unequal(metric="auroc")
    check_fits(configuration, source)
    with pytest.raises(
        ValueError,
        match=r"metric must be top1, .* with the 10 classes of data 'digits', got",
    ):
        load_source(Configuration(spec=SPEC, train=TrainConfig(metric="auroc")))
    one_class = source.holdout.take(np.flatnonzero(source.holdout.labels == 0))
    with pytest.raises(ValueError, match="needs images of both classes in the hold-out"):
        check_fits(configuration, replace(source, holdout=one_class))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "auc"}, "Input should be 'top1', 'loss'"),
        (
            {"sampler": "balanced", "class_weights": "balanced"},
            "class_weights must be none with sampler=balanced",
        ),
        ({"sampler": "balanced", "aug_repeats": 3}, "aug_repeats must be 1 with sampler=balanced"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)
