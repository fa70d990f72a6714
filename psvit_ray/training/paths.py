"""Sampling of the paths (specs of a supernet) that a step trains."""

from __future__ import annotations

import math
import random
from itertools import product

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loading.seeds import mix_seed
from psvit_ray.training.config import SupernetConfig

PATH_DRAWS = 300  # specs drawn of each family, of which a sandwich has the largest and the smallest
DRAWS_FOR_A_COST = 16  # specs drawn for a cost, of which the nearest is taken


class PathSampler:
    """Draws the paths of a step as a function of seed and step: the same on every worker, and in a
    resumed run.

    Raises ValueError if no spec of the space meets the limits.
    """

    def __init__(self, config: SupernetConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._families: list[SearchSpace] = []
        """Spaces of the specs that share weights, if any of them meets the limits."""
        self._ends: dict[tuple[str, int], tuple[ArchSpec, ArchSpec]] = {}
        for pooling, patch_size in product(config.space.pooling, config.space.patch_size):
            fields = {**dict(config.space), "pooling": (pooling,), "patch_size": (patch_size,)}
            family = SearchSpace.model_validate(fields)
            if family.size(config.limits).count:
                self._families.append(family)
                rng = random.Random(0)
                drawn = {family.sample(rng, config.limits) for _ in range(PATH_DRAWS)}
                ordered = sorted(drawn, key=lambda spec: (count_macs(spec), spec.spec_id))
                self._ends[pooling, patch_size] = ordered[0], ordered[-1]
        if not self._families:
            config.space.sample(random.Random(0), config.limits)  # raises, with the smallest spec
        costs = [count_macs(spec) for ends in self._ends.values() for spec in ends]
        self._macs = min(costs), max(costs)

    @property
    def largest(self) -> ArchSpec:
        """The largest of the specs drawn within the limits. That of the largest choice everywhere
        may be far beyond them."""
        return max(
            (end for _, end in self._ends.values()), key=lambda s: (count_macs(s), s.spec_id)
        )

    @property
    def distils(self) -> bool:
        """Whether the first path of a step is the teacher of the others."""
        return self._config.paths.inplace_distillation

    def at(self, step: int) -> list[ArchSpec]:
        """Paths of a step, counted from 0. A sandwich has the largest spec first and the smallest
        last; both share weights with the first one drawn."""
        rng = random.Random(mix_seed(self._seed, step))
        first = self._draw(rng)
        if self._config.paths.paths == "single":
            return [first]
        others = [self._draw(rng) for _ in range(self._config.paths.drawn_paths - 1)]
        smallest, largest = self._ends[first.pooling, first.patch_size]
        return [largest, first, *others, smallest]

    def _draw(self, rng: random.Random) -> ArchSpec:
        space, limits = self._config.space, self._config.limits
        evenly_over = self._config.paths.draw_evenly_over
        if evenly_over == "families":
            return rng.choice(self._families).sample(rng, limits)
        if evenly_over == "specs":
            return space.sample(rng, limits)
        target = rng.uniform(*map(math.log, self._macs))
        drawn = [space.sample(rng, limits) for _ in range(DRAWS_FOR_A_COST)]
        return min(drawn, key=lambda spec: abs(math.log(count_macs(spec)) - target))
