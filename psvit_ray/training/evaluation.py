"""A network's score on a table of images, exact whatever the number of workers."""

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
    """`loss` is the mean over images that can be read; `top1`, in percent, over all: an image that
    cannot be read counts as wrong. `correct` (N,) bool, in the order of the table."""

    loss: float
    top1: float
    correct: Tensor
    bad: tuple[tuple[int, str], ...]
    """Images that cannot be read: index, reason."""


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
    """Every image once over all workers, however many there are; the same answer on each."""
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
            each.to(device, non_blocking=True)
            for each in (batch.images, batch.labels, batch.indices)
        )
        of_batch, right = score_batch(model, images, labels, preprocessing, amp=amp)
        loss += of_batch
        correct[indices] = right.byte()
    everyones = tuple(sorted(all_gather(bad)))
    readable = len(table) - len(everyones)
    total_loss = all_reduce(loss).item() / readable if readable else float("nan")
    correct = all_reduce(correct).bool()
    top1 = 100 * correct.double().mean().item()
    return Evaluation(total_loss, top1, correct.cpu(), everyones)


def score_batch(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    amp: bool,
) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S) as bytes and labels (B,): the sum of the losses in float64, and which are
    classified rightly, (B,) bool."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        logits = model(preprocessing.normalize(images))
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    return loss, logits.argmax(dim=1) == labels
