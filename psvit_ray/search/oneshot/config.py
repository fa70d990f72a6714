"""The settings of a one-shot search: a supernet with one set of weights is trained for the whole
space, specs are scored with it, and the best are trained on their own."""

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

CandidateSampler = Literal["nsga2", "random"]


class OneshotConfig(Value):
    """Settings of a one-shot search, which `--strategy oneshot` starts."""

    supernet_epochs: Epochs = 100
    """Epochs of the supernet's training; its other settings are those of the recipe."""
    supernet_workers: NumWorkers = 1
    """Number of workers that train the supernet."""
    paths: PathConfig = PathConfig()
    candidates: Runs = 1000
    """Number of specs that are scored with the supernet's weights."""
    population: Annotated[Runs, Field(ge=2)] = 50
    """Number of specs in a generation."""
    candidate_sampler: CandidateSampler = "nsga2"
    """How candidates are chosen: by evolution (NSGA-II), or at random as its control."""
    cost: Literal["macs", "params", "latency"] = "macs"
    """Cost that evolution keeps low while the ranking metric gets better."""
    max_latency_ms: PositiveNumber | None = None
    """Largest latency of a candidate: milliseconds of a forward pass of `latency_batch_size`
    images, as a table predicts it."""
    latency_batch_size: BatchSize = 1
    """Images of the forward pass whose latency is predicted."""
    latency_table: str = ""
    """Latency table of the space, written by `psvit latency`; by default one is measured first, on
    a worker's device."""
    finalists: Repeats = 3
    """Number of best candidates that are then trained from scratch, beside the DeiT of equal
    cost."""
    finalist_seeds: Repeats = 3
    """Number of seeds that each finalist is trained with."""
    finetune_epochs: NonNegativeCount | None = None
    """Epochs of the finalists' fine-tuning from the supernet's weights; by default as many as from
    scratch, 0 leaves it out."""
    finetune_lr: PositiveNumber | None = None
    """Peak learning rate of the finalists' fine-tuning; by default a quarter of that from
    scratch."""

    @property
    def asks_for_latency(self) -> bool:
        """Whether the search needs the latency of specs."""
        return self.cost == "latency" or self.max_latency_ms is not None
