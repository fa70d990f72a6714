"""What a search may try, how much of it, and how it decides."""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections.abc import Iterator
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from psvit_ray.arch.cost import Limits, count_macs, count_params
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import Value
from psvit_ray.training.config import Number, NumberOrZero, TrainConfig

Setting = bool | int | float | str
"""A value of a `TrainConfig` field."""

NOT_SEARCHED = (
    *("data", "holdout", "data_fraction", "split_seed", "seed", "epochs"),
    *("grad_accum_steps", "compile", "grad_checkpointing", "num_loaders", "checkpoint_every"),
)
"""They say on what, how long and how fast is trained: results that differ in them do not compare."""


class Range(Value):
    """Every number from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Equal ratios are equally likely, as suits a learning rate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must be less than high, got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be more than 0 where log is true, got {self.low}")
        return self

    def rounded(self, number: float) -> float:
        """To three significant digits, so that values are short and near ones equal."""
        return min(max(float(f"{number:.3g}"), self.low), self.high)

    def draw(self, rng: random.Random) -> float:
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))


Override = Range | tuple[Setting, ...]
"""What a field of `TrainConfig` may be: a range, or a choice of these."""


class SearchConfig(Value):
    """A search. What is trained by default stands in `TrainConfig`."""

    space: Annotated[SearchSpace, tyro.conf.Suppress]
    """The architectures."""
    overrides: Annotated[dict[str, Override], tyro.conf.Suppress] = {}
    """Fields of `TrainConfig` that are searched beside the architecture."""

    num_trials: Number = 16
    """Configurations in all, DeiT among them."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """End the search after this time; `--resume` goes on with it."""
    max_gmacs: Annotated[float, Field(gt=0)] | None = None
    """Most billion multiply-accumulates of a forward pass of one image."""
    max_params_m: Annotated[float, Field(gt=0)] | None = None
    """Most million parameters."""
    baselines: NumberOrZero = 2
    """How many of the configurations are DeiTs of the same budget."""
    grace_epochs: Number = 4
    """Epochs that every configuration gets before it may be stopped early."""
    reduction_factor: NumberOrZero = 3
    """One in so many goes on at each look (ASHA); 0 stops nothing early."""
    search_seed: NumberOrZero = 0
    """Of the proposals."""
