"""The search space: a compact set of PSViTs, as a value that a user writes in YAML."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, product
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from psvit_ray.arch.census import Census, Size
from psvit_ray.arch.choices import (
    MAX_CHOICES,
    Choices,
    Choose,
    Flag,
    Parameter,
    StageChoices,
    distinct,
    format_choices,
    is_whole,
)
from psvit_ray.arch.cost import Limits, count_macs, count_params
from psvit_ray.arch.counting import Frame
from psvit_ray.arch.spec import (
    MAX_LAYERS,
    MAX_STAGES,
    ArchSpec,
    Channels,
    Classes,
    Pixels,
    Pooling,
    PoolOp,
    Value,
)
from psvit_ray.text.messages import short_repr

__all__ = ["Limits", "Parameter", "SearchSpace", "Size", "StageChoices"]


NumStages = Annotated[int, Field(strict=True, ge=1, le=MAX_STAGES)]
MAX_COST_CLASSES = 1_000_000
"""Most classes of equal cost in a space, over all its grids, pool operators and numbers of stages:
counting so many takes about a second and 100 MB. A space of three stages with 12 depths, 8 widths
and 3 ratios in each has 0.1 million."""


class SearchSpace(Value):
    """Every PSViT that these choices allow. A spec with k stages uses the first k `stages`.

    Exactly one sequence of decisions (`walk`) leads to a spec, so specs can be counted, drawn
    uniformly and named by flat parameters.
    """

    img_size: Pixels = 224
    """Side of the square images, in pixels; the same for all specs."""
    in_chans: Channels = 3
    """Channels of an image; the same for all specs."""
    num_classes: Classes = 1000
    """Classes that the head distinguishes; the same for all specs."""
    patch_size: Choices[Pixels] = (16,)
    """Patch sizes to choose from, in pixels; each divides `img_size`."""
    pooling: Choices[Pooling]
    """Kinds of token pooling to choose from: `1d` halves a sequence beside a class token, `2d`
    halves each side of the token grid."""
    pool_op: Choices[PoolOp] = ("conv",)
    """Operators of token pooling to choose from: a strided convolution, max or average pooling."""
    layer_scale: Flag = False
    """Whether layers have timm's LayerScale; the same for all specs."""
    stages: Annotated[tuple[StageChoices, ...], Field(min_length=1, max_length=MAX_STAGES)]
    """Choices for each stage."""
    num_stages: Annotated[tuple[NumStages, ...], Field(max_length=MAX_STAGES)] = ()
    """Numbers of stages to choose from; by default the number of `stages`."""

    @field_validator("num_stages")
    @classmethod
    def _within_stages(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        given = len(info.data.get("stages", ()))
        if given and max(value, default=0) > given:
            raise ValueError(
                f"num_stages must be at most the {given} stages given, got {max(value)}"
            )
        return distinct(value) or (given,)

    @model_validator(mode="after")
    def _check_grids(self) -> Self:
        for patch in self.patch_size:
            if self.img_size % patch:
                near = [n for n in range(1, self.img_size + 1) if self.img_size % n == 0]
                raise ValueError(
                    f"patch_size: every choice must divide img_size={self.img_size}, got {patch}; "
                    f"nearest is {min(near, key=lambda n: abs(n - patch))}"
                )
            for pooling in self.pooling:
                grid, num_stages = self.img_size // patch, max(self.num_stages)
                if _max_stages(grid, pooling) < num_stages:
                    raise ValueError(
                        f"patch_size: {patch} on img_size={self.img_size} leaves {grid} x {grid} "
                        f"patches, enough for {_max_stages(grid, pooling)} stages in {pooling}, "
                        f"got num_stages={num_stages}; use a smaller patch_size or fewer stages"
                    )
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        """Checks that the space can be counted, before anything of it is enumerated."""
        used = self.stages[: max(self.num_stages)]
        if (layers := sum(max(stage.depth) for stage in used)) > MAX_LAYERS:
            raise ValueError(
                f"stages: the largest depths must add up to at most {MAX_LAYERS} layers, "
                f"got {layers:,}"
            )
        for name in ("embed_dim", "head_dim", "mlp_ratio"):
            if (choices := len({c for stage in used for c in getattr(stage, name)})) > MAX_CHOICES:
                raise ValueError(
                    f"stages: {name} must have at most {MAX_CHOICES} different choices in all "
                    f"stages together, got {choices:,}"
                )
        up_to = [0, *accumulate(stage.num_classes for stage in used)]
        classes = (
            len(self.pooling)
            * len(self.patch_size)
            * sum(up_to[num] * (len(self.pool_op) if num > 1 else 1) for num in self.num_stages)
        )
        if classes > MAX_COST_CLASSES:
            raise ValueError(
                f"stages: the choices must make at most {MAX_COST_CLASSES:,} stages of "
                f"different cost over all grids and pool operators, got {classes:,}; give fewer "
                "depths, widths or ratios"
            )
        return self

    def walk(self, choose: Choose) -> ArchSpec:
        """The spec that the decisions of `choose(name, choices)` lead to. It is asked in order for
        each parameter that matters and has more than one choice.

        Raises ValueError if `choose` returns what is not among the choices.
        """
        return self._walk(lambda name, c: c[0] if len(c) == 1 else choose(name, c))

    def _walk(self, choose: Choose) -> ArchSpec:
        def decide(name: str, choices: tuple[Parameter, ...]) -> Parameter:
            value = choose(name, choices)
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {format_choices(choices)}, got {short_repr(value)}"
                )
            return choices[choices.index(value)]

        frame: dict[str, Any] = {
            "pooling": decide("pooling", self.pooling),
            "patch_size": decide("patch_size", self.patch_size),
        }
        num_stages = int(decide("num_stages", self.num_stages))
        if num_stages > 1:
            frame["pool_op"] = decide("pool_op", self.pool_op)
        stages = [
            stage.walk(f"stage{i}", decide)
            for i, stage in enumerate(self.stages[:num_stages], start=1)
        ]
        return self._spec(**frame, stages=tuple(stages))

    def decode(self, params: Mapping[str, Parameter]) -> ArchSpec:
        """The spec of flat parameters. Parameters that do not apply are ignored; those with a
        single choice may be missing.

        Raises ValueError if a value is not among the choices or a parameter is missing.
        """

        def look_up(name: str, choices: tuple[Parameter, ...]) -> Parameter:
            if name not in params and len(choices) > 1:
                raise ValueError(f"{name} is missing; it must be one of {format_choices(choices)}")
            return params.get(name, choices[0])

        return self._walk(look_up)

    def encode(self, spec: ArchSpec) -> dict[str, Parameter]:
        """Flat parameters of a spec: each parameter of the space, 0 where it does not apply.

        Raises ValueError, with the reason, if the spec is not in the space.
        """
        decisions: dict[str, Parameter] = {
            "pooling": spec.pooling,
            "patch_size": spec.patch_size,
            "num_stages": len(spec.stages),
        }
        if len(spec.stages) > 1:
            decisions["pool_op"] = spec.pool_op
        for i, (choices, stage) in enumerate(zip(self.stages, spec.stages, strict=False), start=1):
            decisions |= choices.encode(f"stage{i}", stage)
        try:
            other = self.decode(decisions)
        except ValueError as error:
            raise ValueError(f"spec {spec.pattern} is not in the space: {error}") from None
        for name in ArchSpec.model_fields:
            if getattr(other, name) != getattr(spec, name):
                name = "pattern" if name == "stages" else name  # their widths were decided above
                raise ValueError(
                    f"spec {spec.pattern} is not in the space: {name} must be "
                    f"{getattr(other, name)}, got {getattr(spec, name)}"
                )
        return {name: decisions.get(name, 0) for name in self.parameters()}

    def parameters(self) -> dict[str, tuple[Parameter, ...]]:
        """Each parameter's name and its choices."""
        names: dict[str, tuple[Parameter, ...]] = {
            "pooling": self.pooling,
            "patch_size": self.patch_size,
            "num_stages": self.num_stages,
            "pool_op": self.pool_op,
        }
        for i, stage in enumerate(self.stages[: max(self.num_stages)], start=1):
            names |= stage.parameters(f"stage{i}")
        return names

    def contains(self, spec: ArchSpec) -> bool:
        """Whether a spec is in the space."""
        try:
            self.encode(spec)
        except ValueError:
            return False
        return True

    def neighbours(self, spec: ArchSpec) -> list[ArchSpec]:
        """Specs that differ from `spec` in one flat parameter. So do specs with a stage more or
        less: a stage is added with the first of each of its choices and nothing shared.

        The relation is symmetric, and connects the whole space. Raises ValueError as `encode`.
        """
        params = self.encode(spec)
        neighbours = []
        for name, choices in self.parameters().items():
            if name == "num_stages":
                neighbours += [self.decode(other) for other in self._other_stages(params)]
                continue
            for value in choices:
                changed = {**params, name: value}
                if value == params[name]:
                    continue
                try:
                    other = self.decode(changed)
                except ValueError:
                    continue  # a parameter that only now applies has no value
                if self.encode(other) == changed:
                    neighbours.append(other)
        return neighbours

    def _other_stages(self, params: Mapping[str, Parameter]) -> Iterator[dict[str, Parameter]]:
        """Flat parameters of the neighbours with fewer or more stages."""
        now = int(params["num_stages"])
        for num in self.num_stages:
            if num < now:
                fewer = self.encode(self.decode({**params, "num_stages": num}))
                if dict(params) in self._longer(fewer, now):
                    yield fewer
            elif num > now:
                yield from self._longer(params, num)

    def _longer(self, params: Mapping[str, Parameter], num: int) -> list[dict[str, Parameter]]:
        longer = {**params, "num_stages": num}
        for i in range(int(params["num_stages"]), num):
            parameters = self.stages[i].parameters(f"stage{i + 1}")
            longer |= {name: choices[0] for name, choices in parameters.items()}
        if params["num_stages"] != 1:
            return [longer]
        return [{**longer, "pool_op": op} for op in self.pool_op]

    def size(self, limits: Limits | None = None) -> Size:
        """Number of distinct specs within `limits`: exact where counting takes seconds, else an
        estimate from seeded draws, with an interval."""
        return _census(self).size(limits or Limits())

    def sample(self, rng: random.Random, limits: Limits | None = None) -> ArchSpec:
        """A random spec within `limits`, each as likely as any other.

        Raises ValueError, which tells the smallest spec of the space, if none is.
        """
        drawn = _census(self).draw(rng, limits or Limits())
        if drawn is None:
            raise ValueError(self._nothing_within(limits or Limits()))
        frame, classes = drawn
        stages = tuple(
            choices.draw(rng, stage_class)
            for choices, stage_class in zip(self.stages, classes, strict=False)
        )
        return ArchSpec.model_validate({**dict(frame), "stages": stages})

    def smallest(self) -> tuple[ArchSpec, ArchSpec]:
        """The spec of least MACs and the spec of fewest parameters."""
        frames = list(self.frames())
        return min(frames, key=count_macs), min(frames, key=count_params)

    def _nothing_within(self, limits: Limits) -> str:
        macs, params = self.smallest()
        asked = ", ".join(f"{name}={limit:,}" for name, limit in limits if limit is not None)
        return (
            f"no configuration of the space meets {asked}; the smallest that exist have "
            f"{count_macs(macs):,} MACs ({macs.pattern}, {count_params(macs):,} parameters) and "
            f"{count_params(params):,} parameters ({params.pattern}, {count_macs(params):,} MACs)"
        )

    def frames(self) -> Iterator[ArchSpec]:
        """The cheapest spec of each combination of grid, pool operator and number of stages: that
        of least width, depth and maps."""
        for pooling, patch, num in product(self.pooling, self.patch_size, self.num_stages):
            stages = tuple(stage.cheapest() for stage in self.stages[:num])
            for pool_op in self.pool_op if num > 1 else ("conv",):
                yield self._spec(pooling=pooling, patch_size=patch, pool_op=pool_op, stages=stages)

    def _spec(self, **fields: Any) -> ArchSpec:
        return ArchSpec(
            img_size=self.img_size,
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            layer_scale=self.layer_scale,
            **fields,
        )

    def unpooled(self) -> SearchSpace:
        """The space of DeiTs to compare this space with: one stage, nothing shared, a class token,
        and every patch size, width and depth between the least and the most layers here."""
        used = self.stages[: max(self.num_stages)]
        depths = [
            sum(bound(stage.depth) for stage in used[:num])
            for num in self.num_stages
            for bound in (min, max)
        ]
        dims = sorted({dim for stage in used for dim in stage.embed_dim})
        heads = sorted({head for stage in used for head in stage.head_dim})
        ratios = sorted({ratio for stage in used for ratio in stage.mlp_ratio})
        common = math.gcd(*dims)
        largest = max(n for n in range(1, heads[-1] + 1) if common % n == 0)
        stage = StageChoices(
            depth=tuple(range(min(depths), max(depths) + 1)),
            embed_dim=tuple(dims),
            head_dim=tuple(head for head in heads if common % head == 0) or (largest,),
            mlp_ratio=tuple(r for r in ratios if all(is_whole(dim * r) for dim in dims))
            or (float(max(1, round(ratios[-1]))),),
            max_group=1,
        )
        fields = {"pooling": ("1d",), "pool_op": ("conv",), "stages": (stage,), "num_stages": (1,)}
        return SearchSpace.model_validate({**dict(self), **fields})


def _max_stages(grid: int, pooling: Pooling) -> int:
    """Most stages on a grid: each pooling halves (odd numbers round up) its side in 2d, its
    sequence in 1d, until 1 is left."""
    return 1 + ((grid if pooling == "2d" else grid * grid) - 1).bit_length()


@lru_cache(maxsize=16)
def _census(space: SearchSpace) -> Census:
    classes = [stage.classes() for stage in space.stages[: max(space.num_stages)]]
    return Census([Frame(base, classes[: len(base.stages)]) for base in space.frames()])
