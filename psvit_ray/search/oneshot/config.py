"""What a one-shot search is, as configuration; `plan` says what follows from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from psvit_ray.arch.spec import Value
from psvit_ray.training.config import (
    BatchSize,
    Epochs,
    NonNegativeCount,
    NumWorkers,
    PathConfig,
    PositiveNumber,
    Repeats,
    Runs,
)

Sampler = Literal["nsga2", "random"]


class OneshotConfig(Value):
    """A one-shot search, with `--strategy oneshot`."""

    supernet_epochs: Epochs = 100
    """Epochs of the supernet; what else its training is stands with the recipe's."""
    supernet_workers: NumWorkers = 1
    """Workers that train it."""
    paths: PathConfig = PathConfig()
    candidates: Runs = 1000
    """Specs that are scored with its weights."""
    population: Annotated[Runs, Field(ge=2)] = 50
    """Specs of a generation."""
    sampler: Sampler = "nsga2"
    """How candidates are chosen: evolution, or chance alone as its control."""
    cost: Literal["macs", "params", "latency"] = "macs"
    """What evolution keeps low beside top-1 up."""
    max_latency_ms: PositiveNumber | None = None
    """Most milliseconds of a forward pass of `latency_batch_size` images, as a table predicts."""
    latency_batch_size: BatchSize = 1
    """Images whose time is taken together."""
    latency_table: str = ""
    """Table that psvit latency wrote for the space; by default one is measured first, on a
    worker's device."""
    finalists: Repeats = 3
    """Best candidates that are then trained from scratch, with the DeiT of equal cost."""
    finalist_seeds: Repeats = 3
    """Trainings of each."""
    finetune_epochs: NonNegativeCount | None = None
    """Epochs of the finalists' trainings that start from the supernet's weights; by default as many
    as from scratch, 0 leaves them out."""
    finetune_lr: PositiveNumber | None = None
    """Their peak learning rate; by default a quarter of that from scratch."""

    @property
    def asks_for_latency(self) -> bool:
        return self.cost == "latency" or self.max_latency_ms is not None
