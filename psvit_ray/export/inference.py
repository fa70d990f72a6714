"""What a network answers to images, with or without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.loader import eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.tables import ImageTable


class ScoredBatch(NamedTuple):
    indices: Tensor
    """(B,) int64, in the table."""
    logits: Tensor
    """(B, num_classes) float32, on the host."""
    bad: tuple[tuple[int, str], ...]
    """Images that cannot be read: index in the table, reason."""


def score_batches(
    model: nn.Module,
    table: ImageTable,
    preprocessing: Preprocessing,
    *,
    device: torch.device | None = None,
    batch_size: int = 64,
    processes: int = 0,
    decoder: Decoder = "pil",
) -> Iterator[ScoredBatch]:
    """Every image once, in the order of the table. `model` is on the device, in evaluation mode."""
    device = device or torch.device("cpu")
    loader = eval_loader(
        table,
        preprocessing,
        batch_size,
        processes=min(processes, -(-len(table) // batch_size)),
        decoder=decoder,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        with torch.inference_mode():
            images = batch.images.to(device, non_blocking=True)
            if not len(images):  # attention on a GPU refuses them: the answers to a blank, none
                images = images.new_zeros(1, *images.shape[1:])
            logits = model(preprocessing.normalize(images)).float().cpu()[: len(batch.indices)]
        yield ScoredBatch(batch.indices, logits, batch.bad)


class TopClasses(NamedTuple):
    """The classes that a network finds likeliest, best first."""

    classes: Tensor
    """(B, k) int64."""
    probabilities: Tensor
    """(B, k) float64."""


def top_classes(logits: Tensor, k: int) -> TopClasses:
    """Of (B, num_classes); among equals the first class, as argmax has it."""
    probabilities, classes = (
        logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    )
    return TopClasses(classes[:, :k], probabilities[:, :k])


class Prediction(NamedTuple):
    """To one image: the likeliest classes, best first, or why it cannot be read."""

    classes: list[int]
    probabilities: list[float]
    reason: str = ""


def to_predictions(scored: Iterable[ScoredBatch], k: int) -> Iterator[Prediction]:
    """One for each image, in the order of the table."""
    for indices, logits, bad in scored:
        best = top_classes(logits, k)
        found = {index: Prediction([], [], reason) for index, reason in bad}
        for index, *likeliest in zip(
            indices.tolist(), best.classes.tolist(), best.probabilities.tolist(), strict=True
        ):
            found[index] = Prediction(*likeliest)
        yield from (found[index] for index in sorted(found))
