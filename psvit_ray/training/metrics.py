"""Exact totals over workers: sums first, one all-reduce, one division."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def all_reduce(sums: Tensor) -> Tensor:
    """The sum over all workers, on every worker; alone, `sums` itself."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(found: list[Any]) -> list[Any]:
    """What all workers found, on every worker, by rank. Waits for all."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return found
    everyones: list[list[Any]] = [[] for _ in range(world_size)]
    dist.all_gather_object(everyones, found)
    return [one for each in everyones for one in each]
