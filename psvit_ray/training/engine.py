"""One run as a generator of reports. Plain PyTorch: where a run happens, and what becomes of its
reports, is the caller's affair."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from psvit_ray.data import sources
from psvit_ray.data.loader import GlobalBatchSampler, train_loader
from psvit_ray.data.sources import Batch, Source
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration
from psvit_ray.training.evaluation import Evaluation, evaluate
from psvit_ray.training.metrics import rank_and_world_size
from psvit_ray.training.state import State
from psvit_ray.training.steps import Steps, schedule_of


class Diverged(ArithmeticError):
    """The loss is not a number any more: the configuration's own fault, the same on all workers."""


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

    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a value, never changed
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
    state = State.of(configuration, device, start)
    sampler = GlobalBatchSampler(
        len(source.train), config.batch_size, seed=config.seed, rank=rank, world_size=world_size
    )
    loader = train_loader(
        source.train, sampler, num_loaders=config.num_loaders, pin_memory=device.type == "cuda"
    )
    steps = Steps(
        state,
        source,
        model=place.prepare_model(state.model),
        loader=place.prepare_loader(loader),
        schedule=schedule_of(state.optimizer, config, steps_per_epoch=len(sampler)),
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
