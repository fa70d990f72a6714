"""Counts specs that cost no more than given limits, and draws among them, without building them.

Specs are counted in classes of equal cost: what a stage costs depends on its width, depth and
number of share groups, not on its heads nor on how its layers fall into the groups.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from psvit_ray.arch.cost import Cost, embed_cost, head_cost, pool_cost, stage_cost, total
from psvit_ray.arch.spec import ArchSpec


class StageClass(NamedTuple):
    """Stages of equal cost; `ways` is their number."""

    embed_dim: int
    hidden_dim: int
    depth: int
    num_groups: int
    ways: int


def compositions(depth: int, num_groups: int, largest: int) -> int:
    """Number of compositions of `depth` layers into `num_groups` groups of 1 to `largest` layers.

    Computed by inclusion-exclusion over the groups that are too large.
    """
    return sum(
        (-1) ** large
        * math.comb(num_groups, large)
        * math.comb(depth - large * largest - 1, num_groups - 1)
        for large in range((depth - num_groups) // largest + 1)
    )


def draw_composition(
    rng: random.Random, depth: int, num_groups: int, largest: int
) -> tuple[int, ...]:
    """A random composition (see `compositions`), each as likely as any other."""
    groups = []
    for after in range(num_groups - 1, 0, -1):
        sizes = range(1, min(largest, depth - after) + 1)
        ways = [compositions(depth - size, after, largest) for size in sizes]
        groups.append(sizes[draw_index(rng, ways)])
        depth -= groups[-1]
    return (*groups, depth)


def draw_index(rng: random.Random, weights: Sequence[int]) -> int:
    """A random index, as likely as its weight says: exact also where a float cannot hold the sum
    of the weights."""
    ends = list(accumulate(weights))
    return bisect_right(ends, rng.randrange(ends[-1]))


class Frame:
    """The specs that differ from `base` only in their stages; `stages` are the classes that each
    stage may have."""

    def __init__(self, base: ArchSpec, stages: Sequence[Sequence[StageClass]]) -> None:
        self.base = base
        self.stages = stages
        self.size = math.prod(sum(option.ways for option in stage) for stage in stages)
        self._ends = [list(accumulate(option.ways for option in stage)) for stage in stages]
        self._entries: dict[tuple[int, int, int], Cost] = {}
        self._layers: dict[tuple[int, StageClass], Cost] = {}

    def draw(self, rng: random.Random) -> list[StageClass]:
        """A random class for each stage, as likely as it is large."""
        return [
            stage[bisect_right(ends, rng.randrange(ends[-1]))]
            for stage, ends in zip(self.stages, self._ends, strict=True)
        ]

    def cost(self, classes: Sequence[StageClass]) -> Cost:
        """Cost of the specs whose stages are of these classes."""
        before = [0, *(option.embed_dim for option in classes)]
        entries = (self.entry(i, before[i], option.embed_dim) for i, option in enumerate(classes))
        return total((*entries, *(self.layers(i, option) for i, option in enumerate(classes))))

    def entry(self, stage: int, dim_before: int, dim: int) -> Cost:
        """Cost of the embedding or pooling before stage `stage` (from 0), and of the head after the
        last stage."""
        key = (stage, dim_before, dim)
        if key not in self._entries:
            if stage == 0:
                way_in = embed_cost(self.base, dim)
            else:
                way_in = pool_cost(self.base, stage, dim_before, dim)
            last = stage == len(self.stages) - 1
            self._entries[key] = total((way_in, head_cost(self.base, dim))) if last else way_in
        return self._entries[key]

    def layers(self, stage: int, option: StageClass) -> Cost:
        """Cost of the layers of stage `stage` (from 0)."""
        if (stage, option) not in self._layers:
            dim, hidden_dim, depth, num_groups, _ = option
            self._layers[stage, option] = stage_cost(
                self.base, stage, dim, hidden_dim, depth, num_groups
            )
        return self._layers[stage, option]


class TooManyError(Exception):
    """Counting would look at more options than allowed."""


Option = tuple[StageClass, int, int]
"""A class, and the MACs and parameters that it adds to the stages before it."""


class Ladder:
    """Options sorted by one of their costs, to count those within a limit. `unit` is the position
    of that cost in an option."""

    def __init__(self, options: Sequence[Option], unit: int) -> None:
        ordered = sorted(options, key=itemgetter(unit))
        self._costs = [option[unit] for option in ordered]
        self._ways = [0, *accumulate(option[0].ways for option in ordered)]

    def count(self, limit: float) -> int:
        """Number of stages that cost at most `limit`."""
        return self._ways[bisect_right(self._costs, limit)]


class Branch(NamedTuple):
    """Continuations of a spec after a stage: the options for the next stage, the number of ways to
    complete the spec, and their least and greatest cost."""

    options: list[Option]
    by_macs: Ladder
    by_params: Ladder
    size: int
    minimum: Cost
    maximum: Cost


class Tally:
    """Counts the specs of a frame that cost at most `macs` and `params`.

    It recurses over the stages, and stops where all or none of the continuations fit.
    """

    def __init__(self, frame: Frame, macs: float, params: float) -> None:
        self.frame = frame
        self.macs, self.params = macs, params
        self._last = len(frame.stages) - 1
        self._branches: dict[tuple[int, int], Branch] = {}
        self._counts: dict[tuple[int, int, float, float], int] = {}
        self._budget = 0

    def count(self, budget: int) -> tuple[int, int]:
        """Number of specs, and what is left of `budget`, the options that may be looked at.

        Raises TooManyError if the budget does not suffice.
        """
        self._budget = budget
        return self._count(0, 0, self.macs, self.params), self._budget

    def draw(self, rng: random.Random) -> list[StageClass]:
        """A random class for each stage, as likely as the number of its specs that fit."""
        dim, macs, params = 0, self.macs, self.params
        drawn: list[StageClass] = []
        for stage in range(self._last + 1):
            options = self._branch(stage, dim).options
            ways = self._ways(stage, options, macs, params)
            option, m, p = options[draw_index(rng, ways)]
            drawn.append(option)
            dim, macs, params = option.embed_dim, macs - m, params - p
        return drawn

    def _count(self, stage: int, dim: int, macs: float, params: float) -> int:
        """Number of ways to choose the stages from `stage` on, after a stage of width `dim`, at no
        more than this cost."""
        options, by_macs, by_params, size, minimum, maximum = self._branch(stage, dim)
        if minimum.macs > macs or minimum.params > params:
            return 0
        if maximum.macs <= macs and maximum.params <= params:
            return size
        if stage == self._last and maximum.params <= params:
            return by_macs.count(macs)
        if stage == self._last and maximum.macs <= macs:
            return by_params.count(params)
        key = (stage, dim, macs, params)
        if key not in self._counts:
            self._spend(len(options))
            self._counts[key] = sum(self._ways(stage, options, macs, params))
        return self._counts[key]

    def _spend(self, options: int) -> None:
        self._budget -= options
        if self._budget < 0:
            raise TooManyError

    def _ways(self, stage: int, options: Sequence[Option], macs: float, params: float) -> list[int]:
        """Number of specs that begin with each option."""
        if stage == self._last:
            return [o.ways if m <= macs and p <= params else 0 for o, m, p in options]
        return [
            o.ways * self._count(stage + 1, o.embed_dim, macs - m, params - p)
            for o, m, p in options
        ]

    def _branch(self, stage: int, dim: int) -> Branch:
        if (stage, dim) not in self._branches:
            self._spend(len(self.frame.stages[stage]))
            options = []
            for option in self.frame.stages[stage]:
                entry = self.frame.entry(stage, dim, option.embed_dim)
                layers = self.frame.layers(stage, option)
                options.append((option, entry.macs + layers.macs, entry.params + layers.params))
            self._branches[stage, dim] = self._sum_up(stage, options)
        return self._branches[stage, dim]

    def _sum_up(self, stage: int, options: list[Option]) -> Branch:
        size, low, high = 0, [], []
        for option, m, p in options:
            ways, minimum, maximum = 1, Cost(0, 0), Cost(0, 0)
            if stage < self._last:
                *_, ways, minimum, maximum = self._branch(stage + 1, option.embed_dim)
            size += option.ways * ways
            low.append((m + minimum.macs, p + minimum.params))
            high.append((m + maximum.macs, p + maximum.params))
        return Branch(
            options,
            Ladder(options, unit=1),
            Ladder(options, unit=2),
            size,
            Cost(*map(min, zip(*low, strict=True))),
            Cost(*map(max, zip(*high, strict=True))),
        )
