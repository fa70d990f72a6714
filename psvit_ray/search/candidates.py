"""The configurations that a search may propose: architectures within limits, combined with
overrides of training settings."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product
from typing import NamedTuple, cast

import optuna

from psvit_ray.arch.cost import (
    Limits,
    count_macs,
    embed_cost,
    head_cost,
    stage_cost,
    total,
)
from psvit_ray.arch.space import Parameter, SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.config import Range, SearchConfig, Setting, with_settings
from psvit_ray.training.config import Configuration, TrainConfig

FIRST_POINT_DRAWS = 256
DRAWS_OF_EACH = 20
DEIT_HEAD_DIM = 64


class ConfigurationSpace:
    """All configurations of a search: specs of its space within its limits, combined with
    overrides.

    Raises ValueError if no spec meets the limits, or if the overrides do not go with `train`.
    """

    def __init__(self, config: SearchConfig, train: TrainConfig) -> None:
        config.check(train)
        self._space, self._overrides = config.space, config.overrides
        self._train = train
        self.limits = config.limits
        self._names = list(self._space.encode(self._space.smallest()[0]))

    @cached_property
    def count(self) -> int | None:
        """Number of configurations, or None where it cannot be counted."""
        size = self._space.size(self.limits)
        choices = [
            override for override in self._overrides.values() if not isinstance(override, Range)
        ]
        if not size.exact or len(choices) < len(self._overrides):
            return None
        return size.count * math.prod(len(override) for override in choices)

    def __contains__(self, configuration: Configuration) -> bool:
        train, spec = configuration.train, configuration.spec
        settings = {name: getattr(train, name) for name in self._overrides}
        return (
            all(_allows(self._overrides[name], value) for name, value in settings.items())
            and dict(train) == dict(self._train) | settings
            and self.limits.allows(spec)
            and self._space.contains(spec)
        )

    def params(self, configuration: Configuration) -> dict[str, Parameter]:
        """Flat parameters of a configuration: every configuration has the same names, with 0 where
        a parameter does not apply."""
        spec = configuration.spec
        space = self._space if self._space.contains(spec) else self._space.unpooled()
        return (
            dict.fromkeys(self._names, 0)
            | space.encode(spec)
            | {name: _parameter(getattr(configuration.train, name)) for name in self._overrides}
        )

    def suggest(self, trial: optuna.Trial) -> Configuration:
        """The configuration that optuna's sampler chooses in `trial`; it may be over the limits."""

        def decide(name: str, choices: tuple[Parameter, ...]) -> Parameter:
            return cast(Parameter, trial.suggest_categorical(name, choices))

        settings: dict[str, Setting] = {}
        for name, override in self._overrides.items():
            if isinstance(override, Range):
                number = trial.suggest_float(name, override.low, override.high, log=override.log)
                settings[name] = override.rounded(number)
            else:
                settings[name] = cast(Setting, trial.suggest_categorical(name, override))
        return self._configuration(self._space.walk(decide), settings)

    def draw(self, rng: random.Random) -> Configuration:
        """A random configuration: each spec within the limits is as likely as any other, and so is
        each setting."""
        spec = self._space.sample(rng, self.limits)
        settings = {
            name: override.draw(rng) if isinstance(override, Range) else rng.choice(override)
            for name, override in self._overrides.items()
        }
        return self._configuration(spec, settings)

    def baselines(self, number: int) -> list[Configuration]:
        """DeiTs within the limits, at most `number`, trained with the settings of `train`."""
        specs = baselines(self._space, self.limits, number)
        return [Configuration(spec=spec, train=self._train) for spec in specs]

    def first_points(self, rng: random.Random) -> list[Configuration]:
        """Large PSViTs to begin with, trained with the settings of `train` as far as the overrides
        allow."""
        settings: dict[str, Setting] = {}
        for name, override in self._overrides.items():
            value = getattr(self._train, name)
            if isinstance(override, Range):
                settings[name] = override.rounded(value)
            else:
                settings[name] = value if value in override else override[0]
        specs = first_points(self._space, self.limits, rng)
        return [self._configuration(spec, settings) for spec in specs]

    def _configuration(self, spec: ArchSpec, settings: dict[str, Setting]) -> Configuration:
        return Configuration(spec=spec, train=with_settings(self._train, settings))


def _allows(override: Range | tuple[Setting, ...], value: Setting) -> bool:
    if isinstance(override, Range):
        return override.rounded(float(value)) == value
    return value in override


def _parameter(value: Setting) -> Parameter:
    return int(value) if isinstance(value, bool) else value


def largest_spec(space: SearchSpace) -> ArchSpec:
    """The spec of the space with the most MACs.

    With grid, stages and pooling operator given, it is the spec of the most layers and the largest
    widths that shares no map.
    """

    def decide(frame: dict[str, Parameter]) -> Callable[..., Parameter]:
        def choose(name: str, choices: tuple[Parameter, ...]) -> Parameter:
            if name in frame:
                return frame[name]
            return 0 if ".share" in name else max(choices)

        return choose

    names = ("pooling", "patch_size", "num_stages", "pool_op")
    frames = product(space.pooling, space.patch_size, space.num_stages, space.pool_op)
    specs = [space.walk(decide(dict(zip(names, frame, strict=True)))) for frame in frames]
    return max(specs, key=count_macs)


def baselines(space: SearchSpace, limits: Limits, number: int) -> list[ArchSpec]:
    """DeiTs with the widths of the space and the most MACs that the limits allow.

    Without a limit on MACs, a DeiT has no more than the largest spec of the space. Each next DeiT
    has another patch size while there is one left. The list is empty if every DeiT is over the
    limits.
    """
    if limits.max_macs is None:
        limits = Limits(max_macs=count_macs(largest_spec(space)), max_params=limits.max_params)
    deits = sorted(_deits(space, limits), key=lambda deit: deit.macs, reverse=True)
    chosen: list[_Deit] = []
    while deits and len(chosen) < number:
        patch_sizes = {deit.patch_size for deit in chosen}
        other = [deit for deit in deits if deit.patch_size not in patch_sizes]
        chosen.append((other or deits)[0])
        deits.remove(chosen[-1])
    return [_build_deit(space.unpooled(), deit) for deit in chosen]


class _Deit(NamedTuple):
    macs: int
    patch_size: int
    depth: int
    embed_dim: int
    mlp_ratio: float


def _deits(space: SearchSpace, limits: Limits) -> Iterator[_Deit]:
    """The DeiTs within the limits as tuples, not yet as specs: there may be many."""
    deit = space.unpooled()
    (stage,) = deit.stages
    for base, depth, dim, ratio in product(
        deit.frames(), stage.depth, stage.embed_dim, stage.mlp_ratio
    ):
        layers = stage_cost(base, 0, dim, round(dim * ratio), depth, depth)
        cost = total((embed_cost(base, dim), layers, head_cost(base, dim)))
        if limits.allows_cost(cost):
            yield _Deit(cost.macs, base.patch_size, depth, dim, ratio)


def _build_deit(unpooled: SearchSpace, deit: _Deit) -> ArchSpec:
    (stage,) = unpooled.stages
    _, patch_size, depth, embed_dim, mlp_ratio = deit
    # Heads cost no MACs, so one size will do: DeiT's has 64 channels.
    head_dim = min(stage.head_dim, key=lambda dim: abs(dim - DEIT_HEAD_DIM))
    widths = {"head_dim": head_dim, "depth": depth, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio}
    shared = {f"share{layer}": 0 for layer in range(2, depth + 1)}
    params = {f"stage1.{name}": value for name, value in (widths | shared).items()}
    return unpooled.decode({"patch_size": patch_size, **params})


def first_points(space: SearchSpace, limits: Limits, rng: random.Random) -> list[ArchSpec]:
    """Large specs to begin a search with, of each pooling kind two.

    One shares nothing, the other shares in pairs; each is the spec of the most MACs within the
    limits among 256 random ones.
    """
    drawn = [space.sample(rng, limits) for _ in range(FIRST_POINT_DRAWS)]
    largest: dict[tuple[str, int], ArchSpec] = {}
    for spec, group in product(drawn, (1, 2)):
        other = _with_groups_of(space, spec, group)
        family = (other.pooling, group)
        if limits.allows(other) and (
            family not in largest or count_macs(other) > count_macs(largest[family])
        ):
            largest[family] = other
    return list(dict.fromkeys(largest[family] for family in sorted(largest)))


def spread_over_macs(space: SearchSpace, limits: Limits, number: int, seed: int) -> list[ArchSpec]:
    """Distinct specs within the limits, spread evenly over the ranks of their MACs.

    Raises ValueError if the space has fewer than `number`.
    """
    rng = random.Random(seed)
    drawn = {space.sample(rng, limits) for _ in range(DRAWS_OF_EACH * number)}
    if len(drawn) < number:
        raise ValueError(f"specs must be at most {len(drawn)}, as the space has no more")
    ordered = sorted(drawn, key=lambda spec: (count_macs(spec), spec.spec_id))
    return [ordered[round(i * (len(ordered) - 1) / (number - 1))] for i in range(number)]


def _with_groups_of(space: SearchSpace, spec: ArchSpec, group: int) -> ArchSpec:
    """The spec with one attention map for each `group` layers, as far as the space allows."""
    stages = []
    for choices, stage in zip(space.stages, spec.stages, strict=False):
        size = min(group, choices.largest_group(stage.depth))
        full, rest = divmod(stage.depth, size)
        groups = (size,) * full + (rest,) * (rest > 0)
        stages.append(stage.model_copy(update={"share_groups": groups}))
    return ArchSpec.model_validate({**dict(spec), "stages": tuple(stages)})
