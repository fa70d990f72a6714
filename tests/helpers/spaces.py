"""Small search spaces, and all that is in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from psvit_ray.arch.space import SearchSpace, StageChoices
from psvit_ray.arch.spec import ArchSpec, StageSpec


def choices(**changed: Any) -> StageChoices:
    fields = {"depth": (2,), "embed_dim": (16,), "head_dim": (8,), "mlp_ratio": (2,)}
    return StageChoices.model_validate({**fields, **changed})


def space(*stages: StageChoices, **changed: Any) -> SearchSpace:
    fields = {
        "img_size": 8,
        "in_chans": 1,
        "num_classes": 10,
        "patch_size": (2,),
        "pooling": ("2d",),
        "stages": stages,
    }
    return SearchSpace.model_validate({**fields, **changed})


SPACES = {
    "one stage": space(choices(depth=(1, 3, 5), embed_dim=(16, 32), head_dim=(4, 8, 16))),
    "pairs at most": space(choices(depth=(6,), max_group=2), choices(depth=(4, 1), max_group=3)),
    "all kinds": space(
        choices(depth=(1, 2), embed_dim=(16, 8)),
        choices(depth=(2, 1), mlp_ratio=(3, 1.5)),
        choices(depth=(1, 3), max_group=2),
        patch_size=(1, 2),
        pooling=("2d", "1d"),
        pool_op=("max", "conv"),
        num_stages=(2, 1, 3),
    ),
    "stages left out": space(
        choices(depth=(3,)),
        choices(depth=(1, 2), head_dim=(4, 8)),
        choices(embed_dim=(24, 32)),
        pool_op=("avg", "conv"),
        num_stages=(3, 1),
        layer_scale=True,
    ),
    "nothing shared": space(
        choices(depth=(1, 2, 3), max_group=1), choices(depth=(2,), max_group=1, embed_dim=(24, 32))
    ),
    # The larger patch has fewer MACs, the smaller fewer parameters.
    "two patches": space(
        choices(depth=(1, 2), embed_dim=(8, 16)), in_chans=3, patch_size=(4, 2), pooling=("1d",)
    ),
    "one spec": space(choices(depth=(1,))),
}


def built(given: SearchSpace) -> list[ArchSpec]:
    """Every spec of the space, by loops over its choices and nothing of its own code."""

    def stages(c: StageChoices) -> Iterator[StageSpec]:
        for depth in c.depth:
            for groups in itertools.chain.from_iterable(
                itertools.product(range(1, min(c.max_group or depth, depth) + 1), repeat=n)
                for n in range(1, depth + 1)
            ):
                if sum(groups) == depth:
                    for dim, head, ratio in itertools.product(c.embed_dim, c.head_dim, c.mlp_ratio):
                        yield StageSpec(
                            embed_dim=dim,
                            num_heads=dim // head,
                            hidden_dim=int(dim * ratio),
                            share_groups=groups,
                        )

    specs = []
    for num in given.num_stages:
        filled = itertools.product(*(list(stages(c)) for c in given.stages[:num]))
        frames = itertools.product(
            given.patch_size, given.pooling, given.pool_op if num > 1 else ("conv",)
        )
        for (patch, pooling, op), stack in itertools.product(frames, list(filled)):
            specs.append(
                ArchSpec(
                    img_size=given.img_size,
                    patch_size=patch,
                    in_chans=given.in_chans,
                    num_classes=given.num_classes,
                    pooling=pooling,
                    pool_op=op,
                    layer_scale=given.layer_scale,
                    stages=stack,
                )
            )
    return specs
