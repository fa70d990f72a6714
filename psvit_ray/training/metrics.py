"""Exact totals over workers: sums first, one all-reduce, one division."""

from __future__ import annotations

import torch
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


class Mean:
    """The mean of a loss over all images of all workers, kept on the device until asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, images: int) -> None:
        self._sums[0] += loss_sum.detach()
        self._sums[1] += images

    def value(self) -> float:
        total, images = all_reduce(self._sums.clone()).tolist()
        return total / images
