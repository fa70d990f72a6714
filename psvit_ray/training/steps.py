"""The optimizer steps of a run.

Shapes: B images, C channels, S the side of an image, K classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from psvit_ray.data.loader import mix_seed, random_shift
from psvit_ray.data.sources import Batch, Source
from psvit_ray.training.config import TrainConfig
from psvit_ray.training.metrics import Mean, rank_and_world_size
from psvit_ray.training.state import State


class Steps:
    """The optimizer steps of an epoch."""

    def __init__(
        self,
        state: State,
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


def schedule_of(
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
