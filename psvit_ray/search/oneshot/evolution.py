"""Which specs a one-shot search scores next."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState

from psvit_ray.arch.cost import Limits, cost
from psvit_ray.arch.space import Parameter, SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.oneshot.config import CandidateSampler

Genes = Mapping[str, Parameter]
"""Choices for all parameters of the space, also for those that do not apply to a spec: they may
apply to its offspring."""

MAX_DRAWS = 1_000  # for one that is new, or fast enough, before there is taken to be none
MUTATIONS = 20


@dataclass(frozen=True)
class CostLimits:
    """Limits on the cost of a spec: MACs, parameters and predicted latency."""

    limits: Limits
    latency_ms: Callable[[ArchSpec], float] | None = None
    max_latency_ms: float | None = None

    def excess(self, spec: ArchSpec) -> float:
        """How far the spec is over its limits, as a fraction of the limit; 0 within them."""
        costs, max_cost = cost(spec), self.limits.bounds
        parts = [costs.macs / max_cost[0], costs.params / max_cost[1]]
        if self.latency_ms and self.max_latency_ms:
            parts.append(self.latency_ms(spec) / self.max_latency_ms)
        return max(0.0, max(parts) - 1)


class FixedSpecs:
    """Proposals of the given specs, each once, in one generation."""

    def __init__(self, specs: Sequence[ArchSpec]) -> None:
        self._specs = list(dict.fromkeys(specs))

    def ask(self, max_specs: int) -> list[ArchSpec]:
        return self._specs[:max_specs]

    def tell(self, scores: Sequence[float]) -> None:
        self._specs = []


class Evolution:
    """Proposals of specs in generations: all are within the limits, and each is proposed once.

    The proposals are a function of the arguments and of the scores that were told. A search that
    goes on asks and tells again from the beginning, with the scores that it knows.

    `nsga2` looks for scores up and cost down (Deb et al. 2002, as in Optuna); offspring over the
    limits is changed, one parameter after the other, until it is within. `random` draws each spec
    of the space with equal probability.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: CostLimits,
        *,
        cost_of: Callable[[ArchSpec], float],
        population: int,
        seed: int,
        first: Sequence[ArchSpec] = (),
        sampler: CandidateSampler = "nsga2",
    ) -> None:
        """`first` are specs for the first generation, of which they make up to half.

        Raises ValueError if no spec is within the limits, or fewer than a population are.
        """
        self._space, self._budget, self._cost_of = space, budget, cost_of
        self._population, self._seed, self._sampler = population, seed, sampler
        self._first = [spec for spec in dict.fromkeys(first) if not budget.excess(spec)]
        self._choices = space.parameters()
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(choices) for name, choices in self._choices.items()
        }
        self._known: set[ArchSpec] = set()
        self._asked: list[tuple[ArchSpec, optuna.Trial | None]] = []
        self._generation = 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=["maximize", "minimize"])
        self._check()

    def ask(self, max_specs: int) -> list[ArchSpec]:
        """The next generation: a population, or its first `max_specs`; fewer, in the end none,
        where no more are left.

        So a search that is given more candidates later begins in the same way.
        """
        assert not self._asked, "the last generation has not been told"
        rng = random.Random(f"{self._seed} {self._generation}")
        seed = rng.randrange(2**32)
        self._study.sampler = NSGAIISampler(population_size=self._population, seed=seed)
        if self._generation == 0:
            for spec in self._first[: self._population // 2]:  # the others are chance's
                self._take(spec, self._genes(spec, rng))
        elif self._sampler == "nsga2":
            for genes in [self._offspring() for _ in range(self._population)]:
                self._take_near(genes, rng)
        while len(self._asked) < self._population and (drawn := self._drawn(rng)):
            self._take(drawn, self._genes(drawn, rng))
        self._asked = self._asked[:max_specs]
        return [spec for spec, _ in self._asked]

    def tell(self, scores: Sequence[float]) -> None:
        """Takes the score, higher where it is better, of each spec of the generation that was asked
        for, in its order."""
        for (spec, trial), value in zip(self._asked, scores, strict=True):
            if trial:
                self._study.tell(trial, [value, self._cost_of(spec)])
        self._asked = []
        self._generation += 1

    def _check(self) -> None:
        size = self._space.size(self._budget.limits)
        if size.exact and 0 < size.count < self._population:
            raise ValueError(
                f"population must be at most {size.count:,}, the configurations of the space that "
                f"meet the limits, got {self._population:,}"
            )
        rng = random.Random(0)
        fastest: tuple[float, ArchSpec] | None = None
        for _ in range(MAX_DRAWS):
            spec = self._space.sample(rng, self._budget.limits)
            if not self._budget.excess(spec):
                return
            assert self._budget.latency_ms
            candidate = self._budget.latency_ms(spec), spec
            fastest = min(fastest or candidate, candidate, key=lambda pair: pair[0])
        assert fastest
        raise ValueError(
            f"max_latency_ms must be met by some configuration: of {MAX_DRAWS:,} drawn the fastest "
            f"has {fastest[0]:.3g} ms ({fastest[1].pattern}), got {self._budget.max_latency_ms:g}"
        )

    def _offspring(self) -> dict[str, Parameter]:
        trial = self._study.ask(self._distributions)
        self._study.tell(trial, state=TrialState.FAIL)  # what becomes of it is asked for anew
        return dict(trial.params)

    def _take_near(self, genes: dict[str, Parameter], rng: random.Random) -> None:
        """Takes the spec of the genes, changed until it is within the limits and new."""
        for _ in range(MUTATIONS):
            genes = self._repaired(genes, rng)
            spec = self._space.decode(genes)
            if not self._budget.excess(spec) and spec not in self._known:
                self._take(spec, genes)
                return
            genes = rng.choice(self._changes(genes))

    def _repaired(self, genes: dict[str, Parameter], rng: random.Random) -> dict[str, Parameter]:
        """The genes changed, one parameter after the other, until the spec is within the limits, or
        until no single change brings it nearer."""
        excess = self._budget.excess(self._space.decode(genes))
        while excess:
            changes = self._changes(genes)
            rng.shuffle(changes)
            for other in changes:
                if (now := self._budget.excess(self._space.decode(other))) < excess:
                    genes, excess = other, now
                    break
            else:
                break
        return genes

    def _changes(self, genes: Genes) -> list[dict[str, Parameter]]:
        """All genes that differ in one parameter."""
        return [
            {**genes, name: value}
            for name, choices in self._choices.items()
            for value in choices
            if value != genes[name]
        ]

    def _drawn(self, rng: random.Random) -> ArchSpec | None:
        """A random spec that is new, each as likely as any other, or None if none is found."""
        for _ in range(MAX_DRAWS):
            spec = self._space.sample(rng, self._budget.limits)
            if spec not in self._known and not self._budget.excess(spec):
                return spec
        return None

    def _genes(self, spec: ArchSpec, rng: random.Random) -> dict[str, Parameter]:
        decided = self._space.encode(spec)
        return {
            name: decided[name] if decided[name] in choices else rng.choice(choices)
            for name, choices in self._choices.items()
        }

    def _take(self, spec: ArchSpec, genes: Genes) -> None:
        self._known.add(spec)
        trial = None
        if self._sampler == "nsga2":
            self._study.enqueue_trial(dict(genes))
            trial = self._study.ask(self._distributions)
            trial.relative_params  # noqa: B018  # gives an enqueued one its generation
        self._asked.append((spec, trial))
