"""Evaluation of a network on a table of images, with the same result for any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.loader import contiguous_share, eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.tables import ImageTable
from psvit_ray.training.distributed import all_gather, all_reduce, rank_and_world_size


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a table of images."""

    loss: float
    """Mean cross-entropy over the images that can be read."""
    top1: float
    """Top-1 in percent over all images; an image that cannot be read counts as wrong."""
    correct: Tensor
    """Whether each image is classified correctly, (N,) bool in the order of the table."""
    bad: tuple[tuple[int, str], ...]
    """Images that cannot be read: position in the table, reason."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    table: ImageTable,
    preprocessing: Preprocessing,
    *,
    device: torch.device | None = None,
    batch_size: int = 64,
    amp: bool = False,
    processes: int = 0,
    decoder: Decoder = "pil",
) -> Evaluation:
    """Scores of `model` on all images of `table`, shared out over the workers; the same on each.

    `processes` are DataLoader workers of each worker, 0 loads in the worker itself; `amp` is
    bfloat16 autocast.
    """
    device = device or torch.device("cpu")
    rank, world_size = rank_and_world_size()
    model.eval()
    loader = eval_loader(
        table,
        preprocessing,
        batch_size,
        rank=rank,
        world_size=world_size,
        processes=min(
            processes, -(-len(contiguous_share(len(table), rank, world_size)) // batch_size)
        ),
        decoder=decoder,
        pin_memory=device.type == "cuda",
    )
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(len(table), dtype=torch.uint8, device=device)
    bad: list[tuple[int, str]] = []
    for batch in loader:
        bad += batch.bad
        if not len(batch.labels):
            continue
        images, labels, indices = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch.images, batch.labels, batch.indices)
        )
        batch_loss, batch_correct = score_batch(model, images, labels, preprocessing, amp=amp)
        loss += batch_loss
        correct[indices] = batch_correct.byte()
    all_bad = tuple(sorted(all_gather(bad)))
    readable = len(table) - len(all_bad)
    total_loss = all_reduce(loss).item() / readable if readable else float("nan")
    correct = all_reduce(correct).bool()
    top1 = 100 * correct.double().mean().item()
    return Evaluation(total_loss, top1, correct.cpu(), all_bad)


def score_batch(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    amp: bool,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in float64, and whether each image is classified correctly, (B,)
    bool, for uint8 `images` (B, C, S, S) and `labels` (B,)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        logits = model(preprocessing.normalize(images))
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    return loss, logits.argmax(dim=1) == labels
