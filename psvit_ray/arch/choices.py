"""The choices for one stage of a search space."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from psvit_ray.arch.counting import StageClass, compositions, draw_composition
from psvit_ray.arch.spec import MAX_LAYERS, MAX_WIDTH, Finite, Layers, StageSpec, Value, Width
from psvit_ray.text.messages import shortened

MAX_CHOICES = MAX_LAYERS
"""Most choices for one parameter of a stage: as many as there are depths."""
MAX_LIST_LENGTH = 200
Parameter = int | float | str
Choose = Callable[[str, tuple[Parameter, ...]], Parameter]
"""Makes a decision: takes the name of a parameter and its choices, returns one of them."""
T = TypeVar("T")


def distinct(choices: tuple[T, ...]) -> tuple[T, ...]:
    """`choices`, unchanged. Raises ValueError if one stands there twice."""
    if len(set(choices)) < len(choices):
        raise ValueError(f"choices must be distinct, got {format_choices(choices)}")
    return choices


def format_choices(choices: Sequence[Any]) -> str:
    """Choices as text of bounded length, for a message."""
    return shortened(", ".join(str(choice) for choice in choices), MAX_LIST_LENGTH)


Choices = Annotated[
    tuple[T, ...], Field(min_length=1, max_length=MAX_CHOICES), AfterValidator(distinct)
]
Ratio = Annotated[Finite, Field(strict=True, gt=0, le=MAX_WIDTH)]
Flag = Annotated[bool, Field(strict=True)]


class StageChoices(Value):
    """Choices for one stage: it may be any combination of these, with any sharing of maps."""

    depth: Choices[Layers]
    """Numbers of layers to choose from."""
    embed_dim: Choices[Width]
    """Widths (channels of a token) to choose from."""
    head_dim: Choices[Width]
    """Channels of one head to choose from: num_heads = embed_dim / head_dim."""
    mlp_ratio: Choices[Ratio]
    """Ratios of MLP width to token width to choose from: hidden_dim = embed_dim * mlp_ratio."""
    max_group: Layers | None = None
    """Most layers that may share one attention map: 1 shares nothing, None sets no limit."""

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        for dim, head in product(self.embed_dim, self.head_dim):
            if dim % head:
                near = " or ".join(str(n) for n in (dim - dim % head, dim - dim % head + head) if n)
                raise ValueError(
                    f"every embed_dim must be a multiple of every head_dim: {dim} is not one of "
                    f"{head}; nearest is {near}"
                )
        for dim in self.embed_dim:
            hidden = [dim * ratio for ratio in self.mlp_ratio]
            for ratio, width in zip(self.mlp_ratio, hidden, strict=True):
                if not is_whole(width):
                    raise ValueError(
                        f"embed_dim * mlp_ratio must be a whole number: {dim} * {ratio} is {width};"
                        f" nearest mlp_ratio is {max(1, round(width)) / dim}"
                    )
                if round(width) > MAX_WIDTH:
                    raise ValueError(
                        f"embed_dim * mlp_ratio must be at most {MAX_WIDTH:,}: {dim} * {ratio} is "
                        f"{width:,.0f}"
                    )
            if len({round(width) for width in hidden}) < len(hidden):
                raise ValueError(
                    f"mlp_ratio: choices must give distinct hidden widths, "
                    f"got {format_choices(self.mlp_ratio)} with embed_dim {dim}"
                )
        return self

    def largest_group(self, depth: int) -> int:
        """Most layers under one map in a stage of `depth` layers."""
        return min(self.max_group or depth, depth)

    @property
    def num_classes(self) -> int:
        """Number of `classes()`, counted without making them."""
        ways = sum(len(self._num_groups(depth)) for depth in self.depth)
        return len(self.embed_dim) * len(self.mlp_ratio) * ways

    def classes(self) -> list[StageClass]:
        """All stages that the choices allow, in classes of equal cost."""
        ways = [
            (depth, groups, compositions(depth, groups, self.largest_group(depth)))
            for depth in self.depth
            for groups in self._num_groups(depth)
        ]
        return [
            StageClass(dim, round(dim * ratio), depth, groups, len(self.head_dim) * number)
            for dim, ratio in product(self.embed_dim, self.mlp_ratio)
            for depth, groups, number in ways
        ]

    def _num_groups(self, depth: int) -> range:
        """Numbers of share groups that a stage of `depth` layers may have."""
        return range(-(-depth // self.largest_group(depth)), depth + 1)

    def cheapest(self) -> StageSpec:
        """The stage of least MACs, which is also that of fewest parameters."""
        dim, depth = min(self.embed_dim), min(self.depth)
        full, rest = divmod(depth, self.largest_group(depth))
        return StageSpec(
            embed_dim=dim,
            num_heads=dim // self.head_dim[0],
            hidden_dim=round(dim * min(self.mlp_ratio)),
            share_groups=(self.largest_group(depth),) * full + (rest,) * (rest > 0),
        )

    def draw(self, rng: random.Random, drawn: StageClass) -> StageSpec:
        """A random stage of the class `drawn`, each as likely as any other."""
        dim, hidden_dim, depth, groups, _ = drawn
        return StageSpec(
            embed_dim=dim,
            num_heads=dim // rng.choice(self.head_dim),
            hidden_dim=hidden_dim,
            share_groups=draw_composition(rng, depth, groups, self.largest_group(depth)),
        )

    def walk(self, prefix: str, choose: Choose) -> StageSpec:
        """The stage that the decisions of `choose` lead to. Parameters are named
        `PREFIX.depth`, `PREFIX.embed_dim`, ..., and `PREFIX.shareN` (0 or 1) says whether layer N,
        counted from 1, uses the map of the layer before it."""
        depth = int(choose(f"{prefix}.depth", self.depth))
        dim = int(choose(f"{prefix}.embed_dim", self.embed_dim))
        head_dim = int(choose(f"{prefix}.head_dim", self.head_dim))
        ratio = float(choose(f"{prefix}.mlp_ratio", self.mlp_ratio))
        groups = [1]
        for layer in range(2, depth + 1):
            if groups[-1] < self.largest_group(depth) and choose(f"{prefix}.share{layer}", (0, 1)):
                groups[-1] += 1
            else:
                groups.append(1)
        return StageSpec(
            embed_dim=dim,
            num_heads=dim // head_dim,
            hidden_dim=round(dim * ratio),
            share_groups=tuple(groups),
        )

    def parameters(self, prefix: str) -> dict[str, tuple[Parameter, ...]]:
        """Each parameter's name and choices, in the order of `walk`."""
        share = range(2, max(self.depth) + 1) if self.max_group != 1 else ()
        return {
            f"{prefix}.depth": self.depth,
            f"{prefix}.embed_dim": self.embed_dim,
            f"{prefix}.head_dim": self.head_dim,
            f"{prefix}.mlp_ratio": self.mlp_ratio,
            **{f"{prefix}.share{layer}": (0, 1) for layer in share},
        }

    def encode(self, prefix: str, stage: StageSpec) -> dict[str, Parameter]:
        """The decisions with which `walk` gives `stage`, if it is among the choices."""
        ratio = stage.hidden_dim / stage.embed_dim
        ratio = next(
            (r for r in self.mlp_ratio if round(stage.embed_dim * r) == stage.hidden_dim), ratio
        )
        leaders = {sum(stage.share_groups[:i]) + 1 for i in range(len(stage.share_groups))}
        return {
            f"{prefix}.depth": stage.depth,
            f"{prefix}.embed_dim": stage.embed_dim,
            f"{prefix}.head_dim": stage.embed_dim // stage.num_heads,
            f"{prefix}.mlp_ratio": ratio,
            **{
                f"{prefix}.share{layer}": int(layer not in leaders)
                for layer in range(2, stage.depth + 1)
            },
        }


def is_whole(number: float) -> bool:
    """Whether a number is a whole one, from 1 on, up to rounding."""
    return math.isclose(number, round(number), rel_tol=1e-9) and number > 0.5
