"""Speed at which training images are loaded, beside the limit and beside timm's loader, in one run.

The limit is bare processes that decode and transform the same images and pass nothing on.
Normalising and erasing, which are done for whole batches on the device, are left out of all three.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import Dataset

from psvit_ray.data.loading.augmentation import Augmentation
from psvit_ray.data.loading.loader import (
    GlobalBatchSampler,
    ImageDataset,
    join_parts,
    num_parts,
    train_loader,
)
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.tables import ImageTable

Rates = dict[str, list[float]]
"""Images/s of each kind, one number a round; index i of all kinds is of the same moment."""


def rates(
    tables: dict[str, ImageTable],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    limit: ImageTable,
    processes: int,
    batch_size: int,
    rounds: int,
) -> Rates:
    """Images/s of this package's loader over each of `tables`, and, as `bare` and `timm`, over
    `limit`, which has the same images. The processes of each are running before; they take turns,
    an epoch each."""
    with _bare(limit, preprocessing, augmentation, processes) as bare:
        works: dict[str, Callable[[], int]] = {"bare": bare}
        timms = _timms(limit, preprocessing, augmentation, processes, batch_size)
        works["timm"] = lambda: sum(_received(images) for images, _ in timms)
        for name, table in tables.items():
            works[name] = _epoch_of_our_loader(
                table, preprocessing, augmentation, processes, batch_size
            )
        images_per_s: Rates = {name: [] for name in works}
        for number in range(rounds + 1):
            for name, work in works.items():
                began = time.perf_counter()
                images = work()
                if number:  # the first starts processes and fills caches
                    images_per_s[name].append(images / (time.perf_counter() - began))
    return images_per_s


def _epoch_of_our_loader(
    table: ImageTable,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    processes: int,
    batch_size: int,
) -> Callable[[], int]:
    parts = num_parts(table, processes)
    sampler = GlobalBatchSampler(
        len(table), batch_size, seed=0, num_parts=parts, blocks=table.blocks, window=4_096
    )
    loader = train_loader(
        ImageDataset(table, preprocessing, augmentation=augmentation),
        sampler,
        processes=processes,
        pin_memory=False,
    )

    def epoch() -> int:
        sampler.set_position(sampler.epoch + 1)
        batches = join_parts(loader, parts, torch.device("cpu"))
        return sum(_received(batch.images) for batch in batches)

    return epoch


def _received(images: Tensor) -> int:
    """Number of images, after reading a byte of every page of their memory: what is never read
    costs less."""
    images.flatten()[::4096].sum()
    return len(images)


class _Decoded(Dataset[tuple[Any, int]]):
    """A table as timm's loader takes it."""

    transform: Any = None

    def __init__(self, table: ImageTable, preprocessing: Preprocessing) -> None:
        self._table, self._preprocessing = table, preprocessing

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self._preprocessing.picture(self._table.read(index))
        return self.transform(picture), int(self._table.labels[index])


def _timms(
    table: ImageTable,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    processes: int,
    batch_size: int,
) -> Any:
    return create_loader(
        cast(Any, _Decoded(table, preprocessing)),
        input_size=(preprocessing.in_chans, preprocessing.img_size, preprocessing.img_size),
        batch_size=batch_size,
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        color_jitter=cast(Any, augmentation.color_jitter or None),
        auto_augment=augmentation.aa or None,
        interpolation=augmentation.train_interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_workers=processes,
        device=torch.device("cpu"),
        persistent_workers=True,
    ).loader


@contextmanager
def _bare(
    table: ImageTable, preprocessing: Preprocessing, augmentation: Augmentation, processes: int
) -> Iterator[Callable[[], int]]:
    """Yields an epoch of processes that divide the images among them and pass nothing on."""
    context = multiprocessing.get_context("fork")  # as torch's DataLoader
    with context.Pool(processes, torch.set_num_threads, (1,)) as pool:
        shares = np.array_split(np.random.default_rng(0).permutation(len(table)), processes)
        work = [(table, preprocessing, augmentation, share) for share in shares]
        yield lambda: sum(pool.starmap(_decode_all, work, chunksize=1))


def _decode_all(
    table: ImageTable, preprocessing: Preprocessing, augmentation: Augmentation, share: np.ndarray
) -> int:
    images = ImageDataset(table, preprocessing, augmentation=augmentation)
    for index in share:
        images.__getitems__(np.array([[index, index]]))
    return len(share)
