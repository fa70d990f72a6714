"""Scores of many specs with the weights of one supernet, on images that are read once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.loader import eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.tables import ImageTable
from psvit_ray.export.measures import UNREADABLE, Measure
from psvit_ray.model import attention_similarity
from psvit_ray.model.supernet import Supernet
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.evaluation import measures_of, score_batch
from psvit_ray.training.state import build_supernet

BATCH = 64
THRESHOLDS = (0.95, 0.9, 0.8, 0.7)
"""Similarities of attention maps from which on layers share a map, one suggestion for each."""


class HoldoutImages(NamedTuple):
    """Hold-out images in memory, as `Preprocessing` makes them: arrays, which processes of a host
    share."""

    images: np.ndarray
    """Images, (N, C, S, S) uint8."""
    labels: np.ndarray
    """Labels, (N,) int64."""
    unreadable: np.ndarray
    """Labels of images that cannot be read, (M,) int64; they count as wrong."""


def read_holdout(
    table: ImageTable, preprocessing: Preprocessing, *, processes: int = 0, decoder: Decoder = "pil"
) -> HoldoutImages:
    """The images of a table, decoded by `processes` loader processes (0: in this one).

    Raises ValueError where no image of the table can be read.
    """
    batches = list(eval_loader(table, preprocessing, 256, processes=processes, decoder=decoder))
    images = np.concatenate([batch.images.numpy() for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    if not len(labels):
        raise ValueError(f"none of the {len(table):,} hold-out images can be read")
    bad = [index for batch in batches for index, _ in batch.bad]
    return HoldoutImages(images, labels, table.labels[bad])


class SubnetScorer:
    """A trained supernet and the images on which its subnets are scored."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        held_out: HoldoutImages,
        *,
        device: torch.device,
        batch_size: int = 256,
        amp: bool = False,
    ) -> None:
        self._supernet = load_supernet(checkpoint).to(device)
        self._preprocessing = checkpoint.run.preprocessing
        self._num_classes = len(checkpoint.run.class_names)
        self._held_out, self._device = held_out, device
        self._batch_size, self._amp = batch_size, amp

    @torch.inference_mode()
    def score(self, spec: ArchSpec) -> dict[str, Measure]:
        """The measures of a spec with the supernet's weights, as `Evaluation.measures`. Raises
        ValueError for a spec of another space."""
        images, labels, unreadable = self._held_out
        sums = torch.zeros(2, dtype=torch.float64)
        predictions, margins = [], []

        def subnet(x: Tensor) -> Tensor:
            logits: Tensor = self._supernet(x, spec)
            return logits

        for start in range(0, len(labels), self._batch_size):
            batch = slice(start, start + self._batch_size)
            # Copied: what processes share can only be read.
            x, y = (torch.tensor(each[batch]).to(self._device) for each in (images, labels))
            scores = score_batch(subnet, x, y, self._preprocessing, amp=self._amp)
            sums += scores.loss_sums.cpu()
            predictions.append(scores.predictions.cpu().numpy())
            margins.append(scores.margins.cpu().numpy())
        return measures_of(
            sums.tolist(),
            np.concatenate([labels, unreadable]),
            np.concatenate([*predictions, np.full(len(unreadable), UNREADABLE)]),
            np.concatenate([*margins, np.zeros(len(unreadable))]),
            self._num_classes,
        )


def suggested_sharings(
    checkpoint: Checkpoint, held_out: HoldoutImages, specs: Iterable[ArchSpec]
) -> list[ArchSpec]:
    """The specs with sharings that their attention maps in the supernet suggest.

    For each spec and each threshold, layers whose maps are at least so similar share one, as far as
    the space has that sharing.
    """
    configuration, preprocessing = checkpoint.run.configuration, checkpoint.run.preprocessing
    supernet = load_supernet(checkpoint)
    suggested: dict[ArchSpec, None] = {}
    for spec in specs:
        images = preprocessing.normalize(torch.tensor(held_out.images))
        alike = attention_similarity.measure_redundancy(supernet.extract(spec), images.split(BATCH))
        for threshold in THRESHOLDS:
            other = spec.with_pattern(attention_similarity.propose(alike.similarity, threshold))
            if configuration.supernet and configuration.supernet.space.contains(other):
                suggested[other] = None
    return list(suggested)


def load_supernet(checkpoint: Checkpoint) -> Supernet:
    """The supernet of a checkpoint, with the weights that are evaluated (EMA where there is one).
    Raises ValueError for a checkpoint of a single network."""
    configuration = checkpoint.run.configuration
    if configuration.supernet is None:
        raise ValueError(
            f"checkpoint must be of a supernet, got one of {configuration.spec.pattern}"
        )
    supernet = build_supernet(configuration.supernet, configuration.train)
    supernet.load_state_dict(checkpoint.evaluated)
    return supernet.eval()
