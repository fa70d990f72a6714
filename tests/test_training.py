"""A run, in plain PyTorch: exact resume, workers that add up to one, honest totals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loader import GlobalBatchSampler, eval_loader, random_shift
from psvit_ray.data.sources import ArrayDataset, Batch
from psvit_ray.data.storage import Folder
from psvit_ray.training import checkpoint
from psvit_ray.training.checkpoint import Checkpoint, Kept
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import Diverged, Place, Report, load_source, run
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.state import build_model

SPEC = ArchSpec.model_validate(
    {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "pooling": "2d",
        "stages": [
            {"embed_dim": 16, "num_heads": 2, "hidden_dim": 32, "share_groups": [2]},
            {"embed_dim": 24, "num_heads": 2, "hidden_dim": 48, "share_groups": [1]},
        ],
    }
)
EVERYTHING = TrainConfig(
    epochs=3,
    warmup_epochs=1,
    batch_size=48,
    grad_accum_steps=2,
    model_ema_decay=0.9,
    mixup=0.2,
    cutmix=0.5,
    shift=1,
    drop=0.1,
    attn_drop=0.1,
    drop_path=0.1,
    clip_grad=1.0,
    data_fraction=0.4,
)


def state(folder: Path) -> dict[str, Any]:
    saved = checkpoint.load(folder)
    moments = [list(values.values()) for values in saved.optimizer["state"].values()]
    return {"model": saved.model, "ema": saved.ema, "step": saved.step, "moments": moments}


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("extra", [{}, {"num_loaders": 2, "grad_checkpointing": True}])
def test_a_run_resumed_at_any_epoch_ends_as_the_undisturbed_run(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING.model_copy(update=extra))
    source = load_source(configuration)
    metrics = []
    for report in run(configuration, source):
        report.save(tmp_path / str(report.epoch))
        metrics.append(report.metrics)
    for epoch in (1, 2):
        torch.manual_seed(epoch)  # nothing of the process's randomness may matter
        np.random.seed(epoch)
        start = checkpoint.load(tmp_path / str(epoch))
        told = []
        for report in run(configuration, source, start=start):
            again = report.metrics
            told.append(report.earlier)
        assert [point["metrics"] for point in told[0]] == metrics[:epoch]
        assert not any(told[1:])
        report.save(tmp_path / f"from-{epoch}")
        assert_same(state(tmp_path / f"from-{epoch}"), state(tmp_path / "3"))
        assert {**again, "perf/img_per_s": 0} == {**metrics[-1], "perf/img_per_s": 0}


def test_started_from_its_last_checkpoint_a_run_only_reports_that_epoch_again(
    tmp_path: Path,
) -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING)
    source = load_source(configuration)
    *_, last = run(configuration, source, test=True)
    last.save(tmp_path / "last")
    (again,) = run(configuration, source, start=checkpoint.load(tmp_path / "last"), test=True)
    assert (again.epoch, again.step) == (last.epoch, last.step)
    assert again.metrics["holdout/loss"] == last.metrics["holdout/loss"]
    assert again.values()["test_correct"] == last.values()["test_correct"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING.model_copy(update={"epochs": 2}))
    first = next(run(configuration, load_source(configuration)))
    first.save(tmp_path / "1")
    other = configuration.model_copy(update={"spec": SPEC.with_pattern("1-1|1")})
    with pytest.raises(ValueError, match=r"checkpoint must be of .*1-1\|1.* got one of .*2\|1"):
        next(run(other, load_source(other), start=checkpoint.load(tmp_path / "1")))


def test_a_checkpoint_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING)
    report = next(run(configuration, load_source(configuration)))
    kept = Kept(Folder(str(tmp_path / "kept")))
    kept.put(1, report.save)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            report.save(tmp_path / "cut")
        with pytest.raises(KeyboardInterrupt):
            kept.put(2, report.save)
    assert not (tmp_path / "cut").exists()
    newest = kept.newest()
    assert newest is not None
    assert newest.epoch == 1
    kept.put(2, report.save)
    assert Folder(str(tmp_path / "kept")).names() == ["epoch-00002"]


def test_nothing_read_from_a_checkpoint_executes(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "marker",)

    configuration = Configuration(spec=SPEC, train=EVERYTHING)
    next(run(configuration, load_source(configuration))).save(tmp_path / "1")
    torch.save({"epoch": 1, "step": 1, "optimizer": Malicious()}, tmp_path / "1" / "state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load(tmp_path / "1")
    assert not (tmp_path / "marker").exists()


def gradient_of_worker(rank: int, world_size: int, folder: str, accumulate: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    *_, last = run(
        Configuration(spec=SPEC, train=few_steps(accumulate)),
        load_source(Configuration(spec=SPEC)),
        place=Place(prepare_model=DistributedDataParallel),
    )
    if rank == 0:
        last.save(Path(folder) / "workers")
    dist.destroy_process_group()


def few_steps(accumulate: int) -> TrainConfig:
    # 97 images a batch share out unevenly, and the last batch of 1,149 images holds 82. Adam alone
    # would not see a gradient of the wrong size: clipping, near the norm it has here, does.
    return TrainConfig(epochs=1, batch_size=97, grad_accum_steps=accumulate, clip_grad=0.38)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 3)])
def test_any_number_of_workers_and_parts_takes_the_same_steps(
    tmp_path: Path, world_size: int, accumulate: int
) -> None:
    configuration = Configuration(spec=SPEC, train=few_steps(1))
    *_, alone = run(configuration, load_source(configuration))
    alone.save(tmp_path / "alone")
    mp.spawn(gradient_of_worker, (world_size, str(tmp_path), accumulate), nprocs=world_size)
    ours, theirs = checkpoint.load(tmp_path / "workers"), checkpoint.load(tmp_path / "alone")
    assert ours.step == theirs.step == 12
    for name, weight in theirs.model.items():
        # Adam divides by the gradient's size: rounding is amplified where a gradient is near 0.
        torch.testing.assert_close(ours.model[name], weight, rtol=0, atol=2e-3, msg=name)
    difference = torch.cat([(ours.model[n] - w).abs().flatten() for n, w in theirs.model.items()])
    assert difference.median() < 1e-6


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_image_is_seen_once_an_epoch_in_the_same_global_batches(world_size: int) -> None:
    shares = [
        list(GlobalBatchSampler(97, 10, seed=3, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    alone = list(GlobalBatchSampler(97, 10, seed=3))
    together = [sorted(itertools.chain(*step)) for step in zip(*shares, strict=True)]
    assert together == [sorted(step) for step in alone]
    assert sorted(itertools.chain(*alone)) == list(range(97))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = GlobalBatchSampler(50, 7, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_every_epoch_has_an_order_and_every_step_a_randomness_of_its_own() -> None:
    configuration = Configuration(spec=SPEC, train=TrainConfig(epochs=3, data_fraction=0.2))
    source: Any = load_source(configuration)
    asked: list[int] = []
    seeds: list[int] = []

    class Watched(ArrayDataset):
        def __getitems__(self, indices: Sequence[int]) -> Batch:
            asked.extend(indices)
            return super().__getitems__(indices)

    def watch(model: torch.nn.Module) -> torch.nn.Module:
        model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        return model

    train = Watched(source.train.images, source.train.labels)
    list(run(configuration, replace(source, train=train), place=Place(prepare_model=watch)))
    epochs = [asked[start : start + len(train)] for start in range(0, len(asked), len(train))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(len(train)))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    trained = [seed for seed, again in itertools.groupby(seeds)]
    assert len(set(trained)) >= 3 * 4  # a seed a step; evaluation draws nothing and sets none


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 8), (3, 100), (7, 1)])
def test_evaluation_sees_each_image_once_whatever_the_workers(
    world_size: int, batch_size: int
) -> None:
    source = load_source(Configuration(spec=SPEC))
    images = [
        image
        for rank in range(world_size)
        for batch, _ in eval_loader(source.test, batch_size, rank=rank, world_size=world_size)
        for image in batch
    ]
    assert len(images) == len(source.test)
    ours = torch.stack(images).flatten(1).sort(dim=0).values
    assert_same(ours, source.test.images.flatten(1).sort(dim=0).values)  # type: ignore[attr-defined]


def test_evaluate_equals_one_pass_over_all_images() -> None:
    configuration = Configuration(spec=SPEC)
    source, model = load_source(configuration), build_model(configuration).eval()
    test: Any = source.test
    with torch.inference_mode():
        logits = model(test.images)
    score = evaluate(model, source.test, batch_size=37)
    right = logits.argmax(1) == test.labels
    assert_same(score.correct, right)
    assert score.top1 == pytest.approx(100 * right.double().mean().item(), abs=1e-9)
    assert score.loss == pytest.approx(
        F.cross_entropy(logits.double(), test.labels).item(), abs=1e-6
    )


def test_the_test_images_are_fixed_and_the_parts_disjoint_and_stratified() -> None:
    def parts(**changes: Any) -> dict[str, Tensor]:
        source: Any = load_source(Configuration(spec=SPEC, train=TrainConfig(**changes)))
        return {name: getattr(source, name).images for name in ("train", "holdout", "test")}

    base, other = parts(), parts(split_seed=1, holdout=0.3, seed=5)
    assert_same(base["test"], other["test"])
    assert len(base["test"]) == 360
    assert not torch.equal(base["holdout"][:10], other["holdout"][:10])
    rows = [row.tobytes() for images in base.values() for row in images.numpy()]
    assert len(rows) == 1797
    assert len(set(rows)) >= 1797 - 2  # the data set itself holds hardly a picture twice
    source: Any = load_source(Configuration(spec=SPEC))
    for part in (source.train, source.holdout, source.test):
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01
    assert len(parts(data_fraction=0.5)["train"]) == pytest.approx(len(base["train"]) / 2, abs=1)


def test_a_shift_moves_whole_images_and_repeats_their_edge() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    windows = {
        (i, padded[i, :, y : y + 8, x : x + 8].numpy().tobytes())
        for i in range(2)
        for y in range(5)
        for x in range(5)
    }
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        shifted = random_shift(images, 2)
        seen |= {(i, shifted[i].contiguous().numpy().tobytes()) for i in range(2)}
    assert seen == windows


def test_a_loss_that_is_not_finite_ends_the_run_with_its_reason() -> None:
    configuration = Configuration(
        spec=SPEC, train=TrainConfig(epochs=2, warmup_epochs=0, lr=1e30, weight_decay=0)
    )
    with pytest.raises(Diverged, match=r"is (nan|inf) at epoch 1, step \d+"):
        list(run(configuration, load_source(configuration)))


def test_the_learning_rate_rises_linearly_and_falls_on_a_cosine() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=1, lr=1e-2, min_lr=1e-4, data_fraction=0.2)
    configuration = Configuration(spec=SPEC, train=config)
    rates = [
        report.metrics["train/lr"] for report in run(configuration, load_source(configuration))
    ]
    steps = 4  # of an epoch: 230 images in batches of 64
    expected = [
        1e-2 / 5 + (1e-2 - 1e-2 / 5) * 3 / steps,
        *(
            1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + np.cos(np.pi * (last - steps) / (3 * steps)))
            for last in (7, 11, 15)
        ),
    ]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_averaged_weights_are_the_ones_evaluated() -> None:
    config = TrainConfig(epochs=2, warmup_epochs=1, model_ema_decay=0.99, data_fraction=0.3)
    configuration = Configuration(spec=SPEC, train=config)
    source = load_source(configuration)
    reports: list[Report] = list(run(configuration, source))
    saved: Checkpoint = reports[-1].save.__self__  # type: ignore[attr-defined]
    model = build_model(configuration)
    assert saved.ema is not None
    model.load_state_dict(saved.ema)
    assert evaluate(model, source.holdout).top1 == reports[-1].metrics["holdout/top1"]
    assert any(not torch.equal(saved.model[name], saved.ema[name]) for name in saved.model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"warmup_epochs": 20}, "warmup_epochs must be less than epochs=20, got 20"),
        ({"epocs": 3}, "unknown field 'epocs'; nearest is 'epochs'"),
        ({"min_lr": 1.0}, "min_lr must be at most lr"),
        ({"grad_accum_steps": 65}, "grad_accum_steps must be at most batch_size=64, got 65"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(**change)


def test_a_spec_for_other_images_is_refused() -> None:
    other = ArchSpec.model_validate({**SPEC.model_dump(), "in_chans": 3})
    with pytest.raises(ValueError, match="in_chans must be 1, as in data 'digits', got 3"):
        load_source(Configuration(spec=other))
    with pytest.raises(ValueError, match="data must be a known source, got 'digit'; nearest"):
        load_source(Configuration(spec=SPEC, train=TrainConfig(data="digit")))
