"""One run as a generator of reports, and evaluation. Plain PyTorch: where a run happens, and what
becomes of its reports, is the caller's affair.

Shapes: B images, C channels, S the side of an image, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from psvit_ray.data import sources
from psvit_ray.data.loader import (
    GlobalBatchSampler,
    eval_loader,
    mix_seed,
    random_shift,
    train_loader,
)
from psvit_ray.data.sources import Batch, ImageDataset, Source
from psvit_ray.model.psvit import PSViT
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.metrics import Mean, all_reduce, rank_and_world_size

CPU = torch.device("cpu")


class Diverged(ArithmeticError):
    """The loss is not a number any more: the configuration's own fault, the same on all workers."""


@dataclass(frozen=True)
class Evaluation:
    """`top1` in percent; `correct` (N,) bool, in the order of the data set."""

    loss: float
    top1: float
    correct: Tensor


@dataclass(frozen=True)
class Report:
    """What a run says at the end of an epoch, on every worker the same. `save` writes the whole
    state to a new folder: call it while the generator stands here. `step` counts updates."""

    epoch: int
    step: int
    metrics: dict[str, float]
    earlier: list[dict[str, Any]]
    """In the first report after a start from a checkpoint: what was reported before that."""
    test: Evaluation | None
    checkpoint_due: bool
    save: Callable[[Path], None]

    def values(self) -> dict[str, Any]:
        """Primitives, as frameworks take them."""
        values: dict[str, Any] = {"epoch": self.epoch, "step": self.step, **self.metrics}
        if self.earlier:
            values["earlier"] = self.earlier
        if self.test:
            values["test/top1"] = self.test.top1
            values["test_correct"] = "".join("1" if right else "0" for right in self.test.correct)
        return values


@dataclass(frozen=True)
class Place:
    """Where a run happens. The two functions are what a framework wraps model and loaders with
    (Ray Train's `prepare_model` and `prepare_data_loader`): how gradients are summed over workers
    is theirs. They may also move things to the device."""

    device: torch.device = CPU
    prepare_model: Callable[[nn.Module], nn.Module] = lambda model: model
    prepare_loader: Callable[[DataLoader[Batch]], DataLoader[Batch]] = lambda loader: loader


def load_source(configuration: Configuration) -> Source:
    """The data of a configuration. Raises ValueError where its spec asks for other images."""
    spec, train = configuration.spec, configuration.train
    source = sources.load(
        train.data,
        holdout=train.holdout,
        split_seed=train.split_seed,
        fraction=train.data_fraction,
    )
    for field in ("img_size", "in_chans", "num_classes"):
        ours, theirs = getattr(spec, field), getattr(source, field)
        if ours != theirs:
            raise ValueError(f"{field} must be {theirs}, as in data {train.data!r}, got {ours}")
    return source


def build_model(configuration: Configuration) -> PSViT:
    """The network with its first weights, which are a function of the seed."""
    config = configuration.train
    torch.manual_seed(mix_seed(config.seed))
    return PSViT(
        configuration.spec,
        drop_rate=config.drop,
        attn_drop_rate=config.attn_drop,
        drop_path_rate=config.drop_path,
    )


def run(
    configuration: Configuration,
    source: Source,
    *,
    place: Place | None = None,
    start: Checkpoint | None = None,
    test: bool = False,
) -> Iterator[Report]:
    """Trains, and yields a report at the end of every epoch; with `test` the last one has the score
    on the test images.

    Started from a checkpoint, it goes on after that epoch and does bit for bit what the undisturbed
    run did; started from the last, it only reports that epoch again. Works in every process of an
    initialised `torch.distributed` group, or alone. Close the generator to stop early: it puts its
    loaders away.

    Raises ValueError for a checkpoint of another configuration and Diverged for a loss that is
    not finite.
    """
    config, place = configuration.train, place or Place()
    device = place.device
    if start and start.configuration != configuration:
        raise ValueError(
            f"checkpoint must be of configuration {configuration.key} "
            f"({configuration.spec.pattern}), got one of {start.configuration.key} "
            f"({start.configuration.spec.pattern})"
        )
    rank, world_size = rank_and_world_size()
    state = _State.of(configuration, device, start)
    sampler = GlobalBatchSampler(
        len(source.train), config.batch_size, seed=config.seed, rank=rank, world_size=world_size
    )
    loader = train_loader(
        source.train, sampler, num_loaders=config.num_loaders, pin_memory=device.type == "cuda"
    )
    steps = _Steps(
        state,
        source,
        model=place.prepare_model(state.model),
        loader=place.prepare_loader(loader),
        schedule=_schedule(state.optimizer, config, steps_per_epoch=len(sampler)),
    )
    earlier = list(state.curve)
    for epoch in range(min(state.epoch + 1, config.epochs), config.epochs + 1):
        metrics = {}
        if epoch > state.epoch:
            sampler.set_epoch(epoch)
            metrics = steps.train_epoch()
        score = functools.partial(
            evaluate, state.evaluated, device=device, batch_size=config.batch_size, amp=config.amp
        )
        holdout = score(source.holdout)
        metrics |= {"holdout/loss": holdout.loss, "holdout/top1": holdout.top1}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} at epoch {epoch}, step {state.step}")
        if epoch > state.epoch:
            state.epoch = epoch
            state.curve.append({"epoch": epoch, "step": state.step, "metrics": metrics})
        last = epoch == config.epochs
        yield Report(
            epoch=epoch,
            step=state.step,
            metrics=metrics,
            earlier=earlier,
            test=score(source.test) if test and last else None,
            checkpoint_due=last or epoch % config.checkpoint_every == 0,
            save=state.checkpoint().save,
        )
        earlier = []


@dataclass
class _State:
    """All of a run that changes from step to step."""

    configuration: Configuration
    model: PSViT
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    epoch: int
    step: int
    curve: list[dict[str, Any]]

    @classmethod
    def of(
        cls, configuration: Configuration, device: torch.device, start: Checkpoint | None
    ) -> _State:
        config = configuration.train
        model = build_model(configuration).to(device)
        model.set_grad_checkpointing(config.grad_checkpointing)
        optimizer = create_optimizer_v2(
            model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        ema = ModelEmaV3(model, config.model_ema_decay, True) if config.model_ema_decay else None
        if start:
            model.load_state_dict(start.model)
            optimizer.load_state_dict(start.optimizer)
            if ema and start.ema:
                ema.module.load_state_dict(start.ema)
        if config.compile:
            model.compile_blocks()
        epoch, step, curve = (start.epoch, start.step, list(start.curve)) if start else (0, 0, [])
        return cls(configuration, model, ema, optimizer, epoch, step, curve)

    @property
    def evaluated(self) -> nn.Module:
        return self.ema.module if self.ema else self.model

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            configuration=self.configuration,
            epoch=self.epoch,
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            curve=self.curve,
        )


class _Steps:
    """The optimizer steps of an epoch."""

    def __init__(
        self,
        state: _State,
        source: Source,
        *,
        model: nn.Module,
        loader: DataLoader[Batch],
        schedule: CosineLRScheduler,
    ) -> None:
        self._state, self._source = state, source
        self._model, self._loader, self._schedule = model, loader, schedule
        self._mix = _mixing(state.configuration.train, source.num_classes)
        self._rank, self._world_size = rank_and_world_size()

    def train_epoch(self) -> dict[str, float]:
        began = time.perf_counter()
        state, config = self._state, self._state.configuration.train
        num_images = len(self._source.train)
        device = next(state.model.parameters()).device
        state.model.train()
        mean_loss = Mean(device)
        for number, (images, labels) in enumerate(self._loader):
            # Known without asking the others: every batch but the last is full.
            global_batch = min(config.batch_size, num_images - number * config.batch_size)
            torch.manual_seed(mix_seed(config.seed, state.step, self._rank))
            self._schedule.step_update(state.step)
            images, labels = images.to(device), labels.to(device)
            if config.shift:
                images = random_shift(images, config.shift)
            if self._mix and len(images):
                images, labels = self._mix(images, labels)
            loss_sum = _backward(
                self._model, images, labels, config=config, scale=self._world_size / global_batch
            )
            if config.clip_grad:
                nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            if state.ema:
                state.ema.update(state.model, step=state.step)
            mean_loss.add(loss_sum, len(images))
        train_loss = mean_loss.value()  # waits for the device, so the time below is true
        return {
            "train/loss": train_loss,
            "train/lr": state.optimizer.param_groups[0]["lr"],
            "perf/img_per_s": num_images / (time.perf_counter() - began),
        }


def _backward(
    model: nn.Module, images: Tensor, labels: Tensor, *, config: TrainConfig, scale: float
) -> Tensor:
    """Adds the gradient of this worker's share of a step, part by part.

    The loss is a sum times `scale`, which is workers over images of the global batch: averaged over
    the workers, as DDP does, gradients are those of the mean over the global batch, however it was
    shared out. Returns the sum of the losses.
    """
    parts = list(
        zip(
            images.tensor_split(config.grad_accum_steps),
            labels.tensor_split(config.grad_accum_steps),
            strict=True,
        )
    )
    total = torch.zeros((), device=images.device)
    for number, (x, y) in enumerate(parts, start=1):
        last = number == len(parts)
        no_sync = getattr(model, "no_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if last else no_sync():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp):
                logits = model(x)
            loss = F.cross_entropy(
                logits.float(), y, reduction="sum", label_smoothing=config.smoothing
            )
            (loss * scale).backward()
            total += loss.detach()
    return total


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, steps_per_epoch: int
) -> CosineLRScheduler:
    """Warm-up, then a cosine; the learning rate of a step is a function of the step."""
    warmup = round(min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(config.epochs * steps_per_epoch - warmup, 1),
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=config.lr / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def _mixing(config: TrainConfig, num_classes: int) -> Callable[..., Any] | None:
    """Mixup, CutMix or one of the two a step; pairs are formed within a worker's share."""
    kinds: list[v2.Transform] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return v2.RandomChoice(kinds) if kinds else None


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    device: torch.device | None = None,
    batch_size: int = 64,
    amp: bool = False,
) -> Evaluation:
    """Every image once over all workers, however many there are; the same answer on each."""
    device = device or CPU
    rank, world_size = rank_and_world_size()
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(len(dataset), dtype=torch.uint8, device=device)
    mine = correct[rank::world_size]  # a view: what is written here stands in `correct`
    done = 0
    for images, labels in eval_loader(dataset, batch_size, rank=rank, world_size=world_size):
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(images)
        loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        mine[done : done + len(labels)] = logits.argmax(dim=1) == labels
        done += len(labels)
    total_loss = all_reduce(loss).item() / len(dataset)
    correct = all_reduce(correct).bool()
    return Evaluation(total_loss, 100 * correct.double().mean().item(), correct.cpu())
