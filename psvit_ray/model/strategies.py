"""Check of the fixed rule for attention maps (`layers.choose_strategy`) on this device."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from psvit_ray.arch.latency import Conditions
from psvit_ray.arch.spec import ArchSpec, Count, StageSpec, Value
from psvit_ray.model.layers import Block, Strategy, choose_strategy, run_group
from psvit_ray.model.psvit import group_sizes
from psvit_ray.model.timing import WARM_UP, time_pieces, torch_device

STRATEGIES: tuple[Strategy, ...] = ("explicit", "fused")


class StrategyTiming(Value):
    """A share group, timed with both strategies."""

    num_tokens: Count
    stage: StageSpec
    """Widths and size of the group, as a stage of this one group."""
    gradients: bool
    """Whether a backward pass was timed too."""
    chosen: Literal["explicit", "fused"]
    """Strategy that the rule chooses."""
    ratio: float
    """Median ratio of the time of the chosen strategy to that of the other."""


def check_strategies(specs: Sequence[ArchSpec], conditions: Conditions) -> list[StrategyTiming]:
    """Times both strategies for each number of tokens and size of group in these specs, in the
    narrowest and the widest layers there, without and with gradients."""
    return [
        _timing(num_tokens, stage, gradients, conditions)
        for num_tokens, stage in _groups(specs)
        for gradients in (False, True)
    ]


def _groups(specs: Sequence[ArchSpec]) -> list[tuple[int, StageSpec]]:
    groups: dict[tuple[int, int], set[StageSpec]] = defaultdict(set)
    for spec in specs:
        for patches, stage in zip(spec.num_tokens, spec.stages, strict=True):
            for size in stage.share_groups:
                alone = stage.model_copy(update={"share_groups": (size,)})
                groups[patches + (spec.pooling == "1d"), size].add(alone)

    def width(stage: StageSpec) -> tuple[int, int, int]:
        return stage.embed_dim, stage.hidden_dim, stage.num_heads

    return [
        (num_tokens, stage)
        for (num_tokens, _), stages in sorted(groups.items())
        for stage in dict.fromkeys((min(stages, key=width), max(stages, key=width)))
    ]


def _timing(
    num_tokens: int, stage: StageSpec, gradients: bool, conditions: Conditions
) -> StrategyTiming:
    device, half = torch_device(conditions), conditions.dtype == "bfloat16"
    shape = (conditions.batch_size, num_tokens, stage.embed_dim)
    x, y = (torch.randn(shape, device=device) for _ in range(2))

    def work(strategy: Strategy) -> Callable[[Tensor], Tensor]:
        group = [
            Block(
                stage.embed_dim,
                stage.num_heads,
                stage.hidden_dim,
                group_size=size,
                strategy=strategy,
            ).to(device)
            for size in group_sizes(stage)
        ]
        weights = [weight for block in group for weight in block.parameters()]

        def work(x: Tensor) -> Tensor:
            with (
                torch.inference_mode(not gradients),
                torch.autocast(device.type, torch.bfloat16, enabled=half),
            ):
                out = run_group(group, x)
            if gradients:
                torch.autograd.grad(out, weights, y.to(out.dtype))
            return out

        return work

    works = {strategy: work(strategy) for strategy in STRATEGIES}
    rounds = [
        {strategy: time_pieces([work], x)[0] for strategy, work in works.items()}
        for _ in range(WARM_UP + conditions.rounds * conditions.times)
    ]
    chosen = choose_strategy(
        device.type,
        torch.bfloat16 if half else torch.float32,
        num_tokens,
        stage.depth,
        gradients=gradients,
    )
    other: Strategy = "fused" if chosen == "explicit" else "explicit"
    ratios = [times[chosen] / times[other] for times in rounds[WARM_UP:]]
    return StrategyTiming(
        num_tokens=num_tokens,
        stage=stage,
        gradients=gradients,
        chosen=chosen,
        ratio=statistics.median(ratios),
    )
