"""Traits that the best candidates of a one-shot search have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from psvit_ray.arch.census import wilson_interval
from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.oneshot.scores import Score, rank_scores
from psvit_ray.search.rows import Row

TOP_SHARE = 0.1
"""Fraction of the candidates that counts as the best."""
MIN_CANDIDATES = 20
"""Number of candidates below which two or fewer would be the best, and traits are noise."""


@dataclass(frozen=True)
class TraitChoice:
    """Frequency of one choice of a trait, where the trait applies: a third stage has no depth in a
    spec of two, the second layer shares nothing in a stage of one."""

    trait: str
    choice: Parameter
    top: int
    """Number of best candidates with this choice."""
    top_of: int
    """Number of best candidates that the trait applies to."""
    all: int
    all_of: int

    @property
    def top_share(self) -> float | None:
        """Share of the choice among the best, in 0 to 1; None where the trait applies to none of
        them."""
        return self.top / self.top_of if self.top_of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `top_share`. It takes candidates for independent draws, which children
        of the same parents are not: the true interval is wider."""
        return wilson_interval(self.top, self.top_of) if self.top_of else None

    @property
    def share(self) -> float:
        """Share of the choice among all candidates, in 0 to 1."""
        return self.all / self.all_of

    @property
    def lift(self) -> float | None:
        """Ratio of the share among the best to the share among all."""
        return None if self.top_share is None else self.top_share / self.share


def traits(spec: ArchSpec) -> dict[str, Parameter]:
    """Each decision that led to the spec, under its name in a search space, and `tokens`, the
    number in each layer of a stage without a class token. `stage1.share2` is 1 where the second
    layer uses the first one's map."""
    values: dict[str, Parameter] = {
        "pooling": spec.pooling,
        "patch_size": spec.patch_size,
        "num_stages": len(spec.stages),
    }
    if len(spec.stages) > 1:
        values["pool_op"] = spec.pool_op
    for number, stage in enumerate(spec.stages, start=1):
        prefix = f"stage{number}"
        values |= {
            f"{prefix}.depth": stage.depth,
            f"{prefix}.embed_dim": stage.embed_dim,
            f"{prefix}.head_dim": stage.embed_dim // stage.num_heads,
            f"{prefix}.mlp_ratio": round(stage.hidden_dim / stage.embed_dim, 3),
            f"{prefix}.tokens": spec.num_tokens[number - 1],
        }
        shares = [int(place > 0) for size in stage.share_groups for place in range(size)]
        values |= {
            f"{prefix}.share{layer}": is_shared
            for layer, is_shared in enumerate(shares[1:], start=2)
        }
    return values


def best_scores(scores: Sequence[Score]) -> list[Score]:
    """The best tenth of the candidates by the ranking metric, at whatever cost."""
    return rank_scores(scores)[: math.ceil(TOP_SHARE * len(scores))]


def trait_choices(scores: Sequence[Score]) -> list[TraitChoice]:
    """Choices by trait, without traits that are alike in all candidates; none with too few
    candidates."""
    if len(scores) < MIN_CANDIDATES:
        return []
    everywhere = _counts(scores)
    among_best = _counts(best_scores(scores))
    return [
        TraitChoice(
            trait,
            choice,
            top=among_best.get(trait, Counter())[choice],
            top_of=among_best.get(trait, Counter()).total(),
            all=counts[choice],
            all_of=counts.total(),
        )
        for trait, counts in sorted(everywhere.items(), key=lambda item: _order(item[0]))
        for choice in sorted(counts)
        if len(counts) > 1
    ]


def _counts(scores: Sequence[Score]) -> dict[str, Counter[Parameter]]:
    counts: dict[str, Counter[Parameter]] = {}
    for score in scores:
        for trait, choice in traits(score.spec).items():
            counts.setdefault(trait, Counter())[choice] += 1
    return counts


def _order(trait: str) -> tuple[str, int]:
    """Sort key of a trait: those of the whole spec first, then stage by stage; layers of a stage
    last and by number."""
    stage, _, name = trait.rpartition(".")
    layer = name.removeprefix("share")
    return stage, int(layer) if layer.isdigit() else 0


def trait_rows(choices: Sequence[TraitChoice]) -> list[Row]:
    """Table of choices. Shares are in percent."""
    table = []
    for choice in choices:
        low, high = choice.interval or (None, None)
        table.append(
            {
                "trait": choice.trait,
                "choice": choice.choice,
                "lift": choice.lift,
                "top_percent": _percent(choice.top_share),
                "top_low": _percent(low),
                "top_high": _percent(high),
                "all_percent": _percent(choice.share),
                "top": choice.top,
                "top_of": choice.top_of,
                "all": choice.all,
                "all_of": choice.all_of,
            }
        )
    return table


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
