"""Evaluation of a network on a table of images, with the same result for any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.loader import contiguous_share, eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.tables import ImageTable
from psvit_ray.export.measures import UNREADABLE, Measure, measures
from psvit_ray.training.distributed import all_gather, all_reduce, rank_and_world_size


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a table of images."""

    measures: dict[str, Measure]
    """The `loss` (mean cross-entropy over the images that can be read, NaN without any) and, in
    percent over all images, what `psvit_ray.export.measures.measures` has; an image that cannot be
    read counts as wrong."""
    correct: np.ndarray
    """Whether each image is classified correctly, (N,) bool in the order of the table."""
    bad: tuple[tuple[int, str], ...]
    """Images that cannot be read: position in the table, reason."""

    @property
    def loss(self) -> float:
        return self.measures["loss"].value

    @property
    def top1(self) -> float:
        """Top-1 in percent."""
        return self.measures["top1"].value

    def values(self, prefix: str) -> dict[str, float]:
        """The measures by name, as `prefix/top1`."""
        return {f"{prefix}/{name}": measure.value for name, measure in self.measures.items()}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    table: ImageTable,
    preprocessing: Preprocessing,
    *,
    num_classes: int,
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
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    # Each image is one worker's, and 0 with the others: a sum puts them together, and changes none.
    answers = torch.zeros(len(table), dtype=torch.int64, device=device)  # class + 1
    margins = torch.zeros(len(table), dtype=torch.float64, device=device)
    bad: list[tuple[int, str]] = []
    for batch in loader:
        bad += batch.bad
        if not len(batch.labels):
            continue
        images, labels, indices = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch.images, *map(torch.from_numpy, (batch.labels, batch.indices)))
        )
        scores = score_batch(model, images, labels, preprocessing, amp=amp)
        sums += scores.loss_sums
        answers[indices] = scores.predictions + 1
        margins[indices] = scores.margins
    all_bad = tuple(sorted(all_gather(bad)))
    predictions = all_reduce(answers).cpu().numpy() - 1
    values = measures_of(
        all_reduce(sums).tolist(),
        table.labels,
        predictions,
        all_reduce(margins).cpu().numpy(),
        num_classes,
    )
    return Evaluation(values, predictions == table.labels, all_bad)


class BatchScores(NamedTuple):
    """What a network says of a batch, on its device."""

    loss_sums: Tensor
    """Sums of the cross-entropies and of their squares, (2,) float64."""
    predictions: Tensor
    """Predicted classes, (B,) int64."""
    margins: Tensor
    """Logit of the second class minus that of the first, (B,) float64, which two classes are told
    apart by."""


def score_batch(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    amp: bool,
) -> BatchScores:
    """Scores for uint8 `images` (B, C, S, S) and `labels` (B,)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        logits = model(preprocessing.normalize(images))
    logits = logits.double()
    losses = F.cross_entropy(logits, labels, reduction="none")
    return BatchScores(
        torch.stack([losses.sum(), losses.square().sum()]),
        logits.argmax(dim=1),
        logits[:, 1] - logits[:, 0],
    )


def measures_of(
    loss_sums: list[float],
    labels: np.ndarray,
    predictions: np.ndarray,
    margins: np.ndarray,
    num_classes: int,
) -> dict[str, Measure]:
    """The measures of what `score_batch` said of all images, (N,) each. `loss_sums` are over all
    that can be read."""
    readable = int((predictions != UNREADABLE).sum())
    mean, mean_square = (total / readable if readable else math.nan for total in loss_sums)
    error = math.sqrt(max(mean_square - mean**2, 0.0) / max(readable, 1))
    return {"loss": Measure(mean, error)} | measures(labels, predictions, num_classes, margins)
