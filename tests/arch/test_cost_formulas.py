"""Facts that the cost formulas must give; whole models are counted in another file."""

from __future__ import annotations

from typing import Any

import pytest

from psvit_ray.arch.cost import Limits, cost, count_macs, count_params
from psvit_ray.arch.spec import ArchSpec, StageSpec


def stage(dim: int, *groups: int, hidden_dim: int | None = None, num_heads: int = 1) -> StageSpec:
    return StageSpec(
        embed_dim=dim,
        num_heads=num_heads,
        hidden_dim=hidden_dim or 4 * dim,
        share_groups=groups,
    )


def spec(pooling: str, *stages: StageSpec, **fields: Any) -> ArchSpec:
    defaults = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    return ArchSpec.model_validate({**defaults, "pooling": pooling, "stages": stages, **fields})


@pytest.mark.parametrize(
    ("dim", "num_heads", "macs", "params"),
    [
        # timm 1.0's deit_*_patch16_224 without fused attention: torch's FlopCounterMode on the meta
        # device, halved; numel of all parameters.
        (192, 3, 1_253_683_200, 5_717_416),
        (384, 6, 4_598_882_304, 22_050_664),
        (768, 12, 17_563_828_224, 86_567_656),
    ],
)
def test_unpooled_and_unshared_it_costs_what_deit_costs(
    dim: int, num_heads: int, macs: int, params: int
) -> None:
    deit = ArchSpec(pooling="1d", stages=(stage(dim, *[1] * 12, num_heads=num_heads),))
    assert (count_macs(deit), count_params(deit)) == (macs, params)
    assert cost(deit) == (macs, params)


def test_a_network_small_enough_to_count_by_hand() -> None:
    # 2 x 2 patches of 4 pixels, 3 channels, one layer of hidden width 5, 2 classes.
    tiny = spec("2d", stage(3, 1, hidden_dim=5), img_size=4, num_classes=2)
    embed = 4 * 4 * 3
    qkv, maps, proj, mlp = 4 * 3 * 9, 2 * 4 * 4 * 3, 4 * 3 * 3, 2 * 4 * 3 * 5
    assert count_macs(tiny) == embed + qkv + maps + proj + mlp + 3 * 2
    embed = 4 * 3 + 3 + 4 * 3  # weight, bias, positions
    layer = (3 * 9 + 9) + (3 * 3 + 3) + (3 * 5 + 5) + (5 * 3 + 3) + 2 * (3 + 3)
    assert count_params(tiny) == embed + layer + (3 + 3) + (3 * 2 + 2)


@pytest.mark.parametrize(("pooling", "length"), [("2d", 16), ("1d", 17)])
def test_sharing_a_pair_saves_q_k_and_a_map(pooling: str, length: int) -> None:
    own, shared = spec(pooling, stage(24, 1, 1)), spec(pooling, stage(24, 2))
    assert count_macs(own) - count_macs(shared) == 2 * length * 24 * 24 + length * length * 24
    assert count_params(own) - count_params(shared) == 2 * (24 * 24 + 24)


@pytest.mark.parametrize(
    ("pooling", "pool_op", "macs", "params"),
    [
        # From 16 tokens of width 8 to 4 (2d) or 8 (1d, with a class token beside) of width 12.
        ("2d", "conv", 4 * 9 * 96, 9 * 96 + 12),
        ("2d", "max", 16 * 96, 96 + 12),
        ("2d", "avg", 16 * 96, 96 + 12),
        ("1d", "conv", 8 * 3 * 96 + 96, 3 * 96 + 12 + 96 + 12),
        ("1d", "max", 16 * 96 + 96, 96 + 12 + 96 + 12),
        ("1d", "avg", 16 * 96 + 96, 96 + 12 + 96 + 12),
    ],
)
def test_a_pooling_costs_its_convolution(
    pooling: str, pool_op: str, macs: int, params: int
) -> None:
    pooled = cost(spec(pooling, stage(8, 1), stage(12, 1), pool_op=pool_op))
    first = cost(spec(pooling, stage(8, 1)))
    length = 4 if pooling == "2d" else 9
    layer_macs = length * 12 * 144 + 2 * length * length * 12
    layer_params = 12 * 144 + (3 + 1 + 4 + 1) * 12 + 4 * 12
    assert pooled.macs - first.macs == macs + layer_macs + (12 - 8) * 10
    assert pooled.params - first.params == params + layer_params + (12 - 8) * (10 + 2)


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_heads_cost_nothing_and_layer_scale_only_its_gammas(pooling: str) -> None:
    stages = stage(24, 2, 1), stage(36, 3)
    plain = spec(pooling, *stages)
    more_heads = (stage(24, 2, 1, num_heads=8), stage(36, 3, num_heads=6))
    assert cost(spec(pooling, *more_heads)) == cost(plain)
    scaled = cost(spec(pooling, *stages, layer_scale=True))
    assert scaled.macs == count_macs(plain)
    assert scaled.params == count_params(plain) + 3 * 2 * 24 + 3 * 2 * 36


def test_limits_admit_what_costs_exactly_as_much_and_no_more() -> None:
    pooled = spec("2d", stage(8, 2), stage(12, 1))
    macs, params = cost(pooled)
    assert Limits().allows(pooled)
    assert Limits(max_macs=macs, max_params=params).allows(pooled)
    assert not Limits(max_macs=macs - 1).allows(pooled)
    assert not Limits(max_macs=macs, max_params=params - 1).allows(pooled)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="max_macs"):
            Limits.model_validate({"max_macs": wrong})
