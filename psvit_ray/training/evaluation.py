"""A network's score on a data set, exact whatever the number of workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit_ray.data.loader import eval_loader
from psvit_ray.data.sources import ImageDataset
from psvit_ray.training.metrics import all_reduce, rank_and_world_size


@dataclass(frozen=True)
class Evaluation:
    """`top1` in percent; `correct` (N,) bool, in the order of the data set."""

    loss: float
    top1: float
    correct: Tensor


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    device: torch.device | None = None,
    batch_size: int = 64,
    amp: bool = False,
) -> Evaluation:
    """Every image once over all workers, however many there are; the same answer on each."""
    device = device or torch.device("cpu")
    rank, world_size = rank_and_world_size()
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(len(dataset), dtype=torch.uint8, device=device)
    mine = correct[rank::world_size]  # a view: what is written here stands in `correct`
    done = 0
    for images, labels in eval_loader(dataset, batch_size, rank=rank, world_size=world_size):
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(images)
        loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        mine[done : done + len(labels)] = logits.argmax(dim=1) == labels
        done += len(labels)
    total_loss = all_reduce(loss).item() / len(dataset)
    correct = all_reduce(correct).bool()
    return Evaluation(total_loss, 100 * correct.double().mean().item(), correct.cpu())
