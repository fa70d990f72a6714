"""Names for the parts of a network whose time a latency table holds: equal names, equal time.

A name holds all that changes the time of a part, for one image size. `tokens` counts the input's
tokens, with the class token of `1d`. The kind of pooling is in every name: in `2d` tokens lie
channel by channel in memory, as convolutions leave them, in `1d` token by token.
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
    """Names of a network's parts in the order in which they run: the embedding, for each stage its
    token pooling (none before the first) and its share groups, then the last norm and the head."""
    kind, tokens, dim = spec.pooling, _lengths(spec), spec.stages[0].embed_dim
    names = [embed_part(kind, spec.patch_size, dim)]
    for i, stage in enumerate(spec.stages):
        if i > 0:
            names.append(pool_part(kind, spec.pool_op, tokens[i - 1], dim, stage.embed_dim))
        dim = stage.embed_dim
        names += [group_part(kind, tokens[i], stage, size) for size in stage.share_groups]
    return [*names, head_part(kind, tokens[-1], dim)]


def _lengths(spec: ArchSpec) -> list[int]:
    """Number of tokens in each stage, with the class token."""
    return [patches + (spec.pooling == "1d") for patches in spec.num_tokens]


def embed_part(kind: Pooling, patch_size: int, dim: int) -> str:
    """Name of the patch embedding to `dim` channels."""
    return f"embed {kind} patch={patch_size} dim={dim}"


def pool_part(kind: Pooling, op: PoolOp, num_tokens: int, dim: int, dim_out: int) -> str:
    """Name of the pooling of `num_tokens` tokens from `dim` to `dim_out` channels."""
    return f"pool {kind} {op} tokens={num_tokens} dim={dim} out={dim_out}"


def group_part(kind: Pooling, num_tokens: int, stage: StageSpec, size: int) -> str:
    """Name of a share group of `size` layers with the widths of `stage`."""
    return (
        f"group {kind} tokens={num_tokens} dim={stage.embed_dim} heads={stage.num_heads} "
        f"hidden={stage.hidden_dim} layers={size}"
    )


def head_part(kind: Pooling, num_tokens: int, dim: int) -> str:
    """Name of the last norm and the head."""
    return f"head {kind} tokens={num_tokens} dim={dim}"


def cover(space: SearchSpace, times: int = 1, *, seed: int = 0) -> list[ArchSpec]:
    """Specs of the space that together have each of its parts at least `times` times.

    They are few and shallow: each is the spec with the most parts that are still missing.
    """
    rng, seen, specs = random.Random(seed), Counter[str](), list[ArchSpec]()

    def is_missing(part: str) -> bool:
        return seen[part] < times

    # Specs of more stages first: they hold most parts of those of fewer.
    for frame in sorted(space.frames(), key=lambda frame: -len(frame.stages)):
        while True:
            spec = _fullest(space, frame, is_missing, rng)
            names = set(parts(spec))
            if not any(map(is_missing, names)):
                break
            specs.append(spec)
            seen.update(names)
    return specs


ScoredStages = tuple[float, tuple[StageSpec, ...]]
"""Score of some stages, 1 for each part that is missing, and the stages."""


def _fullest(
    space: SearchSpace, frame: ArchSpec, is_missing: Callable[[str], bool], rng: random.Random
) -> ArchSpec:
    """The spec with the grid, pool operator and number of stages of `frame` that has most missing
    parts. By dynamic programming: for each width of a stage, the best stages up to it continue the
    best ones up to some width of the stage before."""
    kind, tokens = frame.pooling, _lengths(frame)
    ways: dict[int, ScoredStages] = {}
    for i, choices in enumerate(space.stages[: len(frame.stages)]):
        ways_before, ways = ways, {}
        for dim in choices.embed_dim:
            score, stage = _fullest_stage(choices, kind, tokens[i], dim, is_missing, rng)
            if i == 0:
                score += is_missing(embed_part(kind, frame.patch_size, dim))
                before: tuple[StageSpec, ...] = ()
            else:
                entries = [
                    (
                        way[0]
                        + is_missing(pool_part(kind, frame.pool_op, tokens[i - 1], old, dim)),
                        way,
                    )
                    for old, way in ways_before.items()
                ]
                entry, (_, before) = max(entries, key=lambda entry: entry[0])
                score += entry
            if i == len(frame.stages) - 1:
                score += is_missing(head_part(kind, tokens[i], dim))
            ways[dim] = score, (*before, stage)
    stages = max(ways.values(), key=lambda way: way[0])[1]
    return ArchSpec.model_validate({**dict(frame), "stages": stages})


def _fullest_stage(
    choices: StageChoices,
    kind: Pooling,
    num_tokens: int,
    dim: int,
    is_missing: Callable[[str], bool],
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
            if sum(groups) + size <= depth and is_missing(
                group_part(kind, num_tokens, widths, size)
            ):
                groups.append(size)
        alone = [1] * (depth - sum(groups))
        # Missing parts weigh most, then few layers, then chance.
        score = len(groups) - 0.01 * depth + 0.001 * rng.random()
        rng.shuffle(groups)
        options.append((score, widths.model_copy(update={"share_groups": (*groups, *alone)})))
    return max(options, key=lambda option: option[0])
