"""Counts the specs of a search space that meet limits, and draws among them uniformly."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from psvit_ray.arch.cost import Limits
from psvit_ray.arch.counting import Frame, StageClass, Tally, TooManyError, draw_index
from psvit_ray.arch.spec import ArchSpec, Value


class Size(Value):
    """Number of specs. Where counting takes too long (`exact` is False), `count` is an estimate
    and `low` to `high` is its 95 % interval."""

    count: int
    low: int
    high: int
    exact: bool


def wilson_interval(hits: int, draws: int) -> tuple[float, float]:
    """95 % interval of a proportion of which `hits` of `draws` were seen (Wilson 1927)."""
    z = 1.959964
    share, spread = hits / draws, z * z / draws
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


Draw = tuple[ArchSpec, list[StageClass]]
"""A spec up to what its classes leave open: the base of its frame, and a class for each stage."""


class Census:
    """Counts and draws over all frames of a space."""

    MAX_WORK = 2_000_000  # options that an exact count may look at: about two seconds
    DRAWS = 50_000  # draws for an estimate: half a second, within 0.5 % of the space
    REJECTIONS = 20  # draws from the whole space before specs within limits are counted
    MAX_DRAWS = 500_000  # draws where counting takes too long: some ten seconds

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.sizes = [frame.size for frame in frames]
        self._any: dict[Limits, bool] = {}
        self._limits: Limits | None = None
        self._latest: list[tuple[Tally, int]] | None = None

    def size(self, limits: Limits) -> Size:
        """Number of specs within limits."""
        if limits == Limits():
            count = sum(self.sizes)
        elif (tallies := self._tallies(limits)) is not None:
            count = sum(count for _, count in tallies)
        else:
            return self.estimate(limits)
        return Size(count=count, low=count, high=count, exact=True)

    def estimate(self, limits: Limits) -> Size:
        """Number of specs within limits, estimated from draws with a fixed seed."""
        rng, whole = random.Random(0), sum(self.sizes)
        hits = sum(self._draw(rng, limits) is not None for _ in range(self.DRAWS))
        low, high = wilson_interval(hits, self.DRAWS)
        return Size(
            count=round(Fraction(hits, self.DRAWS) * whole),
            low=math.floor(Fraction(low) * whole),
            high=math.ceil(Fraction(high) * whole),
            exact=False,
        )

    def draw(self, rng: random.Random, limits: Limits) -> Draw | None:
        """A spec within limits, each as likely as any other; None if there is none.

        Rejection sampling is uniform over what fits, and so is a draw by counts; hence also the
        second tried where the first fails.
        """
        if not self._any_within(limits):
            return None
        for _ in range(self.REJECTIONS):
            if drawn := self._draw(rng, limits):
                return drawn
        tallies = self._tallies(limits)
        if tallies is None:
            return self._draw_rare(rng, limits)
        counts = [count for _, count in tallies]
        if not any(counts):
            return None
        tally, _ = tallies[draw_index(rng, counts)]
        return tally.frame.base, tally.draw(rng)

    def _any_within(self, limits: Limits) -> bool:
        """Whether the base of a frame, which has its fewest MACs and parameters, is within
        limits."""
        if limits not in self._any:
            self._any[limits] = any(limits.allows(frame.base) for frame in self.frames)
        return self._any[limits]

    def _draw_rare(self, rng: random.Random, limits: Limits) -> Draw:
        for _ in range(self.MAX_DRAWS):
            if drawn := self._draw(rng, limits):
                return drawn
        raise ValueError(
            f"limits ({limits}) are met by none of {self.MAX_DRAWS:,} draws from a space too "
            f"large to count; give fewer choices or wider limits"
        )

    def _draw(self, rng: random.Random, limits: Limits) -> Draw | None:
        frame = self.frames[draw_index(rng, self.sizes)]
        classes = frame.draw(rng)
        return (frame.base, classes) if limits.allows_cost(frame.cost(classes)) else None

    def _tallies(self, limits: Limits) -> list[tuple[Tally, int]] | None:
        """Each frame's tally and its count; None if counting takes too long. The latest result is
        kept, as draws under the same limits follow each other."""
        if limits != self._limits:
            budget, latest = self.MAX_WORK, []
            try:
                for frame in self.frames:
                    tally = Tally(frame, *limits.bounds)
                    count, budget = tally.count(budget)
                    latest.append((tally, count))
                self._latest = latest
            except TooManyError:
                self._latest = None
            self._limits = limits
        return self._latest
