"""The parts of a network that take time, by name: what is named alike takes as long.

A name holds all that changes the time of a part, in a space of one image size. `tokens` are those
that go in, the class token of `1d` among them. In `2d` they lie channel by channel in memory, as
convolutions leave them, in `1d` token by token, so that the kind of pooling is in every name.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import product

from psvit_ray.arch.choices import StageChoices
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, Pooling, PoolOp, StageSpec


def parts(spec: ArchSpec) -> list[str]:
    """In the order in which they run: embedding, then of each stage its token pooling (none before
    the first) and its share groups, then the last norm and the head."""
    kind, tokens, dim = spec.pooling, _lengths(spec), spec.stages[0].embed_dim
    names = [embed_part(kind, spec.patch_size, dim)]
    for i, stage in enumerate(spec.stages):
        if i > 0:
            names.append(pool_part(kind, spec.pool_op, tokens[i - 1], dim, stage.embed_dim))
        dim = stage.embed_dim
        names += [group_part(kind, tokens[i], stage, size) for size in stage.share_groups]
    return [*names, head_part(kind, tokens[-1], dim)]


def _lengths(spec: ArchSpec) -> list[int]:
    """Tokens of each stage, with the class token."""
    return [patches + (spec.pooling == "1d") for patches in spec.num_tokens]


def embed_part(kind: Pooling, patch_size: int, dim: int) -> str:
    return f"embed {kind} patch={patch_size} dim={dim}"


def pool_part(kind: Pooling, op: PoolOp, num_tokens: int, dim: int, dim_out: int) -> str:
    return f"pool {kind} {op} tokens={num_tokens} dim={dim} out={dim_out}"


def group_part(kind: Pooling, num_tokens: int, stage: StageSpec, size: int) -> str:
    """`size` layers under one attention map, of the widths of `stage`."""
    return (
        f"group {kind} tokens={num_tokens} dim={stage.embed_dim} heads={stage.num_heads} "
        f"hidden={stage.hidden_dim} layers={size}"
    )


def head_part(kind: Pooling, num_tokens: int, dim: int) -> str:
    return f"head {kind} tokens={num_tokens} dim={dim}"


def cover(space: SearchSpace, times: int = 1, *, seed: int = 0) -> list[ArchSpec]:
    """Specs of the space in which every part that it can reach stands at least `times` times.

    Few and shallow ones: each is the spec with the most parts that still lack.
    """
    rng, seen, specs = random.Random(seed), Counter[str](), list[ArchSpec]()

    def lacks(part: str) -> bool:
        return seen[part] < times

    # Longer ones first: they hold most of what is in shorter ones.
    for frame in sorted(space.frames(), key=lambda frame: -len(frame.stages)):
        while any(map(lacks, found := set(parts(spec := _fullest(space, frame, lacks, rng))))):
            specs.append(spec)
            seen.update(found)
    return specs


Way = tuple[float, tuple[StageSpec, ...]]
"""Stages, and what they are worth: 1 for a part that lacks."""


def _fullest(
    space: SearchSpace, frame: ArchSpec, lacks: Callable[[str], bool], rng: random.Random
) -> ArchSpec:
    """The spec with the grid, pool operator and number of stages of `frame` that has most of the
    parts that lack: the best way to each width of a stage goes on from one to a width before."""
    kind, tokens = frame.pooling, _lengths(frame)
    ways: dict[int, Way] = {}
    for i, choices in enumerate(space.stages[: len(frame.stages)]):
        ways_before, ways = ways, {}
        for dim in choices.embed_dim:
            worth, stage = _fullest_stage(choices, kind, tokens[i], dim, lacks, rng)
            if i == 0:
                worth += lacks(embed_part(kind, frame.patch_size, dim))
                before: tuple[StageSpec, ...] = ()
            else:
                entries = [
                    (way[0] + lacks(pool_part(kind, frame.pool_op, tokens[i - 1], old, dim)), way)
                    for old, way in ways_before.items()
                ]
                entry, (_, before) = max(entries, key=lambda entry: entry[0])
                worth += entry
            if i == len(frame.stages) - 1:
                worth += lacks(head_part(kind, tokens[i], dim))
            ways[dim] = worth, (*before, stage)
    stages = max(ways.values(), key=lambda way: way[0])[1]
    return ArchSpec.model_validate({**dict(frame), "stages": stages})


def _fullest_stage(
    choices: StageChoices,
    kind: Pooling,
    num_tokens: int,
    dim: int,
    lacks: Callable[[str], bool],
    rng: random.Random,
) -> tuple[float, StageSpec]:
    options = []
    for head_dim, ratio, depth in product(choices.head_dim, choices.mlp_ratio, choices.depth):
        widths = StageSpec(
            embed_dim=dim,
            num_heads=dim // head_dim,
            hidden_dim=round(dim * ratio),
            share_groups=(1,),
        )
        groups: list[int] = []
        for size in range(1, choices.largest_group(depth) + 1):
            if sum(groups) + size <= depth and lacks(group_part(kind, num_tokens, widths, size)):
                groups.append(size)
        alone = [1] * (depth - sum(groups))
        # What lacks weighs most, then few layers, then chance.
        worth = len(groups) - 0.01 * depth + 0.001 * rng.random()
        rng.shuffle(groups)
        options.append((worth, widths.model_copy(update={"share_groups": (*groups, *alone)})))
    return max(options, key=lambda option: option[0])
