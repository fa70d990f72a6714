"""The optimizer steps of a run.

Shapes: B images, C channels, S the side of an image, K classes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loading.loader import (
    Batch,
    GlobalBatchSampler,
    ImageDataset,
    join_parts,
    num_parts,
    train_loader,
)
from psvit_ray.data.loading.seeds import mix_seed
from psvit_ray.data.loading.transforms import finish_augmentation
from psvit_ray.data.sources.image_source import Source
from psvit_ray.model.psvit import PSViT
from psvit_ray.training.agreement import Request, StepAgreement, StepDecision
from psvit_ray.training.config import TrainConfig
from psvit_ray.training.distributed import average_gradients, rank_and_world_size
from psvit_ray.training.execution import Execution
from psvit_ray.training.loss import (
    ClassWeights,
    Teacher,
    base_loss,
    distillation_loss,
    make_mixing,
    weighted_sum,
)
from psvit_ray.training.paths import PathSampler
from psvit_ray.training.state import TrainState

RUNNING_STEPS = 100  # steps of the running mean of the loss, with which a spike is compared


class Diverged(ArithmeticError):
    """The loss is not finite, or far above its running mean: an error of the configuration, which
    all workers raise."""


class TooManyBadImages(ValueError):
    """More images than allowed cannot be read."""


class Steps:
    """Takes the optimizer steps of a run, epoch by epoch. Close it to end the loader's
    processes."""

    def __init__(self, state: TrainState, source: Source, execution: Execution) -> None:
        config = state.run.configuration.train
        rank, world_size = rank_and_world_size()
        self._state, self._config, self._execution = state, config, execution
        self._rank, self._world_size = rank, world_size
        self._device = execution.device
        self._amp = config.amp and execution.accelerated
        self._teacher = Teacher.of(state.run, execution.device, amp=self._amp)
        supernet, model = state.run.configuration.supernet, state.model
        self._paths = PathSampler(supernet, config.seed) if supernet else None
        self._model = self._prepared(model) if isinstance(model, PSViT) else model
        weights = ClassWeights.of(config, source.train.labels, source.num_classes)
        self._weights = weights.to(execution.device) if weights else None
        self._loss = base_loss(config, self._weights)
        self._mixing = make_mixing(config, source.num_classes)
        self._agreement = StepAgreement(execution.device, patience_s=execution.patience_s)
        self._table = source.train
        self._parts = num_parts(source.train, config.num_loaders)
        self._sampler = GlobalBatchSampler(
            len(source.train),
            config.batch_size,
            seed=config.seed,
            rank=rank,
            world_size=world_size,
            num_parts=self._parts,
            blocks=source.train.blocks,
            window=config.shuffle_window,
            repeats=config.aug_repeats,
            balanced=source.train.labels if config.sampler == "balanced" else None,
        )
        self._loader = train_loader(
            ImageDataset(
                source.train,
                state.run.preprocessing,
                augmentation=config,
                decoder=config.decoder,
            ),
            self._sampler,
            processes=config.num_loaders,
            pin_memory=execution.device.type == "cuda",
        )
        self._schedule = make_schedule(
            state.optimizer, config, steps_per_epoch=self._sampler.steps_per_epoch
        )
        self._saved_at = time.monotonic()
        self.bad: dict[int, str] = {}
        """Positions of training images that this worker could not read, and the reasons."""

    def rest_of_epoch(self, epoch: int) -> Iterator[Request]:
        """Takes the remaining steps of epoch `epoch`, counted from 1. Yields `checkpoint` or `stop`
        between two steps, where all workers agree on it.

        Raises Diverged, TooManyBadImages or WorkerHung.
        """
        state = self._state
        first = state.step - (epoch - 1) * self._sampler.steps_per_epoch
        self._sampler.set_position(epoch, first)
        self._began, self._images_began = time.perf_counter(), state.progress.images
        self._waited = 0.0
        state.model.train()
        batches = join_parts(self._loader, self._parts, self._device)
        for number in range(first, self._sampler.steps_per_epoch):
            waits_from = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - waits_from
            if (request := self._agree(self._due())) != "none":
                self._agree("none", everything=True)
                self._saved_at = time.monotonic()
                yield request
            with self._agreement.naming(state.step + 1):
                self._take(batch, self._sampler.size_of(number))
        self._agree("none", everything=True)

    def metrics(self) -> dict[str, float]:
        """Training metrics of the epoch that has ended; the sums of the next start at zero."""
        progress = self._state.progress
        seconds = time.perf_counter() - self._began
        metrics = {
            "train/loss": progress.loss_sum / max(progress.images, 1),
            "train/lr": max(group["lr"] for group in self._state.optimizer.param_groups),
            "perf/img_per_s": (progress.images - self._images_began) / seconds,
            "perf/data_wait": self._waited / seconds,
            "perf/workers": float(self._world_size),
        }
        progress.next_epoch()
        return metrics

    def close(self) -> None:
        """Ends the loader's processes."""
        if (iterator := getattr(self._loader, "_iterator", None)) is not None:
            iterator._shutdown_workers()  # torch does it only when it is collected

    def _prepared(self, model: PSViT) -> nn.Module:
        if self._config.compile and self._execution.accelerated:
            model.compile_blocks()
        prepared = self._execution.prepare_model(model)
        if self._config.grad_compression == "bf16" and isinstance(
            prepared, DistributedDataParallel
        ):
            prepared.register_comm_hook(None, bf16_compress_hook)
        return prepared

    def _due(self) -> Request:
        config, step = self._config, self._state.step
        if (asked := self._execution.request()) != "none":
            return asked
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = config.checkpoint_minutes and minutes >= config.checkpoint_minutes
        by_step = config.checkpoint_steps and step and step % config.checkpoint_steps == 0
        # Clocks of hosts differ, so only rank 0 looks at its own.
        return "checkpoint" if self._rank == 0 and (by_time or by_step) else "none"

    def _agree(self, request: Request, *, everything: bool = False) -> Request:
        decision = self._agreement.ask(self._state.step + 1, request, everything=everything)
        self._check_steps(decision)
        return decision.request

    def _check_steps(self, decision: StepDecision) -> None:
        """Adds completed steps to the epoch's sums. Raises Diverged or TooManyBadImages."""
        progress, config = self._state.progress, self._config
        for step, loss_sum, images, bad in decision.steps:
            progress.loss_sum += loss_sum
            progress.images += images
            progress.bad += bad
            max_bad = config.max_bad_fraction * self._sampler.draws_per_epoch
            if progress.bad > max_bad:
                raise TooManyBadImages(
                    f"more than {config.max_bad_fraction:.3g} of the training images cannot be "
                    f"read: {progress.bad} of {progress.images + progress.bad} up to step {step}"
                    f"{self._example()}"
                )
            if not images:
                continue
            loss, mean = loss_sum / images, progress.running_loss
            if not math.isfinite(loss):
                raise Diverged(f"train/loss is {loss} at step {step}")
            if config.max_loss_spike and mean and loss > config.max_loss_spike * mean:
                raise Diverged(
                    f"train/loss is {loss:.4g} at step {step}, more than {config.max_loss_spike:g} "
                    f"times the {mean:.4g} before"
                )
            progress.running_loss = loss if mean is None else mean + (loss - mean) / RUNNING_STEPS

    def _example(self) -> str:
        for index, reason in self.bad.items():
            source, path = self._table.place(index)
            return f"; {path or source}: {reason}"
        return ""

    def _take(self, batch: Batch, global_batch: int) -> None:
        """Takes one optimizer step with this worker's share of a batch of `global_batch` images."""
        state, config = self._state, self._config
        self.bad.update(batch.bad)
        images = state.run.preprocessing.normalize(batch.images)
        targets, seeds = (
            torch.from_numpy(array).to(self._device, non_blocking=True)
            for array in (batch.labels, batch.seeds)
        )
        images = finish_augmentation(config, images, seeds)
        seed = mix_seed(config.seed, state.step, self._rank)
        if self._mixing:
            images, targets = self._mixing(images, targets, seed)
        torch.manual_seed(seed)
        self._schedule.step_update(state.step)
        loss_sum = self._backward(images, targets, scale=self._world_size / global_batch)
        if self._paths:
            compressed = torch.bfloat16 if config.grad_compression == "bf16" else None
            average_gradients(state.model.parameters(), compressed)
        if config.clip_grad:
            nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        if state.ema:
            state.ema.update(state.model, step=state.step)
        self._agreement.note(state.step, loss_sum, len(batch.labels), len(batch.bad))

    def _backward(self, images: Tensor, targets: Tensor, *, scale: float) -> Tensor:
        """Computes the gradient of this worker's share of a step, in micro-batches, and returns the
        sum of the losses.

        The sum of the losses is multiplied by `scale`, the number of workers over the images of the
        global batch. So gradients averaged over the workers, as DDP does, are those of the mean
        loss of the global batch, however it is shared out.
        """
        if not len(images):
            # The other workers wait for this one's gradient too. A blank image of weight zero gives
            # zero gradients in the usual way; an empty batch is refused by attention on a GPU
            # (pytorch#133780) and by some teachers. Where no worker has an image, as none of the
            # batch can be read, that is the step: momentum and weight decay go on.
            stand_in, target = (x.new_zeros(1, *x.shape[1:]) for x in (images, targets))
            return 0 * self._backward(stand_in, target, scale=0.0)
        size = self._config.micro_batch_size or len(images)
        parts = list(zip(images.split(size), targets.split(size), strict=True))
        total = torch.zeros((), device=images.device)
        for number, (x, y) in enumerate(parts, start=1):
            no_sync = getattr(self._model, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if number == len(parts) else no_sync():
                for loss in self._losses(x, y):
                    (loss * scale).backward()
                    total += loss.detach()
        return total

    def _losses(self, images: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Losses whose sum is to be minimised, each a sum over the images: that of the network or,
        for a supernet, that of each path divided by their number."""
        if self._paths is None:
            yield self._supervised(images, targets, self._logits(images))
            return
        specs = self._paths.at(self._state.step)
        first, *others = specs
        logits = self._logits(images, first)
        yield self._supervised(images, targets, logits) / len(specs)
        teacher_logits, weights = logits.detach(), self._image_weights(targets)
        for spec in others:
            logits = self._logits(images, spec)
            if self._paths.distils:
                loss = weighted_sum(distillation_loss("soft", logits, teacher_logits), weights)
            else:
                loss = self._supervised(images, targets, logits)
            yield loss / len(specs)

    def _logits(self, images: Tensor, *spec: ArchSpec) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._amp):
            logits: Tensor = self._model(images, *spec)
        return logits.float()

    def _supervised(self, images: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        loss = self._loss(logits, targets)
        if self._teacher is None:
            return loss
        return self._teacher.mixed(loss, images, logits, self._image_weights(targets))

    def _image_weights(self, targets: Tensor) -> Tensor | None:
        return self._weights.of_images(targets) if self._weights else None


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, steps_per_epoch: int
) -> CosineLRScheduler:
    """timm's linear warm-up and cosine decay, in which the learning rate is a function of the
    step."""
    warmup = round(min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(config.epochs * steps_per_epoch - warmup, 1),
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=config.peak_lr / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
