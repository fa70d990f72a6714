"""The architecture of a PSViT as a value: where tokens are pooled, which layers share a map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from psvit_ray.text.messages import nearest, short_repr

MAX_LAYERS = 256
"""Most layers of a spec: five times those of the deepest vision transformers in use (CaiT-M48,
ViT-e's 56). Counting a search space takes time with the square of the depth."""
MAX_STAGES = 32
"""Most stages of a spec: no grid of `MAX_IMG_SIZE` can be pooled more often."""
MAX_WIDTH = 65_536
"""Most channels of a layer: ViT-22B has 6,144, and 24,576 in its MLP."""
MAX_IMG_SIZE = 16_384
"""Most pixels along a side of an image or a patch."""
MAX_CHANNELS = 1_024
"""Most channels of an image: hyperspectral cameras have some hundreds."""
MAX_CLASSES = 1_000_000
"""Most classes: ImageNet-21k has 21,841."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A float that is neither infinite nor NaN, which passes every comparison of pydantic's."""
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
Width = Annotated[int, Field(strict=True, ge=1, le=MAX_WIDTH)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=MAX_IMG_SIZE)]
Channels = Annotated[int, Field(strict=True, ge=1, le=MAX_CHANNELS)]
Classes = Annotated[int, Field(strict=True, ge=1, le=MAX_CLASSES)]
Pooling = Literal["1d", "2d"]
PoolOp = Literal["conv", "max", "avg"]


class Value(BaseModel):
    """A frozen pydantic model that refuses unknown fields and names the nearest known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Puts each field's docstring on one line, as tyro prints its line breaks in `--help`."""
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split()) or None

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        known = cls.model_fields
        if isinstance(data, dict) and not data.keys() <= known.keys():
            name = next(name for name in data if name not in known)
            raise ValueError(
                f"unknown field {short_repr(name)}; nearest is {nearest(name, known)!r}"
            )
        return data


class StageSpec(Value):
    """Layers on one token grid. `share_groups=(1, 2)`: one layer alone, then two under one map.

    Groups cannot cross a stage, so a layer never uses a map of another grid.
    """

    embed_dim: Width
    """Channels of a token."""
    num_heads: Width
    """Attention heads; they divide `embed_dim`."""
    hidden_dim: Width
    """Channels of the MLP's hidden layer."""
    share_groups: Annotated[tuple[Layers, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    """Sizes of the share groups: consecutive layers that use one attention map."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.embed_dim % self.num_heads:
            low = self.embed_dim - self.embed_dim % self.num_heads
            near = " or ".join(str(n) for n in (low, low + self.num_heads) if n)
            raise ValueError(
                f"embed_dim must be a multiple of num_heads={self.num_heads}, "
                f"got {self.embed_dim}; nearest is {near}"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(self.share_groups)


class ArchSpec(Value):
    """A whole architecture: everything that changes the function the network computes, and no more.

    A token pooling stands between stages. Rates that act only in training (dropout, stochastic
    depth) belong to the training configuration.
    """

    img_size: Pixels = 224
    """Side of the square images, in pixels."""
    patch_size: Pixels = 16
    """Side of a patch, in pixels; it divides `img_size`."""
    in_chans: Channels = 3
    """Channels of an image."""
    num_classes: Classes = 1000
    """Classes that the head distinguishes."""
    pooling: Pooling
    """Kind of token pooling: `1d` halves a sequence beside a class token, `2d` halves each side of
    the token grid."""
    pool_op: PoolOp = "conv"
    """Operator of the token poolings: a strided convolution, or max or average pooling."""
    layer_scale: bool = False
    """Whether layers have timm's LayerScale."""
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=MAX_STAGES)]
    """Stages from input to output."""

    @model_validator(mode="before")
    @classmethod
    def _no_pool_no_operator(cls, data: Any) -> Any:
        # One function must have one spec: where nothing is pooled, the operator means nothing.
        stages = data.get("stages") if isinstance(data, dict) else None
        is_unpooled = isinstance(stages, (list, tuple)) and len(stages) == 1
        if is_unpooled and data.get("pool_op") in get_args(PoolOp):
            return {name: value for name, value in data.items() if name != "pool_op"}
        return data

    @field_validator("layer_scale", mode="before")
    @classmethod
    def _only_true_or_false(cls, value: Any) -> Any:
        if not isinstance(value, bool):
            raise ValueError(f"layer_scale must be true or false, got {short_repr(value)}")
        return value

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.img_size % self.patch_size:
            low = self.img_size - self.img_size % self.patch_size
            near = " or ".join(str(n) for n in (low, low + self.patch_size) if n)
            raise ValueError(
                f"img_size must be a multiple of patch_size={self.patch_size}, "
                f"got {self.img_size}; nearest is {near}"
            )
        tokens = self.num_tokens
        for stage, before in enumerate(tokens[:-1]):
            if before == 1:
                raise ValueError(
                    f"stages: a grid of 1 token cannot be pooled again (before stage {stage + 2} "
                    f"of {len(self.stages)}); use fewer stages or a patch_size below "
                    f"{self.patch_size}"
                )
        return self

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        if self.depth > MAX_LAYERS:
            raise ValueError(
                f"stages: share_groups must add up to at most {MAX_LAYERS} layers, "
                f"got {self.depth:,}"
            )
        return self

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.img_size // self.patch_size

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Number of patch tokens in each stage, without the class token of `1d`. A pooling rounds
        odd numbers up."""
        size = self.grid_size if self.pooling == "2d" else self.grid_size**2
        sizes = [size]
        for _ in self.stages[1:]:
            sizes.append(-(-sizes[-1] // 2))
        return tuple(n * n for n in sizes) if self.pooling == "2d" else tuple(sizes)

    @property
    def depth(self) -> int:
        """Number of layers of all stages."""
        return sum(stage.depth for stage in self.stages)

    @property
    def pattern(self) -> str:
        """Pooling and sharing as text, such as `2-2|2-1-2|2`: `|` is a token pooling, a number is
        the size of a share group."""
        return format_pattern([stage.share_groups for stage in self.stages])

    @property
    def is_deit(self) -> bool:
        """Whether this is a DeiT: nothing is pooled or shared, and there is a class token."""
        return self.pooling == "1d" and set(self.pattern) <= set("1-")

    def to_json(self) -> str:
        """Canonical JSON. Fields at their defaults are left out, so that a field added later
        changes neither this text nor `spec_id`."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ArchSpec:
        """The spec of `to_json`'s text. Raises pydantic's ValidationError for any other text."""
        return cls.model_validate_json(text)

    @property
    def spec_id(self) -> str:
        """Short name of the architecture: equal specs have equal ids, on any machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]

    def with_pattern(self, pattern: str) -> ArchSpec:
        """A spec with this one's widths and another pattern: stage i of the pattern takes the
        widths of stage i here.

        Raises ValueError if the pattern cannot be parsed or has more stages than this spec.
        """
        groups = parse_pattern(pattern)
        if len(groups) > len(self.stages):
            raise ValueError(
                f"pattern {short_repr(pattern)} has {len(groups)} stages, but the base spec gives "
                "the "
                f"widths of {len(self.stages)}"
            )
        stages = tuple(
            stage.model_copy(update={"share_groups": group})
            for stage, group in zip(self.stages, groups, strict=False)
        )
        return ArchSpec.model_validate({**dict(self), "stages": stages})


def format_pattern(groups: Sequence[Sequence[int]]) -> str:
    """The pattern of the share groups of each stage; the inverse of `parse_pattern`."""
    return "|".join("-".join(str(size) for size in stage) for stage in groups)


def parse_pattern(text: str) -> tuple[tuple[int, ...], ...]:
    """Share groups of each stage: `"2-2|2-1-2|2"` becomes `((2, 2), (2, 1, 2), (2,))`.

    Raises ValueError that names the character where the text stops being a pattern, or if it has
    more than `MAX_LAYERS` layers.
    """
    stages, position, layers = [], 0, 0
    for stage in text.split("|"):
        groups = []
        for group in stage.split("-"):
            if not (group.isascii() and group.isdigit() and group.strip("0")):
                got = short_repr(group) if group else "nothing"
                raise ValueError(
                    f"pattern {short_repr(text)}: expected a group size of 1 or more at character "
                    f"{position + 1}, got {got} (example: 2-2|2-1-2|2)"
                )
            size = group.lstrip("0")
            # Python does not read integers of thousands of digits.
            layers += int(size) if len(size) <= len(str(MAX_LAYERS)) else MAX_LAYERS + 1
            if layers > MAX_LAYERS:
                raise ValueError(
                    f"pattern {short_repr(text)} must have at most {MAX_LAYERS} layers; it has "
                    "more at "
                    f"character {position + 1}"
                )
            groups.append(int(size))
            position += len(group) + 1
        stages.append(tuple(groups))
    return tuple(stages)
