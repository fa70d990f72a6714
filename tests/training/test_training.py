"""A run, in plain PyTorch: exact resume, workers that add up to one, honest totals."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.training.agreement import Request, WorkerHung
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import Report, run_training
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.execution import Execution
from psvit_ray.training.source import load_source
from psvit_ray.training.state import build_model, run_info
from psvit_ray.training.steps import Diverged, make_schedule
from tests.helpers.training import (
    SPEC,
    assert_same,
    assert_same_state,
    in_group,
    join_group,
    timeless,
)

EVERYTHING = TrainConfig(
    epochs=3,
    warmup_epochs=1,
    batch_size=24,
    micro_batch_size=10,
    model_ema_decay=0.9,
    mixup=0.2,
    cutmix=0.5,
    shift=1,
    reprob=0.3,
    drop=0.1,
    attn_drop=0.1,
    drop_path=0.1,
    clip_grad=1.0,
    data_fraction=0.2,
    checkpoint_steps=5,
)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param(
            {"num_loaders": 2, "grad_checkpointing": True},
            marks=pytest.mark.processes,
            id="loaders",
        ),
    ],
)
def test_a_run_resumed_anywhere_ends_as_the_undisturbed_run(extra: dict[str, Any]) -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING.model_copy(update=extra))
    source = load_source(configuration)
    saved = [report.checkpoint() for report in run_training(configuration, source)]
    # Nine and a half batches of 24 an epoch: after every fifth step, and at the end of epochs.
    assert [one.step for one in saved] == [5, 10, 10, 15, 20, 20, 25, 30]
    assert [one.epoch for one in saved] == [0, 1, 1, 1, 2, 2, 2, 3]
    for start in saved[:-1:2] if extra else saved[:-1]:
        torch.manual_seed(start.step)  # nothing of the process's randomness may matter
        np.random.seed(start.step)
        told: list[Report] = list(run_training(configuration, source, start=start))
        first, *others = (report for report in told if report.metrics)
        assert timeless(first.earlier) == timeless(start.curve)
        assert not any(report.earlier for report in others)
        assert_same_state(told[-1].checkpoint(), saved[-1])


def test_started_from_its_last_checkpoint_a_run_only_reports_that_epoch_again() -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING)
    source = load_source(configuration)
    *_, last = run_training(configuration, source, test=True)
    (again,) = run_training(configuration, source, start=last.checkpoint(), test=True)
    assert (again.epoch, again.step) == (last.epoch, last.step)
    assert again.metrics["holdout/loss"] == last.metrics["holdout/loss"]
    assert again.result().test_correct == last.result().test_correct


def test_a_checkpoint_of_another_configuration_is_refused() -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING.model_copy(update={"epochs": 2}))
    first = next(run_training(configuration, load_source(configuration)))
    other = configuration.model_copy(update={"spec": SPEC.with_pattern("1-1|1")})
    with pytest.raises(ValueError, match=r"checkpoint must be of .*1-1\|1.* got one of .*2\|1"):
        next(run_training(other, load_source(other), start=first.checkpoint()))


def asking(requests: dict[int, Request]) -> Callable[[], Request]:
    """Asks for something before a step, counted from 1."""
    step = itertools.count(1)
    return lambda: requests.get(next(step), "none")


def test_a_run_that_is_asked_to_stop_ends_with_a_checkpoint_of_that_moment() -> None:
    configuration = Configuration(spec=SPEC, train=EVERYTHING)
    source = load_source(configuration)
    execution = Execution(request=asking({3: "checkpoint", 13: "stop"}))
    reports = list(run_training(configuration, source, execution=execution))
    assert [report.step for report in reports] == [2, 5, 10, 10, 12]
    assert [report.stopped for report in reports] == [False] * 4 + [True]
    *_, last = run_training(configuration, source, start=reports[-1].checkpoint())
    *_, undisturbed = run_training(configuration, source)
    assert_same_state(last.checkpoint(), undisturbed.checkpoint())


def test_a_checkpoint_is_due_when_its_minutes_are_over() -> None:
    train = EVERYTHING.model_copy(
        update={"checkpoint_steps": 0, "checkpoint_minutes": 1e-9, "epochs": 2, "warmup_epochs": 0}
    )
    configuration = Configuration(spec=SPEC, train=train)
    steps = [report.step for report in run_training(configuration, load_source(configuration))]
    assert steps == [*range(10), 10, *range(10, 20), 20]


def train_in_group(rank: int, world_size: int, folder: str, changes: dict[str, Any]) -> None:
    join_group(rank, world_size, folder)
    configuration = Configuration(spec=SPEC, train=few_steps(**changes))
    *_, last = run_training(
        configuration,
        load_source(configuration),
        execution=Execution(prepare_model=DistributedDataParallel),
    )
    if rank == 0:
        saved = last.checkpoint()
        torch.save((saved.step, saved.model, last.metrics), f"{folder}/workers")
    dist.destroy_process_group()


def few_steps(**changes: Any) -> TrainConfig:
    # 97 images a batch share out unevenly, and the last batch of 1,149 images holds 82. Adam alone
    # would not see a gradient of the wrong size: clipping, near the norm it has here, does.
    return TrainConfig(epochs=1, batch_size=97, clip_grad=0.38, **changes)


@pytest.mark.processes
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 0), (3, 14)])
def test_any_number_of_workers_and_parts_takes_the_same_steps(
    tmp_path: Path, world_size: int, micro_batch_size: int
) -> None:
    configuration = Configuration(spec=SPEC, train=few_steps())
    *_, alone = run_training(configuration, load_source(configuration))
    changes = {"micro_batch_size": micro_batch_size}
    in_group(train_in_group, world_size, str(tmp_path), changes)
    step, ours, metrics = torch.load(tmp_path / "workers")
    theirs = alone.checkpoint()
    assert step == theirs.step == 12
    for name, weight in theirs.model.items():
        # Adam divides by the gradient's size: rounding is amplified where a gradient is near 0.
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-3, msg=name)
    difference = torch.cat([(ours[n] - w).abs().flatten() for n, w in theirs.model.items()])
    assert difference.median() < 1e-6
    assert metrics["train/loss"] == pytest.approx(alone.metrics["train/loss"], abs=1e-5)


@pytest.mark.processes
def test_gradients_sent_as_bf16_are_rounded_and_no_more(tmp_path: Path) -> None:
    found = {}
    for compression in ("none", "bf16"):
        folder = tmp_path / compression
        folder.mkdir()
        in_group(train_in_group, 2, str(folder), {"grad_compression": compression})
        _, weights, metrics = torch.load(folder / "workers")
        found[compression] = torch.cat([one.flatten() for one in weights.values()]), metrics
    (exact, plain), (rounded, compressed) = found.values()
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()
    assert compressed["train/loss"] == pytest.approx(plain["train/loss"], abs=5e-3)


def fault_in_group(rank: int, world_size: int, folder: str, fault: str) -> None:
    """Rank 1 is at fault in its seventh step; what each rank says of it is written down."""
    join_group(rank, world_size, folder)
    configuration = Configuration(spec=SPEC, train=TrainConfig(epochs=1, data_fraction=0.9))
    steps = itertools.count(1)

    def at_fault(module: torch.nn.Module, _: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * float("nan") if next(steps) == 7 and rank == 1 else logits

    def request() -> Request:
        if next(steps) == 7 and rank == 1:
            Path(folder, "asleep").touch()
            while not Path(folder, "named").exists():
                time.sleep(0.05)
        return "none"

    def prepare(model: torch.nn.Module) -> torch.nn.Module:
        if fault == "nan":
            model.register_forward_hook(at_fault)
        return DistributedDataParallel(model)

    execution = Execution(
        prepare_model=prepare,
        patience_s=2.0 if fault == "sleeps" else 60.0,
        request=request if fault == "sleeps" else lambda: "none",
    )
    try:
        list(run_training(configuration, load_source(configuration), execution=execution))
        said = "nothing"
    except (Diverged, WorkerHung) as error:
        said = f"{type(error).__name__}: {error}"
    except RuntimeError:  # the one that slept finds the others gone
        said = "RuntimeError"
    Path(folder, f"said-{rank}").write_text(said)
    if fault == "sleeps" and rank == 0:
        Path(folder, "named").touch()


def said_in_group(folder: Path, fault: str) -> list[str]:
    in_group(fault_in_group, 2, str(folder), fault)
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]


@pytest.mark.processes
def test_a_loss_that_is_no_number_on_one_worker_stops_all_at_that_step(tmp_path: Path) -> None:
    assert said_in_group(tmp_path, "nan") == ["Diverged: train/loss is nan at step 7"] * 2


@pytest.mark.processes
def test_a_worker_that_hangs_is_named(tmp_path: Path) -> None:
    said, _ = said_in_group(tmp_path, "sleeps")
    assert said == "WorkerHung: rank 1 did not reach step 7 within 2 s"


def test_evaluate_equals_one_pass_over_all_images() -> None:
    configuration = Configuration(spec=SPEC)
    source, model = load_source(configuration), build_model(configuration).eval()
    preprocessing = run_info(configuration, source).preprocessing
    test: Any = source.test
    with torch.inference_mode():
        logits = model(preprocessing.normalize(test.images))
    score = evaluate(model, test, preprocessing, num_classes=10, batch_size=37)
    right = logits.argmax(1) == torch.as_tensor(test.labels)
    assert_same(torch.as_tensor(score.correct), right)
    assert score.top1 == pytest.approx(100 * right.double().mean().item(), abs=1e-9)
    assert score.loss == pytest.approx(
        F.cross_entropy(logits.double(), torch.as_tensor(test.labels)).item(), abs=1e-6
    )


def test_a_step_far_above_the_others_ends_the_run() -> None:
    configuration = Configuration(
        spec=SPEC,
        train=TrainConfig(epochs=2, warmup_epochs=0, lr=3.0, max_loss_spike=1.5, smoothing=0),
    )
    with pytest.raises(
        Diverged, match=r"is \S+ at step \d+, more than 1.5 times the 2\.\d+ before"
    ):
        list(run_training(configuration, load_source(configuration)))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_reason() -> None:
    configuration = Configuration(
        spec=SPEC, train=TrainConfig(epochs=2, warmup_epochs=0, lr=1e9, weight_decay=0)
    )
    with pytest.raises(Diverged, match=r"train/loss is (nan|inf) at step \d+"):
        list(run_training(configuration, load_source(configuration)))


def test_the_learning_rate_rises_linearly_and_falls_on_a_cosine() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=1, lr=1e-2, min_lr=1e-4, data_fraction=0.2)
    configuration = Configuration(spec=SPEC, train=config)
    rates = [
        report.metrics["train/lr"]
        for report in run_training(configuration, load_source(configuration))
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
    reports: list[Report] = list(run_training(configuration, source))
    saved = reports[-1].checkpoint()
    model = build_model(configuration)
    assert saved.ema is not None
    model.load_state_dict(saved.evaluated)
    score = evaluate(model, source.holdout, saved.run.preprocessing, num_classes=10)
    assert score.top1 == reports[-1].metrics["holdout/top1"]
    assert any(not torch.equal(saved.model[name], saved.ema[name]) for name in saved.model)


def test_a_warm_up_takes_at_most_half_of_a_short_run() -> None:
    config = TrainConfig(epochs=2, warmup_epochs=5, lr=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(optimizer, config, steps_per_epoch=10)
    rates = []
    for step in range(20):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates.index(max(rates)) == 10
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"epocs": 3}, "unknown field 'epocs'; nearest is 'epochs'"),
        ({"min_lr": 1.0}, "min_lr must be at most lr"),
        ({"bce_loss": True}, "smoothing must be 0 with bce_loss, got 0.1"),
        ({"init_checkpoint": "a"}, "init must be timm:NAME with init_checkpoint, got ''"),
        ({"min_lr": 3e-3, "lr_base_size": 128}, "min_lr must be at most lr=0.001, got 0.003"),
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
