"""Collectives over all workers of a run; outside a process group they return their argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world_size() -> tuple[int, int]:
    """This worker's rank and the number of workers; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce(sums: Tensor) -> Tensor:
    """Sums a tensor over all workers, in place, on every worker. Metrics are summed first and
    divided once."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def all_gather(items: list[Any]) -> list[Any]:
    """Items of all workers, on every worker, in the order of ranks."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return items
    by_rank: list[list[Any]] = [[] for _ in range(world_size)]
    dist.all_gather_object(by_rank, items)
    return [item for rank_items in by_rank for item in rank_items]


def average_gradients(parameters: Iterable[nn.Parameter], dtype: torch.dtype | None = None) -> None:
    """Replaces each gradient by its mean over the workers, in one all-reduce.

    It serves networks whose steps use other weights each time, which DDP cannot do. The parameters
    that have a gradient must be the same on all workers. Gradients are sent as `dtype`, by default
    their own.
    """
    _, world_size = rank_and_world_size()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    sent = (flat / world_size).to(dtype or flat.dtype)
    dist.all_reduce(sent)
    for gradient, mean in zip(gradients, sent.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
