"""Inference: logits and predictions of a network for a table of images, with or without labels."""

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
    """Logits of a batch of images."""

    indices: Tensor
    """Positions of the images in the table, (B,) int64."""
    logits: Tensor
    """Logits (B, num_classes), float32 in host memory."""
    bad: tuple[tuple[int, str], ...]
    """Images that cannot be read: position in the table, reason."""


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
    """Logits of each image once, batch by batch, in the order of the table.

    `model` must be on `device`, in evaluation mode; `processes` are DataLoader workers, 0 loads in
    this process.
    """
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
            if not len(images):  # attention on a GPU refuses an empty batch
                images = images.new_zeros(1, *images.shape[1:])
            logits = model(preprocessing.normalize(images)).float().cpu()[: len(batch.indices)]
        yield ScoredBatch(torch.from_numpy(batch.indices), logits, batch.bad)


class TopClasses(NamedTuple):
    """The k classes of highest probability, highest first."""

    classes: Tensor
    """Numbers of the classes, (B, k) int64."""
    probabilities: Tensor
    """Probabilities of the classes, (B, k) float64."""


def top_classes(logits: Tensor, k: int) -> TopClasses:
    """The top `k` classes of logits (B, num_classes); of equal ones the first, as `argmax`."""
    probabilities, classes = (
        logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    )
    return TopClasses(classes[:, :k], probabilities[:, :k])


class Prediction(NamedTuple):
    """The top classes of one image, or the reason why it cannot be read."""

    classes: list[int]
    """Numbers of the classes, highest probability first."""
    probabilities: list[float]
    """Probabilities of the classes."""
    reason: str = ""
    """Reason why the image cannot be read, or empty."""


def to_predictions(scored: Iterable[ScoredBatch], k: int) -> Iterator[Prediction]:
    """A prediction of `k` classes for each image of these batches, in the order of the table."""
    for indices, logits, bad in scored:
        top = top_classes(logits, k)
        predictions = {index: Prediction([], [], reason) for index, reason in bad}
        for index, *classes_and_probabilities in zip(
            indices.tolist(), top.classes.tolist(), top.probabilities.tolist(), strict=True
        ):
            predictions[index] = Prediction(*classes_and_probabilities)
        yield from (predictions[index] for index in sorted(predictions))
