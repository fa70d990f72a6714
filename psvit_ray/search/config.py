"""What a search may try, how much of it, and how it decides."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import tyro
from pydantic import (
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from psvit_ray.arch.cost import Limits, count_macs, count_params
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.text.messages import nearest, short_repr
from psvit_ray.training.config import (
    Epochs,
    NonNegativeCount,
    PositiveNumber,
    Runs,
    Seed,
    TrainConfig,
)

Setting = bool | int | float | str
"""A value of a `TrainConfig` field."""

NOT_SEARCHED = (
    *("data", "holdout", "test_fraction", "val_as_test", "data_fraction", "img_size"),
    *("split_seed", "seed", "metric"),
    *("epochs", "init", "init_checkpoint", "teacher", "teacher_checkpoint", "mean", "std"),
    *("micro_batch_size", "compile", "grad_checkpointing", "grad_compression", "num_loaders"),
    *("decoder", "shuffle_window", "max_bad_fraction", "max_loss_spike", "keep_checkpoints"),
    *("checkpoint_every", "checkpoint_steps", "checkpoint_minutes"),
)
"""Fields of `TrainConfig` that cannot be searched. They say which data is trained on, how long and
how fast: results that differ in them do not compare."""


MAX_CORNERS = 10_000
"""Number of combinations of extreme settings that a search checks at its start: about a second's
work."""


class Range(Value):
    """A range of numbers to search, from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Draw on a logarithmic scale, as suits a learning rate: equal ratios are equally likely."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must be less than high, got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be more than 0 where log is true, got {self.low}")
        return self

    def rounded(self, number: float) -> float:
        """The number rounded to three significant digits, so that values are short and near values
        are equal."""
        return min(max(float(f"{number:.3g}"), self.low), self.high)

    def draw(self, rng: random.Random) -> float:
        """A random number of the range."""
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))


def _kind(override: object) -> str:
    return "range" if isinstance(override, dict | Range) else "choices"


Override = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Setting, ...], Tag("choices")],
    Discriminator(_kind),  # so that an error speaks of the one that was meant
]
"""Values that a searched field of `TrainConfig` may have: a range or a list of choices."""


class SearchConfig(Value):
    """What a search may try, how much of it and for how long. `TrainConfig` has the settings that
    are not searched."""

    space: Annotated[SearchSpace, tyro.conf.Suppress]
    """Architectures to choose from."""
    overrides: Annotated[dict[str, Override], tyro.conf.Suppress] = Field(default_factory=dict)
    """Fields of `TrainConfig` that are searched beside the architecture, each with its range or
    choices."""

    num_trials: Runs = 16
    """Number of configurations to try, DeiT baselines among them."""
    max_hours: PositiveNumber | None = None
    """Hours after which this start of the search ends; `--resume` goes on with it."""
    max_gpu_hours: PositiveNumber | None = None
    """GPU-hours of training after which the search ends, counted over all resumes."""
    max_gmacs: PositiveNumber | None = None
    """Largest cost of a configuration, in billion multiply-accumulates of a forward pass of one
    image."""
    max_params_m: PositiveNumber | None = None
    """Largest number of parameters of a configuration, in millions."""
    baselines: NonNegativeCount = 2
    """Number of DeiT baselines among the configurations, with costs within the same limits."""
    grace_epochs: Epochs = 4
    """Epochs that every configuration is trained before it may be stopped early."""
    reduction_factor: NonNegativeCount = 3
    """Reduction factor of ASHA: at each rung the best 1/factor of the trials go on; 0 stops no
    trial early."""
    search_seed: Seed = 0
    """Seed of the proposals."""

    @field_validator("overrides")
    @classmethod
    def _check_overrides(cls, overrides: dict[str, Override]) -> dict[str, Override]:
        return {name: _checked(name, override) for name, override in overrides.items()}

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.reduction_factor == 1:
            raise ValueError("reduction_factor must be 0 or at least 2, got 1")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        """Refuses overrides whose combinations `check` could not enumerate in bounded time."""
        corners = math.prod(len(ends) for ends in self._ends())
        if corners > MAX_CORNERS:
            raise ValueError(
                "overrides: the choices, and the ends of ranges, must make at most "
                f"{MAX_CORNERS:,} combinations, got {corners:,}; give fewer fields or choices"
            )
        return self

    @property
    def limits(self) -> Limits:
        """Limits on multiply-accumulates and parameters."""

        def whole(limit: float | None, unit: float) -> int | None:
            return None if limit is None else max(1, round(limit * unit))

        return Limits(max_macs=whole(self.max_gmacs, 1e9), max_params=whole(self.max_params_m, 1e6))

    def check(self, train: TrainConfig) -> None:
        """Raises ValueError if no spec meets the limits, naming the smallest that exist, or if
        overrides and the rest of `train` cannot go together."""
        try:
            self.space.sample(random.Random(0), self.limits)
        except ValueError:
            macs, params = self.space.smallest()
            if self.limits.allows(macs) or self.limits.allows(params):
                raise  # there are some, but too few among too many to find
            limits = {"max_gmacs": self.max_gmacs, "max_params_m": self.max_params_m}
            given = ", ".join(f"{name}={limit:g}" for name, limit in limits.items() if limit)
            raise ValueError(
                f"no configuration of the space meets {given}; the smallest there are: "
                f"{_cost(macs)}; {_cost(params)}"
            ) from None
        if train.img_size:
            try:
                SearchSpace.model_validate({**dict(self.space), "img_size": train.img_size})
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"img_size={train.img_size} of training: {message}") from None
        for settings in self._corners():
            try:
                with_settings(train, settings)
            except ValidationError as error:
                raise ValueError(f"overrides: {error.errors()[0]['ctx']['error']}") from None

    def _corners(self) -> Iterator[dict[str, Setting]]:
        """Combinations of the extreme settings: a rule between two fields that holds there holds in
        between too."""
        for values in itertools.product(*self._ends()):
            yield dict(zip(self.overrides, values, strict=True))

    def _ends(self) -> list[tuple[Setting, ...]]:
        """Extreme settings of each override: the ends of a range, all choices of a list."""
        return [
            (override.low, override.high) if isinstance(override, Range) else override
            for override in self.overrides.values()
        ]


def with_settings(train: TrainConfig, settings: Mapping[str, Setting]) -> TrainConfig:
    """`train` with the settings replaced. Raises ValueError if they do not go with the rest."""
    return TrainConfig.model_validate({**dict(train), **settings})


def _checked(name: str, override: Override) -> Override:
    """The override with its values as their field has them: 0 is 0.0 where the field is a float.

    Raises ValueError for a field that is unknown or cannot be searched, and for values it does not
    take.
    """
    if name not in TrainConfig.model_fields:
        near = nearest(name, TrainConfig.model_fields)
        raise ValueError(f"overrides: unknown field {short_repr(name)}; nearest is {near!r}")
    if name in NOT_SEARCHED:
        raise ValueError(
            f"overrides: {name!r} cannot be searched, as it says on what, how long or how fast is "
            "trained; results that differ in it do not compare"
        )
    field = TrainConfig.model_fields[name]
    if isinstance(override, Range):
        if field.annotation is not float:
            raise ValueError(f"overrides: {name!r} must be a list of choices, got a range")
        values: tuple[Setting, ...] = (override.low, override.high)
    else:
        values = override
    rule: Any = Annotated[field.annotation, field]
    checker: TypeAdapter[Setting] = TypeAdapter(rule)
    valid: list[Setting] = []
    for value in values:
        try:
            valid.append(checker.validate_python(value))
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise ValueError(f"overrides: {name!r} {message}, got {short_repr(value)}") from None
    if not isinstance(override, Range):
        if not valid or len(set(valid)) < len(valid):
            raise ValueError(
                f"overrides: {name!r} must be distinct choices, got {short_repr(list(values))}"
            )
        return tuple(valid)
    return override


def _cost(spec: ArchSpec) -> str:
    gmacs, params_m = count_macs(spec) / 1e9, count_params(spec) / 1e6
    return f"{gmacs:.4g} GMACs and {params_m:.4g} M parameters ({spec.pattern})"
