"""Which specs of a supernet a step trains."""

from __future__ import annotations

import math
import random

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loader import mix_seed
from psvit_ray.training.config import SupernetConfig

DRAWS = 300  # of which the largest and the smallest are a sandwich's
DRAWS_FOR_A_COST = 16


class PathSampler:
    """A function of the seed and the step: every worker draws the same, a resumed run too.

    Raises ValueError if no spec of the space meets the limits.
    """

    def __init__(self, config: SupernetConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        rng = random.Random(0)
        drawn = sorted(
            {config.space.sample(rng, config.limits) for _ in range(DRAWS)},
            key=lambda spec: (count_macs(spec), spec.spec_id),
        )
        self.largest = drawn[-1]
        """Of some that are drawn within the limits: what all the choices together would be may be
        far beyond them."""
        self._macs = count_macs(drawn[0]), count_macs(drawn[-1])
        self._ends: dict[tuple[str, int], tuple[ArchSpec, ArchSpec]] = {}
        for spec in drawn:
            smallest, _ = self._ends.get(_family(spec), (spec, spec))
            self._ends[_family(spec)] = smallest, spec

    @property
    def distils(self) -> bool:
        """Whether the first path of a step teaches the others."""
        return self._config.paths.inplace_distillation

    def at(self, step: int) -> list[ArchSpec]:
        """Of a step, from 0. The largest of a sandwich comes first; it and the smallest have
        weights in common with the first that is drawn."""
        rng = random.Random(mix_seed(self._seed, step))
        first = self._draw(rng)
        if self._config.paths.paths == "single":
            return [first]
        others = [self._draw(rng) for _ in range(self._config.paths.drawn_paths - 1)]
        smallest, largest = self._ends.get(_family(first), (first, first))
        return [largest, first, *others, smallest]

    def _draw(self, rng: random.Random) -> ArchSpec:
        space, limits = self._config.space, self._config.limits
        if self._config.paths.draw_evenly_over == "specs":
            return space.sample(rng, limits)
        least, most = map(math.log, self._macs)
        wanted = rng.uniform(least, most)
        drawn = [space.sample(rng, limits) for _ in range(DRAWS_FOR_A_COST)]
        return min(drawn, key=lambda spec: abs(math.log(count_macs(spec)) - wanted))


def _family(spec: ArchSpec) -> tuple[str, int]:
    """What says which weights a spec has in common with others."""
    return spec.pooling, spec.patch_size
