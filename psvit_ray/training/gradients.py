"""Gradients over the workers where each step uses other weights, which DDP does not know."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from psvit_ray.training.metrics import rank_and_world_size


def average_gradients(parameters: Iterable[nn.Parameter], dtype: torch.dtype | None = None) -> None:
    """Replaces each gradient by its mean over the workers, in one all-reduce. Those that are there
    must be the same on all. `dtype`: in which they travel, by default their own."""
    _, world_size = rank_and_world_size()
    gradients = [one.grad for one in parameters if one.grad is not None]
    if world_size == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    sent = (flat / world_size).to(dtype or flat.dtype)
    dist.all_reduce(sent)
    for gradient, mean in zip(gradients, sent.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
